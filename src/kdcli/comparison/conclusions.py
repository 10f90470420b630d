"""Sentences computed from a comparison's numbers: what it shows and what it cannot show."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdcli.comparison.records import ComparisonRow
from kdcli.data.readers import counted
from kdcli.evaluation.records import ScoreInfo
from kdcli.metrics.titles import title
from kdcli.statistics import LEVEL, Detectable, VarianceShares

_MORE_SEEDS = 5


def conclusions(
    rows: Sequence[ComparisonRow],
    baseline: str,
    infos: Sequence[ScoreInfo],
    detectable: Mapping[str, Detectable | None],
    variance: Mapping[str, VarianceShares],
    pareto: Mapping[str, Mapping[str, tuple[str, ...]]],
    *,
    one_rate: bool = True,
    start: Iterable[str] = (),
) -> Iterator[str]:
    """Say what follows from the differences to the baseline, and what does not.

    Args:
        rows: the lines.
        baseline: the label that differences are taken to.
        infos: the scores.
        detectable: score -> smallest true difference that this design finds.
        variance: score -> where the variance of a difference comes from.
        pareto: score -> cost -> labels on the front of quality against that cost.
        one_rate: whether all lines were trained with one learning rate, which none of them chose.
        start: what is said of the student before training.
    """
    fewest = min(len(row.seeds) for row in rows)
    if fewest == 1:
        yield _one_seed(rows)
    yield from start
    contenders = [row for row in rows if row.label != baseline]
    for row in contenders:
        yield _found(row, baseline, infos)
    yield from _tied(rows, infos)
    if contenders:
        yield from _power(baseline, infos, detectable, fewest)
        yield from _shares(infos, variance)
    if contenders and infos:
        yield (
            "intervals of two lines may overlap although their paired difference is significant: read the differences; "
            f"p is adjusted by Holm's rule over the objectives within each of {len(infos)} scores, not over the "
            "scores: name the score that decides before looking"
        )
    yield _budget(rows, one_rate=one_rate)
    yield from _front(pareto, rows)


@dataclass(frozen=True)
class SuggestedCommand:
    """What to type next.

    Args:
        command: the command that made this comparison; empty if there is none to repeat.
        seeds: its training seeds.
    """

    command: str = ""
    seeds: tuple[int, ...] = ()

    def line(self) -> str:
        """Return the command that would make the comparison stronger; empty where none is known."""
        return with_seeds(self.command, more_seeds(self.seeds)) if self.command else ""

    def sentences(self, rows: Sequence[ComparisonRow]) -> Iterator[str]:
        """Name the command that would make the comparison stronger."""
        if self.command:
            yield f"next: {self.line()}"
        elif any(len(row.seeds) == 1 for row in rows):
            yield "next: train more seeds of each objective, for example with kd compare OBJECTIVE ... --seeds 0,1,2"


def more_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds of a stronger comparison: three, then five, then two more each time.

    >>> more_seeds([0]), more_seeds([0, 1, 2])
    ((0, 1, 2), (0, 1, 2, 3, 4))
    """
    wanted = 3 if len(seeds) < 3 else max(_MORE_SEEDS, len(seeds) + 2)
    free = (number for number in range(max([*seeds, 0]) + wanted + 1) if number not in seeds)
    return (*seeds, *(next(free) for _ in range(wanted - len(seeds))))


def with_seeds(command: str, seeds: Sequence[int]) -> str:
    """Return a command line with other seeds.

    >>> with_seeds("kd compare fkl rkl --seeds 0 -o study", [0, 1])
    'kd compare fkl rkl --seeds 0,1 -o study'
    >>> with_seeds("kd compare -c study.yaml", [0, 1])
    'kd compare -c study.yaml --seeds 0,1'
    """
    text = ",".join(map(str, seeds))
    replaced, count = re.subn(r"--seeds[ =]\S+", f"--seeds {shlex.quote(text)}", command)
    return replaced if count else f"{command} --seeds {text}"


