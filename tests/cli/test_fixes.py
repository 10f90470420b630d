"""What a message tells the user to type can be typed: every flag, setting and command that a fix names."""

import ast
import functools
import json
import re
from pathlib import Path

import pytest
import typer

import kdcli
import tiny
from kdcli.cli.app import app
from kdcli.config.resolve import iter_settings
from kdcli.config.schema import (
    CacheConfig,
    CompareConfig,
    DistillConfig,
    DoctorConfig,
    EvalConfig,
    GenerateConfig,
    SupernetConfig,
)
from shell import kd

HOME = Path(kdcli.__file__).parent
ROOT = typer.main.get_command(app)
OTHERS = {"cli/launch.py", "distill/fingerprint.py"}
"""Files whose flags are those of accelerate and git."""
OF_OTHERS = {"--max-logprobs"}
"""Flags of other programs that a fix names."""
DATA_COMMANDS = ("distill", "plan", "eval", "compare", "cache", "generate", "doctor", "inspect batch")
SETTINGS = {
    name
    for kind in (
        DistillConfig,
        EvalConfig,
        CompareConfig,
        CacheConfig,
        GenerateConfig,
        DoctorConfig,
        SupernetConfig,
    )
    for name in iter_settings(kind)
}


def commands(command=ROOT, above=()):
    """Every command with its flags."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return {" ".join(above): {name for parameter in command.params for name in parameter.opts} | {"--help"}}
    found = {" ".join(above): {"--help", "--version"}} if above else {}
    for name, one in inner.items():
        found |= commands(one, (*above, name))
    return found


@functools.cache
def sentences():
    """Every text of the sources that is no docstring, as file and text."""
    found = []
    for path in sorted(HOME.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
                found.append((path.relative_to(HOME).as_posix(), node.value))
    return found


def test_every_flag_that_a_text_names_exists():
    known = {flag for flags in commands().values() for flag in flags} | OF_OTHERS
    found = {
        (file, flag)
        for file, text in sentences()
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
        if file not in OTHERS
    }
    assert len(found) > 100
    assert {(file, flag) for file, flag in found if flag not in known} == set()


def test_every_flag_that_a_message_on_data_names_is_one_of_every_command_that_reads_data():
    table = commands()
    for file, text in sentences():
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) if file.startswith("data/") else ():
            lacking = [name for name in DATA_COMMANDS if flag not in table[name] | {"--set"}]
            assert not lacking, f'{file} says "{text}"'


def test_every_setting_that_a_text_sets_exists():
    found = {(file, name) for file, text in sentences() for name in re.findall(r"--set ([a-z_]+\.[a-z_.]+)=", text)}
    assert len(found) > 5
    assert {(file, name) for file, name in found if name not in SETTINGS} == set()


def test_every_command_that_a_text_names_exists():
    table = commands()
    first = {name.split(" ")[0] for name in table}
    found = {
        (file, name)
        for file, text in sentences()
        for name in re.findall(r"(?:^|[(:;,] |(?:run|with|by|see) )kd ([a-z]+)\b", text)
        if file not in OTHERS
    }
    assert len(found) > 10
    assert {(file, name) for file, name in found if name not in first} == set()


GOOD = {"prompt": "say a:", "completion": " aa."}
BAD = {
    "DATA-05": {"prompt": "say a:"},
    "DATA-06": {"prompt": 3, "completion": " a"},
    "DATA-07": {"prompt": "say a:", "completion": " "},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("fixes")
    tiny.folder(made / "teacher", seed=1)
    tiny.folder(made / "student", seed=2)
    for code, bad in BAD.items():
        text = "".join(json.dumps(row) + "\n" for row in (GOOD, bad, GOOD | {"prompt": "say b:"}))
        (made / f"{code}.jsonl").write_text(text)
    return made


@pytest.mark.parametrize("code", BAD)
def test_rows_are_left_out_with_the_flag_that_the_message_names(home, code):
    line = ["plan", "--teacher", "teacher", "--student", "student", "--data", f"{code}.jsonl", "--device", "cpu"]
    refused = kd(*line, folder=home)
    assert refused.code == 3
    assert f"error[{code}]" in refused.err
    (flag,) = re.findall(r"leave such rows out with (--[a-z-]+)", refused.err)
    typed = kd(*line, flag, folder=home)
    assert typed.code == 0, typed.err
    assert "1 bad row left out" in typed.out + typed.err


@pytest.mark.parametrize(
    "line",
    [
        "distill --teacher teacher --student student --data DATA-07.jsonl --max-steps 1 -o run",
        "eval student --data DATA-07.jsonl --metric perplexity",
        "compare fkl rkl --teacher teacher --student student --data DATA-07.jsonl --eval-data DATA-07.jsonl --dry-run",
        "cache --teacher teacher --data DATA-07.jsonl -o kept",
        "generate --teacher teacher --data DATA-06.jsonl --source teacher:max_new_tokens=4 -o text",
        "doctor --teacher teacher --student student --data DATA-07.jsonl",
        "inspect batch fkl --teacher teacher --student student --data DATA-07.jsonl",
    ],
)
def test_every_command_that_reads_rows_takes_it(home, line):
    words = [*line.split(), "--device", "cpu"]
    refused = kd(*words, folder=home)
    assert "--skip-bad" in refused.out + refused.err
    assert refused.code == 3
    typed = kd(*words, "--skip-bad", folder=home)
    assert typed.code == 0, typed.err
