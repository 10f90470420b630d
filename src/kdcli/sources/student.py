"""On-policy distillation: the student answers prompts with the weights of the step."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdcli.config.sections import GenerationConfig
from kdcli.sources.base import Source, SourceContext, SourceNeeds
from kdcli.sources.sequences import KNOWN, RowWindows, TrainingSequence, row_uniforms, step_uniform, write


class StudentSource(Source):
    """The student's own answers to the prompts of the training rows, in a share of the sequences.

    With probability ``rate`` a step (``per=batch``) or a sequence (``per=sequence``) is on-policy: the response is
    sampled from the student as it is at that step, and its tokens are the labels; the rest are rows of the data
    set. No gradient goes through the sampling. The prompt and what would follow the end token are masked; the end
    token is a label. Draws follow from (seed, step, example), so a run that resumes writes the same sequences.

    With ``jsd`` this is GKD, with ``fkl`` ImitKD without decay, with ``tvd`` or ``rkl`` a case of f-distill.

    >>> StudentSource(rate=0.5).needs().offline
    False
    """

    mixable: ClassVar[bool] = True
    name: ClassVar[str] = "student"
    summary: ClassVar[str] = "the student's own answers, written at each step (on-policy)"
    reference: ClassVar[str] = "Agarwal et al. 2024 (arXiv 2306.13649), algorithm 1"

    rate: Annotated[float, Field(ge=0, le=1, description="probability lambda of an on-policy step or sequence")] = 1.0
    per: Annotated[Literal["batch", "sequence"], Field(description="what one draw decides on")] = "batch"
    temperature: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="of the student's sampling; 0 is greedy")
    ] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, description="nucleus mass")] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1, description="tokens per answer at most, end token included")] = 128

    def needs(self) -> SourceNeeds:
        """Ask for the student; its sequences are new at every step."""
        whose = {"data": self.rate < 1.0, "student": self.rate > 0.0}
        origins = frozenset(name for name, is_there in whose.items() if is_there)
        return SourceNeeds(student=True, offline=False, facts=KNOWN, origins=origins)

    def open(self, context: SourceContext) -> "StudentWindows":
        """Return the windows of a run."""
        return StudentWindows(context, self)

    @property
    def sampling(self) -> GenerationConfig:
        """How answers are sampled."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, seeds=(0,)
        )


class StudentWindows(RowWindows):
    """Windows in which the student writes a share of the responses.

    Args:
        context: data set, settings and models; the student is asked at the first on-policy row.
        source: its options.
    """

    def __init__(self, context: SourceContext, source: StudentSource) -> None:
        super().__init__(context)
        self.source = source

    def on_policy(self, step: int, rows: Sequence[int]) -> list[int]:
        """Return which of some rows the student answers at a step."""
        rate, seed = self.source.rate, self.context.train.seed
        if self.source.per == "batch":
            return list(rows) if step_uniform(seed, step) < rate else []
        return [row for row, coin in zip(rows, row_uniforms(seed, step, rows), strict=True) if coin < rate]

    def write(self, step: int, rows: Sequence[int]) -> list[TrainingSequence]:
        """Return the student's answers where a draw says so, and the rows as they are elsewhere."""
        examples = self.context.dataset.examples
        asked = {row: examples[row] for row in self.on_policy(step, rows)}
        said: dict[int, TrainingSequence] = {}
        if asked:
            assert self.context.student is not None, "the source declares needs().student"
            found = write(self.context.student, asked, self.context, self.source.sampling, step=step, origin="student")
            said = {one.row: one for one in found}
            self.count(found)
        return [said.get(row) or TrainingSequence(examples[row], row) for row in rows]
