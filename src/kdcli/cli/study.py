"""The branches of ``kd compare``: run a study, show its status, export its table, compare finished runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcli.cli.progress import CellStatus, counts, grid, summary
from kdcli.config.sweep import STUDENT, combinations, read_axes, split_label
from kdcli.errors import UsageError
from kdcli.metrics.titles import current
from kdcli.registry.plugins import WithheldError
from kdcli.storage import lock
from kdcli.study import cell_progress
from kdcli.study.cell_progress import CellProgress
from kdcli.study.study_dir import RESULTS_FILE, Entry, ReferenceEntry, is_study, read_study
from kdcli.text import one_line

if TYPE_CHECKING:
    from kdcli.cli.terminal import Terminal
    from kdcli.comparison.records import Comparison
    from kdcli.config.schema import CompareConfig
    from kdcli.report.table_view import TableStyle


@dataclass(frozen=True)
class Screen:
    """How a comparison is shown.

    Args:
        terminal: where.
        columns: names of the scores to show; all that fit by default.
        by: the score that says what is best; by default the first.
    """

    terminal: "Terminal"
    columns: tuple[str, ...] = ()
    by: str | None = None

    def show(self, found: "Comparison", *above: RenderableType) -> None:
        """Print a comparison, as JSON if asked for."""
        from kdcli.cli import render
        from kdcli.comparison.answer import chosen_scores

        chosen_scores(found, self.columns, "--columns")
        chosen_scores(found, [self.by] if self.by is not None else [], "--by")
        draw = render.comparison if self.terminal.verbose else render.answer
        self.terminal.result(
            found, lambda shown: Group(*above, draw(shown, self.terminal.width, self.columns, self.by))
        )


def listed(text: str | None) -> tuple[str, ...]:
    """Return the names in a list separated by commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def listed_scores(text: str | None) -> tuple[str, ...]:
    """Return the scores in a list separated by commas, those with an earlier name by the one they have now."""
    return tuple(map(current, listed(text)))


def table_style(
    columns: tuple[str, ...],
    *,
    layout: str | None,
    titles: str | None,
    digits: str | None,
    caption: str | None,
    label: str | None,
) -> "TableStyle":
    """Read how an exported table is laid out and worded.

    Raises:
        UsageError: a layout that is none, a number that is none, or titles without names.
    """
    from kdcli.report.table_view import LAYOUTS, TableStyle

    if layout not in (None, *LAYOUTS):
        what = f'"{one_line(layout or "", 40)}" is no layout'
        raise UsageError("CLI-21", what, where="--layout", fix=f"choose one of {', '.join(LAYOUTS)}")
    if digits is not None and not (digits.isdecimal() and digits.isascii() and 1 <= int(digits[:3]) <= 9):
        what = f'must be a whole number from 1 to 9, got "{one_line(digits, 40)}"'
        raise UsageError("CLI-07", what, where="--digits", fix="leave it out for 2")
    pairs = [part.partition("=") for part in listed(titles)]
    if wrong := next((name for name, sign, text in pairs if not (sign and text)), None):
        what = f'"{one_line(wrong, 40)}" has no title'
        raise UsageError("CLI-21", what, where="--titles", fix="write rougeL=Rouge-L,fkl=Forward KL")
    named = {current(name.strip()): text.strip() for name, _, text in pairs}
    return TableStyle(columns, layout or "", named, int(digits) if digits else None, caption or "", label or "")


def named_study(
    folders: Sequence[Path], output: str | None, *, objectives: bool, config: bool, tables: bool
) -> Path | None:
    """Return the study that a command line means by its folder alone.

    Args:
        folders: the arguments, if they are folders.
        output: what ``-o`` was given.
        objectives: whether objectives were given.
        config: whether a settings file was given.
        tables: whether a folder that holds the tables of a comparison will do.
    """
    if len(folders) == 1 and is_study(folders[0]):
        return folders[0]
    if tables and len(folders) == 1 and (folders[0] / RESULTS_FILE).is_file():
        return folders[0]
    alone = not (folders or objectives or config)
    return Path(output) if alone and output is not None and is_study(Path(output)) else None


def settings_typed(typed: Mapping[str, Any]) -> list[str]:
    """Return the flags typed that stand for settings, besides the contenders and the folder."""
    return [name for name, value in typed.items() if value and name not in ("losses", "output")]


def refuse_settings(
    typed: Mapping[str, Any], besides: Mapping[str, Any], objectives: Sequence[str] | None, flag: str
) -> None:
    """Refuse whatever would change a study, where an existing one is only read.

    Args:
        typed: the settings as typed.
        besides: switches that mean nothing here: parameter -> what was typed.
        objectives: the objectives named.
        flag: what asks to look.
    """
    if objectives is not None and len(objectives) == 1 and not _is_objective(objectives[0]):
        where = one_line(objectives[0], 100)
        raise UsageError("CLI-20", "no such folder", where=where, fix="give the folder of a study")
    if objectives:
        what = f"{flag} shows a study that exists, and objectives are given"
        raise UsageError("CLI-09", what, where="kd compare", fix=f"give its folder alone: kd compare STUDY {flag}")
    names = [*settings_typed(typed), *(name for name, value in besides.items() if value)]
    if names:
        spelt = {"sets": "set"}.get(names[0], names[0]).replace("_", "-")
        what = f"has no effect on a study that exists, which {flag} shows as it is"
        raise UsageError("CLI-09", what, where=f"--{spelt}", fix="leave it out")


