"""Speculative sampling: the student drafts, the teacher verifies, every test is recorded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from kdcli.config.sections import GenerationConfig
from kdcli.errors import InputError, NumericsError
from kdcli.generation import Completion, uniforms
from kdcli.generation.decoder import Decoder
from kdcli.models.head import trunk_of
from kdcli.models.internals import forward_with_cache, position_bounds
from kdcli.models.load import LanguageModel

# The accept-or-reject rule of speculative sampling, on whole distributions in float64.


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


@dataclass(frozen=True)
class Verdict:
    """One drafted token that the teacher verified.

    Args:
        position: its place in the answer, from 0.
        accepted: whether the teacher took it.
        apart: total variation distance of both next-token distributions there; acceptance is expected
            with probability ``1 - apart``.
        opens: whether it is the first of its teacher call.
        emitted: on the first of a call, how many tokens the call added to the answer; else 0.
    """

    position: int
    accepted: bool
    apart: float
    opens: bool
    emitted: int


@torch.no_grad()
def speculate(
    student: LanguageModel,
    teacher: LanguageModel,
    prompt: Sequence[int],
    config: GenerationConfig,
    *,
    draft_tokens: int,
    seed: int,
    example: int,
) -> tuple[Completion, list[Verdict]]:
    """Answer one prompt as the teacher would, with drafts of the student.

    In each round the student samples up to ``draft_tokens`` tokens; one pass of the teacher gives its
    distribution p at all of them. A token x drawn from the student's q is kept with probability
    ``min(1, p(x) / q(x))``; the first that is not is replaced by a draw from ``max(p - q, 0)``. If all are
    kept, the pass gives one token more. The answer has the teacher's distribution.

    Args:
        student: the drafter.
        teacher: the verifier; its end tokens end the answer.
        prompt: token ids.
        config: length, temperature and nucleus mass, which hold for both models.
        draft_tokens: tokens drafted in a round.
        seed: sampling seed.
        example: number of the prompt; every draw follows from seed and number.

    Returns:
        the answer, and every test in order.

    Raises:
        InputError: an empty prompt, one that fills a model's context, or a recurrent model.
        NumericsError: a model's logits are not finite.

    Reference: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1.
    """
    vocab, per_round = min(student.vocab, teacher.vocab), 2 * draft_tokens + 1
    for model in (student, teacher):
        Decoder(model, vocab).check([prompt])
        _refuse_other_positions(model, len(prompt), len(prompt) + config.max_new_tokens)
    draws = uniforms(seed, [example], config.max_new_tokens * per_round).reshape(-1, per_round)
    run = _Run(_Reader(student, config, vocab), _Reader(teacher, config, vocab), list(prompt))
    while not run.ended and len(run.generated) < config.max_new_tokens:
        width = min(draft_tokens, config.max_new_tokens - len(run.generated))
        run.round(width, draws[run.rounds], room=config.max_new_tokens - len(run.generated))
    ids, end = (run.generated[:-1], run.generated[-1]) if run.ended else (run.generated, None)
    return Completion(tuple(ids), end), run.tests


def _refuse_other_positions(model: LanguageModel, start: int, end: int) -> None:
    """Refuse an answer in whose midst all earlier tokens would get other positions than those in the cache."""
    for bound in position_bounds(model.model.config):
        if start <= bound < end:
            what = f"drafts would cross {bound} tokens, where all tokens of a text get other rotary positions"
            raise InputError("GEN-05", what, where=model.path, fix="leave metrics of speculative sampling out")


class _Reader:
    """A model with its cache, from which the last tokens can be taken back."""

    def __init__(self, model: LanguageModel, config: GenerationConfig, vocab: int) -> None:
        self.model, self.config, self.vocab = model, config, vocab
        self.trunk = trunk_of(model.model)
        self.cache = DynamicCache(config=model.model.config)
        self.cache.activate_past_recording()
        self.seen: list[int] = []

    def next_tokens(self, text: list[int], count: int) -> Array:
        """Return the distributions of the token after each of the last ``count`` of a text, ``[count, v]``."""
        kept = min(_common(self.seen, text), len(text) - count)
        if kept < len(self.seen):
            self.cache.crop(kept - len(self.seen))
        device = self.model.model.device
        ids = torch.tensor([text[kept:]], device=device)
        mask = torch.ones(1, len(text), dtype=torch.int64, device=device)
        hidden = forward_with_cache(self.trunk, self.model.reading, ids, mask, self.cache)
        self.seen = list(text)
        logits = self.model.head.logits(hidden[0, -count:], self.vocab)
        self._check(logits)
        return distribution(logits, temperature=self.config.temperature, top_p=self.config.top_p)

    def _check(self, logits: Tensor) -> None:
        if not torch.isfinite(logits.max(-1).values).all():
            what = "the model's logits are not finite while generating"
            raise NumericsError("GEN-03", what, where=self.model.path, fix="look at its training curve")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass
class _Run:
    """The state of one answer being generated."""

    drafter: _Reader
    verifier: _Reader
    prompt: list[int]
    generated: list[int] = field(default_factory=list)
    tests: list[Verdict] = field(default_factory=list)
    ended: bool = False
    rounds: int = 0

    def round(self, width: int, draws: Array, room: int) -> None:
        """Draft, verify, and add one to ``width + 1`` tokens, at most as many as there is room for."""
        drafts, q = self._draft(width, draws[:width])
        p = self.verifier.next_tokens([*self.prompt, *self.generated, *drafts], len(drafts) + 1)
        start, kept = len(self.generated), 0
        while kept < len(drafts) and accepts(p[kept], q[kept], drafts[kept], draws[width + kept]):
            kept += 1
        tested = min(kept + 1, len(drafts))
        self.generated += drafts[:kept]
        self.ended = kept > 0 and self._ends(drafts[kept - 1])
        if not self.ended and kept < room:
            last = p[kept] if kept == len(drafts) else residual(p[kept], q[kept])
            self.generated.append(pick(last, draws[-1]))
            self.ended = self._ends(self.generated[-1])
        emitted = len(self.generated) - start
        self.tests += [
            Verdict(start + at, at < kept, apart(p[at], q[at]), at == 0, 0 if at else emitted) for at in range(tested)
        ]
        self.rounds += 1

    def _draft(self, width: int, draws: Array) -> tuple[list[int], list[Array]]:
        drafts: list[int] = []
        q: list[Array] = []
        for uniform in draws.tolist():
            q.append(self.drafter.next_tokens([*self.prompt, *self.generated, *drafts], 1)[0])
            drafts.append(pick(q[-1], uniform))
            if self._ends(drafts[-1]):
                break
        return drafts, q

    def _ends(self, token: int) -> bool:
        return token in self.verifier.model.ends


def as_columns(tests: Sequence[Sequence[Verdict]]) -> tuple[dict[str, Array], np.ndarray, np.ndarray]:
    """Return the tests of several answers as columns.

    Args:
        tests: ``[answer][test]``.

    Returns:
        ``accepted``, ``total_variation``, ``opens`` and ``emitted`` by name, each ``[n]``; the answer and the
        position of each test, ``[n]``.
    """
    rows = [
        (one.accepted, one.apart, one.opens, one.emitted, answer, one.position)
        for answer, several in enumerate(tests)
        for one in several
    ]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 6).T
    facts: dict[str, Array] = dict(zip(("accepted", "total_variation", "opens", "emitted"), columns[:4], strict=True))
    return facts, columns[4].astype(np.int64), columns[5].astype(np.int64)
