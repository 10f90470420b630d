"""The rows that are answered together: a new one joins as soon as there is room, one that has ended leaves."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kdcli.config import GenerationConfig
from kdcli.generate.draws import waits
from kdcli.generate.row import Row
from kdcli.generate.sampling import choose
from kdcli.generate.settling import Settling
from kdcli.generate.speaker import Read, Speaker

_SPARE_COLUMNS = 64
"""Columns beyond the longest answer, so that kept columns seldom have to be moved to the left."""


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
        self.settling = None if speaker.is_exact else Settling(speaker, config)
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
        self._say([row], read.logits)
        row.settled = 1
        self.report(1)
        if self._is_done(row):
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
        self._say(self.rows, self.speaker.step([row.said[-1] for row in self.rows]))
        self.report(len(self.rows) if self.settling is None else self._settle(self.settling))
        finished = [place for place, row in enumerate(self.rows) if self._is_done(row)]
        for place in reversed(finished):
            yield self.rows[place]
            self.speaker.cache.remove(place)
            self.rows[place] = self.rows[-1]
            self.rows.pop()

    def _settle(self, settling: Settling) -> int:
        """Make rows final that have ended or filled a block; return how many tokens became so."""
        final = 0
        for place, row in enumerate(self.rows):
            if self._is_done(row) or settling.is_due(row):
                known = row.settled
                settling.settle(row, place)
                row.settled = len(row.tokens)
                final += row.settled - known
        return final

    def _say(self, rows: list[Row], logits: Tensor) -> None:
        """Append each row's next token."""
        for row, token in zip(rows, self._pick(rows, logits), strict=True):
            row.take(token, self.speaker.model.ends)

    def _is_done(self, row: Row) -> bool:
        return row.ended or not self.may_go_on(row)

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
        picks = choose(logits, times, self.config, tolerance)
        tokens = picks.tokens.tolist()
        if tolerance is not None:
            for place in (~picks.sure).nonzero().flatten().tolist():
                row = rows[place]
                alone = self.speaker.alone([*row.prompt, *row.said])
                own = None if times is None else times[place : place + 1]
                tokens[place] = int(choose(alone, own, self.config).tokens)
        return tokens
