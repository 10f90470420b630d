"""Per-token facts that sources supply, by name, and synthetic ones for trials."""

from collections.abc import Iterable

import torch
from torch import Tensor

ORIGIN = "origin"
"""Who wrote the token's sequence: an index into :data:`ORIGINS`, whole numbers."""

ORIGIN_SHARE = "origin_share"
"""Share of the optimizer step's tokens that are of the token's origin (of its sequences, at ``reduce=sequence``)."""

BEHAVIOUR_LOGP = "behaviour_logp"
"""Log-probability of the token under the distribution it was drawn from."""

STUDENT_LOGP = "student_logp"
"""Log-probability of the token under the student as it was when the token was drawn."""

ALIGNED = "aligned"
"""1 where a teacher of another tokenizer has read the same text up to the token, else 0; there with such a teacher."""

TRUST = "teacher_trust"
"""How far the teacher is trusted on the token's row, from 0 to 1; 1 where nothing says it, and on made words."""

ORIGINS = ("data", "student", "teacher", "rollout", "corpus")
"""The training rows, the student's own words, the teacher's, those of a mixture of both, and a second corpus."""


def code_of(origin: str) -> int:
    """Return the number that stands for an origin.

    >>> code_of("rollout")
    3
    """
    return ORIGINS.index(origin)


def random_facts(
    names: Iterable[str], origins: Iterable[str], sequence: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return facts such as a source might supply, for made-up tokens.

    Args:
        names: of the facts; one that is not known here is drawn from a normal distribution.
        origins: whose words there are; empty for anybody's.
        sequence: each token's sequence, shape ``[n]``.
        generator: of the random numbers.
    """
    facts: dict[str, Tensor] = {}
    codes = torch.tensor([code_of(origin) for origin in sorted(origins) or ORIGINS])
    for name in sorted(names):
        values = torch.randn(len(sequence), generator=generator)
        if name == ORIGIN:
            facts[name] = codes[sequence % len(codes)]
        elif name == ORIGIN_SHARE:
            facts[name] = torch.full_like(values, 0.5)
        elif name == TRUST:
            facts[name] = values.relu().clamp_max(1.0)
        else:
            facts[name] = -values.abs() if name in (BEHAVIOUR_LOGP, STUDENT_LOGP) else values
    return facts
