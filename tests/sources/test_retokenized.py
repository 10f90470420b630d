"""The teacher's answers in the student's tokens: what it would have been told had both had one tokenizer."""

import json

import pytest
import torch

import cutters
from kdcli.config.schema import DataConfig, TrainConfig
from kdcli.data.dataset import load_dataset
from kdcli.errors import InputError
from kdcli.models.load import assemble
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.teacher import retokenized, teacher_view

ROWS = [{"prompt": f"say {letter}:", "completion": f" {letter}{letter}."} for letter in "abcdef"]


def model(kind, role, seed):
    made = cutters.model(kind, seed=seed, initializer_range=0.4)
    return assemble(made, cutters.cutter(kind), role, "digest", device=torch.device("cpu"), role=role)


@pytest.fixture(scope="module")
def student():
    return model("bytes-300", "student", 1)


@pytest.fixture(scope="module")
def context(student, tmp_path_factory):
    return make(student, model("fallback", "teacher", 2), tmp_path_factory.mktemp("made"))


def make(student, teacher, folder, longest=100) -> SourceContext:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    mine, theirs = (
        load_dataset(str(path), side.tokenizer, DataConfig(train=str(path)), ends=side.ends)
        for side in (student, teacher)
    )
    same = teacher.tokenizer is student.tokenizer
    return SourceContext(
        mine, TrainConfig(batch_size=3, max_steps=4), pad_id=0, student=student, teacher=teacher,
        vocab=len(student.tokenizer), longest=longest, folder=folder, teacher_rows=None if same else theirs,
        teacher_vocab=None if same else len(teacher.tokenizer),
    )  # fmt: skip


def test_the_teacher_writes_on_ground_of_its_own(context):
    own = teacher_view(context)
    assert own.dataset is context.teacher_rows
    assert own.vocab == len(cutters.cutter("fallback"))
    assert own.longest == context.teacher.positions
    assert teacher_view(own) is own


@pytest.mark.parametrize("spec", ["teacher:max_new_tokens=10,answers=2", "teacher:decode=beam,max_new_tokens=10"])
def test_each_answer_is_the_teachers_words_after_the_rows_prompt(context, student, spec):
    windows = build_source(spec).open(context)
    kept = [json.loads(line) for path in context.folder.glob("*/text.jsonl") for line in path.read_text().splitlines()]
    heard = {(one["row"], one["response"]) for one in kept}
    assert windows.pool
    for one in windows.pool:
        row = context.dataset.examples[one.row]
        cut = one.example.prompt_length
        assert one.example.ids[:cut] == row.ids[: row.prompt_length]
        body = one.example.ids[cut:]
        assert (body[-1] in student.ends) == one.ended
        said = student.tokenizer.decode(body[:-1] if one.ended else body)
        assert (one.row, said) in heard
        assert one.example.references == row.references
        assert one.example.response == ""
    step = windows.window(0)
    assert step
    assert max(batch.input_ids.max().item() for batch in step) < len(student.tokenizer)


def test_texts_without_a_prompt_begin_as_the_students_do(context, student):
    windows = build_source("teacher:prompts=bos,max_new_tokens=10").open(context)
    assert {one.example.ids[:1] for one in windows.pool} == {(student.tokenizer.bos_token_id,)}
    assert {one.example.prompt_length for one in windows.pool} == {1}


def test_with_one_tokenizer_nothing_is_retold(student, tmp_path):
    context = make(student, model("bytes-300", "teacher", 3), tmp_path)
    windows = build_source("teacher:max_new_tokens=10").open(context)
    sentences = list(windows.pool)
    assert retokenized(sentences, context) == sentences


def test_another_student_finds_the_text_that_is_there(context):
    build_source("teacher:max_new_tokens=10").open(context)
    before = sorted(context.folder.glob("teacher-*"))
    other = make(model("bytes-700", "student", 4), context.teacher, context.folder, longest=40)
    windows = build_source("teacher:max_new_tokens=10").open(other)
    assert sorted(context.folder.glob("teacher-*")) == before
    assert max(len(one.example.ids) for one in windows.pool) <= 40


def test_long_answers_are_cut_and_empty_ones_left_out(context, student):
    windows = build_source("teacher:max_new_tokens=10").open(context)
    short = make(
        student, context.teacher, context.folder, longest=max(len(one.ids) for one in context.dataset.examples)
    )
    found = build_source("teacher:max_new_tokens=10").open(short).pool
    assert max(len(one.example.ids) for one in found) <= short.longest
    whole = {(one.row, one.answer): one.example.ids for one in windows.pool}
    assert all(whole[one.row, one.answer][: len(one.example.ids)] == one.example.ids for one in found)
    none = make(student, context.teacher, context.folder, longest=1)
    with pytest.raises(InputError, match="SRC-01"):
        _ = build_source("teacher:max_new_tokens=10").open(none).pool
