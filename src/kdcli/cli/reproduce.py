"""``kd report``, ``kd verify``, ``kd clean`` and ``kd rerun``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import options, switches
from kdcli.config.names import OUTPUT
from kdcli.errors import IntegrityError, UsageError

Folders = Annotated[
    list[str], typer.Argument(metavar="STUDY|RUN", help="A study, or finished runs.", show_default=False)
]
Folder = Annotated[str, typer.Argument(metavar="RUN|STUDY", help="What kd wrote.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        "report", epilog="Example: kd report study -o report.html", short_help="Write a self-contained HTML report."
    )(report)
    app.command("verify", epilog="Example: kd verify study", short_help="Check every digest of a run or study.")(verify)
    app.command(
        "clean", epilog="Example: kd clean study --dry-run", short_help="Remove files that a study no longer needs."
    )(clean)
    app.command("rerun", epilog="Example: kd rerun runs/akl -o runs/akl-again", short_help="Train a run again.")(rerun)


@dataclass(frozen=True)
class Page:
    """A report that was written.

    Args:
        report: the file.
        bytes: its size.
    """

    report: Path
    bytes: int


def report(
    folders: Folders,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Page to write. Default report.html in the study.",
                     rich_help_panel=OUTPUT, show_default=False),
    ] = None,
    plugin: switches.HiddenPlugin = None,
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:  # fmt: skip
    """Write a study, or finished runs, as one self-contained page: no script, nothing fetched, ready to print."""
    from kdcli.cli.load_config import output_folder
    from kdcli.cli.terminal import Terminal
    from kdcli.config.resolve import expanded
    from kdcli.study.study_dir import check_shown

    terminal = Terminal(json, quiet)
    paths = [Path(name) for name in folders]
    output = expanded(output, "-o") if output is not None else None
    if output is None and len(paths) > 1:
        raise UsageError("CLI-20", "no page to write", where="-o", fix="give one, such as -o report.html")
    target = Path(output) if output is not None else paths[0] / "report.html"
    if target.is_dir():
        target = target / "report.html"
    if output is not None:
        output_folder(str(target.parent), needed=True)
    check_shown(paths)
    with terminal.progress():
        from kdcli.study.finished import write_page

        write_page(paths, target)
    terminal.result(Page(target, target.stat().st_size), lambda page: str(page.report))


def verify(
    folder: Folder, json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False
) -> None:
    """Check every digest of a run, a study or a model that kd wrote; nothing is changed.

    Ends with exit code 6 and the first damaged file's name if one is not what it was.
    """
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_diagnostics
        from kdcli.study.verify import verify as check

        found = check(Path(folder))
    terminal.result(found, render_diagnostics.verified)
    bad = [one for one in found if not one.passed]
    if bad:
        more = f" ({len(bad)} of {len(found)} folders are damaged)" if len(bad) > 1 else ""
        fix = "restore the file, or remove its folder and run the same command again"
        raise IntegrityError("RUN-01", f"{bad[0].wrong}{more}", where=bad[0].where, fix=fix)


def clean(
    folder: Annotated[str, typer.Argument(metavar="RUN|STUDY", help="What kd wrote.", show_default=False)],
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave the checkpoints of finished runs.", show_default=False,
                           rich_help_panel=OUTPUT)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.", show_default=False,
                           rich_help_panel=OUTPUT)
    ] = False,
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:  # fmt: skip
    """Remove files that are not needed any more: checkpoints of finished runs, and leftovers of killed processes.

    Works on a run, a study, a teacher cache, or a folder of such. A run that is not done keeps its checkpoints, and so
    does one whose settings say train.keep_finished=true.
    """
    from kdcli.cli.terminal import Terminal
    from kdcli.study.study_dir import check_folder

    terminal = Terminal(json, quiet)
    check_folder(Path(folder))
    with terminal.progress():
        from kdcli.cli import render_diagnostics
        from kdcli.study.clean import clean as remove

        found = remove(Path(folder), keep_checkpoints=keep_checkpoints, dry_run=dry_run)
    terminal.result(found, lambda items: render_diagnostics.cleaned(items, dry_run=dry_run))


def rerun(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.", show_default=False)],
    output: options.Output = None,
    plugin: switches.Plugin = None,
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Train a run again from its own settings and compare the weights.

    Refuses if a model, the data or a guest's code has changed since. Ends with exit code 6 if the weights differ.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.resolve import expanded
    from kdcli.storage.run_dir import RunFolder

    terminal = Terminal(json, quiet)
    output = expanded(output, "-o") if output is not None else None
    load_config.output_folder(output, needed=True)
    RunFolder(Path(run)).manifest()
    with terminal.progress() as progress:
        from kdcli.cli import render_diagnostics
        from kdcli.distill.rerun import rerun as again

        found = again(Path(run), Path(str(output)), progress, command=load_config.command_line())
    terminal.result(found, render_diagnostics.rerun)
    if not found.identical:
        raise typer.Exit(IntegrityError.exit_code)
