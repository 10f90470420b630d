"""Every command of the page on rows does what it says, in the order of the page."""

import json
import re
import shlex
from pathlib import Path

import pytest

import markov
import tiny
from shell import kd

PAGE = (Path(__file__).parents[2] / "docs" / "rows.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for kind, body in FENCES if not kind for line in body.splitlines() if line.startswith("kd ")]
CODE = "\n\n".join(body for kind, body in FENCES if kind == "python")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    tiny.folder(folder / "S", seed=1)
    tiny.folder(folder / "T", seed=2, max_position_embeddings=1024)
    markov.folder(folder / "M")
    asked = [{"prompt": f"Ask for {word}."} for word in ("colours", "animals", "rivers")]
    (folder / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for name, count in (("train", 24), ("test", 6)):
        rows = [
            {"prompt": f"say {chr(97 + at)}:", "completion": chr(97 + at) * (1 + at % 3), "category": "aabbc"[at % 5]}
            for at in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_commands_of_the_page_work_in_their_order(home):
    assert len(LINES) >= 19
    for line in LINES:
        if "agree=true" in line or "rationale-seqkd" in line:
            continue  # the teacher has to be right, as that of test_rationale_seqkd.py is
        on_cpu = (
            ["--device", "cpu"]
            if any(f" {name} " in line for name in ("score", "distill", "rationales", "generate"))
            else []
        )
        if "--into rows" in line or "text1/" in line:  # the teacher has to write rows
            line = line.replace("./T", "./M").replace("./S", "./M")
        said = kd(*shlex.split(line)[1:], *on_cpu, folder=home)
        assert said.code == 0, (line, said.err)
    assert len((home / "feedback" / "rows.jsonl").read_text().splitlines()) == 7  # ranks 12 to 18 of 24
    asked = (home / "written" / "written" / "1" / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in asked] == ["c"] * 4  # a quota of 8, of which the file has 4
    gathered = json.loads((home / "both" / "rows.jsonl").read_text().splitlines()[0])["scores"]
    assert list(gathered) == ["ifd", "nll", "log_ratio"]


def test_the_class_of_the_page_is_a_score(home):
    head = "from typing import ClassVar\n\nfrom kdcli.scores.base import Score\n\n\n"
    (home / "my_score.py").write_text(head + CODE)
    line = ("data", "score", "--student", "./S", "--data", "train.jsonl", "--by", "./my_score.py:Vowels", "-o", "own")
    assert kd(*line, "--device", "cpu", folder=home).code == 0
    first = json.loads((home / "own" / "rows.jsonl").read_text().splitlines()[0])
    assert list(first["scores"].values()) == [1.0]  # the response is "a"
