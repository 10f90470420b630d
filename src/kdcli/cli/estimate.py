"""``kd estimate``: what a model takes on a device, from its config alone."""

from typing import Annotated

import typer

from kdcli.cli import flags
from kdcli.errors import UsageError

EPILOG = """Example: kd estimate runs/akl --context 2048 --memory 8GiB --bandwidth 50GB/s --flops 2TFLOPS

Example: kd estimate config.json --context 4096 --batch 4

A step reads all weights once and every request's cache: time = bytes / bandwidth, or operations / flops if that \
is longer. Formulas: docs/evaluation/edge.md"""


def _option(name: str, metavar: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=flags.HARDWARE, show_default=False)


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Say what a model takes on a device: weights, cache, largest batch, speed."
    app.command("estimate", epilog=EPILOG, short_help=text)(estimate)


def estimate(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Run, model folder, hub id or a config.json.", show_default=False),
    ] = None,
    context: Annotated[str, _option("--context", "N", "Tokens of prompt and answer. Default 2048.")] = "2048",
    batch: Annotated[str, _option("--batch", "N", "Requests at once. Default 1.")] = "1",
    memory: Annotated[str | None, _option("--memory", "SIZE", "Of the device, as 8GiB.")] = None,
    bandwidth: Annotated[str | None, _option("--bandwidth", "RATE", "Of its memory, as 50GB/s.")] = None,
    flops: Annotated[str | None, _option("--flops", "RATE", "Its arithmetic, as 2TFLOPS.")] = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Estimate weights, key-value cache, the largest batch and the time per token; no weight is read."""
    from kdcli.cli.quantities import amount, count
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    if model is None:
        raise UsageError("CLI-20", "no model is given", where="kd estimate", fix="give a folder or a config.json")
    tokens, requests = count(context, "--context"), count(batch, "--batch")
    size = amount(memory, "bytes", "--memory", "8GiB") if memory is not None else None
    moved = amount(bandwidth, "bytes per second", "--bandwidth", "50GB/s") if bandwidth is not None else None
    done = amount(flops, "operations per second", "--flops", "2TFLOPS") if flops is not None else None
    with terminal.work():
        from kdcli.cli import render_estimate
        from kdcli.runs.deployment import Device, estimate_deployment

        device = Device(None if size is None else int(size), moved, done)
        found = estimate_deployment(model, device, context=tokens, batch=requests)
    terminal.result(found, render_estimate.deployment)
