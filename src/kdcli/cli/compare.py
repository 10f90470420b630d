"""``kd compare``: train variants times seeds, continue a study, or compare finished runs."""

from collections.abc import Sequence
from pathlib import Path

import typer

from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed
from kdcli.errors import UsageError
from kdcli.metrics.titles import current
from kdcli.study.study_dir import SETTINGS, check_settings
from kdcli.text import one_line

EPILOG = """Example: kd compare fkl rkl akl --seeds 0,1,2 --teacher T --student S --data a.jsonl \
--eval-data b.jsonl -o study

Example: kd compare study --to table.tex --columns rougeL,ece"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Train objectives on an equal budget and tabulate them; or compare finished runs."
    app.command("compare", epilog=EPILOG, short_help=text)(options.compare(compare))


def compare(
    typed: Typed,
    *,
    config: Texts,
    sets: Texts,
    dry_run: bool,
    json: bool,
    quiet: bool,
    verbose: bool,
    status: bool,
    by: str | None,
    to: str | None,
    layout: str | None,
    titles: str | None,
    digits: str | None,
    caption: str | None,
    label: str | None,
) -> None:
    """Train each objective with each seed on an equal budget, evaluate, print the table; or compare finished runs.

    The same line again, or kd compare -o STUDY, starts only what is missing.
    """
    from kdcli.cli import study as studies
    from kdcli.cli.terminal import Terminal
    from kdcli.config.resolve import expanded

    losses = typed["losses"]
    folders = run_folders(losses or ())
    output = expanded(typed["output"], "-o") if typed["output"] is not None else None
    shown = typed["columns"] if "=" not in (typed["columns"] or "=") else None
    typed = {**typed, "output": output, "columns": None if shown else typed["columns"]}
    terminal = Terminal(json, quiet, verbose=verbose)
    screen = studies.Screen(terminal, studies.listed_scores(shown), current(by) if by else None)
    study = studies.named_study(
        folders, output, objectives=bool(losses) and not folders, config=bool(config), tables=to is not None
    )
    wording = {"layout": layout, "titles": titles, "digits": digits, "caption": caption, "label": label}
    if status or to is not None:
        besides = {"config": config, "sets": sets, "dry_run": dry_run, "by": by}
        besides |= {**wording, "to": to, "columns": shown} if status else {}
        looked_at = typed if status else {**typed, "baseline": None}
        plain = losses if not folders else None
        studies.refuse_settings(looked_at, besides, plain, "--status" if status else "--to")
    if study is not None and output is not None and study.resolve() != Path(output).resolve():
        what = f"the study {one_line(str(study), 100)} is named, too"
        raise UsageError("CLI-09", what, where=f"-o {one_line(output, 100)}", fix="leave one of them out")
    if status:
        studies.show_status(study, output, folders, terminal)
    elif to is not None:
        target = Path(expanded(to, "--to"))
        style = studies.table_style(studies.listed_scores(shown), **wording)
        studies.export(study, output, folders, target, style, terminal, baseline=typed["baseline"])
    elif given := [name for name, value in wording.items() if value]:
        raise UsageError("CLI-09", "has no effect without --to", where=f"--{given[0]}", fix="add --to")
    elif folders and study is None:
        studies.compare_finished(folders, typed["baseline"], typed, screen)
    else:
        alone = study is not None and not (sets or config or studies.settings_typed(typed))
        if study is not None:
            check_settings(study)
            typed = {**typed, "losses": None, "output": str(study)}
            config = config or [str(study / SETTINGS)]
        studies.run(config, sets, typed, screen, dry_run=dry_run, named=study if alone else None)


def run_folders(names: Sequence[str]) -> list[Path]:
    """Return the arguments as run folders, none if they are objectives.

    Args:
        names: what was typed.

    Raises:
        UsageError: some are folders and some are not.
    """
    from kdcli.cli.load_config import looks_like_folder
    from kdcli.interface import objective

    folders = [name for name in names if looks_like_folder(name)]
    if folders and len(folders) < len(names):
        other = next(name for name in names if name not in folders)
        objective(other)
        what = f'"{one_line(folders[0], 60)}" is a folder and "{one_line(other, 60)}" an objective'
        raise UsageError("CLI-18", what, where="kd compare", fix="give objectives only, or run and model folders only")
    return [Path(name) for name in folders]
