"""Draws what a model costs on one machine."""

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kdcli.data.tables import size_text
from kdcli.runs.records import Edge
from kdcli.text import one_line


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
    for row in (
        ("parameters", f"{edge.parameters:,}", ""),
        ("on disk", size_text(edge.disk_bytes), stored),
        ("on disk as int8", size_text(edge.int8_bytes), "matrices in 8 bits, a scale per row; computed"),
        ("peak memory", size_text(edge.peak_bytes), "beyond what the process held before"),
        ("first token", f"{edge.first_token_seconds * 1e3:,.1f} ms", f"{first[0] * 1e3:,.1f} to {first[1] * 1e3:,.1f}"),
        ("tokens per second", f"{edge.tokens_per_second:,.1f}", f"{speed[0]:,.1f} to {speed[1]:,.1f}"),
        ("energy per token", energy, one_line(edge.energy_source, 60)),
    ):
        table.add_row(*row)
    return [Text(title, style="italic"), table]
