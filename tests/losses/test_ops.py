"""The cancellation-free KL divergence and its parts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.special import rel_entr
from torch.testing import assert_close

from kdcli.losses.base import FILTERED
from kdcli.losses.divergences.ops import compare, curvature, kl, kl_to_mixture
from logit_pairs import TEMPERATURES, pairs

few = settings(max_examples=60, deadline=None, derandomize=True)
SHARES = (0.0, 0.1, 0.5, 0.9)


def exactly(log_p, log_q, share: float, tau: float) -> float:
    """KL(p || share p + (1 - share) q) of one token with 60 digits."""
    with mp.workdps(60):
        p, q = ([mp.exp(mpf(x) / mpf(tau)) for x in side.tolist()] for side in (log_p, log_q))
        p, q = ([x / mp.fsum(side) for x in side] for side in (p, q))
        share = mpf(share)
        return float(mp.fsum(a * mp.log(a / (share * a + (1 - share) * b)) for a, b in zip(p, q, strict=True)))


@few
@given(
    seed=st.integers(0, 10**6),
    gap=st.floats(-3, 1),
    scale=st.floats(-1, 1),
    tau=st.floats(-1, 4),
    share=st.sampled_from(SHARES),
)
def test_single_precision_is_exact_to_four_digits(seed, gap, scale, tau, share):
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(1, 24, generator=generator) * 10**scale
    log_q = log_p + torch.randn(1, 24, generator=generator) * 10**gap
    found, expected = kl_to_mixture(log_p, log_q, share, 10**tau).item(), exactly(log_p[0], log_q[0], share, 10**tau)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-20)


@few
@given(pair=pairs(kinds=("normal", "ties", "near"), dtype=torch.float64), share=st.sampled_from(SHARES))
def test_double_precision_agrees_with_scipy(pair, share):
    q, p = (side.softmax(-1) for side in pair)
    expected = rel_entr(p.numpy(), (share * p + (1 - share) * q).numpy()).sum(-1)
    found = kl_to_mixture(pair[1], pair[0], share)
    assert_close(found, torch.from_numpy(expected), rtol=1e-11, atol=1e-13)


@few
@given(pair=pairs(filtered=True), share=st.sampled_from(SHARES), tau=TEMPERATURES)
def test_never_negative_and_infinite_only_without_a_share(pair, share, tau):
    log_q, log_p = (torch.where(torch.isneginf(side), FILTERED, side) for side in pair)
    value = kl_to_mixture(log_p, log_q, share, tau)
    assert (value >= 0).all()
    if share:
        assert (value <= -math.log(share) * (1 + 1e-5)).all()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("apart", (3.0, 1e-4))
def test_gradients_of_both_arguments(share, apart):
    torch.manual_seed(0)
    log_p = torch.randn(3, 6, dtype=torch.float64)
    log_q = (log_p + apart * torch.randn_like(log_p)).requires_grad_()
    log_p.requires_grad_()
    torch.autograd.gradcheck(
        lambda p, q: kl_to_mixture(p, q, share, 1.3), (log_p, log_q), eps=1e-6, atol=1e-7 * min(apart, 1.0)
    )


def test_gradient_is_q_less_p_and_keeps_its_digits():
    torch.manual_seed(0)
    log_p = torch.randn(2, 50)
    log_q = (log_p + 1e-3 * torch.randn_like(log_p)).requires_grad_()
    (gradient,) = torch.autograd.grad(kl(log_p, log_q).sum(), log_q)
    expected = log_q.detach().double().softmax(-1) - log_p.double().softmax(-1)
    assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-8)


def test_mass_that_the_other_side_lacks_is_infinite_be_it_small():
    other = torch.tensor([[0.0, FILTERED]])
    for lacking in (0.0, -40.0, -80.0):
        assert kl(torch.tensor([[0.0, lacking]]), other).item() == math.inf
    assert kl(torch.tensor([[0.0, -200.0]]), other).item() == 0, "below the smallest float there is no mass"
    assert kl(torch.tensor([[0.0, FILTERED]]), other).item() == 0


def test_logarithm_of_the_ratio_survives_a_filtered_logit_elsewhere():
    log_p, log_q = torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[1.0, 0.0, FILTERED]])
    ratio = compare(log_p, log_q)
    expected = log_p.log_softmax(-1)[:, :2] - log_q[:, :2].log_softmax(-1)
    assert_close(ratio.log[:, :2], expected)


@pytest.mark.parametrize("dtype, digits", ((torch.float32, 1e-6), (torch.float64, 1e-15)))
def test_series_of_phi(dtype, digits):
    for x in (-1.0, -0.3, 1e-4, 0.7, 1.0):
        with mp.workdps(40):
            expected = float((mp.exp(-mpf(x)) - 1 + mpf(x)) / mpf(x) ** 2)
        assert curvature(torch.tensor([x], dtype=dtype)).item() == pytest.approx(expected, rel=digits)
