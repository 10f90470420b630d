"""Speculative decoding, measured: the student drafts for the teacher."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import numpy as np

from kdcli.bounded import NOT_NEGATIVE, PERCENT, Bounds
from kdcli.errors import InputError
from kdcli.metrics.curve import Curve, mean_with_interval
from kdcli.metrics.on_policy import OnPolicyMetric, SampledTokenStats, Sampler
from kdcli.metrics.score import Array, Better, Score, ratio
from kdcli.metrics.signature import Option


class Speculative(OnPolicyMetric):
    """Acceptance rate and tokens per teacher call of a real speculative sampling run.

    In each teacher call the student drafts ``draft_tokens`` tokens; each is kept with probability
    ``min(1, p / q)`` until one is not. ``spec_acceptance`` is the share kept of the tokens tested, times 100;
    ``spec_expected`` the mean of ``100 (1 - TV(p, q))`` at the same places, which it must equal but for
    chance. ``spec_accepted_length`` is the mean number of drafted tokens kept per call and
    ``spec_tokens_per_call`` the tokens gained per call, the teacher's own included.
    ``spec_expected_tokens = (1 - a^(g+1)) / (1 - a)`` is what a rate a = ``spec_expected`` and g drafts give if places
    were independent and answers never ended.
    ``compute`` takes the student's logits ``[n, v]`` as predictions and the teacher's as references, and gives
    the expectation of one drafted token a call.

    Args:
        draft_tokens: tokens the student drafts for each call of the teacher.

    Reference: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1, theorem 3.5 and equation 1.

    >>> Speculative().compute(predictions=[[0.0, 0.0]], references=[[0.0, -1e9]])["spec_tokens_per_call"]
    1.5
    """

    name: ClassVar[str] = "speculative"
    description: ClassVar[str] = "acceptance and tokens per teacher call when the student drafts for the teacher"
    scores: ClassVar[dict[str, Better]] = {
        "spec_acceptance": "higher",
        "spec_expected": "higher",
        "spec_accepted_length": "higher",
        "spec_tokens_per_call": "higher",
        "spec_expected_tokens": "higher",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "spec_acceptance": PERCENT,
        "spec_expected": PERCENT,
        "spec_accepted_length": NOT_NEGATIVE,
        "spec_tokens_per_call": NOT_NEGATIVE,
        "spec_expected_tokens": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "rule:leviathan|agg:ratio-of-sums"
    options: ClassVar[dict[str, int]] = {"draft_tokens": 4}
    samplers: ClassVar[tuple[Sampler, ...]] = ("speculative",)
    facts: ClassVar[tuple[str, ...]] = ("accepted", "total_variation", "opens", "emitted")

    def __init__(self, **options: Option) -> None:
        super().__init__(**options)
        drafts = self.chosen["draft_tokens"]
        if not isinstance(drafts, int) or drafts < 1:
            what = f"draft_tokens must be at least 1, got {drafts}"
            raise InputError("METRIC-02", what, where="metric speculative", fix="draft_tokens=4")
        self.draft_tokens = drafts

    def measure(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Score]:
        """Add up tests, acceptances, calls and tokens of each answer."""
        own = samples["speculative"]
        kept, calls, emitted = own.facts["accepted"], own.facts["opens"], own.facts["emitted"]
        likely, tests = 1.0 - own.facts["total_variation"], np.ones_like(kept)
        columns = {
            "spec_acceptance": (kept, tests, ratio(100.0)),
            "spec_expected": (likely, tests, ratio(100.0)),
            "spec_accepted_length": (kept, calls, ratio()),
            "spec_tokens_per_call": (emitted, calls, ratio()),
            "spec_expected_tokens": (likely, tests, partial(tokens_per_call, drafts=self.draft_tokens)),
        }
        scores = []
        for name, (above, below, finish) in columns.items():
            answers = np.stack([own.per_answer(above), own.per_answer(below)], axis=-1)
            scores.append(Score(name, answers.mean(1), finish, "higher", answers=answers))
        return scores

    def curves(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Curve]:
        """Draw the share accepted, measured and expected, by position in the answer."""
        own = samples["speculative"]
        seen = 1 + int(own.position.max())
        tests = own.per_position(np.ones(len(own.position)))[:, :seen]
        count, steps = np.bincount(own.position, minlength=seen), np.arange(1, seen + 1)
        shares = {"measured": own.facts["accepted"], "expected, 1 - TV": 1.0 - own.facts["total_variation"]}
        lines = [
            mean_with_interval(
                label, steps, np.stack([own.per_position(values)[:, :seen], tests], -1), ratio(100.0), count, PERCENT
            )
            for label, values in shares.items()
        ]
        title, axis = "Drafted tokens that the teacher accepts", "position in the answer, tokens"
        return [Curve("acceptance", title, axis, "accepted, %", tuple(lines))]

    def _facts_of_rows(self, facts: dict[str, Array]) -> dict[str, Array]:
        likely = 1.0 - facts["total_variation"]
        return facts | {"accepted": likely, "opens": np.ones_like(likely), "emitted": 1.0 + likely}


def tokens_per_call(sums: Array, drafts: int) -> Array:
    """Return ``1 + a + ... + a^drafts`` for the rate ``a = sums[..., 0] / sums[..., 1]``.

    >>> tokens_per_call(np.array([1.0, 2.0]), 2).item()
    1.75
    """
    rate = ratio()(sums)
    return np.asarray(sum(rate**power for power in range(drafts + 1)), dtype=np.float64)
