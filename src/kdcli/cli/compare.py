"""``kd compare``: objectives times seeds on an equal budget, or runs that are finished."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcli.cli import flags
from kdcli.errors import UsageError
from kdcli.text import one_line

if TYPE_CHECKING:
    from kdcli.cli.terminal import Terminal

EPILOG = """Example: kd compare fkl rkl akl --seeds 0,1,2 --teacher T --student S --data a.jsonl \
--eval-data b.jsonl -o study

Example: kd compare runs/*"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Train objectives on an equal budget and tabulate them; or compare finished runs."
    app.command("compare", epilog=EPILOG, short_help=text)(compare)


def compare(
    losses: Annotated[
        list[str] | None,
        typer.Argument(metavar="OBJECTIVE|RUN", help="Objectives to train, or finished runs.", show_default=False),
    ] = None,
    teacher: flags.Teacher = None,
    student: flags.Student = None,
    data: flags.Data = None,
    eval_data: flags.EvalData = None,
    columns: flags.Columns = None,
    template: flags.Template = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    eval_limit: flags.EvalLimit = None,
    baseline: flags.Baseline = None,
    epochs: flags.Epochs = None,
    max_steps: flags.MaxSteps = None,
    batch_size: flags.BatchSize = None,
    lr: flags.Lr = None,
    seeds: flags.Seeds = None,
    metric: flags.Metric = None,
    sampling_seeds: flags.MoreSeeds = None,
    max_new_tokens: flags.MoreTokens = None,
    output: flags.Output = None,
    config: flags.Config = None,
    sets: flags.Sets = None,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    threads: flags.Threads = None,
    matmul_precision: flags.MatmulPrecision = None,
) -> None:
    """Train each objective with each seed on an equal budget, evaluate, print the table; or compare finished runs.

    The same line again starts only what is missing.
    """
    typed = locals()
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    folders = run_folders(losses or ())
    if folders:
        _finished(folders, baseline, typed, terminal)
    else:
        _study(config, sets, typed, terminal, dry_run=dry_run)


def run_folders(names: Sequence[str]) -> list[Path]:
    """Return the arguments as run folders, none if they are objectives.

    Args:
        names: what was typed.

    Raises:
        UsageError: some are folders and some are not.
    """
    from kdcli.cli.settle import objective

    folders = [name for name in names if _looks_like_folder(name)]
    if folders and len(folders) < len(names):
        other = next(name for name in names if name not in folders)
        objective(other)
        what = f'"{one_line(folders[0], 60)}" is a folder and "{one_line(other, 60)}" an objective'
        raise UsageError("CLI-18", what, where="kd compare", fix="give objectives only, or run folders only")
    return [Path(name) for name in folders]


def _looks_like_folder(name: str) -> bool:
    return Path(name).is_dir() or ("/" in name.partition(":")[0] and ".py" not in name)


def _study(
    config: Sequence[str] | None,
    sets: Sequence[str] | None,
    typed: Mapping[str, Any],
    terminal: "Terminal",
    *,
    dry_run: bool,
) -> None:
    from kdcli.cli import settle
    from kdcli.config import CompareConfig

    settings = settle.settle(CompareConfig, config, sets, typed)
    if len(settings.losses) < 2:
        what = f"needs two objectives or more, got {len(settings.losses)}"
        raise UsageError("CLI-18", what, where="kd compare", fix="name another, or use kd distill")
    if settings.train.seed != 0:
        raise UsageError("CLI-09", "train.seed has no effect here", where="kd compare", fix="give --seeds")
    settle.require(student=settings.student, data=settings.data.train, eval_data=settings.data.eval)
    if any(settle.needs_teacher(loss) for loss in settings.losses):
        settle.require(teacher=settings.teacher)
    if settings.baseline is not None and settings.baseline not in settings.losses:
        what = f'"{one_line(settings.baseline, 60)}" is not among the objectives'
        raise UsageError("CLI-18", what, where="--baseline", fix=f"choose one of {', '.join(settings.losses)}")
    settle.output_folder(settings.output, needed=not dry_run)
    if dry_run:
        _plan(settings, terminal)
        return
    with terminal.work() as report:
        from kdcli.cli import render
        from kdcli.runs import compare as runs

        found = runs.compare(settings, report, command=settle.command_line())
    terminal.result(found, lambda shown: render.comparison(shown, terminal.width))
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _plan(settings: Any, terminal: "Terminal") -> None:
    with terminal.work():
        from kdcli.cli import render_plan
        from kdcli.runs.compare import plan_compare

        plan = plan_compare(settings)
    terminal.result(plan, render_plan.plan)


def _finished(folders: Sequence[Path], baseline: str | None, typed: Mapping[str, Any], terminal: "Terminal") -> None:
    from kdcli.cli.settle import objective, output_folder
    from kdcli.spelling import FLAGS

    ignored = [name for name in FLAGS if typed.get(name) and name not in ("losses", "baseline", "output")]
    if ignored:
        flag = "--" + ignored[0].replace("_", "-")
        raise UsageError("CLI-09", "has no effect on finished runs", where=flag, fix="remove it")
    if len(folders) < 2:
        raise UsageError("CLI-18", "needs two runs or more, got 1", where="kd compare", fix="name another run folder")
    if baseline and not _looks_like_folder(baseline):
        baseline = objective(baseline)
    output = typed["output"]
    output_folder(output, needed=False)
    with terminal.work() as report:
        from kdcli.cli import render
        from kdcli.runs.compare import compare_runs

        found = compare_runs(folders, baseline, report, output=Path(output) if output else None)
    terminal.result(found, lambda shown: render.comparison(shown, terminal.width))
