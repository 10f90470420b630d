"""The answer of a comparison in a few sentences: what is best, whether distillation helped, what to do next.

Also what was compared on what, for titles and captions.
"""

import difflib
from collections.abc import Iterator, Sequence

from kdcli.comparison.against_start import percent
from kdcli.comparison.records import Comparison, ComparisonRow
from kdcli.data.readers import counted
from kdcli.errors import UsageError
from kdcli.evaluation.records import ScoreInfo
from kdcli.statistics import LEVEL, Estimate
from kdcli.statistics.rounding import decimals, with_interval
from kdcli.text import one_line


def chosen_scores(found: Comparison, names: Sequence[str], where: str) -> tuple[ScoreInfo, ...]:
    """Return the scores of these names, all of them if none is given.

    Args:
        found: the comparison.
        names: as in files for programs.
        where: the flag that names them.

    Raises:
        UsageError: a score that the comparison does not have.
    """
    known = {info.name: info for info in found.scores}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
            raise UsageError("CLI-21", f'"{one_line(name, 60)}" is no score of this comparison', where=where, fix=fix)
    return tuple(known[name] for name in names or known)


def deciding(found: Comparison, by: str | None = None) -> ScoreInfo | None:
    """Return the score that decides: the one named, else the first that has a better side; None without any.

    Args:
        found: the comparison.
        by: name of a score.
    """
    named = [info for info in found.scores if info.name == by]
    return next(iter(named or [info for info in found.scores if info.better != "neither"]), None)


def answer(found: Comparison, by: str | None = None) -> Iterator[str]:
    """Say which contender is best, by how much, whether distillation helped, and what would help most.

    Args:
        found: the comparison.
        by: the score that decides; by default the first one with a better side.
    """
    info = deciding(found, by)
    if info is None or not found.rows:
        return
    yield _best(found, info)
    yield from _helped(found, info)
    yield from _more(found, info)


def subject(found: Comparison) -> str:
    """Return teacher and student with their sizes; empty where their names are not known.

    >>> from kdcli.comparison.records import Setup
    >>> subject(Comparison("fkl", (), (), (), None, setup=Setup(teacher="T", student="S")))
    'T → S'
    """
    setup = found.setup
    if not setup.student:
        return ""
    teachers = {row.teacher_parameters for row in found.rows if row.teacher_parameters}
    students = {row.parameters for row in found.rows if row.parameters}
    student = setup.student + _size(students)
    return f"{setup.teacher}{_size(teachers)} → {student}" if setup.teacher else student


def circumstances(found: Comparison) -> Iterator[str]:
    """Say on what the lines were trained and measured: rows, steps, learning rate, seeds, held-out rows, protocol."""
    setup = found.setup
    if setup.unfinished:
        yield setup.unfinished
    rows = f" ({counted(setup.rows, 'row')})" if setup.rows else ""
    if setup.data:
        yield f"trained on {setup.data}{rows}"
    steps, tokens = ({getattr(row, name) for row in found.rows} for name in ("steps", "tokens"))
    of = f" of {counted(setup.batch_size, 'row')}" if setup.batch_size else ""
    yield f"{_span(steps)} steps{of}, {_span(tokens)} response tokens"
    if setup.rates:
        rates = ", ".join(f"{rate:g}" for rate in setup.rates)
        how = ", chosen on development rows" if setup.tuned else ""
        yield f"learning rate{'s' if len(setup.rates) > 1 else ''} {rates}{how}"
    seeds = sorted({seed for row in found.rows for seed in row.seeds})
    yield f"training seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    held_out = f" ({counted(setup.examples, 'row')})" if setup.examples else ""
    if setup.test:
        protocol = f", protocol {setup.protocol}" if setup.protocol else ""
        yield f"measured on {setup.test}{held_out}{protocol}"


def _span(numbers: set[int]) -> str:
    return f"{min(numbers):,}" if len(numbers) == 1 else f"{min(numbers):,} to {max(numbers):,}"


def _size(counts: set[int]) -> str:
    """Return the size of a model in brackets; nothing where it is not known or differs.

    >>> _size({3_321_000}), _size({912}), _size(set())
    (' (3.3 M)', ' (912)', '')
    """
    if len(counts) != 1:
        return ""
    (count,) = counts
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f" ({count / unit:.3g} {letter})" if count >= 10 * unit else f" ({count / unit:.2g} {letter})"
    return f" ({count})"


