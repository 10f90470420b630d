"""``kd data check``: what it says of a file is so."""

import json
import subprocess
import sys

import pytest

import study
import tiny
from kdcli.config.schema import CheckConfig, DataConfig
from kdcli.data.dataset import load_dataset
from kdcli.end_tokens import EndTokens
from kdcli.errors import KDError
from kdcli.rows.check import Lengths, check
from shell import kd

ROWS = [
    {"instruction": "name a color", "input": "", "output": "red", "kind": "open"},
    {"instruction": "name a color", "input": "of the sky", "output": ["blue", "grey"], "kind": "closed"},
    {"instruction": "name a color", "input": "", "output": "green", "kind": "open"},
    {"instruction": "count to two", "input": "", "output": "one\x07 two", "kind": "open"},
    {"instruction": "count to two", "input": "", "output": "one\x07 two", "kind": "closed"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    path.write_text("\n".join([*lines[:2], "{", '{"instruction": "a", "output": ""}', *lines[2:], "[1]"]) + "\n")
    return path


def of(path, **changes):
    return check(CheckConfig(data=DataConfig(train=str(path), **changes)))


def test_rows_columns_bad_lines_and_doubles_are_counted(file):
    found = of(file)
    assert (found.form, found.rows, found.bad_rows) == ("instruction", 5, 3)
    assert [line.partition(":")[0] for line in found.bad] == [f"rows.jsonl line {at}" for at in (3, 4, 8)]
    assert found.used == {"instruction": "instruction", "input": "input", "response": "output"}
    assert found.unused == {"kind": {"open": 3, "closed": 2}}
    assert (found.same_prompt, found.same_row, found.references, found.control) == (2, 1, 1, 2)
    assert found.response == Lengths(3, 5, 8, 8, (3 + 4 + 5 + 8 + 8) / 5)
    assert found.prompt is not None
    assert found.prompt.most == len("name a color\nof the sky")
    assert not found.unanswered


def test_prompts_without_answers_are_no_error(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,topic\nsay a,x\nsay b,x\n")
    found = of(path)
    assert found.unanswered
    assert found.response is None
    assert found.unused == {"topic": {"x": 2}}
    assert "kd generate" in kd("data", "check", str(path)).out


def test_a_column_of_many_values_is_only_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "id": at, "note": "x" * 99}) + "\n" for at in range(40)))
    assert of(path).unused == {"id": {}, "note": {}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("models")).student


@pytest.mark.parametrize("longest", [200, 12, 9])
def test_what_a_model_makes_of_them_is_what_a_training_gets(tmp_path, model, longest):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"say {letter * size}:", "completion": letter * size}
        for letter, size in zip("abcd", (1, 2, 3, 9), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=str(path), max_length=longest)
    found = check(CheckConfig(data=data, student=str(model))).tokens
    assert found is not None
    read = load_dataset(str(path), tiny.tokenizer(), data, ends=EndTokens((2,)))
    cut = sum(one.ids[-1] != 2 for one in read.examples)
    assert (found.rows, found.dropped, found.cut) == (len(read), 4 - len(read), cut)
    assert found.needed == len("say ddddddddd:") + 9 + 1
    whole = check(CheckConfig(data=data.model_copy(update={"max_length": found.needed}), student=str(model))).tokens
    assert whole is not None
    assert (whole.rows, whole.cut, whole.dropped) == (4, 0, 0)
    assert found.ends == (("</s>", 2),)
    assert (found.template, found.start, found.end) == ("plain", "say a:a</s>", "say a:a</s>")
    assert found.response == Lengths(2, 3, 10, 10, (2 + 3 + 4 + 10) / 4)
    assert not found.notes


def test_the_template_is_shown_as_the_model_sees_it(tmp_path):
    folder = tiny.folder(tmp_path / "chat", seed=1)
    text = tiny.tokenizer()
    text.chat_template = (
        "{% for turn in messages %}#{{ turn.content }}{% endfor %}{% if add_generation_prompt %}#{% endif %}"
    )
    text.save_pretrained(folder)
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    said = kd("data", "check", str(path), "--student", str(folder))
    assert said.code == 0, said.err
    assert "template       chat" in said.out
    assert "first row      #hi#ho</s>" in said.out
    assert json.loads(kd("data", "check", str(path), "--student", str(folder), "--json").out)["tokens"]["cut"] == 0


def test_no_library_of_models_is_loaded_without_a_model():
    heavy = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    script = f"import sys; from kdcli.rows.check import check; sys.exit(str({heavy} or ''))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


WRONG = {
    "no file": (("data", "check"), "CLI-20", 2),
    "nowhere": (("data", "check", "nowhere.jsonl"), "DATA-01", 3),
    "no form": (("data", "check", "odd.jsonl"), "DATA-05", 3),
    "all bad": (("data", "check", "bad.jsonl"), "DATA-02", 3),
    "no model": (("data", "check", "good.jsonl", "--student", "nowhere"), "MOD-01", 3),
    "no such field": (("data", "check", "good.jsonl", "--columns", "promt=prompt"), "DATA-05", 2),
    "no length": (("data", "check", "good.jsonl", "--max-length", "0"), "CLI-07", 2),
    "no command": (("data", "chek", "good.jsonl"), "CLI-01", 2),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_end_in_one_line(tmp_path, case):
    line, code, exit_code = WRONG[case]
    (tmp_path / "odd.jsonl").write_text('{"a": "b", "c": "d"}\n')
    (tmp_path / "bad.jsonl").write_text('{"prompt": "", "completion": "d"}\n')
    (tmp_path / "good.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    said = kd(*line, folder=tmp_path)
    assert said.code == exit_code
    assert len(said.error_lines) == 1
    assert f"error[{code}]" in said.err
    assert "Fix:" in said.err


def test_an_unknown_file_is_not_a_bug():
    with pytest.raises(KDError):
        of("nowhere.jsonl")
