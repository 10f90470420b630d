"""``kd distill`` and ``kd plan``: train a student on a teacher, or say what that would do."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kdcli import distributed
from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed
from kdcli.errors import MachineError

if TYPE_CHECKING:
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import DistillConfig
    from kdcli.events import Report


EPILOG = "Example: kd distill --teacher ./T --student ./S --data train.jsonl --loss akl -o runs/a"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("distill", epilog=EPILOG, short_help="Train a student on a teacher; evaluate it; write a run folder.")(
        options.distill(distill)
    )


def distill(
    typed: Typed,
    *,
    resume: str | None,
    push_to_hub: str | None,
    config: Texts,
    sets: Texts,
    dry_run: bool,
    json: bool,
    quiet: bool,
    gpu_memory: int | None = None,
) -> None:
    """Train a student on a teacher, evaluate it, write a run folder.

    The same line again goes on where it stopped; -c takes a preset, too.
    """
    from kdcli.cli import launch, load_config
    from kdcli.cli.errors import ARGUMENTS
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import DistillConfig

    launch.init_ranks()
    terminal = Terminal(json, quiet or not launch.is_first())
    again = load_config.resuming(resume)
    settings = load_config.load_config(DistillConfig, config, sets, typed)
    load_config.require(student=settings.student, data=settings.data.train)
    if load_config.needs_teacher(settings.loss):
        load_config.require(teacher=settings.teacher)
    _refuse_unused(settings, typed)
    load_config.output_folder(settings.output, needed=not dry_run)
    load_config.check_inputs(settings, computes=gpu_memory is None)
    if push_to_hub is not None:
        from kdcli.distill.model_card import check_repository

        check_repository(push_to_hub)
    if dry_run:
        _plan(settings, terminal, gpu_memory)
        return
    if not launch.already_launched(settings.hardware.gpus):
        from kdcli.models.devices import check_processes

        check_processes(settings.hardware)
        launch.run_processes(
            settings.hardware.gpus, ARGUMENTS.get(), Path(str(settings.output)), load_config.command_line()
        )
        return
    with terminal.progress() as show:
        from kdcli import interface
        from kdcli.cli import render
        from kdcli.events import silent

        report = show if launch.is_first() else silent
        record = interface.distill(settings, report=report, resume=again, command=load_config.command_line()).record
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
    from kdcli.distill.model_card import push

    try:
        push(model, name, report)
    except MachineError as error:
        return error
    return None


def _refuse_unused(settings: "DistillConfig", typed: Mapping[str, Any]) -> None:
    """Refuse flags that would change nothing."""
    from kdcli.cli.load_config import refuse_unused

    if settings.data.eval is None and settings.evaluation.split == "test":
        names = ("eval_limit", "metric", "sampling_seeds", "max_new_tokens")
        refuse_unused(typed, names, "has no effect without held-out rows", "add --eval-data, or use kd eval afterwards")
    if settings.hardware.gpus == distributed.world() == 1:
        refuse_unused(typed, ("shard",), "has no effect in one process", "add --gpus N")


def _plan(settings: Any, terminal: "Terminal", gpu_memory: int | None) -> None:
    with terminal.progress():
        from kdcli.cli import render as render_plan
        from kdcli.distill.plan import plan_distill

        plan = plan_distill(settings, gpu_memory)
    terminal.result(plan, render_plan.plan)


# ``kd plan``: what a run would do and cost, before it starts.


EPILOG_PLAN = (
    "Example: kd plan --teacher ./T --student random:layers=3,width=64,heads=4 --data train.jsonl --loss akl\n\n"
    "Example: kd plan --teacher ./T --student ./S --data train.jsonl --gpus 8 --shard fsdp2 --gpu-memory 80GiB\n\n"
    "With --gpu-memory, no GPU need be here, and a model folder may lack its weights.\n\n"
    "A comparison: kd compare ... --dry-run"
)


def register_plan(app: typer.Typer) -> None:
    """Add the command."""
    text = "Show what a run would do: steps, tokens, memory, time; write nothing."
    app.command("plan", epilog=EPILOG_PLAN, short_help=text)(options.plan(plan))


def plan(
    typed: Typed,
    *,
    push_to_hub: str | None,
    config: Texts,
    sets: Texts,
    json: bool,
    quiet: bool,
    gpu_memory: str | None,
) -> None:
    """Say what kd distill would do with the same flags: examples, steps, tokens, peak memory, time; write nothing."""
    from kdcli.cli.quantities import amount

    size = None if gpu_memory is None else int(amount(gpu_memory, "bytes", "--gpu-memory", "80GiB"))
    distill(
        typed,
        resume=None,
        push_to_hub=push_to_hub,
        config=config,
        sets=sets,
        dry_run=True,
        json=json,
        quiet=quiet,
        gpu_memory=size,
    )
