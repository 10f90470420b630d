"""``kd plan``: what a run would do and cost, before it starts."""

import inspect
from typing import Any

import typer

from kdcli.cli import flags
from kdcli.cli.distill import distill, run

EPILOG = (
    "Example: kd plan --teacher ./T --student random:layers=3,width=64,heads=4 --data train.jsonl --loss akl\n\n"
    "Example: kd plan --teacher ./T --student ./S --data train.jsonl --gpus 8 --shard fsdp2 --gpu-memory 80GiB\n\n"
    "With --gpu-memory, no GPU need be here, and a model folder may lack its weights.\n\n"
    "A comparison: kd compare ... --dry-run"
)
_LEFT_OUT = ("dry_run", "resume")
_MEMORY = "gpu_memory"


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Say what a run would do: steps, tokens, memory, time; write nothing."
    app.command("plan", epilog=EPILOG, short_help=text)(plan)


def plan(**typed: Any) -> None:
    """Say what kd distill would do with the same flags: examples, steps, tokens, peak memory, time; write nothing."""
    from kdcli.cli.quantities import amount

    memory = typed.pop(_MEMORY, None)
    size = None if memory is None else int(amount(memory, "bytes", "--gpu-memory", "80GiB"))
    run({**typed, "resume": None, "dry_run": True}, size)


_signature = inspect.signature(distill)
_shown = [one for name, one in _signature.parameters.items() if name not in _LEFT_OUT]
_shown.append(inspect.Parameter(_MEMORY, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flags.GpuMemory))
vars(plan)["__signature__"] = _signature.replace(parameters=_shown)
plan.__annotations__ = {name: kind for name, kind in distill.__annotations__.items() if name not in _LEFT_OUT}
plan.__annotations__[_MEMORY] = flags.GpuMemory
