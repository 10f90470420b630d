"""Explanations of a teacher, kept where their answer is right, train a student, and the answer alone is scored."""

import json

import pytest

import tiny
from shell import kd

COUNT = 12
SMALL = ("--batch-size", "4", "--device", "cpu", "--threads", "1", "--quiet")
ASKED = "{instruction}\n"
SPEC = "teacher:decode=greedy,max_new_tokens=16"


def rows(path, answers):
    lines = [{"prompt": f"is {chr(97 + at)} it", "completion": answers[at % len(answers)]} for at in range(COUNT)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A teacher that explains everything and always answers y, which is right in every second row."""
    root = tmp_path_factory.mktemp("rationales")
    tiny.folder(root / "raw", seed=1)
    tiny.folder(root / "S", seed=2, hidden_size=8)
    rows(root / "said.jsonl", ["it is. ### y"])
    rows(root / "gold.jsonl", ["Y.", "n"])
    line = ("--student", "raw", "--data", "said.jsonl", "--template", ASKED, "--loss", "ce", "--max-steps", "160")
    made = kd("distill", *line, "--lr", "1e-2", *SMALL, "-o", "T", folder=root)
    assert made.code == 0, made.err
    return root


def generated(home, spec, name):
    line = ("generate", "--teacher", "T/model", "--data", "gold.jsonl", "--template", ASKED, "--source", spec)
    return kd(*line, "--device", "cpu", "--json", "-o", name, folder=home)


def test_explanations_whose_answer_is_the_row_s_own_are_kept(home):
    every = generated(home, SPEC, "text")
    assert every.code == 0, every.err
    assert json.loads(every.out)["rows"] == "text/rows.jsonl"
    kept = generated(home, f"{SPEC},agree=true", "text")
    assert kept.code == 0, kept.err
    found = json.loads(kept.out)
    assert (found["kept"], found["dropped"], found["written"]) == (COUNT // 2, {"disagrees": COUNT // 2}, 0)
    lines = [json.loads(line) for line in (home / "text" / "rows.jsonl").read_text().splitlines()]
    assert [line["made"]["row"] for line in lines] == list(range(0, COUNT, 2))
    assert {line["completion"].strip() for line in lines} == {"it is. ### y"}


def test_where_no_answer_agrees_one_line_says_so(home):
    rows(home / "wrong.jsonl", ["n"])
    line = ("--teacher", "T/model", "--data", "wrong.jsonl", "--template", ASKED, "--source", f"{SPEC},agree=true")
    answer = kd("generate", *line, "--device", "cpu", "-o", "other", folder=home)
    assert answer.code == 3
    assert "error[SRC-01]" in answer.error_lines[0]
    assert "none of the teacher's 12 answers passes the filters" in answer.error_lines[0]


def test_agreement_needs_answers_and_rows(home):
    (home / "asked.jsonl").write_text(json.dumps({"prompt": "is a it"}) + "\n")
    line = ("generate", "--teacher", "T/model", "--source", f"{SPEC},agree=true", "--device", "cpu", "-o", "none")
    answer = kd(*line, "--data", "asked.jsonl", folder=home)
    assert answer.code == 3
    assert answer.error_lines
    answer = kd(*line[:4], "teacher:agree=true,prompts=bos", "--count", "3", "-o", "none", folder=home)
    assert answer.code == 2
    assert "set prompts=rows" in answer.error_lines[0]


def test_the_preset_trains_on_what_agrees_and_the_final_answer_is_scored(home):
    line = ("distill", "--config", "rationale-seqkd", "--teacher", "T/model", "--student", "S", "--data", "gold.jsonl")
    line += ("--template", ASKED, "--eval-data", "said.jsonl", "--set", "evaluation.generation.seeds=1")
    line += ("--set", "evaluation.generation.temperature=0", "--set", "evaluation.generation.max_new_tokens=16")
    line += ("--max-steps", "160", "--lr", "1e-2", "--set", "data.teacher_text=kept")
    made = kd(*line, *SMALL, "-o", "run", folder=home)
    assert made.code == 0, made.err
    scores = json.loads((home / "run" / "eval" / "said" / "results.json").read_text())["scores"]
    assert [(score["name"], score["value"]) for score in scores] == [("final_answer", 100.0), ("parsed", 100.0)]
