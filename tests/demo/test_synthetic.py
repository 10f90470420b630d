import json
import math
from collections import Counter

import pytest

from kdcli.demo import synthetic


def test_prompts_are_unique_and_odds_add_up():
    tasks = synthetic.tasks()
    assert len({task.prompt for task in tasks}) == len(tasks)
    for task in tasks:
        assert len(set(task.answers)) == len(task.answers) == len(task.odds) >= 3
        assert math.fsum(task.odds) == pytest.approx(1)
        assert list(task.odds) == sorted(task.odds, reverse=True)
        assert task.odds[0] > task.odds[-1]


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("What is three plus two?", "five"),
        ("Please: Take one from four.", "four minus one is three"),
        ("Say the opposite of cold.", "not cold but hot"),
        ("Sort pear and fig.", "fig then pear"),
        ("Say cat three times.", "cat, cat, cat"),
        ("Paint the red ball blue.", "a blue ball, not red"),
        ("Describe the fox.", "a quick fox"),
    ],
)
def test_answers_are_right(prompt, answer):
    (task,) = [task for task in synthetic.tasks() if task.prompt == prompt]
    assert answer in task.answers


def test_splits_share_no_prompt_and_repeat():
    first, second = synthetic.split(0, 50, 20), synthetic.split(0, 50, 20)
    assert first == second != synthetic.split(1, 50, 20)
    prompts = [{task.prompt for task in part} for part in first]
    assert [len(part) for part in prompts[1:]] == [20, 50]
    assert len(set.union(*prompts)) == sum(len(part) for part in prompts)


def test_rows_are_drawn_by_their_odds(tmp_path):
    task = synthetic.Task("Choose.", ("a", "b", "c", "d", "e", "f"), (0.5, 0.3, 0.1, 0.05, 0.03, 0.02))
    synthetic.write_rows(tmp_path / "rows.jsonl", [task] * 500, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    shares = Counter(row["completion"] for row in rows)
    assert len(rows) == 3000
    for answer, chance in zip(task.answers, task.odds, strict=True):
        assert shares[answer] / len(rows) == pytest.approx(chance, abs=4 * math.sqrt(chance / len(rows)))


def test_held_out_rows_hold_every_valid_answer(tmp_path):
    task = synthetic.Task("Choose.", ("a", "b"), (0.5, 0.5))
    synthetic.write_tests(tmp_path / "test.jsonl", [task] * 50, seed=0)
    rows = [json.loads(line)["completion"] for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert all(sorted(row) == ["a", "b"] for row in rows)
    assert {row[0] for row in rows} == {"a", "b"}


def test_files_are_the_same_bytes_every_time(tmp_path):
    chosen = synthetic.split(0, 10, 0)[2]
    for name in ("one", "two"):
        synthetic.write_rows(tmp_path / name, chosen, seed=1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
