import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdcli.evaluation.token_facts import jensen_shannon, total_variation
from kdcli.losses.base import log_softmax

LOGITS = arrays.arrays(np.float64, (2, 3, 8), elements=st.floats(-30, 30))


def wide(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Total variation and JSD in 80-bit arithmetic, from the definitions."""
    p, q = (np.exp(one.double().numpy().astype(np.longdouble)) for one in (log_p, log_q))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        halves = [np.where(one > 0, one * np.log(one / m), 0).sum(-1) / 2 for one in (p, q)]
    return np.abs(p - q).sum(-1) / 2, halves[0] + halves[1]


@given(LOGITS)
def test_both_are_exact_in_float64(logits):
    p, q = (torch.log_softmax(torch.from_numpy(one), -1) for one in logits)
    tvd, jsd = wide(p, q)
    np.testing.assert_allclose(total_variation(p, q), tvd.astype(float), rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(jensen_shannon(p, q), jsd.astype(float), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6])
def test_small_distances_keep_their_digits_in_fp32(size):
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(20, 500, generator=generator) * 2
    second = first + size * torch.randn(20, 500, generator=generator)
    tvd, jsd = wide(first, second)
    np.testing.assert_allclose(total_variation(first, second), tvd.astype(float), rtol=1e-5)
    np.testing.assert_allclose(jensen_shannon(first, second), jsd.astype(float), rtol=1e-4)


@given(LOGITS)
def test_they_are_symmetric_and_bounded(logits):
    p, q = (torch.from_numpy(one).float() for one in logits)
    for distance, bound in ((total_variation, 1.0), (jensen_shannon, float(np.log(2)))):
        there, back = distance(p, q), distance(q, p)
        assert torch.allclose(there, back, rtol=1e-4, atol=1e-5)
        assert there.min() >= 0
        assert there.max() <= bound + 1e-6


def test_a_token_only_one_side_knows():
    p = log_softmax(torch.tensor([[0.0, 0.0, -torch.inf]]))
    q = log_softmax(torch.tensor([[-torch.inf, 0.0, 0.0]]))
    assert total_variation(p, q).item() == pytest.approx(0.5)
    assert jensen_shannon(p, q).item() == pytest.approx(0.5 * np.log(2), rel=1e-6)
    assert total_variation(p, p).item() == 0.0
    assert jensen_shannon(p, p).item() == 0.0
