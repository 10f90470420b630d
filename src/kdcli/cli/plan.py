"""``kd plan``: what a run would do and cost, before it starts."""

import inspect
from typing import Any

import typer

from kdcli.cli.distill import distill

EPILOG = (
    "Example: kd plan --teacher ./T --student random:layers=3,width=64,heads=4 --data train.jsonl --loss akl\n\n"
    "A comparison: kd compare ... --dry-run"
)
_LEFT_OUT = ("dry_run", "resume")


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Say what a run would do: steps, tokens, memory, time; write nothing."
    app.command("plan", epilog=EPILOG, short_help=text)(plan)


def plan(**typed: Any) -> None:
    """Say what kd distill would do with the same flags: examples, steps, tokens, peak memory, time; write nothing."""
    distill(**typed, dry_run=True)


_signature = inspect.signature(distill)
_shown = [one for name, one in _signature.parameters.items() if name not in _LEFT_OUT]
vars(plan)["__signature__"] = _signature.replace(parameters=_shown)
plan.__annotations__ = {name: kind for name, kind in distill.__annotations__.items() if name not in _LEFT_OUT}
