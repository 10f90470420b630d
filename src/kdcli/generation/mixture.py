"""Decoding from a mixture: at every step a token is drawn from the mixture of two models' distributions."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from kdcli.config.sections import GenerationConfig
from kdcli.data.images import ImageInputs
from kdcli.generation.batch import Completion, GenerationRequest, run_batches
from kdcli.generation.decoder import Decoder, Prefill
from kdcli.generation.kv_cache import KVState, RowCache
from kdcli.models.load import LanguageModel


def mixed_answers(
    student: LanguageModel,
    teacher: LanguageModel,
    alpha: float,
    asked: Sequence[GenerationRequest],
    config: GenerationConfig,
    *,
    rows: int | None = None,
    report: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[int, int, Completion]]:
    """Answer every prompt from p~ = alpha p + (1 - alpha) q, step by step, both models with a key-value cache.

    Args:
        student: q; its training mode is put back.
        teacher: p.
        alpha: the teacher's share, above 0; both models are run for every token.
        asked: prompts and seeds, one seed each.
        config: length, batch size, temperature and nucleus mass, the last two of the mixture.
        rows: number of real ids, where a head has padding rows; no other id is generated.
        report: called after each step with the number of tokens just generated.

    Yields:
        position in ``asked``, seed and answer, in the order in which answers end.

    Raises:
        InputError: an empty prompt, one that fills a model's context, or a recurrent model.
        NumericsError: a model's logits are not finite.
    """
    decoder = MixtureDecoder(student, teacher, rows or min(student.vocab, teacher.vocab), alpha)
    yield from run_batches(decoder, asked, config, report)


class MixtureDecoder(Decoder):
    """Decodes from the mixture of two models; its logits are the mixture's log-probabilities.

    Args:
        student: q.
        teacher: p.
        ids: real ids, shared by both.
        alpha: the teacher's share.
    """

    def __init__(self, student: LanguageModel, teacher: LanguageModel, ids: int, alpha: float) -> None:
        super().__init__(student, ids)
        self.sides = Decoder(student, ids), Decoder(teacher, ids)
        self.alpha = alpha
        self.is_exact = all(side.is_exact for side in self.sides)
        self.reads_blocks = all(side.reads_blocks for side in self.sides)
        self.cache = PairCache(*(side.cache for side in self.sides))
        limits = [side.limit for side in self.sides if side.limit is not None]
        self.limit = min(limits) if limits else None
        self._latest: tuple[Tensor, Tensor | None] | None = None

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse what either model cannot read."""
        for side in self.sides:
            side.check(prompts)

    def prefill(self, prompt: Sequence[int], images: ImageInputs | None = None) -> Prefill:
        """Read a prompt, alone, with both models."""
        own, other = (side.prefill(prompt, images) for side in self.sides)
        self.cache.cut = len(own.kept)
        return Prefill([*own.kept, *other.kept], self._mixed(own.logits, other.logits), own.offset)

    def decode_step(self, tokens: Sequence[int]) -> Tensor:
        """Let every row read one token with both models; returns the mixture's log-probabilities, ``[rows, ids]``."""
        return self._mixed(*(side.decode_step(tokens) for side in self.sides))

    def forward_single(self, tokens: Sequence[int], images: ImageInputs | None = None) -> Tensor:
        """Return the mixture's log-probabilities after a sequence that is read anew, by itself, ``[1, ids]``."""
        return self._mixture(*(side.forward_single(tokens, images) for side in self.sides))

    def rescore(self, past: KVState, tokens: Sequence[int], offset: int = 0) -> Prefill:
        """Read some tokens of one row, by itself, with both models; as the decoder of one model does."""
        parts = past[: self.cache.cut], past[self.cache.cut :]
        own, other = (side.rescore(part, tokens, offset) for side, part in zip(self.sides, parts, strict=True))
        return Prefill([*own.kept, *other.kept], self._mixture(own.logits, other.logits))

    def tolerance(self, logits: Tensor) -> Tensor | None:
        """Return by how much each row of the log-probabilities given last may be off.

        A mixture's logarithm moves by no more than the log-probability of a side that moves most, and that by no
        more than twice its logits.
        """
        assert self._latest is not None, "nothing was read yet"
        assert logits is self._latest[0], "only the logits given last are known"
        return self._latest[1]

    def _mixed(self, own: Tensor, other: Tensor) -> Tensor:
        found = self._mixture(own, other)
        off = [side.tolerance(logits) for side, logits in zip(self.sides, (own, other), strict=True)]
        known = [one for one in off if one is not None]
        self._latest = found, 2.0 * torch.maximum(*known) if len(known) == len(off) else None
        return found

    def _mixture(self, own: Tensor, other: Tensor) -> Tensor:
        """Return log(alpha p + (1 - alpha) q) from both sides' logits, at least in fp32."""
        wide = torch.promote_types(own.dtype, torch.float32)
        log_q, log_p = (torch.log_softmax(side.to(wide), -1) for side in (own, other))
        if self.alpha >= 1.0:
            return log_p
        return torch.logaddexp(log_q + math.log1p(-self.alpha), log_p + math.log(self.alpha))


class PairCache:
    """The row caches of two models, whose rows come and go together.

    Args:
        first: rows of the first model.
        second: rows of the second one.
    """

    def __init__(self, first: RowCache, second: RowCache) -> None:
        self.both = first, second
        self.cut = 0

    def reserve(self, slots: int, columns: int) -> None:
        """Set room aside for so many rows of so many tokens."""
        for cache in self.both:
            cache.reserve(slots, columns)

    def add(self, kept: KVState, length: int, offset: int = 0) -> None:
        """Add a row to both; the first ``cut`` layers are the first model's."""
        first, second = self.both
        first.add(kept[: self.cut], length, offset)
        second.add(kept[self.cut :], length, offset)

    def kept(self, row: int, length: int) -> KVState:
        """Return what both keep of a row's first ``length`` tokens."""
        return [pair for cache in self.both for pair in cache.kept(row, length)]

    def replace(self, row: int, kept: KVState, length: int) -> None:
        """Let a row of both hold the first ``length`` tokens of what is kept, and nothing else."""
        first, second = self.both
        first.replace(row, kept[: self.cut], length)
        second.replace(row, kept[self.cut :], length)

    def remove(self, row: int) -> None:
        """Forget a row in both."""
        for cache in self.both:
            cache.remove(row)
