"""Guests: the page that explains them, and what the contract says of broken ones."""

import doctest
import importlib.metadata
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdcli.losses.build import build_objective
from kdcli.losses.samples import sample, tokens_of, values
from kdcli.losses.testing.contract import CHECKS, check_loss
from kdcli.registry import registry
from kdcli.registry.build import spec_of

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-loss.md").read_text()

HEAD = '''
import random
import sys
from typing import Annotated, ClassVar

import numpy
import torch
from pydantic import Field

from kdcli.losses.base import DistillLoss
from kdcli.losses.divergences.base import Divergence
from kdcli.losses.base import log_softmax
from kdcli.losses.base import Needs


class Guest(DistillLoss):
    """Cross-entropy with the teacher.

    >>> 1
    1
    """

    name: ClassVar[str] = "guest"
    formula: ClassVar[str] = "-sum p log q"
    reference: ClassVar[str] = "none"
    cost: ClassVar[str] = "little"

    def value(self, tok):
        return -(log_softmax(tok.teacher).exp() * log_softmax(tok.student)).sum(-1)

    def token_loss(self, tok):
        return self.value(tok)


class Broken(Guest):
    """Broken in one way.

    >>> 1
    1
    """

'''

BROKEN = {
    "a scalar": ("shape", "return self.value(tok).mean()", "(9,), got ()"),
    "one number per entry": ("shape", "return -log_softmax(tok.student)", "(9,), got (9, 13)"),
    "no tensor": ("shape", "return 1.0", "a tensor, got float"),
    "half precision out": ("float32", "return self.value(tok).bfloat16()", "got torch.bfloat16"),
    "double out": ("float32", "return self.value(tok).double()", "got torch.float64"),
    "whole numbers": ("float32", "return self.value(tok).long()", "got torch.int64"),
    "not a number": ("finite", "return self.value(tok) * float('nan')", "a value is nan"),
    "infinite": ("finite", "return self.value(tok) / 0", "a value is inf"),
    "no gradient": ("gradient", "return self.value(tok).detach()", "no gradient reaches the student"),
    "zero gradient": ("gradient", "return 0 * self.value(tok)", "zero everywhere"),
    "depends on the batch": ("independent", "v = self.value(tok); return v - v.detach().mean()", "other tokens"),
    "couples gradients": ("independent", "v = self.value(tok); return v * v.mean()", "other tokens"),
    "depends on the place": (
        "order",
        "return self.value(tok) * torch.arange(1, 1 + len(tok.labels), device=tok.student.device)",
        "order of tokens",
    ),
    "depends on the size": ("chunks", "return self.value(tok) / len(tok.labels)", "1 tokens are taken at a time"),
    "teacher overwritten": ("inputs kept", "tok.teacher.mul_(2); return self.value(tok)", "the teacher in place"),
    "labels overwritten": ("inputs kept", "tok.labels.zero_(); return self.value(tok)", "the labels in place"),
    "facts overwritten": ("inputs kept", "tok.facts['seq'].zero_(); return self.value(tok)", "the fact seq"),
    "teacher trained": ("inputs kept", "tok.teacher.requires_grad_(); return self.value(tok)", "teacher a gradient"),
    "leaves": ("answers", "sys.exit(3)", "SystemExit: 3"),
    "crashes": ("answers", "raise RuntimeError('no luck')", "RuntimeError: no luck"),
    "draws": ("surroundings kept", "torch.rand(1); return self.value(tok)", "torch's random state"),
    "draws from numpy": ("surroundings kept", "numpy.random.rand(); return self.value(tok)", "numpy's random state"),
    "changes the dtype": (
        "surroundings kept",
        "torch.set_default_dtype(torch.float64); return self.value(tok)",
        "the default dtype",
    ),
    "changes the threads": ("surroundings kept", "torch.set_num_threads(2); return self.value(tok)", "threads"),
    "prints": ("surroundings kept", "print('hello'); return self.value(tok)", "printed to stdout"),
    "differs each time": ("repeatable", "return self.value(tok) * (1 + 0.1 * random.random())", "two calls"),
    "arithmetic in bfloat16": (
        "half precision",
        "v = self.value(tok); return v.bfloat16().float() if tok.student.dtype == torch.bfloat16 else v",
        "widened to float32",
    ),
    "overflows": (
        "large logits",
        "x = tok.student.to(torch.promote_types(tok.student.dtype, torch.float32)); "
        "return x.exp().sum(-1).log() - x.clamp_min(-9).mean(-1)",
        "+-200",
    ),
    "cannot stand filters": (
        "filtered logits",
        "x = tok.student.to(torch.promote_types(tok.student.dtype, torch.float32)); return x.square().mean(-1)",
        "minus infinity",
    ),
    "fails at equal models": (
        "equal models",
        "a, b = log_softmax(tok.student), log_softmax(tok.teacher); return (a.exp() - b.exp()).square().sum(-1).sqrt()",
        "equal to its teacher",
    ),
}

METHODS = {
    "wrong closed form": (
        "closed form",
        "def parts_and_grad(self, tok):\n        return {'guest': self.value(tok)}, log_softmax(tok.student).exp()",
        "differs from autograd's",
    ),
    "wrong parts": (
        "parts",
        "def parts(self, tok):\n        return {'half': 0.5 * self.value(tok)}",
        "do not add up",
    ),
    "an option without description": ("documented", "size: float = 1.0", "option size has no description"),
    "survey of the wrong shape": (
        "facts",
        "def needs(self):\n        return Needs(survey='both')\n\n"
        "    def survey(self, tok):\n        return {'a': tok.student.sum()}",
        "survey: a must hold one number per token",
    ),
    "plan of the wrong shape": (
        "facts",
        "def plan(self, facts):\n        return {'a': facts['seq'][:2]}",
        "plan: a must hold one number per token",
    ),
    "survey with gradient": (
        "facts",
        "def needs(self):\n        return Needs(survey='both')\n\n"
        "    def survey(self, tok):\n        return {'a': torch.ones(len(tok.labels), requires_grad=True)}",
        "carries a gradient",
    ),
}

