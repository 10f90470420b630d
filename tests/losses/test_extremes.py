"""Extreme logits, extreme options and ties: closed form, autograd and a float64 reference say the same."""

import math

import numpy as np
import pytest
import torch

from kdcli.losses.build import build_objective
from kdcli.losses.samples import sample, tokens_of, values_and_grad, with_facts
from kdcli.losses.sorting import largest
from kdcli.losses.topk import top_k_with_tail
from kdcli.losses.wrappers.teacher_transforms import likeliest
from kdcli.registry.registry import LOSSES
from logit_pairs import all_ways, by_autograd, loss_of

NEGATIVE = [(1.0, -0.5), (-0.5, 1.0), (2.0, -1.0), (-1.0, -1.0), (1.0, -2.0), (-2.0, 1.0), (0.05, -0.5), (0.2, -0.1)]


def ab(student, teacher, a, b):
    """The textbook form, in numpy's widest floats; a, b and a + b are not 0."""
    q, p = (side.numpy().astype(np.longdouble) for side in (student, teacher))
    q, p = (np.exp(side - side.max(-1, keepdims=True)) for side in (q, p))
    q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
    return (-(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum(-1) / (a * b)).astype(float)


@pytest.mark.parametrize(("a", "b"), NEGATIVE)
@pytest.mark.parametrize("reach", [1.0, 10.0, 20.0])
def test_a_finite_value_stays_finite_however_large(a, b, reach):
    generator = torch.Generator().manual_seed(7)
    student, teacher = (reach * torch.randn(2, 5, 9, generator=generator, dtype=torch.float64)).unbind()
    expected = torch.from_numpy(ab(student, teacher, a, b))
    loss = loss_of(f"ab:alpha={a},beta={b}")
    for value, _ in all_ways(loss, student, teacher):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    _, slope = by_autograd(loss, student.float().double(), teacher.float().double())
    expected = torch.from_numpy(ab(student.float(), teacher.float(), a, b))
    for value, gradient in all_ways(loss, student.float(), teacher.float()):
        small = expected < 1e37
        torch.testing.assert_close(value.double()[small], expected[small], rtol=3e-4, atol=1e-6)
        error = (gradient.double() - slope).norm(dim=-1)
        allowed = 1e-3 * slope.norm(dim=-1) + 1e-6 * expected  # a student that is sure of a token rounds 1 - q away
        assert (error <= allowed)[small].all()
        assert not value.isnan().any()


def test_a_value_above_a_hundred_million_is_met():
    student, teacher = torch.tensor([[0.0, -40.0]]), torch.zeros(1, 2)
    (expected,) = ab(student, teacher, 1.0, -0.5)
    assert 1e8 < expected < 1e9
    for value, _ in all_ways(loss_of("ab:alpha=1,beta=-0.5"), student, teacher):
        assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("a", "b"), [*NEGATIVE, (0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.5, -0.5), (-1.0, 1.0)])
def test_excluded_tokens_make_a_value_infinite_by_the_exponents_alone(a, b):
    whole, hole = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[0.5, -math.inf, 0.0]])
    loss = loss_of(f"ab:alpha={a},beta={b}")
    for student, teacher, exponent in ((hole, whole, b), (whole, hole, a)):
        infinite = min(exponent, a + b) <= 0
        for value, _ in all_ways(loss, student, teacher):
            assert value.isinf().item() == infinite
            assert not value.isnan().any()
    for value, _ in all_ways(loss, hole, hole):
        assert value.item() == 0


@pytest.mark.parametrize("spec", ["fkl", "rkl", "sym_kl", "soft_ce", "ce"])
@pytest.mark.parametrize("gap", [1e7, 1e9, 1e12, 1e20])
def test_a_finite_gap_of_logits_has_a_finite_value(spec, gap):
    student, teacher = torch.tensor([[0.0, gap]]), torch.tensor([[gap, 0.0]])
    for value, gradient in all_ways(build_objective(spec), student, teacher):
        assert value.item() == pytest.approx(gap, rel=1e-6)
        assert torch.isfinite(gradient).all()
    hole = torch.tensor([[-math.inf, gap]])
    if spec != "rkl":
        assert all(value.isinf() for value, _ in all_ways(build_objective(spec), hole, teacher))


