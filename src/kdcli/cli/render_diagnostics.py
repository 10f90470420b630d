"""Prints inspected batches, toy experiments, verified folders and repeated runs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcli.data.readers import size_text
from kdcli.text import one_line

if TYPE_CHECKING:
    from kdcli.demo.toy import ToyReport
    from kdcli.diagnostics.deployment import DeploymentEstimate, Needs
    from kdcli.diagnostics.gradients import BatchReport
    from kdcli.distill.rerun import Rerun
    from kdcli.study.clean import Removed
    from kdcli.study.verify import Checked

_LABEL = 34


def batch(found: "BatchReport") -> Group:
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


def toy(found: "ToyReport") -> Group:
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


def verified(found: "Sequence[Checked]") -> str:
    """Return one line per folder.

    Args:
        found: what was checked.
    """
    lines = []
    for one in found:
        said = f"{one_line(one.folder, 200)} ({one.files} files)" if one.passed else one_line(one.problem, 400)
        lines.append(f"{'ok' if one.passed else 'DAMAGED':<8} {one.what:<10} {said}")
    return "\n".join(lines)


def cleaned(found: "Sequence[Removed]", *, dry_run: bool) -> str:
    """Return one line for each thing that is not needed, and their size together.

    Args:
        found: what was removed.
        dry_run: whether it still is there.
    """
    did = "would be removed" if dry_run else "removed"
    lines = [f"{size_text(one.size):>10}  {one_line(one.path, 200)}" for one in found]
    return "\n".join([*lines, f"{size_text(sum(one.size for one in found)):>10}  {did}"])


def rerun(found: "Rerun") -> Group:
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


# Draws what a model takes on a device.


def deployment(found: "DeploymentEstimate") -> Group:
    """Return the table of an estimate, one line per kind of weights.

    Args:
        found: the estimate.
    """
    title = (
        f"{one_line(found.model, 60)}: {found.parameters:,} parameters, "
        f"{found.context:,} tokens of context, {found.batch:,} at once"
    )
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    columns = ["weights", "size", "cache each", "together"]
    columns += ["fits"] if found.device.memory is not None else []
    columns += ["step", "tokens/s", "bound by"] if found.device.bandwidth is not None else []
    columns += ["prompt"] if found.device.flops is not None else []
    for name in columns:
        table.add_column(name, justify="left" if name in ("weights", "bound by") else "right", no_wrap=True)
    for needs in found.needs:
        cells = _cells(needs)
        table.add_row(*(cells[name] for name in columns))
    parts: list[RenderableType] = [table]
    if found.device.bandwidth is None:
        parts.append(Text("· give --bandwidth for the time per token, --flops for the time to read a prompt"))
    parts += [Text(f"· {one_line(note, 300)}") for note in found.notes]
    return Group(*parts)


def _cells(needs: "Needs") -> dict[str, str]:
    return {
        "weights": needs.weights,
        "size": size_text(needs.weight_bytes),
        "cache each": size_text(needs.cache_bytes),
        "together": size_text(needs.total_bytes),
        "fits": "none" if needs.largest_batch == 0 else f"{needs.largest_batch or 0:,}",
        "step": _time(needs.step_seconds),
        "tokens/s": f"{needs.tokens_per_second or 0.0:,.4g}" if (needs.tokens_per_second or 0) < 1e4 else _many(needs),
        "bound by": needs.bound or "",
        "prompt": _time(needs.prompt_seconds),
    }


def _many(needs: "Needs") -> str:
    return f"{needs.tokens_per_second or 0.0:,.0f}"


def _time(seconds: float | None) -> str:
    """Write a time with three digits.

    >>> _time(0.01234), _time(2.5), _time(0.0000042)
    ('12.3 ms', '2.50 s', '4.20 µs')
    """
    if seconds is None:
        return ""
    scale, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    value = seconds * scale
    places = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{places}f} {unit}"
