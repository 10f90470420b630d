"""``kd distill``: train a student on a teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kdcli import processes
from kdcli.cli import flags
from kdcli.errors import MachineError

if TYPE_CHECKING:
    from kdcli.cli.terminal import Terminal
    from kdcli.config import DistillConfig
    from kdcli.engine.events import Report

EPILOG = "Example: kd distill --teacher ./T --student ./S --data train.jsonl --loss akl -o runs/a"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("distill", epilog=EPILOG, short_help="Train a student on a teacher; evaluate it; write a run folder.")(
        distill
    )


def distill(
    teacher: flags.Teacher = None,
    teacher_cache: flags.TeacherCache = None,
    student: flags.Student = None,
    lora: flags.Lora = None,
    data: flags.Data = None,
    eval_data: flags.EvalData = None,
    columns: flags.Columns = None,
    template: flags.Template = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    skip_bad: flags.MoreSkipBad = False,
    eval_limit: flags.EvalLimit = None,
    loss: flags.Loss = None,
    epochs: flags.Epochs = None,
    max_steps: flags.MaxSteps = None,
    batch_size: flags.BatchSize = None,
    lr: flags.Lr = None,
    seed: flags.Seed = None,
    gradient_checkpointing: flags.Checkpointing = False,
    eval_every: flags.EvalEvery = None,
    metric: flags.Metric = None,
    sampling_seeds: flags.MoreSeeds = None,
    max_new_tokens: flags.MoreTokens = None,
    output: flags.Output = None,
    resume: flags.Resume = None,
    push_to_hub: flags.PushToHub = None,
    config: flags.Config = None,
    sets: flags.Sets = None,
    plugin: flags.MorePlugin = None,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    threads: flags.Threads = None,
    gpus: flags.Gpus = None,
    shard: flags.Shard = None,
    matmul_precision: flags.MatmulPrecision = None,
) -> None:
    """Train a student on a teacher, evaluate it, write a run folder.

    The same line again goes on where it stopped; -c takes a preset, too.
    """
    run(locals())


def run(typed: Mapping[str, Any], gpu_memory: int | None = None) -> None:
    """Do what the flags say.

    Args:
        typed: the command's parameters.
        gpu_memory: for a plan: bytes of each GPU, which need not be here.
    """
    from kdcli.cli import launch, settle
    from kdcli.cli.boundary import ARGUMENTS
    from kdcli.cli.terminal import Terminal
    from kdcli.config import DistillConfig

    launch.join()
    json, push_to_hub, dry_run = typed["json"], typed["push_to_hub"], typed["dry_run"]
    terminal = Terminal(json, typed["quiet"] or not launch.is_first())
    again = settle.resuming(typed["resume"])
    settings = settle.settle(DistillConfig, typed["config"], typed["sets"], typed)
    settle.require(student=settings.student, data=settings.data.train)
    if settle.needs_teacher(settings.loss):
        settle.require(teacher=settings.teacher)
    _refuse_unused(settings, typed)
    settle.output_folder(settings.output, needed=not dry_run)
    if push_to_hub is not None:
        from kdcli.runs.push import check_repository

        check_repository(push_to_hub)
    if dry_run:
        _plan(settings, terminal, gpu_memory)
        return
    if not launch.are_started(settings.hardware.gpus):
        from kdcli.engine.devices import check_processes

        check_processes(settings.hardware)
        launch.run_processes(settings.hardware.gpus, ARGUMENTS.get(), Path(str(settings.output)), settle.command_line())
        return
    with terminal.work() as show:
        from kdcli.cli import render
        from kdcli.engine.events import silent
        from kdcli.runs import distill as runs

        report = show if launch.is_first() else silent
        record = runs.distill(settings, report, resume=again, command=settle.command_line())
        failed = _pushed(record.model, push_to_hub, report) if push_to_hub is not None and launch.is_first() else None
    if not launch.is_first():
        return
    terminal.result(record, render.run)
    if not json:
        terminal.show(str(record.model))
    if failed is not None:
        raise failed


def _pushed(model: Path, name: str, report: "Report") -> MachineError | None:
    """Upload the student; what the hub refuses is raised after the result was shown."""
    from kdcli.runs.push import push

    try:
        push(model, name, report)
    except MachineError as error:
        return error
    return None


def _refuse_unused(settings: "DistillConfig", typed: Mapping[str, Any]) -> None:
    """Refuse flags that would change nothing."""
    from kdcli.cli.settle import refuse_unused

    if settings.data.eval is None and settings.evaluation.split == "test":
        names = ("eval_limit", "metric", "sampling_seeds", "max_new_tokens")
        refuse_unused(typed, names, "has no effect without held-out rows", "add --eval-data, or use kd eval afterwards")
    if settings.hardware.gpus == processes.world() == 1:
        refuse_unused(typed, ("shard",), "has no effect in one process", "add --gpus N")


def _plan(settings: Any, terminal: "Terminal", gpu_memory: int | None) -> None:
    with terminal.work():
        from kdcli.cli import render_plan
        from kdcli.runs.distill import plan_distill

        plan = plan_distill(settings, gpu_memory)
    terminal.result(plan, render_plan.plan)
