"""Jensen-Shannon: oracle, bounds, symmetry, limits, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.spatial.distance import jensenshannon
from torch.testing import assert_close

from kdcli.losses.divergences.jsd import JensenShannon
from kdcli.losses.divergences.kl import ForwardKL, ReverseKL, SkewForwardKL, SkewReverseKL
from logit_pairs import by_autograd, in_closed_form, pairs

few = settings(max_examples=40, deadline=None, derandomize=True)
tame = pairs(kinds=("normal", "ties", "near"), dtype=torch.float64)
betas = st.floats(0.01, 0.99)


def value(loss, pair):
    return in_closed_form(loss, *pair)[0]


@few
@given(pair=tame)
def test_agrees_with_scipy(pair):
    q, p = (side.softmax(-1).numpy() for side in pair)
    expected = torch.from_numpy(jensenshannon(p, q, axis=-1) ** 2)
    assert_close(value(JensenShannon(), pair), expected, rtol=1e-9, atol=1e-12)


@few
@given(pair=pairs(filtered=True), beta=betas)
def test_bounded_and_mirrored(pair, beta):
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    found = value(JensenShannon(beta=beta), pair)
    assert (found <= bound * (1 + 1e-5)).all()
    assert_close(found, value(JensenShannon(beta=1 - beta), pair[::-1]), rtol=1e-4, atol=1e-6)


def test_reaches_its_bound_on_disjoint_supports():
    hole = -torch.inf
    pair = torch.tensor([[0.0, hole]]), torch.tensor([[hole, 0.0]])
    for found in (value(JensenShannon(), pair), by_autograd(JensenShannon(), *pair)[0]):
        assert found.item() == pytest.approx(math.log(2), rel=1e-6)


@few
@given(pair=tame, beta=betas)
def test_is_the_mix_of_two_skew_divergences(pair, beta):
    mix = beta * value(SkewForwardKL(alpha=beta), pair) + (1 - beta) * value(SkewReverseKL(alpha=1 - beta), pair)
    assert_close(value(JensenShannon(beta=beta), pair), mix, rtol=1e-10, atol=1e-13)
    assert_close(
        value(JensenShannon(beta=beta, normalize=True), pair), mix / (beta * (1 - beta)), rtol=1e-10, atol=1e-13
    )


def test_limits_are_the_two_kl_divergences():
    torch.manual_seed(0)
    pair = tuple(torch.randn(2, 3, 20, dtype=torch.float64))
    for beta, limit in ((1e-6, ForwardKL()), (1 - 1e-6, ReverseKL())):
        for found in (
            value(JensenShannon(beta=beta, normalize=True), pair),
            by_autograd(JensenShannon(beta=beta), *pair)[0] / 1e-6,
        ):
            assert_close(found, value(limit, pair), rtol=1e-4, atol=0)


@pytest.mark.parametrize("beta", (0, 1, 0.0, 1.0, "0", "1.0"))
def test_an_end_points_to_the_kl_divergences(beta):
    with pytest.raises(ValidationError, match=r"strictly between 0 and 1.*fkl.*rkl"):
        JensenShannon(beta=beta)


@pytest.mark.parametrize("beta", (-0.1, 1.5, float("nan"), "half"))
def test_beta_outside_is_refused(beta):
    with pytest.raises(ValidationError):
        JensenShannon(beta=beta)
