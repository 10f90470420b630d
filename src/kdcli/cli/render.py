"""Prints comparisons, evaluations, runs and plans."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcli.cli.terminal import runnable
from kdcli.comparison.answer import answer as sentences
from kdcli.comparison.answer import chosen_scores, deciding
from kdcli.comparison.records import Comparison, ComparisonRow, ReferenceRow
from kdcli.data.readers import counted, size_text
from kdcli.distill.plan import PART, Plan, Shown
from kdcli.distill.records import RunRecord
from kdcli.evaluation.records import Edge, EvalRecord, ScoreInfo, is_sparse
from kdcli.statistics import LEVEL, Estimate
from kdcli.statistics.rounding import coarser, decimals, plain, with_interval
from kdcli.text import fold, one_line, visible

if TYPE_CHECKING:
    from kdcli.evaluation.palette import PaletteRecord

REPORT = "report.html"

__all__ = ["decimals", "duration", "plain", "size", "with_interval"]


# Writes numbers for people: sizes and times; digits are cut in ``kdcli.statistics.rounding``.


def size(count: int) -> str:
    """Return a number of bytes.

    >>> size(512 * 2**20), size(3 * 2**30)
    ('512 MiB', '3.0 GiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: int | float) -> str:
    """Return a length of time.

    >>> duration(4.21), duration(75), duration(4000)
    ('4.2 s', '1 min 15 s', '1 h 07 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


# Draws what a model costs on one machine.


def edge_parts(edge: Edge) -> list[RenderableType]:
    """Return how it was measured, and the table of sizes, speed and energy.

    Args:
        edge: what was measured.
    """
    title = (
        f"on this machine ({one_line(edge.hardware, 80)}): one request, {edge.prompt_tokens:,} + {edge.new_tokens:,} "
        f"tokens, median of {edge.repeats:,}"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("cost", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    stored = ", ".join(f"{one_line(name, 10)} {size_text(size)}" for name, size in edge.bytes_by_dtype.items())
    first, speed = edge.first_token_range, edge.tokens_per_second_range
    energy = f"{edge.joules_per_token:.3g} J" if edge.joules_per_token is not None else "not reported"
    zeros = "" if edge.zeros is None else f"{edge.zeros:.1%}"
    packed = "" if edge.compressed_bytes is None else size_text(edge.compressed_bytes)
    sparse = [("zeros", zeros, "of the weights of linear layers"), ("after zlib", packed, "the files, compressed")]
    for row in (
        ("parameters", f"{edge.parameters:,}", ""),
        ("on disk", size_text(edge.disk_bytes), stored),
        *(sparse if edge.compressed_bytes is not None else ()),
        ("on disk as int8", size_text(edge.int8_bytes), "matrices in 8 bits, a scale per row; computed"),
        ("peak memory", size_text(edge.peak_bytes), "beyond what the process held before"),
        ("first token", f"{edge.first_token_seconds * 1e3:,.1f} ms", f"{first[0] * 1e3:,.1f} to {first[1] * 1e3:,.1f}"),
        ("tokens per second", f"{edge.tokens_per_second:,.1f}", f"{speed[0]:,.1f} to {speed[1]:,.1f}"),
        ("energy per token", energy, one_line(edge.energy_source, 60)),
    ):
        table.add_row(*row)
    return [Text(title, style="italic"), table]


LABEL_WIDTH = 26
BEST, TIED = "●", "○"
_ONE_TIME = "time: of one run, which says little about the next"
ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def comparison(found: Comparison, width: int, columns: Sequence[str] = (), by: str | None = None) -> Group:
    """Return the tables of a comparison and the sentences under them.

    Args:
        found: the comparison.
        width: columns to stay within; scores that do not fit side by side follow below.
        columns: names of the scores to show; all by default.
        by: the score that says what is best.
    """
    infos = chosen_scores(found, columns, "--columns")
    cells = {info.name: _column([*found.references, *found.rows], info) for info in infos}
    parts: list[RenderableType] = [_score_table(found, names, cells) for names in _fitting(found, cells, width)]
    if len(found.rows) > 1 and found.scores:
        parts.append(Text(_legend(found), style="dim"))
    parts.append(_cost_table(found.rows))
    parts += [Text(f"· {one_line(note, 500)}") for note in found.notes]
    parts += _failures(found)
    if found.folder is not None:
        parts.append(Text(f"written to {one_line(str(found.folder), 500)}", overflow="fold"))
    return Group(*parts)


def answer(
    found: Comparison, width: int, columns: Sequence[str] = (), by: str | None = None, *, pictures: Sequence[Path] = ()
) -> Group:
    """Return the first scores of a comparison and, last, what follows from them: one screen of 80 by 24.

    Args:
        found: the comparison.
        width: columns to stay within; what does not fit is in the report.
        columns: names of the scores to show, in this order; the deciding score and then all by default.
        by: the score that says what is best.
        pictures: files to name.
    """
    decides = deciding(found, by)
    infos = list(chosen_scores(found, columns, "--columns"))
    if not columns:
        infos.sort(key=lambda info: info is not decides)
    cells = {info.name: _column([*found.references, *found.rows], info) for info in infos}
    first = next(_fitting(found, cells, width), [])
    parts: list[RenderableType] = [_score_table(found, first, cells, apart=False)] if first else []
    if len(found.rows) > 1 and found.scores:
        parts.append(Text(_legend(found), style="dim"))
    parts += _failures(found)
    parts += [Text(one_line(line, 600)) for line in sentences(found, by)]
    hidden = len(found.scores) - len(first)
    more = f"{counted(hidden, 'more score')}, costs and {counted(len(found.notes), 'remark')}"
    where = "--verbose"
    if found.folder is not None and (found.folder / REPORT).is_file():
        where = f"{one_line(str(found.folder / REPORT), 500)}, or --verbose"
    drawn = f"; pictures beside it: {', '.join(one_line(path.name, 60) for path in pictures)}" if pictures else ""
    parts.append(Text(f"{more}: {where}{drawn}", overflow="fold"))
    if found.suggested:
        parts.append(Text(f"Next: {one_line(runnable(found.suggested), 2000)}", no_wrap=True))
    return Group(*parts)


def _failures(found: Comparison) -> Iterator[Text]:
    for failure in found.failed:
        where = one_line(str(failure.log), 200)
        line = f"failed: {one_line(failure.loss)} seed {failure.seed}: {one_line(failure.message, 300)} (see {where})"
        yield Text(line, style="red")


def evaluation(record: EvalRecord) -> Group:
    """Return the table of one evaluation.

    Args:
        record: what was measured.
    """
    name = record.protocol.get("name", "custom")
    protocol = f", protocol {one_line(name, 40)}" if name != "custom" else ""
    title = f"{one_line(record.model, 60)} on {one_line(record.name, 30)}, {record.examples:,} examples{protocol}"
    table = _table("")
    for heading in ("score", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "score" else "right", no_wrap=True)
    for info in record.infos:
        estimate = record.estimates[info.name]
        places = decimals([estimate.mean], [estimate.half_width])
        table.add_row(_heading(info), plain(estimate.mean, places), _interval(estimate, places))
    signatures = dict.fromkeys(info.settings for info in record.infos)
    parts: list[RenderableType] = [Text(title, style="italic"), table] if record.infos else []
    parts += [Text(one_line(line, 2000), style="dim", no_wrap=True) for line in signatures]
    parts += edge_parts(record.edge) if record.edge is not None else []
    parts += [Text(f"· {one_line(note, 500)}") for note in record.remarks]
    if record.folder is not None:
        parts.append(Text(f"written to {one_line(str(record.folder), 500)}", overflow="fold"))
    return Group(*parts)


def palette(record: "PaletteRecord") -> Group:
    """Return the table of a supernet's sizes.

    Args:
        record: what was measured.
    """
    table = _table("")
    for heading in ("width", "depth", "parameters", "perplexity ↓", "95 % interval", "first token", "each further"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in record.sizes:
        interval = "" if one.low is None or one.high is None else f"{one.low:.4g} to {one.high:.4g}"
        marks = ["*" if cost in one.unbeaten else "" for cost in ("parameters", "seconds_per_token")]
        table.add_row(
            f"{one.width:.3g}", f"{one.depth:.3g}", f"{one.parameters:,}{marks[0]}", f"{one.perplexity:.4g}", interval,
            f"{1000 * one.first_token_seconds:.3g} ms", f"{1000 * one.seconds_per_token:.3g} ms{marks[1]}",
        )  # fmt: skip
    said = (
        f"one prompt of {record.prompt_tokens} tokens, {record.new_tokens} more, median of {record.repeats}; "
        f"{record.hardware}. * no other size is as good and costs less"
    )
    title = f"{one_line(record.model, 60)} on {one_line(record.name, 30)}, {record.examples:,} examples"
    parts: list[RenderableType] = [Text(title, style="italic"), table, Text(one_line(said, 500), style="dim")]
    if record.folder is not None:
        parts.append(Text(f"written to {one_line(str(record.folder), 500)}", overflow="fold"))
    return Group(*parts)


def _interval(estimate: Estimate, places: int) -> str:
    """Return an interval; where every example has the same value, its width is unknown."""
    low, high = estimate.low, estimate.high
    if low is None or high is None:
        return "all the same" if estimate.error == 0.0 else ""
    return "all the same" if low == high else f"{low:,.{places}f} to {high:,.{places}f}"


def run(record: RunRecord) -> Group:
    """Return the summary of a training run.

    Args:
        record: the run.
    """
    done = " (was finished already)" if record.already_done else ""
    summary = (
        f"{one_line(record.loss)}, seed {record.seed}{done}: {record.steps:,} steps, "
        f"{record.tokens:,} response tokens, {duration(record.seconds)}, peak {size(record.peak_bytes)}"
    )
    parts: list[RenderableType] = [Text(summary)]
    if record.evaluation is not None:
        parts.append(evaluation(record.evaluation))
    return Group(*parts)


def _column(rows: Sequence[ComparisonRow | ReferenceRow], info: ScoreInfo) -> list[str]:
    """Return one score's cells: the mean, and below it the difference to the baseline."""
    estimates = [row.scores.get(info.name) for row in rows]
    differences = [row.differences.get(info.name) for row in rows]
    known = [estimate for estimate in [*estimates, *differences] if estimate is not None]
    places = decimals((one.mean for one in estimates if one), (one.half_width for one in known))
    lines = []
    for row, estimate, difference in zip(rows, estimates, differences, strict=True):
        own = coarser(estimate, places) if estimate is not None and row.is_reference else places
        mean = "-" if estimate is None else with_interval(estimate.mean, estimate.low, estimate.high, own)
        cell = [(mean, _rank(row, info.name))]
        if difference is not None:
            change = with_interval(difference.mean, difference.low, difference.high, places, signed=True)
            cell.append((change, verdict(difference, info.better)))
        lines.append(cell)
    return _aligned(lines, any(mark for cell in lines for _, mark in cell))


def _rank(row: ComparisonRow | ReferenceRow, score: str) -> str:
    if score in row.best:
        return BEST
    return TIED if score in row.tied and row.scores[score].low is not None else ""


def _aligned(cells: Sequence[Sequence[tuple[str, str]]], marked: bool) -> list[str]:
    """Put numbers below each other, and their marks in a column of their own."""
    width = max(len(number) for cell in cells for number, _ in cell)
    return [
        "\n".join(f"{number:>{width}} {mark}" if marked else f"{number:>{width}}" for number, mark in cell)
        for cell in cells
    ]


def verdict(difference: Estimate, better: str) -> str:
    """Return the mark of a difference: ▲ better, ▼ worse, = not significant, ? not tested.

    Args:
        difference: contender minus baseline.
        better: "higher", "lower" or "neither".

    >>> verdict(Estimate(0.2, 0.1, 0.3, 3, "seeds", 0.02, 0.01), "higher")
    '▲'
    """
    if difference.p_value is None:
        return "?"
    if difference.p_value >= LEVEL:
        return "="
    if better == "neither":
        return "≠"
    return "▲" if (difference.mean > 0) == (better == "higher") else "▼"


def _fitting(found: Comparison, cells: dict[str, list[str]], width: int) -> Iterator[list[str]]:
    """Cut the scores into groups that fit side by side."""
    labels = [row.label for row in (*found.references, *found.rows)]
    label = min(LABEL_WIDTH, max(map(len, ["objective", *labels])))
    group: list[str] = []
    used = label + 4
    known = {info.name: info for info in found.scores}
    for info in map(known.__getitem__, cells):
        lines = [line for cell in cells[info.name] for line in cell.split("\n")]
        wide = max(len(line) for line in [_heading(info), *lines]) + 2
        if group and used + wide > width:
            yield group
            group, used = [], label + 4
        group.append(info.name)
        used += wide
    if group:
        yield group


def _score_table(found: Comparison, names: Sequence[str], cells: dict[str, list[str]], *, apart: bool = True) -> Table:
    table = _table("")
    table.add_column("objective", min_width=len("objective"), max_width=LABEL_WIDTH, overflow="fold")
    infos = {info.name: info for info in found.scores}
    for name in names:
        wide = max(len(line) for cell in cells[name] for line in cell.split("\n"))
        table.add_column(f"{_heading(infos[name]):>{wide}}", no_wrap=True)
    lines = [*found.references, *found.rows]
    for number, row in enumerate(lines):
        shown = (Text(cells[name][number], style=_style(cells[name][number])) for name in names)
        table.add_row(_label(row.label, LABEL_WIDTH), *shown, end_section=apart and number + 1 == len(found.references))
    return table


def _style(cell: str) -> str:
    return {"▲": "green", "▼": "red"}.get(cell[-1:], "")


def _cost_table(rows: Sequence[ComparisonRow]) -> Table:
    """Return the costs of one run; what is the same for all stands once below."""
    table = _table("")
    table.add_column("objective", min_width=len("objective"), max_width=LABEL_WIDTH, overflow="fold")
    sparse = any(is_sparse(row.zeros) for row in rows)
    packed = [row.compressed_bytes if sparse else None for row in rows]
    columns = {
        "seeds": [one_line(",".join(map(str, row.seeds)), 12) for row in rows],
        "steps": [f"{row.steps:,}" for row in rows],
        "response tokens": [f"{row.tokens:,}" for row in rows],
        "passes": ["" if row.teacher_passes is None else f"{row.teacher_passes:.2f}" for row in rows],
        "generated": [f"{row.generated_tokens:,}" if row.generated_tokens else "" for row in rows],
        "FLOPs": ["" if row.flops is None else f"{row.flops:.2g}" for row in rows],
        "zeros": [f"{row.zeros:.1%}" if row.zeros is not None and sparse else "" for row in rows],
        "zlib": ["" if one is None else size_text(one) for one in packed],
        "time": [_time(row) for row in rows],
        "memory": [size(row.peak_bytes) for row in rows],
    }
    same = [name for name in ("seeds", "steps", "response tokens") if len(set(columns[name])) == 1]
    shown = {name: cells for name, cells in columns.items() if any(cells) and name not in same}
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(_label(row.label, LABEL_WIDTH), *(cells[number] for cells in shown.values()))
    facts = [f"each: {', '.join(f'{name} {columns[name][0]}' for name in same)}"] if same else []
    facts += ["passes: teacher tokens needed per token the student reads"] if "passes" in shown else []
    facts += ["zlib: weights after compression"] if "zlib" in shown else []
    facts += ["time: least to greatest of the seeds" if any(len(row.seeds) > 1 for row in rows) else _ONE_TIME]
    if facts:
        table.caption = Text("; ".join(facts), style="dim")
        table.caption_justify = "left"
    return table


def _time(row: ComparisonRow) -> str:
    """Return a line's training time with its spread over the seeds; one run has none."""
    low, high = row.seconds_range
    return f"{duration(low)} to {duration(high)}" if len(row.seeds) > 1 and high else duration(row.seconds)


def _label(label: str, width: int) -> Text:
    """Break a label where it may be broken, so that no name is cut in its middle."""
    return Text(fold(one_line(label), width))


def _legend(found: Comparison) -> str:
    units = {estimate.unit for row in found.rows for estimate in row.scores.values()} - {"none"}
    over = f" over {' or '.join(sorted(units))}" if units else ""
    best = f"{BEST} best, {TIED} not significantly different"
    differences = [one for row in found.rows for one in row.differences.values() if one is not None]
    untested = ", ? not tested" if any(one.p_value is None for one in differences) else ""
    marks = f"▲ better, ▼ worse, = not significant{untested}"
    return f"± or [ ]: 95 % interval{over}; {best}; second line: difference to {one_line(found.baseline)} ({marks})"


def _heading(info: ScoreInfo) -> str:
    return one_line(info.heading, 40) + ARROWS.get(info.better, "")


def _table(title: str) -> Table:
    return Table(
        title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False
    )


# Draws the plan of a dry run, with decoded examples and the part that is learnt.


OPEN, CLOSE = "⟦", "⟧"
LONGEST = 600


def plan(found: Plan) -> Group:
    """Return what a command would do.

    Args:
        found: the plan.
    """
    facts = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in found.facts.items():
        shown = f"  {name.removeprefix(PART)}" if name.startswith(PART) else name
        facts.add_row(Text(one_line(shown, 40)), Text(one_line(value.text, 400)))
    parts: list[RenderableType] = [facts]
    if found.cells:
        cells = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        cells.add_column("run", overflow="fold")
        cells.add_column("state", no_wrap=True)
        for name, state in found.cells:
            cells.add_row(Text(one_line(name)), Text(one_line(state)))
        parts.append(cells)
    if found.examples:
        parts.append(Text(f"\nexamples; the response inside {OPEN} {CLOSE} is learnt", style="dim"))
        parts += [example(shown) for shown in found.examples]
    parts += [Text(f"· {one_line(note, 500)}") for note in found.notes]
    parts.append(Text("nothing was written", style="dim"))
    return Group(*parts)


def example(shown: Shown) -> Text:
    r"""Return one decoded example, the learnt part in brackets and highlighted.

    Args:
        shown: the example.

    >>> example(Shown("a.jsonl line 1", (("say a:", False), (" a.</s>", True)), 9, 3)).plain
    'a.jsonl line 1: 9 tokens, 3 learnt\nsay a:⟦ a.</s>⟧\n'
    """
    text = Text(f"{one_line(shown.where)}: {shown.tokens} tokens, {shown.targets} learnt\n", style="", overflow="fold")
    for segment, learnt in shown.segments:
        safe = visible(segment)
        safe = safe if len(safe) <= LONGEST else f"{safe[: LONGEST // 2]} … {safe[-LONGEST // 2 :]}"
        text.append(f"{OPEN}{safe}{CLOSE}" if learnt else safe, style="bold green" if learnt else "dim")
    return text.append("\n")
