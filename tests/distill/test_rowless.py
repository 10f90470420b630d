"""A token that was added to a tokenizer without a row in the model: harmless until a text spells it."""

import json

import pytest

import tiny
from kdcli.config.schema import DataConfig, DistillConfig
from kdcli.distill.run import distill
from kdcli.errors import InputError
from kdcli.events import silent
from kdcli.loading.session import Session


@pytest.fixture
def pair(tmp_path):
    for seed, name in enumerate(("teacher", "student")):
        folder = tiny.folder(tmp_path / name, seed=seed)
        padded = tiny.tokenizer()
        padded.add_special_tokens({"pad_token": "[PAD]"})
        padded.save_pretrained(folder)
    return str(tmp_path / "teacher"), str(tmp_path / "student")


def test_a_padding_token_without_a_row_does_not_stop_a_training(tmp_path, pair):
    teacher, student = pair
    config = DistillConfig.model_validate(
        {
            "teacher": teacher, "student": student, "output": str(tmp_path / "run"),
            "data": {"train": str(tiny.rows(tmp_path / "rows.jsonl", 8))}, "hardware": {"device": "cpu"},
            "train": {"max_steps": 1},
        }
    )  # fmt: skip
    assert distill(config, silent).steps == 1


@pytest.mark.parametrize("rows", [1, 2])
def test_a_text_that_spells_it_is_named(tmp_path, pair, rows):
    teacher, student = pair
    lines = [{"prompt": "say a:", "completion": " a"}] * (rows - 1) + [{"prompt": "a [PAD]", "completion": " b"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Session().pair(student, teacher)
    assert found.vocab == len(tiny.WORDS)
    with pytest.raises(InputError, match=rf'TOK-04.*line {rows}: the text holds "\[PAD\]", id 47, .* 47 embedding'):
        Session().data(str(path), found.reader, DataConfig(), role="train")
