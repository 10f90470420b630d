"""A model that ends its texts with its second end token: all that write, read or measure keep that token."""

import json
import math
from dataclasses import replace

import pytest

import chains
import loopback
import tiny
from chains import END, START, A, B, C
from kdcli.config.schema import (
    DataConfig,
    DistillConfig,
    DoctorConfig,
    EvalConfig,
    EvalSettings,
    GenerateConfig,
    GenerationConfig,
    HardwareConfig,
    ServerConfig,
    TrainConfig,
)
from kdcli.data.alignment import TokenAligner, TokenReader
from kdcli.data.batching import IGNORED
from kdcli.data.dataset import load_dataset
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.demo.synthetic import Task, spread
from kdcli.diagnostics.doctor import Examination, examine_pair
from kdcli.distill.generate import generate
from kdcli.distill.prepare import prepare_run
from kdcli.end_tokens import EndTokens
from kdcli.errors import ExperimentChangedError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.on_policy import DecoderPair, facts_of_answers, sample_answers
from kdcli.evaluation.results import read_results
from kdcli.events import silent
from kdcli.generation.speculative import speculate
from kdcli.loading.info import ModelInfo
from kdcli.loading.session import Session
from kdcli.losses.token_facts import code_of
from kdcli.models.devices import prepare
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.completions import TeacherCompletion, completion_text
from kdcli.sources.teacher import retokenized
from kdcli.sources.teacher_text.remote import RemoteGenerator
from kdcli.storage.run_dir import check_identity
from models.folders import edit

ENDS = EndTokens((END, C))
ENDING = {START: {A: 1.0}, A: {B: 0.5, C: 0.5}, B: {C: 1.0}}
"""A chain that never writes the first of the two."""


@pytest.fixture(scope="module")
def decoder():
    return replace(chains.chain(ENDING), ends=ENDS)


def rows(count=6):
    return TokenDataset(tuple(Example((START, A, END), 1, "", ("a",), f"row {at}") for at in range(count)))


def context(decoder, **changes):
    train = TrainConfig(batch_size=4, max_steps=12, micro_tokens=60)
    parts = {"student": decoder, "teacher": decoder, "vocab": len(chains.WORDS), "longest": 20, **changes}
    return SourceContext(rows(), train, pad_id=0, corpus=rows(), **parts)


@pytest.mark.parametrize(
    "spec",
    [
        "student:max_new_tokens=8",
        "replay:phi=1.0,max_new_tokens=8",
        "rollout:alpha=0.0,rollouts=4,epochs=1,max_new_tokens=8",
        "rollout:alpha=0.2,rollouts=4,epochs=1,max_new_tokens=8",
        "teacher:max_new_tokens=8",
        "teacher:decode=greedy,max_new_tokens=8",
        "teacher:decode=beam,beams=2,max_new_tokens=8",
    ],
)
def test_a_source_trains_on_the_token_that_was_written(decoder, spec):
    last = []
    for batch in build_source(spec).open(context(decoder)).window(0):
        for labels, origin in zip(batch.labels, batch.facts["origin"], strict=True):
            valid = labels != IGNORED
            last += labels[valid][-1:].tolist() if origin[valid][0] != code_of("corpus") else []
    assert last == [C] * 4


def test_the_likelihood_of_a_teachers_text_is_that_of_its_own_tokens(decoder):
    windows = build_source("teacher:decode=greedy,max_new_tokens=8").open(context(decoder))
    for one in windows.pool:
        assert one.nll * one.targets == pytest.approx(math.log(2.0), abs=1e-3), "of the choice after a alone"


def test_own_samples_are_measured_with_the_token_that_was_written(decoder):
    config = GenerationConfig(max_new_tokens=8, temperature=1.0, seeds=(1, 2))
    decoders = DecoderPair(decoder, decoder, config, 4, prepare(HardwareConfig(device="cpu")), silent)
    data = rows(20)
    said = sample_answers(decoder, data, decoders, "student")
    assert all(one.end == C for answers in said for one in answers)
    found = facts_of_answers(said, data, decoders, {"label_logp"})
    assert found.facts["label_logp"].min() > -0.7, "every token that was written is likely"


