"""Forward, reverse and symmetric KL against hand numbers, oracles and each other."""

import pytest
import torch
from hypothesis import given, settings
from scipy.special import rel_entr
from scipy.stats import entropy
from torch.nn import functional
from torch.testing import assert_close

from kdcli.losses.build import build_objective
from logit_pairs import by_autograd, in_closed_form, loss_of, pairs, tokens

few = settings(max_examples=40, deadline=None, derandomize=True)
tame = pairs(kinds=("normal", "ties", "near"), dtype=torch.float64)
P, Q = torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]]], dtype=torch.float64)


def value(spec, student, teacher):
    return in_closed_form(build_objective(spec), student, teacher)[0]


@pytest.mark.parametrize("spec, expected", (("fkl", 0.22628916), ("rkl", 0.31123868), ("sym_kl:w=0.25", 0.24752654)))
def test_direction_by_hand(spec, expected):
    student, teacher = Q.log(), P.log()
    for found in (value(spec, student, teacher), by_autograd(build_objective(spec), student, teacher)[0]):
        assert found.item() == pytest.approx(expected, abs=1e-8)


@few
@given(pair=tame)
def test_agrees_with_scipy_and_torch(pair):
    # SciPy works on probabilities: log-probabilities below -700 would underflow there, so the logits' range is bounded.
    student, teacher = (300 * torch.tanh(logits / 300) for logits in pair)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    forward = value("fkl", student, teacher)
    p, q = log_p.exp().numpy(), log_q.exp().numpy()
    assert_close(forward, torch.from_numpy(rel_entr(p, q).sum(-1)), rtol=1e-11, atol=1e-13)
    assert_close(value("rkl", student, teacher), torch.from_numpy(entropy(q, p, axis=-1)), rtol=1e-10, atol=1e-12)
    assert_close(
        forward, functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1), atol=1e-12, rtol=1e-11
    )


@few
@given(pair=tame)
def test_swapping_the_sides_swaps_the_directions(pair):
    student, teacher = pair
    assert_close(value("rkl", student, teacher), value("fkl", teacher, student), rtol=1e-12, atol=1e-14)
    assert_close(value("sym_kl", student, teacher), value("sym_kl", teacher, student), rtol=1e-12, atol=1e-14)


@few
@given(pair=pairs(kinds=("normal", "near"), filtered=True))
def test_ends_of_the_mix_are_the_pure_losses(pair):
    for end, pure in (("sym_kl:w=0", "fkl"), ("sym_kl:w=1", "rkl")):
        for mine, other in zip(in_closed_form(loss_of(end), *pair), in_closed_form(loss_of(pure), *pair), strict=True):
            assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_high_temperature_is_half_the_spread_of_the_gap():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 40, dtype=torch.float64)
    for spec in ("fkl", "rkl"):
        found = loss_of(spec, 1e4).token_loss(tokens(student, teacher))
        assert_close(found, (student - teacher).var(-1, correction=0) / 2, rtol=1e-3, atol=0)
        single = loss_of(spec, 1e4).token_loss(tokens(student.float(), teacher.float()))
        assert_close(single.double(), found, rtol=1e-4, atol=0)


def test_tau_squared_by_hand():
    student, teacher = Q.log(), P.log()
    at_two = value("fkl", student / 2, teacher / 2)
    assert_close(value("fkl:temperature=2", student, teacher), 4 * at_two)
    assert_close(value("fkl:temperature=2,scale_tau2=false", student, teacher), at_two)
    gradient = in_closed_form(build_objective("fkl:temperature=2"), student, teacher)[1]
    assert_close(gradient, 2 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)))


def test_one_hot_teacher_gives_cross_entropy():
    student = torch.randn(4, 9, dtype=torch.float64)
    teacher = torch.full_like(student, -torch.inf)
    teacher[:, 3] = 0.0
    assert_close(value("fkl", student, teacher), -student.log_softmax(-1)[:, 3])


def test_uniform_on_both_sides_is_zero():
    flat = torch.full((2, 7), 3.0)
    for spec in ("fkl", "rkl", "sym_kl"):
        assert (value(spec, flat, flat) == 0).all()
        assert (value(spec, flat, flat - 5.0) < 1e-12).all()


def test_filtered_student_is_infinite_where_the_teacher_has_mass():
    student, teacher = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[0.0, 1.0, 2.0]])
    assert value("fkl", student, teacher).item() == float("inf")
    assert value("rkl", student, teacher).item() == pytest.approx(
        (teacher.logsumexp(-1) - student.logsumexp(-1)).item(), rel=1e-6
    )
    assert value("rkl", teacher, student).item() == float("inf")
