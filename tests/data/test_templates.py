"""A difference of chat templates between teacher and student is said wherever a pair is looked at."""

import pytest

import tiny
from kdcli.models.tokenizer import templates_differ
from shell import kd

OURS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
THEIRS = OURS.replace("<|", "[").replace("|>", "]")


def tokenizer(template):
    made = tiny.tokenizer()
    made.chat_template = template
    return made


def test_the_first_difference_is_shown():
    assert templates_differ(tokenizer(OURS), tokenizer(OURS)) is None
    assert templates_differ(tokenizer(None), tokenizer(None)) is None
    found = templates_differ(tokenizer(OURS), tokenizer(THEIRS))
    assert found is not None
    assert "first at character 24" in found
    assert OURS[23] != THEIRS[23]
    assert OURS[:23] == THEIRS[:23]
    assert found.endswith("the teacher reads conversations in the student's")
    assert str(templates_differ(tokenizer(OURS), tokenizer(THEIRS), across=True)).endswith("in its own")
    assert templates_differ(tokenizer(None), tokenizer(OURS)) == "the student has no chat template, the teacher has one"
    assert "the teacher has no chat template" in str(templates_differ(tokenizer(OURS), tokenizer(None)))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("templates")
    for seed, (name, template) in enumerate((("teacher", THEIRS), ("student", OURS))):
        tokenizer(template).save_pretrained(tiny.folder(made / name, seed=seed))
    tiny.rows(made / "train.jsonl", 8)
    return made


@pytest.mark.parametrize("line", ["plan", "doctor", "distill --max-steps 1 -o run", "compare fkl rkl --dry-run"])
def test_it_is_said_in_plan_doctor_and_run(home, line):
    words = [*line.split(), "--teacher", "teacher", "--student", "student", "--data", "train.jsonl", "--device", "cpu"]
    words += ["--eval-data", "train.jsonl"] if "compare" in line else []
    found = kd(*words, folder=home)
    assert found.code == 0, found.err
    assert "chat templates of student and teacher differ" in " ".join((found.out + found.err).split())
