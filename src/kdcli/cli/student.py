"""``kd student``: make a student from a teacher, as a model folder."""

from typing import TYPE_CHECKING

import typer

from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed

if TYPE_CHECKING:
    from kdcli.distill.make_student import StudentRecord


EPILOG = """Example: kd student cut:layers=4,by=influence --teacher ./T --data train.jsonl -o student

Example: kd student cut:params=0.5 --teacher ./T -o student

Options of cut: and the scores: docs/students.md. --student of kd distill takes the same."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Make a student from a teacher: cut out of it, or random in its form."
    app.command("student", epilog=EPILOG, short_help=text)(options.student(student))


def student(typed: Typed, *, config: Texts, sets: Texts, dry_run: bool, json: bool, quiet: bool) -> None:
    """Make a student from a teacher and write it as a model folder, to be distilled, or loaded anywhere."""
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import StudentConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(StudentConfig, config, sets, typed)
    load_config.require(teacher=settings.teacher)
    load_config.output_folder(settings.output, needed=not dry_run)
    with terminal.progress() as report:
        from kdcli.distill import make_student as making

        found = making.plan_student(settings) if dry_run else making.make_student(settings, report)
    terminal.result(found, _drawn)


def _drawn(record: "StudentRecord") -> str:
    before, after = record.parameters
    lines = [f"{record.student} of {record.teacher}"]
    lines.append(f"parameters  {after:,} of {before:,} ({after / before:.1%})")
    for name, sizes in record.sizes.items():
        lines.append(f"{name:10}  {sizes[-1]:,}" + (f" of {sizes[0]:,}" if len(sizes) > 1 else ""))
    if record.layers:
        lines.append(f"stayed      layers {', '.join(map(str, record.layers))}")
    if record.rows:
        lines.append(f"scored on   {record.rows:,} rows")
    if record.folder is not None:
        lines.append(("it was there already: " if record.already else "") + str(record.folder))
    return "\n".join(lines)
