"""The commands of the page on classification do what it says, in their order."""

import json
import re
import shlex
from pathlib import Path

import pytest

import tiny
from kdcli.interface import load_study
from shell import kd

PAGE = (Path(__file__).parents[2] / "docs" / "classification.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for kind, body in FENCES if not kind for line in body.splitlines() if line.startswith("kd ")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    tiny.folder(folder / "LM", seed=2)
    for name, count in (("train", 24), ("test", 12)):
        rows = [
            {"text": f"{('go', 'who')[at % 2]} {at} there", "label": ("order", "question")[at % 2]}
            for at in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.full
def test_the_commands_of_the_page_work_in_their_order(home, capsys, monkeypatch):
    assert len(LINES) >= 5
    for line in LINES:
        said = kd(*shlex.split(line)[1:], "--device", "cpu", folder=home)
        assert said.code == 0, (line, said.err)
    labels = load_study(home / "study").labels
    assert labels == ["student, before", "teacher", "logistic regression", "ce", "ce+fkl", "ce+soft_ce", "akl"]
    monkeypatch.chdir(home)
    capsys.readouterr()
    exec(next(body for kind, body in FENCES if kind == "python"))
    assert capsys.readouterr().out.strip() in ("order", "question")