def test_a_drafted_answer_keeps_the_token_that_was_written(decoder):
    config = GenerationConfig(max_new_tokens=8, temperature=1.0)
    found = [speculate(decoder, decoder, [START], config, draft_tokens=2, seed=0, example=at)[0] for at in range(6)]
    assert {one.end for one in found} == {C}
    assert {one.ids for one in found} <= {(A,), (A, B)}


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize(("reply", "end"), [({"stop_reason": C}, C), ({"stop_reason": None}, END), ({}, END)])
def test_a_served_text_ends_with_the_token_that_the_server_names(decoder, reply, end):
    choice = {"text": "ab", "finish_reason": "stop", **reply}
    with loopback.serving(lambda asked, before: loopback.Reply({"choices": [choice]})) as served:
        facts = ModelInfo("student", decoder.tokenizer, decoder.vocab, ENDS, "digest", "digest", 0)
        generator = RemoteGenerator(ServerConfig(url=served.url, model="m", send="ids"), facts)
        source = build_source("teacher:max_new_tokens=8")
        (one,) = generator.write(source, context(decoder), {0: rows().examples[0]}, {0: [0]})
    assert one.example.ids == (START, A, B, end)


def load(path, response, ends=ENDS, **config):
    path.write_text("".join(json.dumps(row) + "\n" for row in response), encoding="utf-8")
    return load_dataset(str(path), chains.chain(ENDING).tokenizer, DataConfig(**config), ends=ends)


def test_a_row_ends_at_the_first_end_token_that_its_text_holds(tmp_path):
    pairs = [{"prompt": "a", "completion": text} for text in ("bc</s>", "b</s>c", "b")]
    assert [one.ids for one in load(tmp_path / "r.jsonl", pairs).examples] == [(A, B, C), (A, B, END), (A, B, END)]


def test_an_end_token_before_anything_else_ends_nothing_and_is_counted(tmp_path):
    data = load(tmp_path / "r.jsonl", [{"text": "</s>ab"}, {"text": "ab"}], EndTokens((END,)))
    assert [one.ids for one in data.examples] == [(START, END, A, B, END), (START, A, B, END)]
    assert "1 response opened with an end token, which ends nothing there (line 1)" in data.notes


def test_a_translated_response_is_cut_before_whichever_end_token_it_has(tmp_path):
    data = load(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "ab"}])
    reader = TokenReader(chains.chain(ENDING).tokenizer, ENDS, data)
    for end in ENDS.ids:
        assert TokenAligner(reader, reader).align((A, A, B, end), 1, 0).ids == (A, A, B)


LOOPING = {START: {A: 1.0}, A: {B: 1.0}, B: {C: 1.0}, C: {A: 1.0}, END: {END: 1.0}}
"""A chain that never stops where c ends no text."""


