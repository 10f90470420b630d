"""Mixture: each step, or each sequence, from one of two sources."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from kdcli.generation.sampling import uniforms
from kdcli.sources.base import Source, SourceContext, SourceNeeds
from kdcli.sources.build import NestedSource, opened
from kdcli.sources.sequences import RowWindows, TrainingSequence, draw_seed
from kdcli.sources.token_counts import Made, TokenCounts

_CHOICE = 0x6D6978
_DATASET: Any = "dataset"
_STUDENT: Any = "student"


class MixtureSource(Source):
    r"""Two sources, chosen between for each step or each sequence.

    At step ``i`` of ``I`` the first one is taken with probability ``share * decay**(i / I)``, else the second.
    ImitKD is ``mixture:share=1,decay=r``: data prefixes with probability :math:`r^{i/I}`, the student's own words
    otherwise. The draw follows from (seed, step, example), so it does not depend on how many processes share
    the work. Both parts see the step's rows as if they were alone.

    >>> MixtureSource(share=1.0, decay=0.1).share_at(0.5).__round__(4)
    0.3162
    """

    mixable: ClassVar[bool] = True
    name: ClassVar[str] = "mixture"
    summary: ClassVar[str] = "two sources in a share that may decay (ImitKD)"
    reference: ClassVar[str] = "Lin et al. 2020 (arXiv 2009.07253), algorithm 1"

    first: Annotated[NestedSource, Field(description="source taken with the probability", validate_default=True)] = (
        _DATASET
    )
    second: Annotated[NestedSource, Field(description="source taken otherwise", validate_default=True)] = _STUDENT
    share: Annotated[float, Field(ge=0, le=1, description="probability of the first one at the start")] = 0.5
    decay: Annotated[float, Field(gt=0, le=1, description="factor on the probability over the whole run")] = 1.0
    per: Annotated[Literal["batch", "sequence"], Field(description="what one draw decides on")] = "batch"

    @model_validator(mode="after")
    def _mixable(self) -> "MixtureSource":
        for part in (self.first, self.second):
            if not part.mixable:
                raise ValueError(f"{part.name} makes whole steps of its own and cannot be mixed")
        return self

    def share_at(self, progress: float) -> float:
        """Return the probability of the first source after a share of the run."""
        return self.share * self.decay**progress

    def needs(self) -> SourceNeeds:
        """Ask for what both ask; facts are those that both supply."""
        one, other = self.first.needs(), self.second.needs()
        both = one | other
        return replace(both, facts=one.facts & other.facts)

    def open(self, context: SourceContext) -> "MixtureWindows":
        """Return the windows of a run."""
        return MixtureWindows(context, self)


class MixtureWindows(RowWindows):
    """Windows whose sequences come from one of two others.

    Args:
        context: data set, settings and models of both.
        source: the two, and their share.
    """

    def __init__(self, context: SourceContext, source: MixtureSource) -> None:
        super().__init__(context)
        self.source = source
        parts = {"first": source.first, "second": source.second}
        self.parts = {name: opened(part, context, RowWindows) for name, part in parts.items()}
        self._share = 0.0

    def is_first(self, step: int, rows: Sequence[int]) -> list[bool]:
        """Return for each of some rows whether the first source is asked."""
        share = self.source.share_at(step / self.total_steps)
        seed = draw_seed(self.context.train.seed, _CHOICE, step)
        if self.source.per == "batch":
            return [uniforms(seed, [0], 1).item() < share] * len(rows)
        return (uniforms(seed, rows, 1)[:, 0] < share).tolist() if rows else []

    def write(self, step: int, rows: Sequence[int]) -> list[TrainingSequence]:
        """Return each row's sequence from the source that a draw names; both are asked, if with no row."""
        chosen = self.is_first(step, rows)
        asked = {
            "first": [row for row, first in zip(rows, chosen, strict=True) if first],
            "second": [row for row, first in zip(rows, chosen, strict=True) if not first],
        }
        found = {
            (name, row): one
            for name, part in self.parts.items()
            for row, one in zip(asked[name], part.write(step, asked[name]), strict=True)
        }
        names = ("first" if first else "second" for first in chosen)
        return [found[name, row] for name, row in zip(names, rows, strict=True)]

    def begin(self) -> None:
        """Start to count the tokens of a step."""
        super().begin()
        for part in self.parts.values():
            part.begin()

    @property
    def generated(self) -> int:
        """Tokens that both generated for the window given last."""
        return sum(part.generated for part in self.parts.values())

    @property
    def effort(self) -> TokenCounts:
        """What the writing of both took for the window given last."""
        return self.parts["first"].effort + self.parts["second"].effort

    @property
    def made(self) -> Made:
        """What both generated before the first step."""
        one, other = self.parts["first"].made, self.parts["second"].made
        return Made(
            one.tokens + other.tokens, one.effort + other.effort, one.fresh + other.fresh,
            one.fresh_effort + other.fresh_effort, one.seconds + other.seconds,
        )  # fmt: skip

    def values(self) -> dict[str, float]:
        """Return what both log, under their names."""
        return {f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.values().items()}

    def observe(self, step: int, scores: Mapping[str, float | None]) -> None:
        """Hand the scores of an evaluation to both."""
        for part in self.parts.values():
            part.observe(step, scores)

    def state(self) -> dict[str, Tensor]:
        """Return the states of both, under their names."""
        return {f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give both their states back."""
        for name, part in self.parts.items():
            prefix = f"{name}/"
            part.restore({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
