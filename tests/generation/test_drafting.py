import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdcli.generation.speculative import accepts, apart, distribution, pick, residual

LOGITS = arrays.arrays(np.float64, (2, 6), elements=st.floats(-12, 12))


@given(LOGITS)
def test_accepted_or_replaced_the_token_has_the_verifiers_distribution(logits):
    q, p = distribution(torch.from_numpy(logits), temperature=1.0)
    kept = np.minimum(p, q)
    rest = residual(p, q)
    refused = 1.0 - kept.sum()
    replaced = refused * rest / rest.sum() if rest.sum() else 0.0 * rest
    np.testing.assert_allclose(kept + replaced, p, atol=1e-14)
    assert apart(p, q) == pytest.approx(refused, abs=1e-14)


@given(LOGITS, st.floats(0, 1, exclude_max=True), st.integers(0, 5))
def test_a_token_is_taken_with_the_smaller_of_one_and_the_ratio(logits, uniform, token):
    q, p = distribution(torch.from_numpy(logits), temperature=1.0)
    if abs(uniform - p[token] / q[token]) > 1e-12:
        assert accepts(p, q, token, uniform) == (uniform < p[token] / q[token])


@given(LOGITS, st.floats(0.05, 1.0))
def test_the_nucleus_is_the_smallest_set_of_likeliest_tokens(logits, top_p):
    whole = distribution(torch.from_numpy(logits[:1]), temperature=0.7)[0]
    found = distribution(torch.from_numpy(logits[:1]), temperature=0.7, top_p=top_p)[0]
    order, mass, least = np.argsort(-whole, kind="stable"), 0.0, 0.0
    for token in order:
        if mass >= top_p - 1e-12:
            break
        mass, least = mass + whole[token], whole[token]
    expected = np.where(whole >= least, whole, 0.0)
    if abs(mass - top_p) > 1e-9:
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-12)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)


def test_temperature_divides_the_logits_and_zero_is_greedy():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    np.testing.assert_allclose(
        distribution(logits, temperature=0.5), torch.softmax(2 * logits.double(), -1).numpy(), rtol=1e-14
    )
    assert distribution(logits, temperature=0.0).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.3999, 1), (0.4, 3), (1.0 - 2**-53, 3)])
def test_a_pick_never_has_no_mass(uniform, token):
    assert pick(np.array([0.0, 2.0, 0.0, 3.0, 0.0]), uniform) == token


def test_picks_have_the_distribution():
    mass = np.array([0.1, 0.2, 0.7])
    picked = [pick(mass, (index + 0.5) / 1000) for index in range(1000)]
    assert np.bincount(picked).tolist() == [100, 200, 700]