DIVERGENCES = {
    "negative": ("divergence", "return (log_p.exp() * (log_p - log_q)).sum(-1) - 0.1", "at least 0"),
    "cross-entropy posing as KL": ("divergence", "return -(log_p.exp() * log_q).sum(-1)", "must give 0"),
    "hot": ("temperatures", "return ((log_p - log_q).square().sum(-1) * self.temperature**40)", "at temperature"),
}


def findings(tmp_path, source):
    path = tmp_path / "broken_guest.py"
    path.write_text(source)
    return check_loss(build_objective(f"{path}:Broken"))


def assert_only(found, check, detail):
    failed = [finding for finding in found if not finding.passed]
    assert [finding.name for finding in failed] == [check], failed
    assert detail in failed[0].detail


def test_the_guest_they_are_made_from_is_whole(tmp_path):
    found = findings(tmp_path, HEAD)
    assert [finding.name for finding in found] == [check.name for check in CHECKS]
    assert not [finding for finding in found if not finding.passed]


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_in_token_loss_is_found_and_named_once(fault, tmp_path):
    check, body, detail = BROKEN[fault]
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    assert_only(findings(tmp_path, f"{HEAD}    def token_loss(self, tok):\n        {body}\n"), check, detail)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)


@pytest.mark.parametrize("fault", METHODS)
def test_a_fault_elsewhere_is_found_and_named_once(fault, tmp_path):
    check, body, detail = METHODS[fault]
    assert_only(findings(tmp_path, f"{HEAD}    {body}\n"), check, detail)


@pytest.mark.parametrize("fault", DIVERGENCES)
def test_a_divergence_that_is_none_is_found(fault, tmp_path):
    check, body, detail = DIVERGENCES[fault]
    source = HEAD.replace("class Broken(Guest):", "class Broken(Divergence):") + (
        '    name: ClassVar[str] = "broken"\n    formula: ClassVar[str] = "none"\n'
        '    reference: ClassVar[str] = "none"\n    cost: ClassVar[str] = "none"\n\n'
        f"    def divergence(self, log_q, log_p):\n        {body}\n"
    )
    assert_only(findings(tmp_path, source), check, detail)


@pytest.mark.parametrize("missing", ["formula", "reference", "cost"])
def test_what_is_not_documented_is_found(missing, tmp_path):
    source = re.sub(rf'    {missing}: ClassVar\[str\] = ".*"\n', "", HEAD)
    assert_only(findings(tmp_path, source), "documented", f"no {missing}")


def test_a_docstring_without_example_is_found(tmp_path):
    assert_only(findings(tmp_path, HEAD.replace(">>> 1\n    1", "").rstrip() + "\n"), "documented", "no example")


@pytest.fixture
def example(tmp_path):
    (source,) = re.findall(r"```python\n(# my_loss.py\n.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "my_loss.py"
    path.write_text(source)
    return path


def test_the_pages_example_keeps_the_contract(example):
    found = check_loss(build_objective(f"{example}:Hellinger"))
    assert not [finding for finding in found if not finding.passed]


def test_the_pages_example_is_what_it_says(example):
    loss = build_objective(f"{example}:Hellinger:strength=2")
    data = sample(loss).to(torch.float64)
    p, q = data.teacher.softmax(1), data.student.softmax(1)
    torch.testing.assert_close(values(loss, data), 2 * (1 - (p * q).sqrt().sum(1)))
    results = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(type(loss)):
        results.run(test)
    assert results.summarize().attempted > 0
    assert results.summarize().failed == 0


def test_the_pages_example_takes_part_in_an_objective(example):
    loss = build_objective(f"0.5*ce+0.5*{example}:Hellinger:strength=2")
    assert build_objective(spec_of(loss)) == loss


def test_the_pages_example_as_an_entry_point(example, monkeypatch):
    monkeypatch.syspath_prepend(str(example.parent))
    point = importlib.metadata.EntryPoint("hellinger", "my_loss:Hellinger", "kd.losses")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    found = replace(registry.LOSSES)
    assert found.name_of(found.resolve("hellinger")) == "hellinger"


def test_the_page_names_every_check():
    table = re.findall(r"^\| ([a-z0-9 ]+) \|", PAGE, re.MULTILINE)
    assert sorted(table) == sorted(["check", *(check.name for check in CHECKS)])


def test_a_loss_of_an_earlier_version_is_read_by_the_names_it_uses(tmp_path):
    body = """
    def needs(self):
        return replace(Needs(whole="", known=2), known=3)

    def token_loss(self, tok):
        tok.watched["broken.mean"] = self.value(tok).detach()
        return self.value(tok)
"""
    (tmp_path / "guest.py").write_text(f"from dataclasses import replace\n{HEAD}{body}", encoding="utf-8")
    loss = build_objective(f"{tmp_path / 'guest.py'}:Broken")
    needs = loss.needs()
    assert (needs.full_distribution, needs.min_top_k) == (needs.whole, needs.known) == ("", 3)
    assert (needs | build_objective("ce").needs()).min_top_k == 3
    tok = tokens_of(loss, sample(loss))
    assert tok.logged == {}
    values_of = loss.token_loss(tok)
    assert torch.equal(tok.logged["broken.mean"], values_of)
    assert tok.watched is tok.logged
