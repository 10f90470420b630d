"""The numbers of tests/golden: values and gradients, by autograd and in closed form."""

import json
from pathlib import Path

import pytest
import torch

from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text(encoding="utf-8"))


def tokens(case) -> Tokens:
    student, teacher = (torch.tensor(case[side], dtype=torch.float64).view(-1, 5) for side in ("student", "teacher"))
    labels = torch.tensor(case.get("labels", [case.get("label")]))
    return Tokens(labels, student, teacher, {"seq": torch.zeros_like(labels)})


def close(found: torch.Tensor, expected, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64).view(found.shape), rtol=tolerance, atol=tolerance
    )


def by_autograd(loss, tok: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    student = tok.student.clone().requires_grad_()
    value = loss.token_loss(Tokens(tok.labels, student, tok.teacher, tok.facts))
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


@pytest.mark.parametrize("case", GOLDEN["tokens"], ids=lambda case: case["loss"])
def test_value_and_gradient(case):
    value, gradient = by_autograd(build_objective(case["loss"]), tokens(case))
    close(value, [case["value"]])
    close(gradient, case["gradient"])


@pytest.mark.parametrize("case", GOLDEN["tokens"], ids=lambda case: case["loss"])
def test_closed_form(case):
    closed = build_objective(case["loss"]).parts_and_grad(tokens(case))
    assert closed is not None
    parts, gradient = closed
    close(torch.stack(list(parts.values())).sum(0), [case["value"]])
    close(gradient, case["gradient"])


@pytest.mark.parametrize("case", [case for case in GOLDEN["tokens"] if "weight" in case], ids=lambda case: case["loss"])
def test_weight_of_adaptive_kl(case):
    loss = build_objective(case["loss"])
    tok = tokens(case)
    weight = loss.weight(tok.student.softmax(-1), tok.teacher.softmax(-1))
    close(weight, [1 - case["weight"] if loss.flip else case["weight"]], 1e-12)


def test_adaptive_teaching_batch():
    case = GOLDEN["batch"]
    loss, tok = build_objective(case["loss"]), tokens(case)
    facts = {**tok.facts, **loss.survey(tok)}
    tok = Tokens(tok.labels, tok.student, tok.teacher, {**facts, **loss.plan(facts)})
    value, gradient = by_autograd(loss, tok)
    close(value.mean(), case["value"])
    close(gradient / len(value), case["gradient"])