def _best(found: Comparison, info: ScoreInfo) -> str:
    rows = [row for row in found.rows if info.name in row.scores]
    best = [row for row in rows if info.name in row.best]
    tied = [row for row in rows if info.name in row.tied and row not in best]
    if len(rows) < 2 or not best:
        return f"{info.title} of {rows[0].label}: {_value(rows[0].scores[info.name])}" if rows else f"no {info.title}"
    first = best[0]
    value = f"{info.title} {_value(first.scores[info.name])}"
    lead = _lead(found, info, first)
    end = "highest" if info.better == "higher" else "lowest"
    if all(row.scores[info.name].low is None for row in rows):
        return f"{end.capitalize()} {value}, of {first.label}: no test says whether the others differ."
    if not tied and len(best) == 1:
        said = f"Best: {first.label}, {value}{lead}"
    else:
        names = _listed([row.label for row in (*best, *tied)])
        everything = len(best) + len(tied) == len(rows)
        ahead = "" if everything else ", and are ahead of the rest"
        said = f"{names} do not differ significantly in {info.title}{ahead}"
        said += f" ({end} mean: {first.label}, {_value(first.scores[info.name])})"
    if min(len(row.seeds) for row in found.rows) == 1:
        return f"{said}. One training seed ranks these models, not the objectives."
    return f"{said}."


def _lead(found: Comparison, info: ScoreInfo, first: ComparisonRow) -> str:
    """Return by how much the best differs from the baseline; of the baseline itself, from the nearest of the others."""
    difference, other = first.differences.get(info.name), found.baseline
    if difference is None:
        others = [(row, one) for row in found.rows if (one := row.differences.get(info.name)) is not None]
        if not others:
            return ""
        nearest, one = min(others, key=lambda pair: abs(pair[1].mean))
        other = nearest.label
        low, high = (None if end is None else -end for end in (one.high, one.low))
        return f", {_change(-one.mean, low, high)} against {other}"
    return f", {_change(difference.mean, difference.low, difference.high)} against {other}"


def _helped(found: Comparison, info: ScoreInfo) -> Iterator[str]:
    known = [(row, row.before.get(info.name)) for row in found.rows]
    if not any(one is not None for _, one in known):
        return
    sure = [(row, one.mean > 0) for row, one in known if one is not None and _is_sure(one)]
    better = [row for row, grew in sure if grew == (info.better == "higher")]
    worse = [row for row, grew in sure if grew != (info.better == "higher")]
    parts = []
    if better:
        every = "every objective" if len(better) == len(found.rows) > 1 else _listed([row.label for row in better])
        parts.append(f"{every} improved on the student before training")
    if worse:
        parts.append(f"{_listed([row.label for row in worse])} made it worse")
    if not parts:
        tested = any(one.p_value is not None for _, one in known if one is not None)
        parts.append("no objective changed it significantly" if tested else "no test says what changed it")
    shares = [(row, row.closed.get(info.name)) for row in better]
    closed = [(row, share) for row, share in shares if share is not None]
    if closed:
        row, share = max(closed, key=lambda pair: pair[1].mean)
        parts.append(f"{row.label} closed {percent(share)} of its gap to the teacher")
    yield f"Distillation, in {info.title}: {'; '.join(parts)}."


def _more(found: Comparison, info: ScoreInfo) -> Iterator[str]:
    variance = found.variance.get(info.name)
    if min(len(row.seeds) for row in found.rows) == 1:
        yield "What would help most: more training seeds."
    elif variance is not None and len(found.rows) > 1:
        shares = {
            "more training seeds": variance.seed, "more sampling seeds": variance.sampling,
            "more held-out rows": variance.examples,
        }  # fmt: skip
        known = {name: share for name, share in shares.items() if share is not None}
        if known:
            name = max(known, key=lambda key: known[key])
            yield f"What would help most: {name}, behind {100 * known[name]:.0f} % of a difference's variance."


def _is_sure(one: Estimate) -> bool:
    return one.p_value is not None and one.p_value < LEVEL


def _value(one: Estimate) -> str:
    return with_interval(one.mean, one.low, one.high, decimals([one.mean], [one.half_width]))


def _change(mean: float, low: float | None, high: float | None) -> str:
    half = None if low is None or high is None else (high - low) / 2
    return with_interval(mean, low, high, decimals([mean], [half]), signed=True)


def _listed(names: Sequence[str]) -> str:
    """Join names.

    >>> _listed(["fkl"]), _listed(["fkl", "akl"]), _listed(["fkl", "rkl", "akl"])
    ('fkl', 'fkl and akl', 'fkl, rkl and akl')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
