"""What a comparison can and cannot say, in sentences computed from its numbers."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdcli.runs.aggregate import Group
from kdcli.runs.records import ComparisonRow, ScoreInfo
from kdcli.statistics import smallest_detectable_difference

LEVEL = 0.05
_MORE_SEEDS = 5


def conclusions(rows: Sequence[ComparisonRow], baseline: str, infos: Sequence[ScoreInfo]) -> Iterator[str]:
    """Say what follows from the differences to the baseline, and what does not."""
    fewest = min(len(row.seeds) for row in rows)
    if fewest == 1:
        counts = {one.count for row in rows for one in row.scores.values() if one.unit == "examples"}
        yield (
            f"1 training seed: the intervals are over the {max(counts, default=0):,} held-out examples and tell these "
            "trained models apart, not the objectives; another seed may reverse any difference"
        )
    contenders = [row for row in rows if row.label != baseline]
    for row in contenders:
        yield _found(row, baseline, infos)
    if fewest > 1 and contenders:
        yield from _power(contenders, baseline, infos, fewest)
    if contenders and infos:
        yield (
            "intervals of two lines may overlap although their paired difference is sure: read the differences; "
            f"{len(infos)} scores are tested, p adjusted by Holm's rule within each, so 1 in 20 still errs by chance"
        )
    yield _budget(rows)


def about_scores(groups: Sequence[Group]) -> list[str]:
    """Return what the evaluations themselves had to say, each sentence once."""
    return list(dict.fromkeys(note for group in groups for _, found in group.runs.values() for note in found.notes))


@dataclass(frozen=True)
class Next:
    """What to type next.

    Args:
        command: the command that made this comparison; empty if there is none to repeat.
        seeds: its training seeds.
    """

    command: str = ""
    seeds: tuple[int, ...] = ()

    def sentences(self, rows: Sequence[ComparisonRow]) -> Iterator[str]:
        """Name the command that would make the comparison stronger."""
        if self.command:
            yield f"next: {with_seeds(self.command, more_seeds(self.seeds))}"
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
        return f"{row.label}: no score tells it from {baseline}"
    kinds = {"better": [], "worse": [], "different": []}
    for info in sure:
        kinds[_direction(row, info)].append(info.name)
    parts = [f"{kind} in {', '.join(names)}" for kind, names in kinds.items() if names]
    unknown = len(infos) - len(sure)
    rest = f"; {unknown} other scores cannot tell them apart" if unknown else ""
    return f"{row.label} against {baseline}: {', '.join(parts)} (p < {LEVEL}){rest}"


def _is_sure(row: ComparisonRow, score: str) -> bool:
    difference = row.differences.get(score)
    return difference is not None and difference.p_value is not None and difference.p_value < LEVEL


def _direction(row: ComparisonRow, info: ScoreInfo) -> str:
    difference = row.differences[info.name]
    if difference is None or info.better == "neither":
        return "different"
    return "better" if (difference.mean > 0) == (info.better == "higher") else "worse"


def _power(contenders: Sequence[ComparisonRow], baseline: str, infos: Sequence[ScoreInfo], seeds: int) -> Iterator[str]:
    sizes = []
    for info in infos:
        found = [row.differences.get(info.name) for row in contenders]
        detectable = [smallest_detectable_difference(one) for one in found if one is not None]
        largest = max((one for one in detectable if one is not None), default=None)
        if largest:
            sizes.append(f"{info.name} {largest:.2g}")
    if sizes:
        yield (
            f"with {seeds} seeds a true difference to {baseline} is found in 8 of 10 repeats only if it is at least: "
            f"{', '.join(sizes)}; smaller ones may be there unseen"
        )


def _budget(rows: Sequence[ComparisonRow]) -> str:
    steps, tokens = {row.steps for row in rows}, {row.tokens for row in rows}
    if len(steps) == 1 and len(tokens) == 1:
        equal = f"equal budget: {rows[0].steps:,} steps and {rows[0].tokens:,} response tokens each"
        return f"{equal}, one learning rate for all; an objective may have a better rate of its own"
    return "the budgets differ (see the cost columns): compare with care"