def _is_objective(name: str) -> bool:
    from kdcli.interface import objective

    try:
        objective(name)
    except UsageError:
        return False
    return True


def run(
    config: Sequence[str] | None,
    sets: Sequence[str] | None,
    typed: Mapping[str, Any],
    screen: Screen,
    *,
    dry_run: bool,
    named: Path | None = None,
) -> None:
    """Train what is missing of a study and print its table.

    Args:
        config: what ``-c`` was given, or the settings of the study named.
        sets: what ``--set`` was given.
        typed: a command's parameters -> what was typed.
        screen: where and how to show the result.
        dry_run: show the plan instead.
        named: the study, where the command line names its folder alone.
    """
    from kdcli.cli import load_config
    from kdcli.config.schema import CompareConfig

    terminal = screen.terminal
    if named is not None and not dry_run and not os.access(named, os.W_OK) and _show_finished(named, screen):
        return
    settings = load_config.load_config(CompareConfig, config, sets, typed)
    check(settings)
    load_config.output_folder(settings.output, needed=not dry_run)
    load_config.check_inputs(settings)
    if dry_run:
        _plan(settings, terminal)
        return
    with terminal.progress() as report:
        from kdcli import interface
        from kdcli.study.finished import finished_table

        try:
            found = interface.compare(settings, report=report).comparison
        except WithheldError:
            found = finished_table(named) if named is not None else None
            if found is None:
                raise
    _show(found, screen)


def _show_finished(study: Path, screen: Screen) -> bool:
    """Show a study that may not be written by its own tables; return whether they hold every cell."""
    with screen.terminal.progress():
        from kdcli.study.finished import finished_table

        found = finished_table(study)
    if found is not None:
        _show(found, screen)
    return found is not None


def _show(found: "Comparison", screen: Screen) -> None:
    screen.show(found, *_tuning(found.folder))
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _tuning(folder: Path | None) -> list[RenderableType]:
    """Return the table of every value that was tried, if the study was tuned."""
    from kdcli.metrics.titles import title
    from kdcli.study.tuning import read_tuning

    tuning = read_tuning(folder) if folder is not None else None
    if tuning is None:
        return []
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("objective")
    table.add_column("tried")
    table.add_column(f"{title(tuning.score)} on dev rows", justify="right")
    table.add_column("chosen")
    for trial in tuning.trials:
        mean = "failed" if trial.mean is None else f"{trial.mean:.5g}"
        table.add_row(*map(Text, (one_line(trial.label), one_line(trial.tried), mean, "yes" if trial.chosen else "")))
    return [table, Text("")]


def check(settings: "CompareConfig") -> None:
    """Refuse settings that make no comparison, before anything heavy is imported."""
    from kdcli.cli import load_config

    varied = len(combinations(read_axes(settings.vary, "--vary")))
    tuned = {axis.name for axis in read_axes(settings.tune, "--tune")}
    lines = len(settings.losses) * varied
    if lines < 2:
        what = f"needs two objectives or more, got {lines}"
        raise UsageError("CLI-18", what, where="kd compare", fix="name another, or use kd distill")
    axes = {axis.name for axis in read_axes(settings.vary, "--vary")}
    if STUDENT in tuned:
        raise UsageError("CLI-09", "the student is not tuned", where="--tune", fix="give it to --vary")
    if STUDENT in axes and settings.student is not None:
        raise UsageError("CLI-09", "the student varies already", where="--student", fix="leave --student out")
    if both := tuned & axes:
        raise UsageError("CLI-09", f"{min(both)} varies already", where="--tune", fix="give it to one of the two")
    idle = {"--tune-by": settings.tune_by, "--dev-data": settings.data.dev, "--tune-seeds": settings.tune_seeds}
    if flag := next((flag for flag, value in idle.items() if value and not settings.tune), ""):
        raise UsageError("CLI-09", "has no effect without --tune", where=flag, fix="add --tune lr=1e-4,3e-4")
    if settings.train.seed != 0:
        raise UsageError("CLI-09", "train.seed has no effect here", where="kd compare", fix="give --seeds")
    student = settings.student if STUDENT not in axes else ""
    load_config.require(student=student, data=settings.data.train, eval_data=settings.data.eval)
    if any(load_config.needs_teacher(loss) for loss in settings.losses):
        load_config.require(teacher=settings.teacher)
    if settings.baseline is not None and split_label(settings.baseline)[0] not in settings.losses:
        what = f'"{one_line(settings.baseline, 60)}" is not among the objectives'
        raise UsageError("CLI-18", what, where="--baseline", fix=f"choose one of {', '.join(settings.losses)}")


def show_status(study: Path | None, output: str | None, folders: Sequence[Path], terminal: "Terminal") -> None:
    """Print how far the runs of a study are."""
    terminal.result(read(_needed(study, output, folders)), draw)


