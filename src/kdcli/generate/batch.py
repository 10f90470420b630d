"""The rows that are answered together: a new one joins as soon as there is room, one that has ended leaves."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kdcli.config import GenerationConfig
from kdcli.generate.draws import stream, waits
from kdcli.generate.sampling import Picks, greedy, sample
from kdcli.generate.speaker import Read, Speaker

_SPARE_COLUMNS = 64
"""Columns beyond the longest answer, so that kept columns seldom have to be moved to the left."""


@dataclass
class Row:
    """One answer on its way.

    Args:
        place: the prompt's position in what was asked.
        prompt: its tokens.
        seed: sampling seed.
        stream: random bits of this answer.
        most: tokens it may have, beside the bound that all answers share.
        said: tokens so far, without the end token.
        ended: whether the model ended it.
    """

    place: int
    prompt: Sequence[int]
    seed: int
    stream: np.random.Philox
    most: int | None = None
    said: list[int] = field(default_factory=list)
    ended: bool = False

    @classmethod
    def waiting(cls, place: int, prompt: Sequence[int], example: int, seed: int, most: int | None = None) -> "Row":
        """Return an answer that has not begun."""
        return cls(place, prompt, seed, stream(seed, example), most)


class Batch:
    """Answers rows under a budget of tokens.

    Args:
        speaker: the model.
        config: length, temperature, nucleus mass and the budget.
        report: called with the number of tokens just generated.
    """

    def __init__(self, speaker: Speaker, config: GenerationConfig, report: Callable[[int], None]) -> None:
        self.speaker, self.config, self.report = speaker, config, report
        self.rows: list[Row] = []
        self._slots = 0
        self._last_read: tuple[int, Read] | None = None

    def run(self, waiting: Iterator[Row]) -> Iterator[Row]:
        """Answer rows, which come with the longest prompts first; yield each as it is finished."""
        coming = next(waiting, None)
        while coming is not None or self.rows:
            while coming is not None and self.has_room(coming):
                if self._join(coming):
                    yield coming
                coming = next(waiting, None)
            yield from self._step()

    def has_room(self, coming: Row) -> bool:
        """Whether one more row fits the budget."""
        return not self.rows or (len(self.rows) + 1) * self._need(coming) <= self.config.batch_tokens

    def _need(self, coming: Row) -> int:
        """Return tokens that the longest row may come to."""
        return max(len(row.prompt) for row in (*self.rows, coming)) + self.config.max_new_tokens

    def _join(self, row: Row) -> bool:
        """Let a row say its first token; return whether that was all, else it is in the batch."""
        if self._last_read is None or self._last_read[0] != row.place:
            self._last_read = row.place, self.speaker.read(row.prompt)
        read = self._last_read[1]
        if self._say([row], read.logits):
            return True
        if len(self.rows) == self._slots or not self.rows:
            self._reserve(row)
        self.speaker.cache.add(read.kept, len(row.prompt))
        self.rows.append(row)
        return False

    def _reserve(self, row: Row) -> None:
        need = self._need(row)
        slots = max(self.config.batch_tokens // need, 1)
        if not self.rows and 0 < slots <= self._slots:
            return
        self._slots = slots
        self.speaker.cache.reserve(slots, need + _SPARE_COLUMNS)

    def _step(self) -> Iterator[Row]:
        """Let every row say one more token; yield those that have finished."""
        if not self.rows:
            return
        logits = self.speaker.step([row.said[-1] for row in self.rows])
        finished = self._say(self.rows, logits)
        for place in reversed(finished):
            yield self.rows[place]
            self.speaker.cache.remove(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()

    def _say(self, rows: list[Row], logits: Tensor) -> list[int]:
        """Append each row's next token; return the places of rows that are finished by it."""
        tokens = self._pick(rows, logits)
        finished = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.ended = token in self.speaker.model.end_ids
            if not row.ended:
                row.said.append(token)
            if row.ended or not self.may_go_on(row):
                finished.append(place)
        self.report(len(rows))
        return finished

    def may_go_on(self, row: Row) -> bool:
        """Whether an answer may get longer."""
        limit = self.speaker.limit
        new = len(row.said)
        if row.most is not None and new >= row.most:
            return False
        return new < self.config.max_new_tokens and (limit is None or len(row.prompt) + new < limit)

    def _pick(self, rows: list[Row], logits: Tensor) -> list[int]:
        """Pick next tokens; where rounding might decide, by the logits of the row alone."""
        times = None
        if self.config.temperature > 0.0:
            times = torch.from_numpy(waits([row.stream for row in rows], self.speaker.ids)).to(logits.device)
        tolerance = self.speaker.tolerance(logits)
        picks = self._choose(logits, times, tolerance)
        tokens = picks.tokens.tolist()
        if tolerance is not None:
            for place in (~picks.sure).nonzero().flatten().tolist():
                row = rows[place]
                alone = self.speaker.alone([*row.prompt, *row.said])
                own = None if times is None else times[place : place + 1]
                tokens[place] = int(self._choose(alone, own, None).tokens)
        return tokens

    def _choose(self, logits: Tensor, times: Tensor | None, tolerance: Tensor | None) -> Picks:
        if times is None:
            return greedy(logits, torch.zeros(len(logits), device=logits.device) if tolerance is None else tolerance)
        setting = self.config
        return sample(logits, times, temperature=setting.temperature, top_p=setting.top_p, tolerance=tolerance)
