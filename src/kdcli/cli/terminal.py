"""Output of commands: results to stdout, everything else to stderr."""

import contextlib
import contextvars
import dataclasses
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from kdcli.cli.progress import BarProgress, LineProgress, Progress, Stream
from kdcli.text import one_line, typed, visible

HAS_RESULT: contextvars.ContextVar[bool] = contextvars.ContextVar("has result", default=False)
"""Whether the command at hand has printed its result as JSON: stdout holds one document, and errors go to stderr."""

PIPE_WIDTH = 100


@dataclass
class Terminal:
    """Console output of one command.

    Args:
        json: results are printed as JSON.
        quiet: no progress and no remarks, only results, warnings and errors.
        stdout: where results go.
        stderr: where everything else goes.
        verbose: results are printed whole.
    """

    json: bool = False
    quiet: bool = False
    stdout: Stream = field(default_factory=lambda: sys.stdout)
    stderr: Stream = field(default_factory=lambda: sys.stderr)
    verbose: bool = False

    @property
    def width(self) -> int:
        """Columns a result may take."""
        return console(self.stdout).width

    def show(self, *parts: RenderableType) -> None:
        """Print a result for people; text in it is made visible and has no markup.

        A text that must not be wrapped stays one line, to be copied or searched whole.
        """
        screen = console(self.stdout)
        for part in pieces(parts):
            if isinstance(part, str):
                screen.print(visible(part), markup=False, highlight=False, emoji=False, soft_wrap=True)
            else:
                screen.print(part, soft_wrap=isinstance(part, Text) and bool(part.no_wrap))

    def result(self, value: Any, draw: Callable[[Any], RenderableType]) -> None:
        """Print a command's result: as JSON if asked for, else drawn."""
        if self.json:
            self.dump(value)
        else:
            self.show(draw(value))

    def dump(self, value: Any) -> None:
        """Print a result for programs, as JSON."""
        HAS_RESULT.set(True)
        self.stdout.write(json.dumps(document(value), indent=2, allow_nan=False) + "\n")

    def note(self, text: str) -> None:
        """Print a remark."""
        if not self.quiet:
            self.stderr.write(one_line(text, 2000) + "\n")

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show the events of the work inside; what libraries print goes to stderr."""
        screen = console(self.stderr)
        bar = screen.is_terminal and not self.quiet
        progress = BarProgress(screen) if bar else LineProgress(self.stderr, quiet=self.quiet)
        with contextlib.redirect_stdout(self.stderr), progress:
            yield progress


def pieces(parts: Iterable[RenderableType]) -> Iterator[RenderableType]:
    """Yield what groups hold, in order.

    >>> list(pieces(["a", Group("b", Group("c"))]))
    ['a', 'b', 'c']
    """
    for part in parts:
        if isinstance(part, Group):
            yield from pieces(part.renderables)
        else:
            yield part


def console(stream: Stream) -> Console:
    """Return a Rich console without markup; a pipe has a fixed width."""
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def runnable(command: str) -> str:
    """Return a command as the user must type it here: by its path, where ``kd`` is not on the PATH."""
    program, _, rest = command.partition(" ")
    if program != "kd" or shutil.which("kd") is not None or Path(sys.argv[0]).name != "kd":
        return command
    return f"{typed(os.path.relpath(sys.argv[0]))} {rest}"


SCHEMA_VERSION = 2
"""Of the documents that ``--json`` prints; it changes with every field that is renamed or removed."""

KINDS = {
    "kdcli.distill.records:RunRecord": "run",
    "kdcli.evaluation.records:EvalRecord": "evaluation",
    "kdcli.evaluation.palette:PaletteRecord": "palette",
    "kdcli.comparison.records:Comparison": "comparison",
    "kdcli.distill.plan:Plan": "plan",
    "kdcli.cli.study:Status": "status",
    "kdcli.cli.reproduce:Page": "report",
    "kdcli.distill.rerun:Rerun": "rerun",
    "kdcli.diagnostics.doctor:Diagnosis": "diagnosis",
    "kdcli.diagnostics.deployment:DeploymentEstimate": "estimate",
    "kdcli.diagnostics.schedule:ScheduleReport": "schedule",
    "kdcli.diagnostics.gradients:BatchReport": "batch",
    "kdcli.teachers.cached:CacheRecord": "cache",
    "kdcli.teachers.cached:CachePlan": "cache-plan",
    "kdcli.sources.teacher_text.rows:TextRecord": "text",
    "kdcli.sources.teacher_text.rows:TextPlan": "text-plan",
    "kdcli.distill.make_student:StudentRecord": "student",
    "kdcli.distill.make_export:ExportRecord": "export",
    "kdcli.federated.federate:FederationRecord": "federation",
    "kdcli.demo.toy:ToyReport": "toy",
    "kdcli.rows.check:Checked": "rows",
    "kdcli.rows.score:ScoreRecord": "row-scores",
    "kdcli.rows.split:SplitRecord": "split",
    "kdcli.rows.balance:BalanceRecord": "balance",
    "kdcli.rows.rationales:RationalesRecord": "rationales",
    "kdcli.losses.build:LossCard": "objective",
    "kdcli.metrics.describe:MetricCard": "metric",
    "kdcli.sources.build:SourceCard": "source",
    "kdcli.scores.build:ScoreCard": "score",
    "kdcli.config.presets:PresetCard": "preset",
}
"""Record -> what a document of ``--json`` calls it."""

LISTS = (
    "kdcli.study.verify:Checked",
    "kdcli.study.clean:Removed",
    "kdcli.losses.testing.contract:Finding",
    "kdcli.losses.testing.conformance:Row",
    "kdcli.losses.build:LossCard",
    "kdcli.metrics.describe:MetricCard",
    "kdcli.sources.build:SourceCard",
    "kdcli.scores.build:ScoreCard",
    "kdcli.config.presets:PresetCard",
)
"""Records of which ``--json`` prints a list."""


def document(value: Any) -> Any:
    """Return a result as ``--json`` prints it: plain values, and in an object the version of its schema and its kind.

    >>> from kdcli.distill.plan import Plan
    >>> document(Plan({}, cost={"steps": 3.0})) == {
    ...     "schema_version": 2, "kind": "plan", "facts": {}, "cells": [], "examples": [], "notes": [],
    ...     "cost": {"steps": 3.0}}
    True
    """
    plain = jsonable(value)
    if not isinstance(plain, dict):
        return plain
    return {"schema_version": SCHEMA_VERSION, "kind": KINDS[_place(type(value))], **plain}


def _place(record: type[Any]) -> str:
    return f"{record.__module__}:{record.__qualname__}"


def jsonable(value: Any) -> Any:
    """Return plain JSON values; numbers that JSON has no word for become null.

    >>> from pathlib import Path
    >>> jsonable({"mean": float("nan"), "folder": Path("runs")})
    {'mean': None, 'folder': 'runs'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: jsonable(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool | int | str | None):
        return value
    listed = getattr(value, "tolist", None)
    return jsonable(listed()) if listed else str(value)
