import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.divergences.decoupled import DecoupledKD, DiversityKD, TargetKD
from kdcli.losses.divergences.ops import kl

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())
ROWS = [row for row in GOLDEN["tokens"] if row["loss"] in ("tkd", "dkd_div")]
EVERY = [
    f"{name}:reverse={reverse}{more}"
    for reverse in ("false", "true")
    for name, more in [
        ("tkd", ""),
        ("dkd_div", ""),
        ("dkd_div", ",keep_unc=true"),
        ("decoupled", ",alpha=0.3,beta=2"),
        ("decoupled", ",keep_unc=true"),
        ("decoupled", ",alpha=0,temperature=3"),
        ("decoupled", ",temperature=3,scale_tau2=false"),
    ]
]


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def draw(tokens, entries, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        scale * torch.randn(tokens, entries, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return Tokens(torch.randint(entries, (tokens,), generator=generator), student, teacher)


def by_autograd(loss, tok):
    student = tok.student.clone().requires_grad_()
    value = loss.token_loss(Tokens(tok.labels, student, tok.teacher, tok.facts))
    (grad,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), grad


def closed(loss, tok):
    parts, grad = loss.parts_and_grad(Tokens(tok.labels, tok.student.clone(), tok.teacher.clone(), tok.facts))
    return sum(parts.values()), grad


def slow_parts(tok, reverse=False, tau=1.0):
    """The definitions, token by token, on probabilities."""
    target, diversity, mass = [], [], []
    for label, z, t in zip(tok.labels.tolist(), tok.student / tau, tok.teacher / tau, strict=True):
        p, q = (t.softmax(0), z.softmax(0)) if not reverse else (z.softmax(0), t.softmax(0))
        others = [j for j in range(len(p)) if j != label]
        rest_p, rest_q = sum(p[j] for j in others), sum(q[j] for j in others)
        target.append(p[label] * (p[label] / q[label]).log() + rest_p * (rest_p / rest_q).log())
        diversity.append(sum(p[j] / rest_p * ((p[j] / rest_p) / (q[j] / rest_q)).log() for j in others))
        mass.append(rest_p)
    return torch.stack(target), torch.stack(diversity), torch.stack(mass)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["loss"])
def test_golden_values_and_gradients(row):
    tok = Tokens(torch.tensor([row["label"]]), double([row["student"]]), double([row["teacher"]]))
    for value, grad in (by_autograd(build_objective(row["loss"]), tok), closed(build_objective(row["loss"]), tok)):
        assert value.item() == pytest.approx(row["value"], abs=1e-12)
        torch.testing.assert_close(grad[0], double(row["gradient"]), atol=1e-12, rtol=0)


def test_golden_values_of_the_batch():
    batch = GOLDEN["batch"]
    tok = Tokens(torch.tensor(batch["labels"]), double(batch["student"]), double(batch["teacher"]))
    torch.testing.assert_close(TargetKD().token_loss(tok), double(batch["tkd"]), atol=1e-12, rtol=0)
    torch.testing.assert_close(DiversityKD().token_loss(tok), double(batch["dkd"]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("reverse", [False, True])
def test_definitions(reverse, tau):
    tok = draw(6, 7, seed=1)
    target, diversity, mass = slow_parts(tok, reverse, tau)
    options = {"reverse": reverse, "temperature": tau, "scale_tau2": False}
    torch.testing.assert_close(TargetKD(**options).token_loss(tok), target)
    torch.testing.assert_close(DiversityKD(**options).token_loss(tok), diversity)
    torch.testing.assert_close(DiversityKD(**options, keep_unc=True).token_loss(tok), mass * diversity)
    both = DecoupledKD(**options, alpha=0.3, beta=2.0)
    torch.testing.assert_close(both.token_loss(tok), 0.3 * target + 2.0 * diversity)
    scaled = DecoupledKD(**{**options, "scale_tau2": True})
    torch.testing.assert_close(scaled.token_loss(tok), tau**2 * (target + diversity))


@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.01, 8.0))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_the_parts_add_up_to_the_divergence(seed, entries, scale):
    tok = draw(4, entries, seed, scale)
    forward = DecoupledKD(keep_unc=True)
    backward = DecoupledKD(keep_unc=True, reverse=True)
    for loss, expected in ((forward, kl(tok.teacher, tok.student)), (backward, kl(tok.student, tok.teacher))):
        torch.testing.assert_close(loss.token_loss(tok), expected, rtol=1e-10, atol=1e-13)


def test_the_gradient_of_the_parts_together_is_that_of_the_divergence():
    tok = draw(6, 9, seed=2)
    _, grad = closed(DecoupledKD(keep_unc=True), tok)
    torch.testing.assert_close(grad, tok.student.softmax(1) - tok.teacher.softmax(1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", EVERY)
def test_closed_form_is_autograd(spec):
    loss, tok = build_objective(spec), draw(8, 11, seed=3)
    for one, two in zip(closed(loss, tok), by_autograd(loss, tok), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("spec", EVERY)
def test_autograd_is_finite_differences(spec):
    loss, tok = build_objective(spec), draw(3, 5, seed=4)
    student = tok.student.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: loss.token_loss(Tokens(tok.labels, z, tok.teacher)), student, eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("spec", EVERY)
def test_gradients_sum_to_zero_and_shifts_change_nothing(spec):
    loss, tok = build_objective(spec), draw(8, 11, seed=5)
    value, grad = closed(loss, tok)
    torch.testing.assert_close(grad.sum(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)
    shifted, _ = closed(loss, Tokens(tok.labels, tok.student + 7.0, tok.teacher - 300.0))
    torch.testing.assert_close(shifted, value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.parametrize("tau_exact", [False, True])
def test_entries_at_minus_infinity_are_as_if_not_there(spec, tau_exact):
    loss, tok = build_objective(spec), draw(6, 9, seed=6)
    wide = [
        torch.cat((side, torch.full((6, 2), -torch.inf, dtype=torch.float64)), 1) for side in (tok.student, tok.teacher)
    ]
    value, grad = (closed if tau_exact else by_autograd)(loss, Tokens(tok.labels, *wide))
    expected, slope = by_autograd(loss, tok)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad[:, :9], slope, rtol=1e-11, atol=1e-14)
    assert not grad[:, 9:].any()


@pytest.mark.parametrize("spec", [spec for spec in EVERY if "reverse=false" in spec])
def test_a_teacher_that_leaves_only_the_target_has_no_diversity_part(spec):
    teacher = torch.full((2, 4), -torch.inf, dtype=torch.float64)
    teacher[:, 1] = 0.3
    student = double([[0.1, 0.2, 0.3, 0.4], [1.0, -1.0, 0.0, 0.0]])
    tok = Tokens(torch.tensor([1, 1]), student, teacher)
    for value, grad in (closed(build_objective(spec), tok), by_autograd(build_objective(spec), tok)):
        assert torch.isfinite(value).all()
        assert torch.isfinite(grad).all()
    assert not DiversityKD().token_loss(tok).any()
    torch.testing.assert_close(TargetKD().token_loss(tok), -student.log_softmax(1)[:, 1])


@pytest.mark.parametrize("reverse", [False, True])
def test_with_two_entries_there_is_no_diversity(reverse):
    tok = draw(5, 2, seed=7)
    value, grad = closed(DiversityKD(reverse=reverse), tok)
    assert not value.any()
    assert not grad.any()
    leading, other = (tok.student, tok.teacher) if reverse else (tok.teacher, tok.student)
    torch.testing.assert_close(TargetKD(reverse=reverse).token_loss(tok), kl(leading, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_models_keep_their_digits(dtype):
    """Both are certain of the target; the parts off it differ by e^-110 and are still told apart."""
    student, teacher = (torch.tensor([row], dtype=dtype) for row in ([110.0, 0.0, 1.0], [110.0, 0.0, 0.0]))
    tok = Tokens(torch.tensor([0]), student, teacher)
    value, grad = closed(DiversityKD(), tok)
    expected = 0.5 * (torch.tensor(0.5).log() * 2 - torch.tensor([0.0, 1.0]).log_softmax(0).sum()).item()
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert grad[0, 1].item() == pytest.approx(1 / (1 + 2.718281828) - 0.5, rel=1e-5)
    assert 0 <= TargetKD().token_loss(tok).item() < 1e-30


@pytest.mark.parametrize("spec", EVERY)
@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]), st.sampled_from([0.01, 1.0, 1e4]))
@settings(max_examples=15, derandomize=True, deadline=None)
def test_never_negative_in_float32_and_zero_for_equal_models(spec, seed, distance, tau):
    loss = build_objective(spec)
    loss = type(loss)(**{**loss.model_dump(), "temperature": tau})
    tok = draw(5, 17, seed)
    student = tok.student.float()
    near = student + distance * draw(5, 17, seed + 1).student.float()
    for value, grad in (
        closed(loss, Tokens(tok.labels, student, near)),
        by_autograd(loss, Tokens(tok.labels, student, near)),
    ):
        assert value.min() >= 0
        assert torch.isfinite(grad).all()
    value, grad = closed(loss, Tokens(tok.labels, student, student.clone()))
    assert not value.any()
    assert grad.abs().max() <= 1e-6 * max(1.0, tau)


def test_part_names_and_weights():
    tok = draw(3, 5, seed=8)
    assert list(DecoupledKD(alpha=0).parts(tok)) == ["dkd_div"]
    parts = DecoupledKD(alpha=0.5, beta=2).parts(tok)
    torch.testing.assert_close(parts["tkd"], 0.5 * TargetKD().token_loss(tok))
    torch.testing.assert_close(parts["dkd_div"], 2 * DiversityKD().token_loss(tok))
