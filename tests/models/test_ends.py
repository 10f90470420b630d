"""Everything in a model's folder that names an end token is asked, and what disagrees is said."""

import json
import time

import pytest
import torch
from tokenizers import AddedToken

import tiny
from kdcli.config.schema import DataConfig
from kdcli.data.dataset import load_dataset
from kdcli.end_tokens import EndTokens
from kdcli.loading.session import Session
from kdcli.models import tokenizer as ends
from kdcli.models.load import load_model, save_student
from kdcli.models.tokenizer import answer_key, end_tokens, ends_differ, turn_end
from models.folders import edit

ROWS = len(tiny.WORDS) + 1
TURN = len(tiny.WORDS)
CHATML = "{% for m in messages %}#{{ m.role }}\n{{ m.content }}<turn>\n{% endfor %}"


def tokenizer(template=None, eos="</s>"):
    made = tiny.tokenizer([*tiny.WORDS, "<turn>"])
    made.add_tokens([AddedToken("<turn>", special=True)], special_tokens=True)
    made.eos_token, made.chat_template = eos, template
    return made


def folder(path, *, named, template=None, eos="</s>"):
    tiny.folder(path, words=[*tiny.WORDS, "<turn>"])
    tokenizer(template, eos).save_pretrained(path)
    edit(path / "generation_config.json", eos_token_id=named)
    return path


def test_the_tokenizers_end_token_ends_a_text_beside_that_of_the_generation_config(tmp_path):
    path = folder(tmp_path / "model", named=2, eos="<turn>")
    loaded = load_model(str(path), device=torch.device("cpu"), role="student")
    facts = Session().inspect(str(path))
    assert loaded.ends == facts.ends == EndTokens((2, TURN))
    (note,) = facts.notes
    assert note.endswith(
        """each of "</s>" (generation_config.json), "<turn>" (the tokenizer's eos_token) ends a text"""
    )


def test_the_token_with_which_the_template_ends_an_answer_ends_a_text():
    found, notes = end_tokens(2, tokenizer(CHATML), ROWS, "model")
    assert found == EndTokens((2, TURN))
    assert notes == ('model: each of "</s>" (generation_config.json), "<turn>" (the chat template) ends a text',)
    assert turn_end(tokenizer(CHATML.replace("<turn>", "."))) is None
    plain = tiny.tokenizer([*tiny.WORDS, "<turn>"])
    plain.add_tokens([AddedToken("<turn>", special=False)])
    plain.chat_template = CHATML
    assert turn_end(plain) == TURN, "added, if not as a special token"
    assert turn_end(tokenizer("{{ raise_exception('no') }}")) is None
    assert turn_end(tokenizer()) is None


def test_a_template_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(ends, "_SECONDS", 0.2)
    started = time.monotonic()
    assert turn_end(tokenizer("{% for i in range(99999999) %}{{ i }}{% endfor %}")) is None
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (2, None, (2,)),
        ([2, TURN], None, (2, TURN)),
        (None, TURN, (TURN, 2)),
        (2, TURN, (2, TURN)),
        (2, 7, (2,)),
        (2, 999, (2,)),
        (None, None, (2,)),
    ],
)
def test_a_config_counts_where_it_names_a_special_token(generation, config, expected):
    assert end_tokens(generation, tokenizer(), ROWS, "model", config)[0].ids == expected


def test_all_end_tokens_are_saved_with_a_student_and_found_again(tmp_path):
    path = folder(tmp_path / "model", named=2, eos="<turn>", template=CHATML)
    student = load_model(str(path), device=torch.device("cpu"), role="student")
    save_student(student, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device=torch.device("cpu"), role="student")
    assert again.ends == student.ends == EndTokens((2, TURN))
    assert again.model.generation_config.eos_token_id == [2, TURN]
    assert student.model.generation_config.eos_token_id == 2, "the student itself stays as it is"


def test_a_difference_between_both_models_is_said_by_name(tmp_path):
    student = folder(tmp_path / "student", named=2)
    teacher = folder(tmp_path / "teacher", named=[2, TURN])
    (note,) = Session().pair(str(student), str(teacher)).notes
    assert note == """end tokens differ: the student's texts end at "</s>", the teacher's at "</s>", "<turn>\""""
    pair = tokenizer(), tokenizer()
    assert ends_differ(EndTokens((2, TURN)), EndTokens((TURN, 2)), pair) is None, "their order is no difference"


def test_the_key_of_a_text_follows_from_ends_and_special_tokens():
    plain, more = tiny.tokenizer([*tiny.WORDS, "<turn>"]), tokenizer()
    keys = {answer_key(plain, EndTokens((2,))), answer_key(plain, EndTokens((2, 1))), answer_key(more, EndTokens((2,)))}
    assert len(keys) == 3
    assert answer_key(plain, EndTokens((2, 1))) == answer_key(plain, EndTokens((1, 2)))


def test_a_conversation_is_learnt_up_to_the_token_that_ends_the_turn(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    reader = tokenizer("{% for m in messages %}#{{ m.content }}<turn>\n{% endfor %}#")
    found, _ = end_tokens([2, TURN], reader, ROWS, "model")
    for ends_of, last in ((found, TURN), (EndTokens((2,)), 2)):
        (row,) = load_dataset(str(tmp_path / "rows.jsonl"), reader, DataConfig(), ends=ends_of).examples
        assert row.ids[-1] == last
        assert (TURN in row.ids[row.prompt_length : -1]) == (last == 2)
