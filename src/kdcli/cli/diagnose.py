"""``kd doctor``, ``kd estimate`` and ``kd inspect``: check a set-up before training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcli.cli import options, switches
from kdcli.cli.switches import Texts, Typed, flag
from kdcli.config.names import HARDWARE
from kdcli.errors import UsageError
from kdcli.text import one_line

if TYPE_CHECKING:
    from kdcli.diagnostics.doctor import Diagnosis


EPILOG = "Example: kd doctor --teacher http://localhost:8000/v1 --local-teacher ./T --student ./S --data train.jsonl"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", epilog=EPILOG, short_help="Check machine, models, rows and teachers before a run.")(
        options.doctor(doctor)
    )


def doctor(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Check whether models, data, device and libraries are usable; nothing is trained or written.

    Exits with the exit code of the first check that fails: 3 for an input, 4 for the machine, 0 where none does.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import DoctorConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(DoctorConfig, config, sets, typed)
    with terminal.progress() as report:
        from kdcli.diagnostics.doctor import diagnose

        found = diagnose(settings, report)
    terminal.result(found, _lines)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _lines(found: "Diagnosis") -> str:
    from kdcli.text import one_line

    lines = []
    for check in found.checks:
        lines.append(f"{check.state:5} {check.name:18} {one_line(check.what, 400)}")
        if check.fix:
            lines.append(f"{'':24} Fix: {one_line(check.fix, 300)}")
    return "\n".join(lines)


# ``kd estimate``: what a model takes on a device, from its config alone.


EPILOG_ESTIMATE = """Example: kd estimate runs/akl --context 2048 --memory 8GiB --bandwidth 50GB/s --flops 2TFLOPS

Example: kd estimate config.json --context 4096 --batch 4

A step reads all weights once and every request's cache: time = bytes / bandwidth, or operations / flops if that \
is longer. Formulas: docs/evaluation/edge.md"""


def register_estimate(app: typer.Typer) -> None:
    """Add the command."""
    text = "Estimate memory and speed of a model on a device."
    app.command("estimate", epilog=EPILOG_ESTIMATE, short_help=text)(estimate)


def estimate(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Run, model folder, hub id or a config.json.", show_default=False),
    ] = None,
    context: Annotated[str, flag("--context", "N", "Tokens of prompt and answer. Default 2048.", HARDWARE)] = "2048",
    batch: Annotated[str, flag("--batch", "N", "Requests at once. Default 1.", HARDWARE)] = "1",
    memory: Annotated[str | None, flag("--memory", "SIZE", "Of the device, as 8GiB.", HARDWARE)] = None,
    bandwidth: Annotated[str | None, flag("--bandwidth", "RATE", "Memory bandwidth, as 50GB/s.", HARDWARE)] = None,
    flops: Annotated[str | None, flag("--flops", "RATE", "Its arithmetic, as 2TFLOPS.", HARDWARE)] = None,
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
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
    with terminal.progress():
        from kdcli.cli import render_diagnostics
        from kdcli.diagnostics.deployment import Device, estimate_deployment

        device = Device(None if size is None else int(size), moved, done)
        found = estimate_deployment(model, device, context=tokens, batch=requests)
    terminal.result(found, render_diagnostics.deployment)


# ``kd inspect``: what objectives ask of a student, before anything is trained.


EPILOG_INSPECT = "Example: kd inspect batch --teacher T --student S --data train.jsonl fkl rkl akl"


def register_inspect(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    inspect = typer.Typer(help="Compare objectives on real tokens before training.", no_args_is_help=True)
    inspect.command("batch", epilog=EPILOG_INSPECT)(options.inspect_batch(batch))
    app.add_typer(inspect, name="inspect", cls=group)


def batch(
    typed: Typed, *, objectives: Texts, rows: str | None, config: Texts, sets: Texts, json: bool, quiet: bool
) -> None:
    """Put objectives side by side on the first batch: values, gradient norms, cosines between gradients.

    Batch, weights and arithmetic are those of the first training step; nothing is trained.
    """
    from kdcli import interface
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import DistillConfig

    terminal = Terminal(json, quiet)
    specs = [interface.objective(text) for text in objectives or ()]
    if not specs:
        raise UsageError("CLI-20", "no objective is named", where="kd inspect batch", fix="name some, such as fkl rkl")
    twice = [spec for spec in specs if specs.count(spec) > 1]
    if twice:
        what = f"{one_line(twice[0], 60)} given twice"
        raise UsageError("CLI-08", what, where="kd inspect batch", fix="name each objective once")
    settings = load_config.load_config(DistillConfig, config, sets, {**typed, "batch_size": rows or None})
    load_config.require(student=settings.student, data=settings.data.train)
    if any(load_config.needs_teacher(spec) for spec in specs):
        load_config.require(teacher=settings.teacher)
    load_config.output_folder(settings.output, needed=False)
    with terminal.progress() as report:
        from kdcli.cli import render_diagnostics
        from kdcli.diagnostics.gradients import inspect_batch

        found = inspect_batch(settings, specs, report)
        if settings.output is not None:
            from kdcli.diagnostics.gradients import write_batch

            write_batch(Path(settings.output), found)
    terminal.result(found, render_diagnostics.batch)
