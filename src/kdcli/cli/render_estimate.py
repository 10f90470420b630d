"""Draws what a model takes on a device."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcli.data.tables import size_text
from kdcli.runs.deployment import DeploymentEstimate, Needs
from kdcli.text import one_line


def deployment(found: DeploymentEstimate) -> Group:
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


def _cells(needs: Needs) -> dict[str, str]:
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


def _many(needs: Needs) -> str:
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
