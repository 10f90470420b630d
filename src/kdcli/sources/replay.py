"""Replay buffer of the student's answers (adaptive off-policy distillation)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.config.sections import GenerationConfig
from kdcli.data.tokenize import Example
from kdcli.metrics.titles import current
from kdcli.sources.base import Source, SourceContext, SourceNeeds
from kdcli.sources.sequences import KNOWN, RowWindows, TrainingSequence, row_uniforms, step_uniform, write


class ReplaySource(Source):
    r"""The student's answers in a buffer, used more the worse the student does on held-out rows (DistiLLM).

    At step ``t`` of ``T`` one draw ``u`` in [0, 1) decides::

        u < phi (1 - t/T)   the student answers the step's prompts; its answers join the buffer
        u < phi             the step is drawn from the buffer
        else                the step's rows as they are

    and after every evaluation while training, ``phi`` grows by ``growth``, up to 1, if ``score`` is worse than at the
    evaluation before by more than ``eps``. A step that writes trains on the buffer too, as algorithm 1 has it;
    ``fresh=true`` trains on what it has just written, as the published code does. A buffer that is still empty is
    written to first. Beyond ``capacity`` the oldest answers leave. Buffer, ``phi`` and the score seen last are in the
    checkpoint. The published code compares with the score at which ``phi`` last grew; here it is the one before.

    >>> ReplaySource().needs().monitor
    'nll'
    """

    mixable: ClassVar[bool] = True
    name: ClassVar[str] = "replay"
    summary: ClassVar[str] = "a buffer of the student's answers with an adaptive share (DistiLLM)"
    reference: ClassVar[str] = "Ko et al. 2024 (arXiv 2402.03898), section 3.2 and algorithm 1"

    capacity: Annotated[int, Field(ge=1, description="answers kept; the oldest leave first")] = 1000
    phi: Annotated[float, Field(ge=0, le=1, description="share of steps on the student's answers at the start")] = 0.0
    growth: Annotated[float, Field(ge=0, le=1, description="what phi grows by when the score got worse")] = 0.1
    eps: Annotated[float, Field(ge=0, allow_inf_nan=False, description="by how much a score must be worse")] = 0.1
    score: Annotated[str, Field(description="lower-is-better score of the evaluation while training")] = "nll"
    fresh: Annotated[bool, Field(description="train on what was just written instead of a draw from the buffer")] = (
        False
    )
    temperature: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="of the student's sampling; 0 is greedy")
    ] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, description="nucleus mass")] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1, description="tokens per answer at most, end token included")] = 128

    def needs(self) -> SourceNeeds:
        """Ask for the student and, unless phi stays what it is, for an evaluation while training."""
        grows = self.growth > 0 and self.phi < 1
        return SourceNeeds(
            student=True, offline=False, monitor=current(self.score) if grows else "", facts=KNOWN,
            origins=frozenset({"data", "student"}),
        )  # fmt: skip

    def open(self, context: SourceContext) -> "ReplayWindows":
        """Return the windows of a run."""
        return ReplayWindows(context, self)

    @property
    def sampling(self) -> GenerationConfig:
        """How answers are sampled."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, seeds=(0,)
        )


class ReplayWindows(RowWindows):
    """Windows that write, replay, or give the rows as they are.

    Args:
        context: data set, settings and models.
        source: its options.
    """

    def __init__(self, context: SourceContext, source: ReplaySource) -> None:
        super().__init__(context)
        self.source = source
        self.phi = source.phi
        self.previous: float | None = None
        self.buffer: list[TrainingSequence] = []

    def write(self, step: int, rows: Sequence[int]) -> list[TrainingSequence]:
        """Return the step's sequences; every process must ask, if with no row."""
        examples = self.context.dataset.examples
        drawn = step_uniform(self.context.train.seed, step)
        if drawn >= self.phi:
            return [TrainingSequence(examples[row], row) for row in rows]
        if drawn < self.phi * (1.0 - step / self.total_steps) or not self.buffer:
            fresh = self._say(step, rows)
            if self.source.fresh:
                return fresh
        size = len(self.buffer)
        return [
            self.buffer[int(coin * size)]
            for coin in row_uniforms(self.context.train.seed, step, [row + 1 for row in rows])
        ]

    def _say(self, step: int, rows: Sequence[int]) -> list[TrainingSequence]:
        """Let the student answer, and every process keep all processes' answers in one order."""
        assert self.context.student is not None, "the source declares needs().student"
        examples = self.context.dataset.examples
        asked = {row: examples[row] for row in rows}
        fresh = write(self.context.student, asked, self.context, self.source.sampling, step=step, origin="student")
        self.count(fresh)
        joined = sorted(self.context.gather(list(fresh)), key=lambda one: one.row)
        self.buffer = [*self.buffer, *joined][-self.source.capacity :]
        return fresh

    def values(self) -> dict[str, float]:
        """Return phi and the size of the buffer."""
        return {"phi": self.phi, "buffer": float(len(self.buffer))}

    def observe(self, step: int, scores: Mapping[str, float | None]) -> None:
        """Let phi grow if the score is worse than at the evaluation before; one that is no number is passed over."""
        score = scores.get(current(self.source.score))
        if score is None:
            return
        if self.previous is not None and score > self.previous + self.source.eps:
            self.phi = min(1.0, self.phi + self.source.growth)
        self.previous = score

    def state(self) -> dict[str, Tensor]:
        """Return phi, the score seen last, and the buffer's sequences one after another."""
        known = float("nan") if self.previous is None else self.previous
        parts = [(len(one.example.ids), one.example.prompt_length, one.row) for one in self.buffer]
        ids = [token for one in self.buffer for token in one.example.ids]
        return {
            "schedule": torch.tensor([self.phi, known], dtype=torch.float64),
            "parts": torch.tensor(parts, dtype=torch.int64).reshape(-1, 3),
            "ids": torch.tensor(ids, dtype=torch.int64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's state; without one, from the start."""
        if not state:
            return
        self.phi, known = state["schedule"].tolist()
        self.previous = None if known != known else known
        self.buffer, at, ids = [], 0, state["ids"].tolist()
        for length, prompt_length, row in state["parts"].tolist():
            self.buffer.append(
                TrainingSequence(self._example(row, tuple(ids[at : at + length]), prompt_length), row, "student")
            )
            at += length

    def _example(self, row: int, ids: tuple[int, ...], prompt_length: int) -> Example:
        return replace(self.context.dataset.examples[row], ids=ids, prompt_length=prompt_length, response="", asked=())
