"""``kd generate``: let a teacher answer prompts once, and keep what it says as rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kdcli.cli import flags
from kdcli.errors import UsageError
from kdcli.text import one_line, typed

if TYPE_CHECKING:
    from kdcli.runs.writing.record import TextRecord

EPILOG = """Example: kd generate --teacher ./T --data prompts.jsonl --source teacher:answers=4,max_nll=2 -o text

Example: kd generate --teacher ./T --source teacher:prompts=bos --count 10000 -o text"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Let a teacher answer prompts once; keep the answers as rows."
    app.command("generate", epilog=EPILOG, short_help=text)(generate)


def generate(
    teacher: flags.Teacher = None,
    student: flags.Student = None,
    source: flags.Source = None,
    data: flags.Prompts = None,
    count: flags.Count = None,
    columns: flags.Columns = None,
    template: flags.Template = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    skip_bad: flags.SkipBad = False,
    output: flags.Output = None,
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
    matmul_precision: flags.MatmulPrecision = None,
) -> None:
    """Let a teacher answer prompts, or write from the first token, and keep what passes the filters as rows.

    kd distill --data FOLDER/rows.jsonl trains on them. The same line again answers what is missing.
    """
    typed = locals()
    from kdcli.cli import settle
    from kdcli.cli.terminal import Terminal
    from kdcli.config import GenerateConfig

    terminal = Terminal(json, quiet)
    settings = settle.settle(GenerateConfig, config, sets, typed)
    settle.require(teacher=settings.teacher)
    _check_folder(settings.output)
    settle.output_folder(settings.output, needed=not dry_run)
    with terminal.work() as report:
        from kdcli.runs.writing import generate as runs

        if dry_run:
            found: Any = runs.plan_generate(settings)
        else:
            found = runs.generate(settings, report, command=settle.command_line())
    terminal.result(found, _planned if dry_run else _written)


def _check_folder(output: str | None) -> None:
    if output is None or Path(output).suffix not in (".jsonl", ".json"):
        return
    what = "-o is a folder; the rows are a file in it, rows.jsonl"
    raise UsageError(
        "CLI-10", what, where=f"-o {one_line(output, 80)}", fix=f"give -o {typed(Path(output).with_suffix(''))}"
    )


def _planned(plan: dict[str, Any]) -> str:
    return "\n".join(
        f"{name.replace('_', ' '):16} {f'{value:,}' if isinstance(value, int) else one_line(str(value), 200)}"
        for name, value in plan.items()
    )


def _written(record: "TextRecord") -> str:
    from kdcli.cli.numbers import duration

    dropped = ", ".join(f"{count:,} {fault}" for fault, count in record.dropped.items())
    speed = f" in {duration(record.seconds)} ({record.speed:,.0f} tokens/s)" if record.written else ""
    lines = [
        f"{record.answers:,} answers, {record.tokens:,} tokens; {record.written:,} written now{speed}",
        f"{record.kept:,} rows" + (f"; left out: {dropped}" if dropped else ""),
    ]
    if record.same < record.kept:
        lines.append(f"{record.kept - record.same:,} rows read back as other tokens than were written")
    if record.open:
        lines.append(f"{record.open:,} rows were cut, and a training adds an end token; ended=true drops them")
    return "\n".join([*lines, str(record.rows)])