def export(
    study: Path | None,
    output: str | None,
    folders: Sequence[Path],
    target: Path,
    style: "TableStyle",
    terminal: "Terminal",
    *,
    baseline: str | None = None,
) -> None:
    """Write a study's table to a file of the form that its ending names."""
    folder = _needed(study, output, folders)
    with terminal.progress():
        from kdcli.study.export import export as write

        write(folder, target, style, baseline=baseline)
    terminal.note(f"written to {target}")


def compare_finished(folders: Sequence[Path], baseline: str | None, typed: Mapping[str, Any], screen: Screen) -> None:
    """Compare runs that are finished."""
    from kdcli.cli.load_config import looks_like_folder, output_folder
    from kdcli.interface import objective

    ignored = [name for name in settings_typed(typed) if name not in ("baseline", "eval_data")]
    if ignored:
        flag = "--" + ignored[0].replace("_", "-")
        raise UsageError("CLI-09", "has no effect on finished runs", where=flag, fix="remove it")
    if len(folders) < 2:
        raise UsageError("CLI-18", "needs two runs or more, got 1", where="kd compare", fix="name another run or model")
    if baseline and not looks_like_folder(baseline):
        baseline = objective(baseline)
    output = typed["output"]
    output_folder(output, needed=False)
    with screen.terminal.progress() as report:
        from kdcli.study.finished import compare_runs

        place = Path(output) if output else None
        found = compare_runs(folders, baseline, report, output=place, rows=typed["eval_data"])
    screen.show(found)


def _plan(settings: "CompareConfig", terminal: "Terminal") -> None:
    with terminal.progress():
        from kdcli.cli import render as render_plan
        from kdcli.study.compare import plan_compare

        plan = plan_compare(settings)
    terminal.result(plan, render_plan.plan)


def _needed(study: Path | None, output: str | None, folders: Sequence[Path]) -> Path:
    if study is not None:
        return study
    if folders:
        what = "holds no study" if folders[0].is_dir() else "no such folder"
        raise UsageError("CLI-20", what, where=one_line(str(folders[0]), 100), fix="give the folder of a study")
    if output is not None and is_study(Path(output)):
        return Path(output)
    where = f"-o {one_line(output, 200)}" if output else "kd compare"
    if output is not None:
        what = "holds no study" if Path(output).is_dir() else "no such folder"
        raise UsageError("CLI-20", what, where=where, fix="give a folder that kd compare wrote")
    raise UsageError("CLI-20", "no study is named", where=where, fix="give its folder: kd compare STUDY --status")


# How far the cells of a study are, from its folder.


@dataclass(frozen=True)
class Status:
    """The progress of a study.

    Args:
        study: its folder.
        counts: state -> cells.
        seconds_left: training time to go, cells one after another; None if unknown.
        cells: every cell.
        references: the evaluations of models that the study does not train, done or waiting.
    """

    study: Path
    counts: dict[str, int]
    seconds_left: float | None
    cells: tuple[CellStatus, ...]
    references: tuple[CellStatus, ...] = ()


def read(study: Path) -> Status:
    """Read a study's folder; no model is loaded and nothing is locked.

    Raises:
        KDError: the folder holds no study, or a damaged one.
    """
    found = read_study(study)
    entries = found.cells
    seen = [_look(study, entry) for entry in entries]
    cells = tuple(_status(study, entry, one) for entry, one in zip(entries, seen, strict=True))
    lines = tuple(_line(study, entry) for entry in found.references)
    return Status(study, counts(cells), seconds_left(entries, seen), cells, lines)


def seconds_left(entries: Sequence[Entry], seen: Sequence[CellProgress]) -> float | None:
    """Return the training time to go, at the pace of the cells that have begun."""
    paces = [one.seconds_per_step for one in seen if one.seconds_per_step is not None]
    if not paces:
        return None
    usual = sum(paces) / len(paces)
    rest = [(entry.steps - one.step, one.seconds_per_step) for entry, one in zip(entries, seen, strict=True)]
    return sum(max(steps, 0) * (pace if pace is not None else usual) for steps, pace in rest)


def draw(found: Status) -> Group:
    """Return the grid of a study."""
    return Group(grid((*found.cells, *found.references)), Text(summary(found.counts, found.seconds_left)))


def _look(study: Path, entry: Entry) -> CellProgress:
    folder = study / entry.folder
    return cell_progress.read_progress(folder, entry.evaluation, held=lock.is_held(folder))


def _line(study: Path, entry: ReferenceEntry) -> CellStatus:
    name = entry.label if entry.seed is None else f"{entry.label} · seed {entry.seed}"
    state = "done" if (study / entry.folder / "results.json").is_file() else "waiting"
    return CellStatus(name, state, 0, 0, None)


def _status(study: Path, entry: Entry, seen: CellProgress) -> CellStatus:
    log = str(study / entry.folder / "error.log") if seen.state == "failed" else ""
    step = entry.steps if seen.state == "done" else seen.step
    return CellStatus(entry.name, seen.state, step, entry.steps, seen.seconds_left, log)
