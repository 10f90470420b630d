"""A comparison on disk: table.md, table.csv, comparison.json, results.parquet; the same numbers in each."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcli import durable
from kdcli.runs.aggregate import Group
from kdcli.runs.records import Comparison, ComparisonRow, ScoreInfo
from kdcli.statistics import Estimate
from kdcli.text import csv_cell, markdown_cell

_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


def write_tables(folder: Path, comparison: Comparison, groups: Sequence[Group]) -> None:
    """Write every form of a comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_file(folder / "table.md", markdown(comparison))
    durable.write_file(folder / "table.csv", comma_separated(comparison))
    durable.write_file(folder / "comparison.json", as_json(comparison))
    buffer = io.BytesIO()
    pq.write_table(tidy(comparison.scores, groups), buffer)
    durable.write_file(folder / "results.parquet", buffer.getvalue())


def markdown(comparison: Comparison) -> str:
    """Return the tables of scores, differences and costs, and the notes, as Markdown."""
    infos, rows = comparison.scores, comparison.rows
    heads = [f"{markdown_cell(info.name)} {_ARROWS[info.better]}".strip() for info in infos]
    scores = [[_label(row), *(number(row.scores.get(info.name)) for info in infos)] for row in rows]
    parts = ["## Scores", "", *_grid(["objective", *heads], scores), ""]
    others = [row for row in rows if row.label != comparison.baseline]
    if others:
        lines = [[_label(row), *(_difference(row.differences.get(info.name)) for info in infos)] for row in others]
        head = f"## Difference to {markdown_cell(comparison.baseline)}, paired"
        parts += [head, "", *_grid(["objective", *heads], lines), ""]
    costs = [[_label(row), *_costs(row)] for row in rows]
    names = ["objective", "seeds", "steps", "response tokens", "seconds", "peak memory (MiB)"]
    parts += ["## Cost of one run", "", *_grid(names, costs), ""]
    parts += ["± is a 95 % interval; \\* marks p < 0.05 after Holm's rule.", ""]
    parts += [f"- {markdown_cell(note, 1000)}" for note in comparison.notes]
    parts += [
        f"- failed: {markdown_cell(one.loss)} seed {one.seed}: {markdown_cell(one.message, 500)}"
        for one in comparison.failed
    ]
    parts += ["", "How each score was taken:", ""]
    parts += [f"- {markdown_cell(info.name)}: `{info.settings.replace('`', '')}`" for info in infos]
    return "\n".join(parts) + "\n"


def comma_separated(comparison: Comparison) -> str:
    """Return one line per objective and score as CSV, unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ["mean", "low", "high", "count", "unit"]
    changed, costs = (
        ["difference", "difference_low", "difference_high", "p"],
        ["steps", "tokens", "seconds", "peak_bytes"],
    )
    writer.writerow(["objective", "seeds", "score", "better", *names, *changed, *costs])
    for row in comparison.rows:
        for info in comparison.scores:
            found, change = row.scores.get(info.name), row.differences.get(info.name)
            values = [getattr(found, name) if found else None for name in names]
            changes = [change.mean, change.low, change.high, change.p_value] if change else [None] * 4
            seeds = " ".join(map(str, row.seeds))
            spent = [row.steps, row.tokens, round(row.seconds, 3), row.peak_bytes]
            writer.writerow([csv_cell(row.label), seeds, csv_cell(info.name), info.better, *values, *changes, *spent])
    return buffer.getvalue()


def as_json(comparison: Comparison) -> str:
    """Return everything a comparison holds; what depends on the machine is under ``cost``."""
    rows = []
    for row in comparison.rows:
        fields = asdict(row)
        costs = {name: fields.pop(name) for name in ("seconds", "peak_bytes")}
        rows.append(fields | {"cost": costs})
    document = {
        "baseline": comparison.baseline,
        "scores": [asdict(info) for info in comparison.scores],
        "rows": rows,
        "notes": list(comparison.notes),
        "failed": [asdict(one) | {"log": str(one.log)} for one in comparison.failed],
    }
    return json.dumps(_finite(document), indent=1, ensure_ascii=False) + "\n"


def tidy(infos: Sequence[ScoreInfo], groups: Sequence[Group]) -> pa.Table:
    """Return one row per run and score."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("objective", "seed", "score", "value", "low", "high", "better", "metric", "settings", "run")
    }
    for group in groups:
        for seed, (run, found) in sorted(group.runs.items()):
            for info in infos:
                one = found.estimates[info.name]
                values = [group.label, seed, info.name, one.mean, one.low, one.high]
                values += [info.better, info.metric, info.settings, run.folder.name]
                for name, value in zip(columns, values, strict=True):
                    columns[name].append(value)
    return pa.table(columns)


def number(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Return ``mean ± half width``, rounded to what the interval supports.

    >>> number(Estimate(12.3456, 12.0, 12.7, 5, "seeds", error=0.126))
    '12.35 ± 0.35'
    """
    if estimate is None or math.isnan(estimate.mean):
        return "–"
    half = estimate.half_width
    size = half if half else abs(estimate.mean) / 100
    places = 3 if not size or math.isinf(size) else min(6, max(0, 1 - math.floor(math.log10(size))))
    mean = f"{estimate.mean:{'+' if signed else ''}.{places}f}"
    return mean if half is None else f"{mean} ± {half:.{places}f}"


def _difference(estimate: Estimate | None) -> str:
    sure = estimate is not None and estimate.p_value is not None and estimate.p_value < 0.05
    return number(estimate, signed=True) + (" \\*" if sure else "")


def _label(row: ComparisonRow) -> str:
    return markdown_cell(row.label)


def _costs(row: ComparisonRow) -> list[str]:
    seeds = ",".join(map(str, row.seeds))
    return [seeds, f"{row.steps:,}", f"{row.tokens:,}", f"{row.seconds:.1f}", f"{row.peak_bytes / 2**20:.0f}"]


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ruler, *lines)]


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
