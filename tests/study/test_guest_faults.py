"""A plug-in's own mistakes, at every place where it is called, are bad input that names it, not a bug in kd."""

import shlex

import pytest

from shell import kd
from tiny import folder, rows

LOSS = """
import sys
from typing import ClassVar

from kdcli.losses.base import DistillLoss
from kdcli.losses.base import log_softmax
from kdcli.losses.base import Needs


class Guest(DistillLoss):
    name: ClassVar[str] = "guest"

    def token_loss(self, tok):
        return -(log_softmax(tok.teacher).exp() * log_softmax(tok.student)).sum(-1)


class Bad(Guest):
"""
METRIC = """
import sys
from typing import ClassVar

import numpy as np

from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import over_answers


class Guest(TextMetric):
    name: ClassVar[str] = "letters"
    description: ClassVar[str] = "letters per answer"
    scores: ClassVar[dict] = {"letters": "higher"}

    def measure(self, predictions, references, **also):
        return [over_answers("letters", np.array([[float(len(a)) for a in row] for row in predictions]), "higher")]


class Bad(Guest):
"""
SOURCE = """
import sys
from typing import ClassVar

from kdcli.sources.dataset import DatasetSource, DatasetWindows


class Bad(DatasetSource):
    name: ClassVar[str] = "mine"
"""
LOSSES = {
    "needs returns 5": "def needs(self): return 5",
    "needs raises": "def needs(self): raise KeyError('x')",
    "needs leaves": "def needs(self): sys.exit(0)",
    "token_loss raises": "def token_loss(self, tok): return 1 / 0",
    "token_loss returns 5": "def token_loss(self, tok): return 5",
    "token_loss raises while training": (
        "def token_loss(self, tok):\n        return super().token_loss(tok) if tok.student.shape[-1] == 13 else 1 / 0"
    ),
    "token_loss leaves while training": (
        "def token_loss(self, tok):\n"
        "        return super().token_loss(tok) if tok.student.shape[-1] == 13 else sys.exit(0)"
    ),
    "survey raises": (
        "def needs(self): return Needs(survey='both')\n\n    def survey(self, tok): raise ValueError('no')"
    ),
    "plan returns 5": "def plan(self, facts): return 5",
    "an option's check raises": "def model_post_init(self, context): raise OverflowError('far')",
}
METRICS = {
    "init raises": "def __init__(self, **options): raise ValueError('no')",
    "measure raises": "def measure(self, predictions, references, **also): return 1 / 0",
    "measure returns 5": "def measure(self, predictions, references, **also): return 5",
    "curves raises": "def curves(self, predictions, references, **also): raise KeyError('x')",
}
SOURCES = {
    "needs returns 5": "def needs(self): return 5",
    "needs raises": "def needs(self): return 1 / 0",
    "open raises": "def open(self, ground): raise RuntimeError('no')",
    "open returns 5": "def open(self, ground): return 5",
    "open leaves": "def open(self, ground): sys.exit(0)",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("guests")
    folder(made / "t", seed=1)
    folder(made / "s", seed=2)
    rows(made / "d.jsonl", 8)
    return made


def said(home, source, body, words, name):
    (home / name).write_text(f"{source}    {body}\n")
    line = f"distill --teacher t --student s --data d.jsonl --device cpu --max-steps 1 -o {name}-run {words}"
    answer = kd(*shlex.split(line), folder=home)
    assert answer.code == 3, answer.err
    (found,) = answer.error_lines
    assert f"{name}:Bad" in found
    assert "PLUG-" in found
    assert "this is a bug" not in found


@pytest.mark.parametrize("fault", LOSSES)
def test_a_loss_that_fails_is_named(fault, home):
    name = f"loss{list(LOSSES).index(fault)}.py"
    said(home, LOSS, LOSSES[fault], f"--loss ./{name}:Bad", name)


@pytest.mark.parametrize("fault", METRICS)
def test_a_metric_that_fails_is_named(fault, home):
    name = f"metric{list(METRICS).index(fault)}.py"
    more = "--eval-data d.jsonl --eval-limit 2 --max-new-tokens 2 --sampling-seeds 1"
    said(home, METRIC, METRICS[fault], f"{more} --metric ./{name}:Bad", name)


@pytest.mark.parametrize("fault", SOURCES)
def test_a_source_that_fails_is_named(fault, home):
    name = f"source{list(SOURCES).index(fault)}.py"
    said(home, SOURCE, SOURCES[fault], f"--loss fkl@./{name}:Bad", name)


def test_in_a_comparison_only_the_cells_of_the_plug_in_fail(home):
    (home / "cell.py").write_text(f"{LOSS}    {LOSSES['token_loss raises while training']}\n")
    line = "compare fkl ./cell.py:Bad --teacher t --student s --data d.jsonl --eval-data d.jsonl --device cpu "
    line += "--max-steps 1 --metric perplexity -o study --json"
    answer = kd(*line.split(), folder=home)
    assert answer.code == 3
    assert "PLUG-10" in answer.out
    assert "cell.py:Bad" in answer.out
