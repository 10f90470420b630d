"""Draws what diagnostics found out: inspected batches, toy experiments, verified folders, repeated runs."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcli.data.tables import size_text
from kdcli.runs.clean import Removed
from kdcli.runs.inspect_batch import BatchReport
from kdcli.runs.rerun import Rerun
from kdcli.runs.toy import ToyReport
from kdcli.runs.verify import Checked
from kdcli.text import one_line

_LABEL = 34


def batch(found: BatchReport) -> Group:
    """Return the tables of an inspected batch.

    Args:
        found: values, norms and cosines.
    """
    labels = [one_line(one.label, _LABEL) for one in found.objectives]
    groups = list(dict.fromkeys(name for one in found.objectives for name in one.groups))
    values = _table(["objective", "value per token", "gradient norm"])
    for one, label in zip(found.objectives, labels, strict=True):
        values.add_row(label, f"{one.value:.6g}", f"{one.norm:.4g}")
    norms = _table(["gradient norm of", *labels])
    for group in groups:
        norms.add_row(one_line(group, _LABEL), *(f"{one.groups.get(group, 0.0):.4g}" for one in found.objectives))
    cosines = _table(["cosine of gradients", *labels])
    for label, line in zip(labels, found.cosines, strict=True):
        cosines.add_row(label, *("–" if math.isnan(value) else f"{value:+.3f}" for value in line))
    said = f"{found.sequences} sequences, {found.tokens:,} response tokens of {one_line(found.rows, 200)}; "
    said += "cosine 1: the same direction; 0: unrelated; -1: one undoes the other"
    return Group(values, norms, cosines, Text(said, style="dim"))


def toy(found: ToyReport) -> Group:
    """Return the table of the toy experiments and what it shows.

    Args:
        found: both experiments.
    """
    table = _table(["objective", "head gap halved", "tail gap halved", "head gap left", "tail gap left", "covers p"])
    for one in found.objectives:
        halves = ["never" if at is None else f"epoch {at}" for at in (one.head_half, one.tail_half)]
        left = [f"{one.head[-1]:.4f}", f"{one.tail[-1]:.4f}"]
        table.add_row(one_line(one.objective, _LABEL), *halves, *left, f"{one.kept:.0%}")
    parts: list[RenderableType] = [table, *(Text(f"· {one_line(text, 500)}") for text in found.findings)]
    parts.append(Text(f"written to {one_line(str(found.folder), 500)}", overflow="fold"))
    return Group(*parts)


def verified(found: Sequence[Checked]) -> str:
    """Return one line per folder.

    Args:
        found: what was checked.
    """
    lines = []
    for one in found:
        said = f"{one_line(one.folder, 200)} ({one.files} files)" if one.passed else one_line(one.problem, 400)
        lines.append(f"{'ok' if one.passed else 'DAMAGED':<8} {one.what:<10} {said}")
    return "\n".join(lines)


def cleaned(found: Sequence[Removed], *, dry_run: bool) -> str:
    """Return one line for each thing that is not needed, and their size together.

    Args:
        found: what was removed.
        dry_run: whether it still is there.
    """
    did = "would be removed" if dry_run else "removed"
    lines = [f"{size_text(one.size):>10}  {one_line(one.path, 200)}" for one in found]
    return "\n".join([*lines, f"{size_text(sum(one.size for one in found)):>10}  {did}"])


def rerun(found: Rerun) -> Group:
    """Return what a repetition showed.

    Args:
        found: the run and its repetition.
    """
    name = f"{one_line(found.loss)}, seed {found.seed}"
    if found.identical:
        head = f"{name}: bit-identical, the weights have the same sha256"
    else:
        head = f"{name}: the weights differ"
    lines: list[RenderableType] = [Text(head)]
    for file, digest in found.weights_again.items():
        lines.append(Text(f"  {one_line(file)}  {found.weights.get(file, '-')[:16]} → {digest[:16]}"))
    lines += [Text(f"· {one_line(text, 300)}") for text in found.environment]
    if not found.identical and not found.environment:
        lines.append(Text("· nothing recorded differs: versions, threads and machine are the same"))
    return Group(*lines)


def _table(heads: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    return table