def chain_folder(path, eos="</s>"):
    chains.save(LOOPING, path)
    tokenizer = chains.chain(LOOPING).tokenizer
    tokenizer.eos_token = eos
    tokenizer.save_pretrained(path)
    edit(path / "generation_config.json", eos_token_id=END)
    (path.parent / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return path


def evaluated(model, output=None):
    generation = GenerationConfig(max_new_tokens=9, temperature=0.0)
    config = EvalConfig(
        model=str(model), data=DataConfig(eval=str(model.parent / "rows.jsonl")), output=output and str(output),
        evaluation=EvalSettings(metrics=("rougeL", "truncation_rate"), generation=generation), pictures=False,
        hardware=HardwareConfig(device="cpu"),
    )  # fmt: skip
    told = []
    scores = evaluate_run(config, told.append, reuse=True).estimates
    return scores["rougeL"].mean, scores["truncation_rate"].mean, [event.message for event in told]


def test_answers_end_where_the_tokenizer_says_and_the_generation_config_does_not(tmp_path):
    rouge, truncated, told = evaluated(chain_folder(tmp_path / "model", eos="c"))
    assert (rouge, truncated) == (100.0, 0.0)
    assert any('"</s>" (generation_config.json), "c" (the tokenizer\'s eos_token)' in note for note in told)


def test_answers_are_made_anew_when_the_end_tokens_were_corrected(tmp_path):
    model, output = chain_folder(tmp_path / "model"), tmp_path / "eval"
    assert evaluated(model, output)[:2] == (0.0, 100.0)
    assert evaluated(model, output)[:2] == (0.0, 100.0)
    edit(model / "generation_config.json", eos_token_id=[END, C])
    assert evaluated(model, output)[:2] == (100.0, 0.0)
    folders = [path.parent for path in sorted(tmp_path.glob("eval*/results.json"))]
    said = [[json.loads(line) for line in (one / "answers.jsonl").read_text().splitlines()] for one in folders]
    assert [("b", C)] in [[(line["text"], line["end"]) for line in lines] for lines in said]
    for folder, lines in zip(folders, said, strict=True):
        cut = read_results(folder).answers.cut
        assert cut == sum(not line["ended"] for line in lines), "no answers of others stand beside scores"


def test_a_teachers_text_of_other_end_tokens_is_refused(tmp_path):
    model, output = chain_folder(tmp_path / "model"), tmp_path / "text"
    config = GenerateConfig(
        teacher=str(model), source="teacher:decode=greedy,max_new_tokens=9", output=str(output),
        data=DataConfig(train=str(tmp_path / "rows.jsonl")), hardware=HardwareConfig(device="cpu"),
    )  # fmt: skip
    generate(config, silent)
    edit(model / "generation_config.json", eos_token_id=[END, C])
    with pytest.raises(ExperimentChangedError, match=r"TEXT-03.*of other end tokens, prompts or options"):
        generate(config, silent)


def test_a_training_on_own_texts_is_another_experiment_with_other_end_tokens(tmp_path):
    saved = {"loss": "fkl", "end_tokens.student": [END]}
    check_identity(saved, {**saved}, tmp_path)
    check_identity({"loss": "fkl"}, saved, tmp_path)
    with pytest.raises(ExperimentChangedError, match=r"end_tokens.student was \[2\] and is now \[2, 6\]"):
        check_identity(saved, {**saved, "end_tokens.student": [END, C]}, tmp_path)


def test_the_identity_of_a_training_on_own_texts_holds_the_end_tokens_in_force(tmp_path):
    teacher, student = tiny.folder(tmp_path / "t"), tiny.folder(tmp_path / "s", seed=1)
    tiny.rows(tmp_path / "rows.jsonl", 4)
    config = DistillConfig(
        teacher=str(teacher), student=str(student), loss="fkl@student", hardware=HardwareConfig(device="cpu"),
        data=DataConfig(train=str(tmp_path / "rows.jsonl")), train=TrainConfig(max_steps=1),
    )  # fmt: skip
    before = prepare_run(config, Session()).identity
    edit(student / "generation_config.json", eos_token_id=[END, C])
    after = prepare_run(config, Session()).identity
    assert before["end_tokens.student"] == before["end_tokens.teacher"] == [END]
    assert after["end_tokens.student"] == [END, C]
    assert after["end_tokens.teacher"] == [END]


def test_the_token_that_ends_an_answer_is_no_word_of_it(decoder):
    one = TeacherCompletion(Example((START, A, B, C), 1, "", (), "row"), 0, 0, True, 0.1)
    assert completion_text(one, decoder.tokenizer) == "ab"
    assert completion_text(replace(one, ended=False), decoder.tokenizer) == "abc"


@pytest.mark.parametrize(("ends", "expected"), [((END, 4), 4), ((END,), END), ((4, END), 4)])
def test_a_text_of_another_tokenizer_ends_with_the_end_token_of_the_same_name(decoder, ends, expected):
    """The student's c is token 4; where it ends no text of the student, its usual end token stands in."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "c", "a", "b"]
    student = replace(chains.chain(ENDING), tokenizer=tiny.tokenizer(words), ends=EndTokens(ends))
    mine = TokenDataset((Example((START, 5, END), 1, "", ("a",), "row 0"),))
    theirs = TokenDataset((Example((START, A, END), 1, "", ("a",), "row 0"),))
    land = SourceContext(
        mine, TrainConfig(), pad_id=0, student=student, teacher=decoder, vocab=7, teacher_rows=theirs, teacher_vocab=7,
    )  # fmt: skip
    (one,) = retokenized([TeacherCompletion(Example((START, A, B, C), 1, "", (), "row 0"), 0, 0, True, 0.1)], land)
    assert one.example.ids == (START, 5, 6, expected)


def test_doctor_says_how_end_tokens_differ(tmp_path):
    student, teacher = chain_folder(tmp_path / "student"), chain_folder(tmp_path / "teacher")
    edit(teacher / "generation_config.json", eos_token_id=[END, C])
    found = Examination()
    examine_pair(DoctorConfig(student=str(student), teacher=str(teacher)), Session(), found)
    (check,) = [one for one in found.checks if one.name == "pair"]
    assert """the student's texts end at "</s>", the teacher's at "</s>", "c\"""" in check.what


def test_an_answer_is_as_probable_as_with_all_of_its_ends(decoder):
    table = {START: {A: 1.0}, A: {B: 0.5, C: 0.2, END: 0.3}, B: {C: 1.0}}
    model = replace(chains.chain(table), ends=ENDS)
    found = spread("x", model, Task("a", ("b",), (1.0,)), prepare(HardwareConfig(device="cpu")))
    assert found.shares == pytest.approx((0.5,), abs=1e-5)
    both = {A: {B: 1.0}, B: {C: 0.25, END: 0.5, A: 0.25}, START: {A: 1.0}}
    model = replace(chains.chain(both), ends=ENDS)
    found = spread("x", model, Task("a", ("b",), (1.0,)), prepare(HardwareConfig(device="cpu")))
    assert found.shares == pytest.approx((0.75,), abs=1e-5)
