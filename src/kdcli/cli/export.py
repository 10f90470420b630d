"""``kd export``: write a model in another program's format."""

from typing import TYPE_CHECKING

import typer

from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed

if TYPE_CHECKING:
    from kdcli.distill.make_export import ExportRecord


EPILOG = """Example: kd export runs/akl --to gguf:q8_0 -o out

Example: kd export ./student --to safetensors:int8 --data test.jsonl -o out

Then kd eval out measures it as any model. Formats and what they need: docs/export.md."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Export a model to GGUF, ONNX or int8, and measure what rounding changed."
    app.command("export", epilog=EPILOG, short_help=text)(options.export(export))


def export(typed: Typed, *, config: Texts, sets: Texts, dry_run: bool, json: bool, quiet: bool) -> None:
    """Write a model in another program's format, read it back, and say how far its answers moved."""
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import ExportConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(ExportConfig, config, sets, typed)
    load_config.require(to=settings.to)
    load_config.output_folder(settings.output, needed=not dry_run)
    load_config.check_inputs(settings)
    with terminal.progress() as report:
        from kdcli.distill import make_export as making

        found = making.plan_export(settings) if dry_run else making.make_export(settings, report)
    terminal.result(found, _drawn)


def _drawn(record: "ExportRecord") -> str:
    lines = [f"{record.target} of {record.source}"]
    if record.bytes:
        lines.append(
            f"bytes         {record.bytes:,} of {record.source_bytes:,} ({record.bytes / record.source_bytes:.1%})"
        )
    for kind, one in record.weights.items():
        moved = f", moved by up to {one.largest:.3g} steps (bound {one.bound:.3g})" if one.bound else ""
        lines.append(f"{kind:12}  {one.tensors:,} tensors{moved}")
    if (found := record.difference) is not None:
        lines.append(f"measured on   {found.rows:,} rows, {found.tokens:,} response tokens")
        lines.append(f"logits        moved by up to {found.largest_logit_gap:.3g}")
        lines.append(f"KL            {found.kl:.3g} nats per token")
        lines.append(f"likeliest     the same for {found.agreement:.2%} of the tokens")
    if record.lines:
        lines.append(f"tokenizer     the same tokens for {record.same_lines:,} of {record.lines:,} texts")
    lines += [f"note          {note}" for note in record.notes]
    if record.folder is not None:
        lines.append(("it was there already: " if record.already else "") + str(record.folder))
    return "\n".join(lines)
