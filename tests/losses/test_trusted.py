"""A loss on trusted rows: weights as they are, and trainings that follow them."""

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import running
from kdcli.config.schema import DataConfig
from kdcli.data.rows import read_rows
from kdcli.data.tokenize import TokenDataset
from kdcli.errors import InputError
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.token_facts import TRUST
from kdcli.training.trainer import train


def tokens(trust, size=7):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(len(trust), size, dtype=torch.float64, generator=generator) for _ in range(2))
    facts = {TRUST: torch.tensor(trust), "seq": torch.zeros(len(trust), dtype=torch.int64)}
    return Tokens(torch.arange(len(trust)) % size, student, teacher, facts)


@pytest.mark.parametrize("spec", ["fkl", "akl", "atkd", "0.5*ce+rkl"])
def test_each_token_is_weighed_as_its_row_says(spec):
    trust = [1.0, 0.0, 0.25, 1.0, 0.0]
    tok, loss = tokens(trust), build_objective(f"trusted:loss=({spec})")
    inner = build_objective(spec)

    def of(kind):
        facts = {**tok.facts}
        if kind.needs().survey != "none":
            facts |= kind.survey(tok)
        facts |= kind.plan(facts)
        leaf = tok.student.clone().requires_grad_()
        value = kind.token_loss(replace(tok, student=leaf, facts=facts))
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    (value, slope), (plain, gradient) = of(loss), of(inner)
    weight = torch.tensor(trust, dtype=torch.float64)
    assert_close(value, weight * plain)
    assert_close(slope, weight[:, None] * gradient)


def marked(trust):
    rows = running.dataset(12)
    examples = tuple(replace(one, teacher_trust=trust(at)) for at, one in enumerate(rows.examples))
    return TokenDataset(examples)


def trained(folder, spec, data):
    job = running.training(folder, spec, data=data, max_steps=4)
    train(job)
    return running.weights(job)


def test_rows_without_trust_learn_from_the_label_only(tmp_path):
    label = trained(tmp_path / "ce", "ce", marked(lambda at: 1.0))
    both = trained(tmp_path / "both", "ce+0.5*fkl", marked(lambda at: 1.0))
    spec = "ce+0.5*trusted:loss=fkl"
    none = trained(tmp_path / "none", spec, marked(lambda at: 0.0))
    all_of_them = trained(tmp_path / "all", spec, marked(lambda at: 1.0))
    half = trained(tmp_path / "half", spec, marked(lambda at: float(at % 2)))
    for name, value in label.items():
        assert_close(none[name], value, rtol=1e-5, atol=1e-6)
        assert_close(all_of_them[name], both[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(half[name], label[name], atol=1e-4) for name in label)
    assert any(not torch.allclose(half[name], both[name], atol=1e-4) for name in label)


@pytest.mark.parametrize(
    ("value", "trust"), [(True, 1.0), (0, 0.0), (0.25, 0.25), ("0.5", 0.5), (None, 1.0), (..., 1.0)]
)
def test_the_column_is_read(tmp_path, value, trust):
    row = {"prompt": "a", "completion": "b"} | ({} if value is ... else {"teacher_trust": value})
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read_rows(str(tmp_path / "rows.jsonl"), DataConfig()).rows
    assert found.teacher_trust == trust


@pytest.mark.parametrize("value", ["high", 1.5, -0.1, [1]])
def test_a_column_that_says_no_share_is_refused(tmp_path, value):
    row = {"prompt": "a", "completion": "b", "teacher_trust": value}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="must be a number from 0 to 1") as caught:
        read_rows(str(tmp_path / "rows.jsonl"), DataConfig())
    assert caught.value.code == "DATA-06"
