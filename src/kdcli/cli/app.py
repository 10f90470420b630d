"""The ``kd`` command and its subcommands."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from kdcli.cli import (
    catalog,
    compare,
    data,
    demo,
    diagnose,
    distill,
    evaluate,
    export,
    federate,
    init,
    loop,
    reproduce,
    schedule,
    settings,
    streams,
    supernet,
    switches,
    teacher,
)
from kdcli.cli import demo as toy
from kdcli.cli import distill as plan
from kdcli.cli import evaluate as judge
from kdcli.cli.errors import ARGUMENTS, RUN_FOLDER, run_guarded
from kdcli.cli.terminal import HAS_RESULT
from kdcli.config.names import canonical, nearest
from kdcli.errors import UsageError
from kdcli.registry import plugins
from kdcli.text import one_line
from kdcli.version import __version__

_QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_TALKATIVE = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""Loggers of libraries that transformers imports wherever they are installed; they warn of kernels not in use."""


class Commands(TyperGroup):
    """A group of commands with error messages of kd for unknown names; interrupts pass."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Find the command that the first argument names.

        Raises:
            UsageError: there is none; offers the nearest.
        """
        if self.get_command(ctx, args[0]) is None and self.get_command(ctx, canonical(args[0])) is None:
            near = nearest(args[0], {name: name for name in self.list_commands(ctx)})
            fix = f'did you mean "{near}"?' if near else f"{ctx.command_path} --help lists the commands"
            raise UsageError("CLI-01", f'unknown command "{one_line(args[0], 60)}"', where=ctx.command_path, fix=fix)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what Typer would swallow travels in a :class:`PassThrough`."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, OSError, EOFError) as error:
            raise PassThrough(error) from None


class PassThrough(Exception):
    """Carries an error through Typer unchanged.

    Args:
        error: what was raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


app = typer.Typer(
    name="kd",
    cls=Commands,
    help="Distil a language model into a small one, and compare divergence objectives honestly.",
    epilog="Start with: kd demo    Every setting: docs/cli.md",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": canonical},
)
distill.register(app)
plan.register_plan(app)
diagnose.register_estimate(app)
schedule.register(app)
evaluate.register(app)
judge.register_judge(app)
compare.register(app)
federate.register(app)
init.register(app)
teacher.register(app)
teacher.register_generate(app)
data.register(app, Commands)
teacher.register_student(app)
supernet.register(app)
export.register(app)
reproduce.register(app)
diagnose.register_inspect(app, Commands)
diagnose.register(app)
toy.register_toy(app)
demo.register(app)
loop.register(app)
catalog.register(app, Commands)
settings.register(app, Commands)


IMPLIED: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("--help",),
    ("data",): ("data", "--help"),
    ("losses",): ("losses", "list"),
    ("metrics",): ("metrics", "list"),
    ("sources",): ("sources", "list"),
    ("scores",): ("scores", "list"),
    ("presets",): ("presets", "list"),
}
"""What is meant by a command line that stops short."""


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", "-V", metavar="", help="Print the version.")] = False,
    debug: switches.Debug = False,
) -> None:
    if version:
        sys.stdout.write(f"kd {__version__}\n")
        raise typer.Exit


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: what stands after ``kd``.

    Returns:
        the exit code.
    """
    words = tuple(arguments)
    words = IMPLIED.get(words, words)
    ARGUMENTS.set(words)
    RUN_FOLDER.set(None)
    HAS_RESULT.set(False)
    debug = "--debug" in words or os.environ.get("KD_DEBUG", "") not in ("", "0")

    def work() -> int:
        if not {"--help", "-h", "--version", "-V"} & set(words):
            os.getcwd()
        try:
            code = typer.main.get_command(app).main(list(words), prog_name="kd", standalone_mode=False)
        except PassThrough as carried:
            raise carried.error from None
        return code if isinstance(code, int) else 0

    named = [*words, *(value for name, value in os.environ.items() if name.startswith("KD_"))]
    with warnings.catch_warnings(), plugins.only_named_in(named):
        if not debug:
            warnings.simplefilter("ignore")
        return run_guarded(work, debug=debug)


def main() -> NoReturn:
    """Run the command line of this process and exit with its exit code."""
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    streams.prepare()
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    streams.let_go()
    sys.exit(code)
