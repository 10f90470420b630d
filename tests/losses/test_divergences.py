"""What holds for every divergence: signs, zeros, symmetries, infinities, and both ways to its gradient."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kdcli.losses.build import build_objective
from kdcli.losses.divergences.base import Divergence
from logit_pairs import (
    DIVERGENCES,
    TEMPERATURES,
    TWO_SIDED,
    all_ways,
    by_autograd,
    in_closed_form,
    loss_of,
    pairs,
    tokens,
)

few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SMOOTH = tuple(name for name in DIVERGENCES if name not in ("tvd", "uld"))


@pytest.mark.parametrize("spec", DIVERGENCES)
@few
@given(pair=pairs(), tau=TEMPERATURES)
def test_never_nan_never_negative(spec, pair, tau):
    for value, gradient in all_ways(loss_of(spec, tau, scaled=False), *pair):
        assert (value >= 0).all(), value
        assert torch.isfinite(gradient[torch.isfinite(value)]).all()
        assert value.dtype == gradient.dtype == pair[0].dtype


@pytest.mark.parametrize("spec", DIVERGENCES)
@few
@given(pair=pairs(filtered=True), tau=st.sampled_from((0.3, 1.0, 40.0)))
def test_filtered_logits_give_no_nan(spec, pair, tau):
    student, teacher = pair
    leading, other = (student, teacher) if spec == "rkl" else (teacher, student)
    lost = (((leading / tau).softmax(-1) > 0) & torch.isneginf(other)).any(-1)
    for value, gradient in all_ways(loss_of(spec, tau, scaled=False), student, teacher):
        assert (value >= 0).all(), value
        finite = torch.isfinite(value)
        assert finite.all() or spec in TWO_SIDED
        assert torch.isfinite(gradient[finite]).all()
        assert (gradient[finite][torch.isneginf(student[finite])] == 0).all()
        if spec in ("fkl", "rkl"):
            assert torch.equal(finite, ~lost)


@pytest.mark.parametrize("spec", DIVERGENCES)
@few
@given(pair=pairs(kinds=("normal", "ties", "near"), dtype=torch.float64), tau=st.sampled_from((0.5, 1.0, 3.0)))
def test_a_token_filtered_on_both_sides_is_as_if_it_were_not_there(spec, pair, tau):
    hole = [torch.cat((side, torch.full_like(side[:, :1], -torch.inf)), 1) for side in pair]
    for (value, gradient), (alone, slope) in zip(
        all_ways(loss_of(spec, tau), *hole), all_ways(loss_of(spec, tau), *pair), strict=True
    ):
        assert_close(value, alone, rtol=1e-12, atol=1e-13)
        assert_close(gradient[:, :-1], slope, rtol=1e-9, atol=1e-12)
        assert (gradient[:, -1] == 0).all()


@pytest.mark.parametrize("spec", DIVERGENCES)
@few
@given(pair=pairs(), tau=TEMPERATURES, shift=st.floats(-1e3, 1e3))
def test_zero_where_student_is_teacher(spec, pair, tau, shift):
    loss = loss_of(spec, tau, scaled=False)
    for value, gradient in all_ways(loss, pair[1], pair[1]):
        assert (value == 0).all(), value
        assert (gradient == 0).all(), gradient
    wide = pair[1].double()
    for value, _ in all_ways(loss, (wide + shift), wide):
        assert (value < 1e-9 / min(tau, 1.0) ** 2).all()


@pytest.mark.parametrize("spec", DIVERGENCES)
@few
@given(pair=pairs(kinds=("normal", "ties", "near"), dtype=torch.float64), tau=st.floats(0.5, 4))
def test_closed_form_is_autograd_and_sums_to_zero(spec, pair, tau):
    loss = loss_of(spec, tau)
    (value, gradient), *others = all_ways(loss, *pair)
    for again, closed in others:
        assert_close(again, value, rtol=1e-12, atol=1e-12)
        assert_close(closed, gradient, rtol=1e-12, atol=1e-12)
        assert closed.sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("spec", SMOOTH)
def test_gradient_is_that_of_finite_differences(spec):
    torch.manual_seed(3)
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64)
    weighed = spec.startswith("akl")
    loss = build_objective("sym_kl") if weighed else loss_of(spec, 1.7)
    student.requires_grad_()
    torch.autograd.gradcheck(lambda z: loss.token_loss(tokens(z, teacher)), student, eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("spec", DIVERGENCES)
@few
@given(pair=pairs(kinds=("normal", "near"), dtype=torch.float64), seed=st.integers(0, 99))
def test_order_of_the_vocabulary_does_not_matter(spec, pair, seed):
    order = torch.randperm(pair[0].shape[1], generator=torch.Generator().manual_seed(seed))
    value, gradient = in_closed_form(loss_of(spec), *pair)
    moved, turned = in_closed_form(loss_of(spec), *(side[:, order] for side in pair))
    assert_close(moved, value, rtol=1e-11, atol=1e-13)
    assert_close(turned, gradient[:, order], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("spec", DIVERGENCES)
@few
@given(pair=pairs(kinds=("normal",), dtype=torch.float64), tau=st.floats(0.3, 30), shift=st.floats(-1e3, 1e3))
def test_temperature_divides_the_logits_and_shifts_drop_out(spec, pair, tau, shift):
    student, teacher = pair
    expected, slope = in_closed_form(loss_of(spec), student / tau, teacher / tau)
    value, gradient = in_closed_form(loss_of(spec, tau), student + shift, teacher - shift / 3)
    assert_close(value, expected * tau**2, rtol=1e-8, atol=1e-9)
    assert_close(gradient, slope * tau, rtol=1e-7, atol=1e-9)
    unscaled, slope = in_closed_form(loss_of(spec, tau, scaled=False), student, teacher)
    assert_close(unscaled, expected, rtol=1e-9, atol=1e-12)
    assert_close(slope * tau**2, gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("spec", DIVERGENCES)
def test_tokens_do_not_see_each_other(spec):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 9, 40, dtype=torch.float64)
    student[:3] = teacher[:3] + 1e-3 * student[:3]
    student[5, 4] = -torch.inf
    whole = in_closed_form(loss_of(spec), student, teacher)
    single = [in_closed_form(loss_of(spec), student[i : i + 1], teacher[i : i + 1]) for i in range(9)]
    for index in (0, 1):
        assert_close(torch.cat([one[index] for one in single]), whole[index], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", (*DIVERGENCES, "soft_ce", "ce", "mse_logits", "mse_logits:centred=false"))
def test_half_precision_is_widened_bit_for_bit(spec):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 50).bfloat16()
    loss = build_objective(spec)
    for narrow, wide in zip(
        all_ways(loss, student, teacher), all_ways(loss, student.float(), teacher.float()), strict=True
    ):
        assert narrow[0].dtype == torch.float32
        assert torch.equal(narrow[0], wide[0])
        assert torch.equal(narrow[1].float(), wide[1].to(narrow[1].dtype).float())


@pytest.mark.parametrize("spec", (*DIVERGENCES, "soft_ce", "ce", "mse_logits"))
def test_no_tokens_and_no_gradient_to_the_teacher(spec):
    loss = build_objective(spec)
    value, gradient = in_closed_form(loss, torch.zeros(0, 7), torch.zeros(0, 7))
    assert value.shape == (0,)
    assert gradient.shape == (0, 7)
    student, teacher = (side.requires_grad_() for side in torch.randn(2, 3, 7).unbind())
    loss.token_loss(tokens(student, teacher)).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("spec", [name for name in DIVERGENCES if not name.startswith(("ab", "akl", "uld"))])
def test_splitting_a_token_in_equal_halves_changes_nothing(spec):
    torch.manual_seed(1)
    log_q, log_p = torch.randn(2, 5, 8, dtype=torch.float64).log_softmax(-1)
    half = torch.tensor(0.5, dtype=torch.float64).log()
    split = [torch.cat((side[:, :1] + half, side[:, :1] + half, side[:, 1:]), 1) for side in (log_q, log_p)]
    merged = [torch.cat((torch.logsumexp(side[:, :2], 1, keepdim=True), side[:, 2:]), 1) for side in (log_q, log_p)]
    loss = loss_of(spec)
    assert isinstance(loss, Divergence)
    whole = loss.divergence(log_q, log_p)
    assert_close(loss.divergence(*split), whole, rtol=1e-12, atol=0)
    assert (loss.divergence(*merged) <= whole + 1e-14).all()


@pytest.mark.parametrize("spec", DIVERGENCES)
@pytest.mark.parametrize("scale, gap", ((1.0, 10.0), (3.0, 1.0), (3.0, 0.02), (20.0, 3.0)))
@pytest.mark.parametrize("vocab", (64, 512, 20000))
def test_single_precision_keeps_its_digits(spec, scale, gap, vocab):
    torch.manual_seed(vocab)
    teacher = torch.randn(4, vocab) * scale
    student = teacher + torch.randn(4, vocab) * gap
    expected, slope = by_autograd(loss_of(spec), student.double(), teacher.double())
    for value, gradient in all_ways(loss_of(spec), student, teacher):
        allowed = 6e-6 + 3e-5 * expected if spec in ("tvd", "uld") else 1e-4 * expected + 1e-11
        assert ((value - expected).abs() <= allowed).all(), (value - expected).abs() / expected
        error = (gradient - slope).norm() / slope.norm()
        assert error < (5e-3 if gap >= 1 else 2e-2), error