SLIGHT = [
    *(f"srkl:alpha={alpha}" for alpha in (0.1, 0.5, 0.9, 0.99, 0.999)),
    *(f"skl:alpha={alpha}" for alpha in (0.1, 0.9, 0.99, 0.999)),
    *(f"jsd:beta={beta}" for beta in (0.001, 0.01, 0.5, 0.99)),
    "jsd:beta=0.01,normalize=true",
    *(f"ab:alpha={a},beta={b}" for a, b in ((0.05, -0.5), (-1.0, -1.0), (-2.0, 1.0), (0.06, 0.06))),
]


@pytest.mark.parametrize("spec", SLIGHT)
@pytest.mark.parametrize("gap", [1.0, 1e-1, 1e-2, 1e-3, 1e-4])
def test_gradients_in_single_precision_keep_their_digits_where_both_sides_are_nearly_equal(spec, gap):
    generator = torch.Generator().manual_seed(3)
    teacher = 2.0 * torch.randn(4, 300, generator=generator)
    student = teacher + gap * torch.randn(4, 300, generator=generator)
    loss = loss_of(spec)
    expected, slope = by_autograd(loss, student.double(), teacher.double())
    for value, gradient in all_ways(loss, student, teacher):
        assert ((value - expected).abs() / expected).max() < 3e-3
        assert ((gradient - slope).norm(dim=-1) / slope.norm(dim=-1)).max() < 5e-3


def has_closed_form(name):
    loss = build_objective(name)
    return (
        not loss.needs().features and loss.parts_and_grad(tokens_of(loss, with_facts(loss, sample(loss)))) is not None
    )


CLOSED = sorted(filter(has_closed_form, LOSSES.names()))


def test_no_objective_lost_its_closed_form():
    known = (
        "ab akl annealed atkd ce decoupled dkd_div fkl jsd minillm mse_logits ramp revised rkl route skl soft_ce srkl"
    )
    assert {*known.split(), "sym_kl", "tempered", "tkd", "truncated", "tvd", "uld", "weighted"} <= set(CLOSED)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e5, 1e9])
def test_closed_form_and_autograd_agree_at_every_scale(name, scale):
    loss = build_objective(name)
    data = with_facts(loss, sample(loss).map(lambda logits: logits * scale).to(torch.float64))
    value, gradient = values_and_grad(loss, data)
    closed = loss.parts_and_grad(tokens_of(loss, data))
    assert closed is not None
    again = torch.stack(list(closed[0].values())).sum(0)
    finite = torch.isfinite(value)
    assert torch.equal(finite, torch.isfinite(again))
    torch.testing.assert_close(again[finite], value[finite], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(closed[1][finite], gradient[finite], rtol=1e-7, atol=1e-9 * max(scale, 1.0))


def test_of_equal_tokens_those_of_the_lowest_ids_are_taken():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (50, 200), generator=generator).float()
    for count in (1, 7, 64, 200):
        values, ids = largest(logits, count)
        order = np.argsort(-logits.numpy(), axis=-1, kind="stable")[:, :count]
        assert ids.tolist() == order.tolist()
        assert torch.equal(values, logits.gather(1, ids))
        if count < 200:
            assert top_k_with_tail(logits, count).ids.tolist() == order.tolist()
        assert [row.nonzero().flatten().tolist() for row in likeliest(logits, count, 1.0)] == np.sort(order).tolist()
    masses = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    assert likeliest(masses, 0, 0.5).tolist() == [[True, True, False, False]]
    excluded = torch.full((1, 5), -math.inf)
    excluded[0, 3] = 0.0
    assert largest(excluded, 3)[1].tolist() == [[3, 0, 1]]
