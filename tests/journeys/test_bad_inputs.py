"""Every wrong input of bad_inputs.toml ends in one line, with its exit code, and changes nothing."""

import hashlib
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import wrong
from shell import Answer, kd, kd_process
from tiny import folder, rows

CASES = tomllib.loads((Path(__file__).parent / "bad_inputs.toml").read_text(encoding="utf-8"))["case"]
SHORT = {
    "TRAIN": wrong.TRAIN,
    "EVAL": shlex.split("eval student --data test.jsonl --device cpu"),
    "COMPARE": shlex.split(
        "compare fkl rkl --teacher teacher --student student --data train.jsonl --eval-data test.jsonl "
        "--max-steps 2 --device cpu -o study"
    ),
}
GIVEN = {"config": "run.yaml", "rows": "rows.jsonl", "csv": "rows.csv"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder in which everything is right."""
    home = tmp_path_factory.mktemp("base")
    folder(home / "teacher", seed=1)
    folder(home / "student", seed=2)
    rows(home / "train.jsonl", 16)
    rows(home / "test.jsonl", 4)
    return home


@pytest.fixture
def home(base, tmp_path) -> Path:
    return shutil.copytree(base, tmp_path / "home")


def arguments(case: dict[str, Any]) -> list[str]:
    words = shlex.split(case["argv"])
    return [*SHORT.get(words[0], words[:1]), *words[1:]]


def prepare(case: dict[str, Any], home: Path) -> None:
    for key, name in GIVEN.items():
        if key in case:
            (home / name).write_text(case[key], encoding="utf-8")
    for name in case.get("prepare", ()):
        wrong.BUILDERS[name](home)


def contents(home: Path) -> dict[str, str]:
    """Digest of every file, and every folder and link, below a folder; locks aside."""
    found = {}
    for path in sorted(home.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != ".lock":
            found[str(path.relative_to(home))] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_dir() and path.name != "__pycache__":
            found[str(path.relative_to(home))] = "folder"
    return {name: digest for name, digest in found.items() if "__pycache__" not in name}


def check(case: dict[str, Any], answer: Answer) -> None:
    assert answer.code == case["exit"], answer.err
    line, *also = answer.error_lines
    assert case["message"] in line
    assert [other.split("]")[0].removeprefix("kd: error[") for other in also] == case.get("also", [])
    assert all(". Fix: " in one for one in answer.error_lines)
    assert "Traceback" not in answer.err
    assert answer.out == ""


ACCOUNT = {"run/status.json", "run/error.log", "run/config.yaml"}
"""Where a run that was begun says how its last start ended."""


def unchanged(before: dict[str, str], after: dict[str, str]) -> None:
    """All that was there is as it was; what is new belongs to the run."""
    assert {name for name in before if after.get(name) != before[name]} <= ACCOUNT
    new = {Path(name).parts[0] for name in set(after) - set(before)}
    assert new <= {"run", "study"}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_a_wrong_input_ends_in_one_line(case, home):
    prepare(case, home)
    before = contents(home)
    check(case, kd(*arguments(case), folder=home))
    unchanged(before, contents(home))


@pytest.mark.parametrize(
    "name", ["DATA-05", *(pytest.param(one, marks=pytest.mark.full) for one in ("CLI-02", "CFG-06"))]
)
def test_so_it_does_in_a_process_of_its_own(name, home):
    case = next(case for case in CASES if case["id"] == name)
    prepare(case, home)
    before = contents(home)
    answer = kd_process(*arguments(case), folder=home)
    check(case, answer)
    assert len(answer.err.splitlines()) == 1
    unchanged(before, contents(home))


def test_nothing_is_wrong_with_the_rest(home):
    assert kd(*wrong.TRAIN, folder=home).code == 0


def test_there_are_enough_and_none_twice():
    names = [case["id"] for case in CASES]
    assert len(names) == len(set(names)) >= 55
    assert set(wrong.BUILDERS) >= {name for case in CASES for name in case.get("prepare", ())}
