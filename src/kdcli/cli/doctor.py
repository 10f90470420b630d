"""``kd doctor``: check a set-up before money is spent on it."""

from typing import TYPE_CHECKING

import typer

from kdcli.cli import flags

if TYPE_CHECKING:
    from kdcli.runs.doctor.check import Diagnosis

EPILOG = "Example: kd doctor --teacher http://localhost:8000/v1 --local-teacher ./T --student ./S --data train.jsonl"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", epilog=EPILOG, short_help="Check machine, models, rows and teachers before a run.")(doctor)


def doctor(
    teacher: flags.Teacher = None,
    local_teacher: flags.LocalTeacher = None,
    student: flags.Student = None,
    lora: flags.Lora = None,
    data: flags.Data = None,
    columns: flags.Columns = None,
    template: flags.Template = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    skip_bad: flags.SkipBad = False,
    top_k: flags.ServedTopK = None,
    output: flags.Output = None,
    config: flags.Config = None,
    sets: flags.Sets = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    threads: flags.Threads = None,
    matmul_precision: flags.MatmulPrecision = None,
) -> None:
    """Look at everything a run would use and say of each whether it will do; nothing is trained or written.

    Leaves with the code of the first check that fails: 3 for an input, 4 for the machine, 0 where none does.
    """
    typed = locals()
    from kdcli.cli import settle
    from kdcli.cli.terminal import Terminal
    from kdcli.config import DoctorConfig

    terminal = Terminal(json, quiet)
    settings = settle.settle(DoctorConfig, config, sets, typed)
    with terminal.work() as report:
        from kdcli.runs.doctor.doctor import diagnose

        found = diagnose(settings, report)
    terminal.result(found, _lines)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _lines(found: "Diagnosis") -> str:
    from kdcli.text import one_line

    lines = []
    for check in found.checks:
        lines.append(f"{check.state:5} {check.name:18} {one_line(check.what, 400)}")
        if check.fix:
            lines.append(f"{'':24} Fix: {one_line(check.fix, 300)}")
    return "\n".join(lines)
