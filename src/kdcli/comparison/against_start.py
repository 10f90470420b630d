"""Compares with the student before training: which variants are worse, which closed the gap, and likely reasons."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from kdcli.comparison.records import ComparisonRow, ReferenceRow
from kdcli.distill.records import BEFORE, TEACHER
from kdcli.evaluation.records import ScoreInfo
from kdcli.metrics.titles import title
from kdcli.statistics import LEVEL, Estimate

Rates: TypeAlias = Mapping[str, tuple[float, tuple[float, ...]]]
"""Label -> its learning rate, and all that were tried for its objective."""


def against_start(
    rows: Sequence[ComparisonRow], references: Sequence[ReferenceRow], infos: Sequence[ScoreInfo], rates: Rates
) -> Iterator[str]:
    """Say how the contenders stand to the student before training; nothing where that was not measured.

    Args:
        rows: the contenders.
        references: the reference lines.
        infos: the scores.
        rates: learning rates.
    """
    start = next((one for one in references if one.role == BEFORE), None)
    if start is None:
        return
    judged = [info for info in infos if info.better != "neither" and info.name in start.scores]
    worse = {info.name: _found(rows, info, better=False) for info in judged}
    better = {info.name: _found(rows, info, better=True) for info in judged}
    family = "p < 0.05, paired, by Holm's rule over the objectives within each score, a family of its own"
    if any(worse.values()):
        yield f"worse than no training at all ({family}): {_listed(worse, rows)}"
    elif judged:
        yield f"no objective is worse than no training in any score ({family})"
    if any(better.values()):
        yield f"better than no training (likewise): {_listed(better, rows)}"
    teacher = next((one for one in references if one.role == TEACHER), None)
    if teacher is not None:
        yield from _gaps(rows, teacher, judged)
    if any(worse.values()):
        yield "likely reasons, not tested here: " + "; ".join(_likely(rows, teacher, judged, worse, better, rates))


def _found(rows: Sequence[ComparisonRow], info: ScoreInfo, *, better: bool) -> list[str]:
    """Return the labels that are clearly better, or worse, than the student before training."""
    wanted = (info.better == "higher") == better
    return [
        row.label
        for row in rows
        if _is_sure(one := row.before.get(info.name)) and one is not None and (one.mean > 0) == wanted
    ]


def _is_sure(one: Estimate | None) -> bool:
    return one is not None and one.p_value is not None and one.p_value < LEVEL


def _listed(found: Mapping[str, Sequence[str]], rows: Sequence[ComparisonRow]) -> str:
    """Join scores of the same contenders: ``NLL, perplexity: fkl, rkl; ECE: all``."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for score, labels in found.items():
        if labels:
            groups.setdefault(tuple(labels), []).append(title(score))
    return "; ".join(f"{', '.join(scores)}: {_named(labels, rows)}" for labels, scores in groups.items())


def _named(labels: Sequence[str], rows: Sequence[ComparisonRow]) -> str:
    return "all" if 2 < len(rows) == len(labels) else ", ".join(labels)


def _gaps(rows: Sequence[ComparisonRow], teacher: ReferenceRow, infos: Sequence[ScoreInfo]) -> Iterator[str]:
    """Say how much of the gap to the teacher was closed, and where there is none."""
    shared = [info.name for info in infos if info.name in teacher.scores]
    none = []
    for name in shared:
        shares = [f"{row.label} {percent(one)}" for row in rows if (one := row.closed.get(name)) is not None]
        if shares:
            said = f"share of the gap from student, before to teacher that was closed in {title(name)}"
            yield f"{said}: {', '.join(shares)}"
        else:
            none.append(title(name))
    if none:
        yield f"no share of a gap in {', '.join(none)}: the teacher is not clearly better there than the student before"


def percent(share: Estimate) -> str:
    """Return a share with its interval, in percent.

    >>> percent(Estimate(0.342, 0.21, 0.4756, 3, "seeds and examples"))
    '34 % [21, 48]'
    """
    return " ".join(part for part in percent_parts(share) if part)


def percent_parts(share: Estimate) -> tuple[str, str]:
    """Return a share and its interval in percent, the interval empty where there is none."""
    ends = "" if share.low is None or share.high is None else f"[{_whole(share.low)}, {_whole(share.high)}]"
    return f"{_whole(share.mean)} %", ends


def _whole(share: float) -> str:
    """Return a share in whole percent, never as -0."""
    return f"{round(100 * share) + 0:d}"


def _likely(
    rows: Sequence[ComparisonRow],
    teacher: ReferenceRow | None,
    infos: Sequence[ScoreInfo],
    worse: Mapping[str, Sequence[str]],
    better: Mapping[str, Sequence[str]],
    rates: Rates,
) -> Iterator[str]:
    """Name what is known to make a student worse, as far as this table shows signs of it."""
    nearness = [info.name for info in infos if teacher is not None and info.name not in teacher.scores]
    losers = [row for row in rows if any(row.label in labels for labels in worse.values())]
    without_teacher = [
        row.label
        for row in losers
        if row.teacher_passes == 0.0 and not any(row.label in worse[name] for name in worse if name not in nearness)
    ]
    if without_teacher:
        yield f"{_named(without_teacher, rows)} does not use the teacher, so it need not come closer to it"
    losers = [row for row in losers if row.label not in without_teacher]
    lost = {row.label: [name for name in worse if row.label in worse[name] and name not in nearness] for row in losers}
    outdone = [label for label, names in lost.items() if any(better[name] for name in names)]
    if outdone:
        others = {label for one in outdone for name in lost[one] for label in better[name]}
        gaining = ", ".join(row.label for row in rows if row.label in others)
        yield (
            f"{gaining} gained where {_named(outdone, rows)} lost, so the student had room: the objective, or this "
            "learning rate for it, is likelier the cause than the student"
        )
    nearer = [label for label in lost if label not in outdone and any(label in better[name] for name in nearness)]
    if nearer:
        by = ", ".join(title(name) for name in nearness if any(label in better[name] for label in nearer))
        yield (
            f"{_named(nearer, rows)} came closer to the teacher ({by}), so the student was probably near the best it "
            "can reach on such text before, and following the teacher moves it away from there"
        )
    if not losers:
        return
    yield from _rates([row.label for row in losers], rates)
    budgets = {(row.steps, row.tokens) for row in losers}
    steps, tokens = max(budgets)
    yield f"the budget ({steps:,} steps, {tokens:,} response tokens) may be too short for the student to recover"


def _rates(losers: Sequence[str], rates: Rates) -> Iterator[str]:
    known = [rates[label] for label in losers if label in rates]
    single = {rate for rate, tried in known if len(tried) == 1}
    edge = sorted({tried for rate, tried in known if len(tried) > 1 and rate == min(tried)})
    if single:
        shown = ", ".join(f"{rate:g}" for rate in sorted(single))
        lower = f"{min(single) / 10:.3g},{min(single) / 3:.3g},{min(single):.3g}"
        yield f"the learning rate ({shown}, the only one tried) may be too high: --tune lr={lower} tries lower ones"
    for tried in edge:
        shown = ", ".join(f"{rate:g}" for rate in tried)
        yield f"the lowest of the learning rates tried ({shown}) may be too high still"
