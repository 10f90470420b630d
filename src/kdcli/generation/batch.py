"""Continuous batching: every prompt is prefilled once, rows join and leave, and no answer depends on its batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcli.config.sections import GenerationConfig
from kdcli.data.images import RowImages
from kdcli.end_tokens import UNTOLD
from kdcli.generation.batch_invariance import BatchInvariance
from kdcli.generation.decoder import Decoder, Prefill
from kdcli.generation.sampling import SequenceState, choose, exponential_noise
from kdcli.models.internals import eval_mode
from kdcli.models.load import LanguageModel

# The rows that are answered together: a new one joins as soon as there is room, one that has ended leaves.


_SPARE_COLUMNS = 64
"""Columns beyond the longest answer, so that kept columns seldom have to be moved to the left."""


class RunningBatch:
    """Answers rows under a budget of tokens.

    Args:
        decoder: the model.
        config: length, temperature, nucleus mass and the budget.
        report: called with the number of tokens just generated.
    """

    def __init__(self, decoder: Decoder, config: GenerationConfig, report: Callable[[int], None]) -> None:
        self.decoder, self.config, self.report = decoder, config, report
        self.rows: list[SequenceState] = []
        self._slots = 0
        self.settling = None if decoder.is_exact else BatchInvariance(decoder, config)
        self._last_read: tuple[int, Prefill] | None = None

    def run(self, waiting: Iterator[SequenceState]) -> Iterator[SequenceState]:
        """Answer rows, which come with the longest prompts first; yield each as it is finished."""
        coming = next(waiting, None)
        while coming is not None or self.rows:
            while coming is not None and self.has_room(coming):
                if self._join(coming):
                    yield coming
                coming = next(waiting, None)
            yield from self._step()

    def has_room(self, coming: SequenceState) -> bool:
        """Whether one more row fits the budget."""
        return not self.rows or (len(self.rows) + 1) * self._need(coming) <= self.config.batch_tokens

    def _need(self, coming: SequenceState) -> int:
        """Return tokens that the longest row may come to."""
        return max(len(row.prompt) for row in (*self.rows, coming)) + self.config.max_new_tokens

    def _join(self, row: SequenceState) -> bool:
        """Generate a row's first token; return whether that ended it, else it joins the batch."""
        if self._last_read is None or self._last_read[0] != row.place:
            self._last_read = row.place, self.decoder.prefill(row.prompt, row.image_inputs)
        read = self._last_read[1]
        row.offset = read.offset
        self._append_tokens([row], read.logits)
        row.settled = 1
        self.report(1)
        if self._is_done(row):
            return True
        if len(self.rows) == self._slots or not self.rows:
            self._reserve(row)
        self.decoder.cache.add(read.kept, len(row.prompt), read.offset)
        self.rows.append(row)
        return False

    def _reserve(self, row: SequenceState) -> None:
        need = self._need(row)
        slots = max(self.config.batch_tokens // need, 1)
        if not self.rows and 0 < slots <= self._slots:
            return
        self._slots = slots
        self.decoder.cache.reserve(slots, need + _SPARE_COLUMNS)

    def _step(self) -> Iterator[SequenceState]:
        """Generate one more token of every row; yield those that have finished."""
        if not self.rows:
            return
        self._append_tokens(self.rows, self.decoder.decode_step([row.generated[-1] for row in self.rows]))
        self.report(len(self.rows) if self.settling is None else self._settle(self.settling))
        finished = [place for place, row in enumerate(self.rows) if self._is_done(row)]
        for place in reversed(finished):
            yield self.rows[place]
            self.decoder.cache.remove(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()

    def _settle(self, settling: BatchInvariance) -> int:
        """Make rows final that have ended or filled a block; return how many tokens became so."""
        final = 0
        for place, row in enumerate(self.rows):
            if self._is_done(row) or settling.is_due(row):
                known = row.settled
                settling.verify(row, place)
                row.settled = len(row.tokens)
                final += row.settled - known
        return final

    def _append_tokens(self, rows: list[SequenceState], logits: Tensor) -> None:
        """Append each row's next token."""
        for row, token in zip(rows, self._pick(rows, logits), strict=True):
            row.take(token, self.decoder.model.ends)

    def _is_done(self, row: SequenceState) -> bool:
        return row.ended or not self.may_go_on(row)

    def may_go_on(self, row: SequenceState) -> bool:
        """Whether an answer may get longer."""
        limit = self.decoder.limit
        new = len(row.generated)
        if row.most is not None and new >= row.most:
            return False
        return new < self.config.max_new_tokens and (limit is None or len(row.prompt) + new < limit)

    def _pick(self, rows: list[SequenceState], logits: Tensor) -> list[int]:
        """Pick next tokens; where rounding might decide, by the logits of the row alone."""
        times = None
        if self.config.temperature > 0.0:
            times = torch.from_numpy(exponential_noise([row.stream for row in rows], self.decoder.ids)).to(
                logits.device
            )
        tolerance = self.decoder.tolerance(logits)
        picks = choose(logits, times, self.config, tolerance)
        tokens = picks.tokens.tolist()
        if tolerance is not None:
            for place in (~picks.sure).nonzero().flatten().tolist():
                row = rows[place]
                alone = self.decoder.forward_single([*row.prompt, *row.generated], row.image_inputs)
                own = None if times is None else times[place : place + 1]
                tokens[place] = int(choose(alone, own, self.config).tokens)
        return tokens


@dataclass(frozen=True)
class Completion:
    """A model's answer to one prompt.

    Args:
        ids: the answer's tokens, without the end token.
        end: the end token that was written; None where the answer was cut at a length, ``end_tokens.UNTOLD`` where the
            source ended it and does not tell by which token.

    >>> Completion((5, 6), end=7).tokens, Completion((5, 6), end=None).ended
    ((5, 6, 7), False)
    """

    ids: tuple[int, ...]
    end: int | None

    @property
    def ended(self) -> bool:
        """Whether the model ended it; False where it was cut at a length."""
        return self.end is not None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The generated tokens, the end token included."""
        assert self.end != UNTOLD, "a source that gives tokens gives the end token"
        return self.ids if self.end is None else (*self.ids, self.end)


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, and the seeds it is to be answered for.

    Args:
        prompt: token ids, at least one.
        example: its number in the draws.
        seeds: one answer each; the prompt is read once for all of them.
        most: tokens its answer may have, beside the bound that all answers share.
        images: those of the prompt; None for text alone.
    """

    prompt: Sequence[int]
    example: int
    seeds: tuple[int, ...]
    most: int | None = None
    images: RowImages | None = None


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    seed: int,
    examples: Sequence[int] | None = None,
    rows: int | None = None,
    report: Callable[[int], None] = lambda tokens: None,
) -> list[Completion]:
    """Answer every prompt once, greedily at temperature 0, else by sampling.

    Args:
        model: a loaded language model.
        prompts: token ids of each prompt, at least one each.
        config: length, temperature, nucleus mass and batch size; its ``seeds`` are not read here.
        seed: sampling seed.
        examples: the number of each prompt in the draws, default its position; lets a subset or
            another order give the same answers.
        rows: number of real ids, where the head has padding rows; no other id is generated.
        report: called after each step with the number of tokens just generated.

    Returns:
        one answer per prompt, in the prompts' order.

    Raises:
        InputError: an empty prompt, one that fills the model's context, or a recurrent model.
        NumericsError: the model's logits are not finite.
    """
    numbers = range(len(prompts)) if examples is None else examples
    asked = [GenerationRequest(prompt, number, (seed,)) for prompt, number in zip(prompts, numbers, strict=True)]
    found = {place: answer for place, _, answer in answers(model, asked, config, rows=rows, report=report)}
    return [found[place] for place in range(len(prompts))]


def answers(
    model: LanguageModel,
    asked: Sequence[GenerationRequest],
    config: GenerationConfig,
    *,
    rows: int | None = None,
    report: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[int, int, Completion]]:
    """Answer every prompt once for each of its seeds.

    Args:
        model: a loaded language model.
        asked: prompts and seeds.
        config: length, temperature, nucleus mass and batch size; its ``seeds`` are not read here.
        rows: number of real ids, where the head has padding rows; no other id is generated.
        report: called after each step with the number of tokens just generated.

    Yields:
        position in ``asked``, seed and answer, in the order in which answers end.

    Raises:
        InputError: an empty prompt, one that fills the model's context, or a recurrent model.
        NumericsError: the model's logits are not finite.
    """
    yield from run_batches(Decoder(model, rows or model.vocab), asked, config, report)


def run_batches(
    decoder: Decoder, asked: Sequence[GenerationRequest], config: GenerationConfig, report: Callable[[int], None]
) -> Iterator[tuple[int, int, Completion]]:
    """Generate an answer to every prompt for each of its seeds, as :func:`answers` does, without autocast."""
    decoder.check([one.prompt for one in asked])
    order = sorted(range(len(asked)), key=lambda place: (-len(asked[place].prompt), place))
    waiting = (
        SequenceState.waiting(
            place, asked[place].prompt, asked[place].example, seed, asked[place].most, asked[place].images
        )
        for place in order
        for seed in asked[place].seeds
    )
    finished, kind = RunningBatch(decoder, config, report).run(waiting), decoder.device.type
    while True:
        with torch.no_grad(), torch.autocast(kind, enabled=False), eval_mode(decoder.model.model):
            row = next(finished, None)
        if row is None:
            return
        yield row.place, row.seed, Completion(tuple(row.generated), row.end)
