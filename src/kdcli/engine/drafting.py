"""The accept-or-reject rule of speculative sampling, on whole distributions in float64."""

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = NDArray[np.float64]


def distribution(logits: Tensor, *, temperature: float, top_p: float = 1.0) -> Array:
    """Return the probabilities that tokens are sampled with.

    Args:
        logits: ``[t, v]``.
        temperature: divides the logits; at 0 all mass is on the likeliest token.
        top_p: keep the smallest set of most likely tokens that has at least this mass; ties stay in.

    Returns:
        ``[t, v]`` in float64, each row adding up to 1.

    >>> distribution(torch.tensor([[2.0, 1.0, -9.0]]), temperature=0.0).tolist()
    [[1.0, 0.0, 0.0]]
    """
    wide = logits.double()
    if temperature == 0.0:
        return torch.nn.functional.one_hot(wide.argmax(-1), wide.shape[-1]).double().cpu().numpy()
    mass = torch.softmax(wide / temperature, -1).cpu().numpy()
    return mass if top_p == 1.0 else _nucleus(mass, top_p)


def pick(mass: Array, uniform: float) -> int:
    """Draw a token by inverting the cumulative distribution.

    Args:
        mass: probabilities up to a factor, ``[v]``.
        uniform: in [0, 1).

    >>> pick(np.array([0.5, 0.25, 0.25]), 0.6)
    1
    """
    cumulative = mass.cumsum()
    target = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return int(np.searchsorted(cumulative, target, side="right"))


def accepts(p: Array, q: Array, token: int, uniform: float) -> bool:
    """Whether p takes a token drawn from q: with probability ``min(1, p / q)``.

    Args:
        p: the verifier's probabilities, ``[v]``.
        q: the drafter's, ``[v]``.
        token: what was drawn from q.
        uniform: in [0, 1).

    >>> accepts(np.array([0.25, 0.75]), np.array([0.5, 0.5]), 0, 0.6)
    False
    """
    return bool(uniform * q[token] < p[token])


def residual(p: Array, q: Array) -> Array:
    """Return what to draw from after a refusal, up to a factor: ``max(p - q, 0)``, ``[v]``.

    Accepted or replaced, the token then has distribution p, whatever q is.

    Reference: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1 and appendix A.1.

    >>> residual(np.array([0.25, 0.75]), np.array([0.5, 0.5])).tolist()
    [0.0, 0.25]
    """
    return np.maximum(p - q, 0.0)


def apart(p: Array, q: Array) -> float:
    """Return the total variation distance: the probability that a token drawn from q is refused by p.

    >>> apart(np.array([0.25, 0.75]), np.array([0.5, 0.5]))
    0.25
    """
    return 0.5 * float(np.abs(p - q).sum())


def _nucleus(mass: Array, top_p: float) -> Array:
    ranked = np.sort(mass, -1)[..., ::-1]
    before = ranked.cumsum(-1) - ranked
    last = np.maximum((before < top_p).sum(-1, keepdims=True), 1) - 1
    kept = np.where(mass >= np.take_along_axis(ranked, last, -1), mass, 0.0)
    return kept / kept.sum(-1, keepdims=True)
