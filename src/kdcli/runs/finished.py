"""Compares runs that are finished, wherever they were made."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from kdcli import durable
from kdcli.engine.events import Event, Report
from kdcli.errors import InputError, UsageError
from kdcli.runs import notes
from kdcli.runs.chosen_on import choice_note
from kdcli.runs.distill import read_run
from kdcli.runs.evaluation.results import read_results
from kdcli.runs.evaluation.together import same_protocol
from kdcli.runs.finished_lines import lines_of
from kdcli.runs.folder import CONFIG, RunFolder
from kdcli.runs.prepare import objective_of
from kdcli.runs.records import Comparison, EvalRecord
from kdcli.runs.same import check_same, label_runs
from kdcli.runs.tabulate import Finished, tabulate
from kdcli.text import typed


def compare_runs(
    folders: Sequence[Path],
    baseline: str | None,
    report: Report,
    *,
    output: Path | None = None,
    rows: str | None = None,
) -> Comparison:
    """Compare finished runs, and models that were trained elsewhere.

    Args:
        folders: run folders, each with an evaluation, and model folders, which are measured as the runs' students were.
        baseline: objective or folder that differences are taken to; default the first.
        report: told what happens.
        output: folder to write tables into.
        rows: file of the held-out rows, where it is not the one that the runs' settings name.

    Raises:
        InputError: a folder holds no evaluated run, or teacher, student, data, test set, token
            budget or protocol differ; names the field and both values.
        UsageError: fewer than two runs, one given twice, or an unknown baseline.
    """
    if len(folders) < 2:
        raise UsageError(
            "CLI-18", f"needs two runs or more, got {len(folders)}", where="kd compare", fix="name another run or model"
        )
    models = [folder for folder in folders if is_model(folder)]
    groups, remarks = gather([folder for folder in folders if folder not in models] or folders, report)
    chosen = _chosen_baseline(baseline, groups)
    if output is not None:
        durable.make_folder(output)
    finished = [one for runs in groups.values() for one in runs.values()]
    with nullcontext(output) if output is not None else TemporaryDirectory() as place:
        lines = lines_of(finished, models, Path(str(place)), rows, report)
        said, failed = (*remarks, *lines.remarks), tuple(lines.failed)
        if output is None:  # the story of what went wrong is not kept
            said += tuple(f"no line for {one.loss}: {one.message}" for one in failed)
        kept = failed if output is not None else ()
        return tabulate(groups, chosen, kept, output, said, notes.Next(), lines.references)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model and is no run."""
    return (folder / "config.json").is_file() and not (folder / CONFIG).is_file()


def gather(folders: Sequence[Path], report: Report) -> tuple[dict[str, dict[int, Finished]], tuple[str, ...]]:
    """Read finished runs that may stand in one table.

    Args:
        folders: run folders, each with an evaluation.
        report: told what happens.

    Returns:
        label -> seed -> run and evaluation, and a sentence for each training setting that differs.
    """
    finished = _read_all(folders)
    remarks = check_same(finished)
    for run, found in finished:
        choice = choice_note(str(run.folder), found.name)
        remarks += [choice] if choice and choice not in (*remarks, *found.notes) else []
    for remark in remarks:
        report(Event("warning", remark))
    groups: dict[str, dict[int, Finished]] = {}
    for label, (run, found) in zip(label_runs(finished), finished, strict=True):
        groups.setdefault(label, {})[run.seed] = (run, found)
    return groups, tuple(remarks)


def _read_all(folders: Sequence[Path]) -> list[Finished]:
    """Read runs and the evaluation that all of them have."""
    runs = [read_run(folder) for folder in folders]
    there = [RunFolder(folder).evaluations() for folder in folders]
    alike = _alike(there)
    if alike is not None:
        return list(zip(runs, alike, strict=True))
    shared = [name for name in there[0] if all(name in found for found in there)]
    if not shared:
        bare = next((folder for folder, found in zip(folders, there, strict=True) if not found), folders[0])
        raise InputError(
            "CMP-04",
            "no evaluation on a test set that all runs share",
            where=str(bare),
            fix=f"make it with: kd eval {typed(bare)} --data test.jsonl",
        )
    return [(run, read_results(found[shared[0]])) for run, found in zip(runs, there, strict=True)]


def _alike(there: Sequence[Mapping[str, Path]]) -> list[EvalRecord] | None:
    """Return one evaluation of each run, all by one protocol: the first run's first that every other has."""
    every = [[read_results(folder) for folder in found.values()] for found in there]
    for first in every[0]:
        match = [next((one for one in found if same_protocol(first.protocol, one.protocol)), None) for found in every]
        if None not in match:
            return [one for one in match if one is not None]
    return None


def _chosen_baseline(baseline: str | None, groups: Mapping[str, Mapping[int, Finished]]) -> str:
    if baseline is None:
        return next(iter(groups))
    by_folder = {str(run.folder): label for label, runs in groups.items() for run, _ in runs.values()}
    if baseline in by_folder:
        return by_folder[baseline]
    wanted = objective_of(baseline)[1]
    if wanted not in groups:
        known = ", ".join(groups)
        raise UsageError(
            "CLI-18", f'"{baseline}" is not among the runs', where="--baseline", fix=f"choose one of {known}"
        )
    return wanted