def _found(row: ComparisonRow, baseline: str, infos: Sequence[ScoreInfo]) -> str:
    sure = [info for info in infos if _is_sure(row, info.name)]
    if not sure:
        return f"{row.label}: no significant difference to {baseline}"
    kinds = {"better": [], "worse": [], "different": []}
    for info in sure:
        kinds[_direction(row, info)].append(info.title)
    parts = [f"{kind} in {', '.join(names)}" for kind, names in kinds.items() if names]
    unknown = len(infos) - len(sure)
    rest = f"; {counted(unknown, 'other score')} shows no significant difference" if unknown else ""
    return f"{row.label} against {baseline}: {', '.join(parts)} (p < {LEVEL}){rest}"


def _is_sure(row: ComparisonRow, score: str) -> bool:
    difference = row.differences.get(score)
    return difference is not None and difference.p_value is not None and difference.p_value < LEVEL


def _direction(row: ComparisonRow, info: ScoreInfo) -> str:
    difference = row.differences[info.name]
    if difference is None or info.better == "neither":
        return "different"
    return "better" if (difference.mean > 0) == (info.better == "higher") else "worse"


def _one_seed(rows: Sequence[ComparisonRow]) -> str:
    counts = {one.count for row in rows for one in row.scores.values() if one.unit == "examples"}
    return (
        "1 training seed: no conclusion about objectives can be drawn; the intervals are over the "
        f"{max(counts, default=0):,} held-out examples and compare these trained models, not the objectives; "
        "another seed may reverse any difference"
    )


def _tied(rows: Sequence[ComparisonRow], infos: Sequence[ScoreInfo]) -> Iterator[str]:
    groups = []
    for info in infos:
        best = [row.label for row in rows if info.name in row.best]
        others = [row.label for row in rows if info.name in row.tied and info.name not in row.best]
        if best:
            groups.append(f"{info.title}: {_named([*best, *others], rows)}")
    if groups:
        yield f"best, and not significantly different from it: {'; '.join(groups)}"


def _power(
    baseline: str, infos: Sequence[ScoreInfo], detectable: Mapping[str, Detectable | None], seeds: int
) -> Iterator[str]:
    found = [(info.title, detectable.get(info.name)) for info in infos]
    sizes = [f"{name} {one.low:.2g} to {one.high:.2g}" for name, one in found if one]
    if sizes:
        design = f"with {seeds} seeds" if seeds > 1 else "between these models"
        known = f"{seeds} seeds" if seeds > 1 else "these examples"
        yield (
            f"minimum detectable effect against {baseline} at 80 % power, {design}: "
            f"{', '.join(sizes)} (a range: the noise is known from {known} only); smaller differences may exist"
        )


def _shares(infos: Sequence[ScoreInfo], variance: Mapping[str, VarianceShares]) -> Iterator[str]:
    parts = []
    for info in infos:
        found = variance.get(info.name)
        if found is not None:
            shares = (found.seed, found.sampling, found.examples, found.interaction)
            parts.append(f"{info.title} {'/'.join('?' if one is None else f'{100 * one:.0f}' for one in shares)}")
    if parts:
        yield (
            "a difference's variance comes from training seed/sampling seed/examples/seed times example, in %: "
            f"{', '.join(parts)}"
        )


def _named(labels: Sequence[str], rows: Sequence[ComparisonRow]) -> str:
    return "all" if 2 < len(rows) == len(labels) else ", ".join(labels)


def _front(pareto: Mapping[str, Mapping[str, tuple[str, ...]]], rows: Sequence[ComparisonRow]) -> Iterator[str]:
    """Leave out seconds: what depends on the machine must not enter a table."""
    for cost, name in (("flops", "fewer FLOPs"), ("parameters", "a smaller model")):
        fronts = [f"{title(score)}: {_named(costs[cost], rows)}" for score, costs in pareto.items() if cost in costs]
        if fronts:
            yield f"not beaten by anything with {name} (Pareto front): {'; '.join(fronts)}"


def _budget(rows: Sequence[ComparisonRow], *, one_rate: bool) -> str:
    steps, tokens = {row.steps for row in rows}, {row.tokens for row in rows}
    if len(steps) == 1 and len(tokens) == 1:
        equal = f"equal budget: {rows[0].steps:,} steps and {rows[0].tokens:,} response tokens each"
        alike = "one learning rate for all; an objective may have a better rate of its own: --tune lr=1e-4,3e-4"
        return f"{equal}, {alike}" if one_rate else equal
    return "the budgets differ (see the cost columns): compare with care"
