"""``kd inspect``: what objectives ask of a student, before anything is trained."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdcli.cli import flags
from kdcli.errors import UsageError
from kdcli.text import one_line

_app = typer.Typer(help="Look at objectives on real tokens before training.", no_args_is_help=True)

EPILOG = "Example: kd inspect batch --teacher T --student S --data train.jsonl fkl rkl akl"


def register(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    app.add_typer(_app, name="inspect", cls=group)


@_app.command("batch", epilog=EPILOG)
def batch(
    losses: Annotated[
        list[str] | None, typer.Argument(metavar="OBJECTIVE", help="As for --loss.", show_default=False)
    ] = None,
    teacher: flags.Teacher = None,
    student: flags.Student = None,
    data: flags.Data = None,
    columns: flags.Columns = None,
    template: flags.Template = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    skip_bad: flags.SkipBad = False,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="N", help="Rows of the batch. Default 8.", show_default=False)
    ] = None,
    seed: flags.Seed = None,
    output: flags.Output = None,
    config: flags.Config = None,
    sets: flags.Sets = None,
    plugin: flags.MorePlugin = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    threads: flags.Threads = None,
    matmul_precision: flags.MatmulPrecision = None,
) -> None:
    """Put objectives side by side on the first batch: values, gradient norms, cosines between gradients.

    Batch, weights and arithmetic are those of the first training step; nothing is trained.
    """
    typed = {name: value for name, value in locals().items() if name not in ("losses", "rows")}
    from kdcli.cli import settle
    from kdcli.cli.terminal import Terminal
    from kdcli.config import DistillConfig

    terminal = Terminal(json, quiet)
    specs = [settle.objective(text) for text in losses or ()]
    if not specs:
        raise UsageError("CLI-20", "no objective is named", where="kd inspect batch", fix="name some, such as fkl rkl")
    twice = [spec for spec in specs if specs.count(spec) > 1]
    if twice:
        what = f"{one_line(twice[0], 60)} given twice"
        raise UsageError("CLI-08", what, where="kd inspect batch", fix="name each objective once")
    settings = settle.settle(DistillConfig, config, sets, typed | ({"batch_size": rows} if rows else {}))
    settle.require(student=settings.student, data=settings.data.train)
    if any(settle.needs_teacher(spec) for spec in specs):
        settle.require(teacher=settings.teacher)
    settle.output_folder(settings.output, needed=False)
    with terminal.work() as report:
        from kdcli.cli import render_diagnostics
        from kdcli.runs.inspect_batch import inspect_batch

        found = inspect_batch(settings, specs, report)
        if settings.output is not None:
            from kdcli.runs.inspect_files import write_batch

            write_batch(Path(settings.output), found)
    terminal.result(found, render_diagnostics.batch)
