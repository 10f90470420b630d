import json

import pytest

import tiny
from kdcli.config.schema import DataConfig
from kdcli.data.choices import check_choices, encode_choices
from kdcli.data.dataset import load_dataset
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError


def row(choices=("ab", "cd"), answer=None, reference="cd"):
    listed = list(choices) if isinstance(choices, tuple) else choices
    return Example((1, 19, 2), 2, "p", (reference,), "test.jsonl line 3", listed, answer)


def load(tmp_path, *rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return load_dataset(str(path), tiny.tokenizer(), DataConfig(**settings), ends=EndTokens((2,)), role="eval")


@pytest.mark.parametrize(
    "fields, right",
    [
        ({"prompt": "p", "completion": "cd"}, 1),
        ({"prompt": "p", "answer": "cd"}, 1),
        ({"prompt": "p", "answer": 1}, 1),
        ({"prompt": "p", "completion": "long words", "answer": "ab"}, 0),
        ({"prompt": "p", "completion": "long words", "answer": 0}, 0),
        ({"instruction": "p", "input": "q", "output": "cd"}, 1),
        ({"instruction": "p", "answer": " cd "}, 1),
    ],
)
def test_any_form_of_row_may_have_choices(tmp_path, fields, right):
    data = load(tmp_path, {**fields, "choices": ["ab", "cd"]}, template="plain")
    assert check_choices(data.examples[0]).right == right


def test_columns_of_other_names_are_mapped(tmp_path):
    data = load(
        tmp_path, {"prompt": "p", "label": "ab", "options": ["ab", "cd"]},
        columns={"choices": "options", "completion": "label"},
    )  # fmt: skip
    assert check_choices(data.examples[0]).texts == ("ab", "cd")


def test_rows_without_choices_stay_as_they_were(tmp_path):
    data = load(tmp_path, {"prompt": "p", "completion": "cd"})
    assert data.examples[0].choices is None


@pytest.mark.parametrize(
    "example, code, what",
    [
        (row(None), "DATA-05", '"choices" is missing'),
        (row("ab"), "DATA-06", "list of texts"),
        (row(("ab", 3)), "DATA-06", "no text"),
        (row(()), "DATA-07", "at least two"),
        (row(("cd",)), "DATA-07", "at least two"),
        (row(("ab", " ")), "DATA-07", "empty"),
        (row(("ab", "cd", " ab")), "DATA-07", "twice"),
        (row(reference="ef"), "DATA-24", "not among the 2 choices"),
        (row(answer="ef"), "DATA-24", "not among"),
        (row(answer=2), "DATA-24", "not among"),
        (row(answer=-1), "DATA-24", "not among"),
        (row(answer=True), "DATA-24", "not among"),
        (row(answer="\x1b[2J"), "DATA-24", "not among"),
    ],
)
def test_choices_that_cannot_be_used_are_one_line(example, code, what):
    with pytest.raises(InputError, match=what) as caught:
        check_choices(example)
    assert caught.value.code == code
    assert caught.value.where == "test.jsonl line 3"
    assert caught.value.exit_code == 3
    assert "\x1b" not in str(caught.value)


def test_choices_are_encoded_without_an_end_token():
    (found,) = encode_choices(tiny.tokenizer(), TokenDataset((row(),)))
    assert found.choices.right == 1
    assert found.context == (1, 19)
    assert found.ids == [[4, 5], [6, 7]]


def test_choices_a_tokenizer_cannot_tell_apart_are_refused():
    with pytest.raises(InputError, match="same tokens") as caught:
        encode_choices(tiny.tokenizer(), TokenDataset((row(("é", "ü"), reference="é"),)))
    assert caught.value.code == "DATA-24"
