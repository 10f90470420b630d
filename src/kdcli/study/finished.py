"""Compares finished runs, wherever they were made."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdcli.comparison import conclusions
from kdcli.comparison.aggregate import Group
from kdcli.comparison.comparable import check_same, label_runs
from kdcli.comparison.records import RESULTS, Comparison
from kdcli.comparison.tables_store import ComparisonMeta
from kdcli.config import resolve
from kdcli.config.schema import DistillConfig, EvalConfig
from kdcli.config.sections import EvalSettings
from kdcli.distill.prepare import measuring_of, objective_of
from kdcli.distill.records import BEFORE, TEACHER, Reference, RunRecord
from kdcli.distill.run import read_run
from kdcli.errors import InputError, KDError, UsageError
from kdcli.evaluation.prepare import choice_note
from kdcli.evaluation.protocol import differing_settings
from kdcli.evaluation.records import EvalRecord
from kdcli.evaluation.results import read_evaluation_settings, read_results
from kdcli.evaluation.together import same_protocol
from kdcli.events import Event, Report, silent
from kdcli.loading.info import ModelPair
from kdcli.loading.session import Session
from kdcli.loading.splits import training_rows
from kdcli.metrics.describe import describe
from kdcli.report.page import write_report
from kdcli.storage import atomic
from kdcli.storage.digests import update_digest
from kdcli.storage.run_dir import CONFIG, MANIFEST, RunFolder
from kdcli.students.made import is_made
from kdcli.students.supernet_spec import refuse_several_sizes
from kdcli.study.cells import CELLS
from kdcli.study.references import (
    LABELS,
    Measured,
    Measurement,
    Planned,
    measure_references,
    plan_lines,
    plan_model,
    read_references,
)
from kdcli.study.results import Finished, conclude, read_comparison, tabulate
from kdcli.study.study_dir import Entry, Study, check_shown, is_study, read_study
from kdcli.text import one_line, typed

# Reference lines of finished runs: from the study that trained them, or measured where the models are here.


_NO_TOKENS = ("texts", "choices")


def recorded_lines(finished: Sequence[Finished]) -> list[Reference]:
    """Return the reference lines that the studies of finished runs keep, where they were measured alike.

    Args:
        finished: runs and their evaluations, which may stand in one table.
    """
    found: dict[str, Reference] = {}
    for folder in dict.fromkeys(run.folder.resolve().parent for run, _ in finished):
        if folder.name != CELLS or not is_study(folder.parent):
            continue
        for one in read_references(folder.parent, read_study(folder.parent).references):
            kept = {seed: record for seed, record in one.found.items() if _fits(one.role, seed, record, finished)}
            if kept and one.role not in found:
                found[one.role] = replace(one, found=kept)
    return [found[role] for role in LABELS if role in found]


def lines_of(
    finished: Sequence[Finished],
    models: Sequence[Path],
    place: Path,
    rows: str | None,
    report: Report,
) -> Measured:
    """Return the reference lines of finished runs; what no study of theirs keeps is measured.

    Args:
        finished: runs and their evaluations, which may stand in one table.
        models: folders of models that were trained elsewhere.
        place: folder under which evaluations are kept.
        rows: file of the held-out rows, where it is not the one that the runs' settings name.
        report: called with events.

    Raises:
        InputError: a model of ``models`` that cannot be measured on the rows of the runs.
    """
    known = recorded_lines(finished)
    missing = [role for role in LABELS if role not in {one.role for one in known}]
    done = Measured(known)
    if not (missing or models):
        return done
    run, found = finished[0]
    session = Session()
    try:
        measuring, pair, absent = _models_of(run, found, rows, session)
        planned = plan_lines(measuring, pair, sorted({one.seed for one, _ in finished}), session)
        outside = tuple(_outside(models, measuring, pair))
    except (KDError, OSError) as error:
        why = error.what if isinstance(error, KDError) else str(error)
        if models:
            where, fix = str(models[0]), "give the rows with --eval-data, or measure the model alone with kd eval"
            raise InputError("CMP-06", f"cannot be measured as the runs were: {why}", where=where, fix=fix) from error
        done.leave_out(" or ".join(LABELS[role] for role in missing), why)
        return done
    identities = [one.identity for one, _ in finished]
    wanted = []
    for one in planned.measurements:
        if one.role in missing and _is_theirs(one.role, one.seed, one.subject.facts.digest, identities):
            wanted.append(one)
        elif one.role in missing:
            absent.setdefault(one.role, f"no line for {one.label}: its folder holds another model than then")
    made = measure_references(Planned((*wanted, *outside)), place, found, session, report)
    done.references += [one for one in made.references if _fit(one, finished)]
    for why in planned.remarks:
        absent.setdefault(TEACHER, why)
    done.remarks = [why for role, why in absent.items() if role in missing] + made.remarks
    done.failed, done.lost = made.failed, made.lost
    for one in made.references:
        if not _fit(one, finished):
            done.leave_out(one.label, "rows or protocol would not be those of the runs")
    lost = [one.label for one in outside if one.label not in {line.label for line in done.references}]
    if lost:
        why = done.lost.get(lost[0]) or next(one.message for one in done.failed if one.loss == lost[0])
        raise InputError("CMP-06", why, where=lost[0], fix="give the runs' rows with --eval-data")
    return done


def _models_of(
    run: RunRecord, found: EvalRecord, rows: str | None, session: Session
) -> tuple[EvalConfig, ModelPair, dict[str, str]]:
    """Return how a run's student was measured, and its models; only what lies on this disk is looked at.

    Returns:
        settings of the evaluation, models, and role -> why there is no line for it.
    """
    config = resolve.resolve(DistillConfig, file=run.folder / CONFIG)
    assert found.folder is not None, "it was read from a folder"
    measured = EvalSettings.model_validate(read_evaluation_settings(found.folder))
    data = config.data.model_copy(update={"eval": rows or config.data.eval})
    if data.eval is None or not Path(data.eval).expanduser().exists():
        raise InputError("CMP-06", "the held-out rows are not here", where=str(data.eval))
    absent: dict[str, str] = {}
    teacher = config.teacher
    if teacher is None or not Path(teacher).expanduser().is_dir():
        why = "none was named" if teacher is None else f"{teacher} is no folder here"
        absent[TEACHER] = f"no line for {LABELS[TEACHER]}: {why}"
        teacher = None
        kept = tuple(name for name in measured.metrics if not describe(name).needs_teacher)
        measured = measured.model_copy(update={"metrics": kept})
    student = str(config.student)
    if not is_made(student) and not Path(student).expanduser().is_dir():
        raise InputError("CMP-06", f"the student before training, {student}, is no folder here", where=str(run.folder))
    changes = {"teacher": teacher, "evaluation": measured, "data": data, "teacher_cache": None}
    pair = session.pair(config.student, teacher, config.teacher_quantization, across=True, data=config.data)
    if pair.student_needs_rows:
        if config.data.train is None or not Path(config.data.train).expanduser().exists():
            what = "the rows that the student's scores were taken on are not here"
            raise InputError("CMP-06", what, where=str(config.data.train))
        pair = replace(pair, scored_on=training_rows(config.data, pair.reader, session))
    return measuring_of(config.model_copy(update=changes)), pair, absent


def _outside(models: Sequence[Path], measuring: EvalConfig, pair: ModelPair) -> Iterator[Measurement]:
    names = [path.resolve().name for path in models]
    for number, (path, name) in enumerate(zip(models, names, strict=True)):
        label = name if names.count(name) == 1 and name not in LABELS.values() else f"model {path}"
        one = plan_model(str(path), label, measuring, pair)
        yield replace(one, folder=f"reference/model-{number}")


def _fit(one: Reference, finished: Sequence[Finished]) -> bool:
    return all(_fits(one.role, seed, record, finished) for seed, record in one.found.items())


def _fits(role: str, seed: int | None, record: EvalRecord, finished: Sequence[Finished]) -> bool:
    """Whether an evaluation is of the runs' own model of that role, measured as their students were."""
    theirs = _is_theirs(role, seed, record.model_digest, [run.identity for run, _ in finished])
    return theirs and _finished_lines_alike(record, finished[0][1])


def _is_theirs(role: str, seed: int | None, digest: str, identities: Sequence[Mapping[str, Any]]) -> bool:
    if role == BEFORE:
        start = identities[0].get("student")
        return digest == (start if seed is None else f"{start} seed {seed}")
    return role != TEACHER or digest in {one.get("teacher") for one in identities} - {None}


def _finished_lines_alike(record: EvalRecord, beside: EvalRecord) -> bool:
    """Whether two evaluations were made by one protocol on one set of rows; texts alone do not depend on the tokens."""
    ours, theirs = record.protocol, beside.protocol
    keys = ("precision",) if all(info.input_kind in _NO_TOKENS for info in record.infos) else ("data", "precision")
    if any(ours.get(key) != theirs.get(key) for key in keys) or any(differing_settings(ours, theirs)):
        return False
    return None in (ours.get("generation"), theirs.get("generation")) or ours["generation"] == theirs["generation"]


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
        report: called with events.
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
    groups, remarks = load_runs([folder for folder in folders if folder not in models] or folders, report)
    chosen = _chosen_baseline(baseline, groups)
    if output is not None:
        atomic.make_folder(output)
    finished = [one for runs in groups.values() for one in runs.values()]
    for run, _ in finished:
        refuse_several_sizes(run.identity["student"], "the run trained several sizes, whose cost is not that of one")
    with nullcontext(output) if output is not None else TemporaryDirectory() as place:
        lines = lines_of(finished, models, Path(str(place)), rows, report)
        said, failed = (*remarks, *lines.remarks), tuple(lines.failed)
        if output is None:  # the story of what went wrong is not kept
            said += tuple(f"no line for {one.loss}: {one.message}" for one in failed)
        kept = failed if output is not None else ()
        return tabulate(groups, chosen, kept, output, said, conclusions.SuggestedCommand(), lines.references)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model and is no run."""
    return (folder / "config.json").is_file() and not (folder / CONFIG).is_file()


def load_runs(folders: Sequence[Path], report: Report) -> tuple[dict[str, dict[int, Finished]], tuple[str, ...]]:
    """Read finished runs that may stand in one table.

    Args:
        folders: run folders, each with an evaluation.
        report: called with events.

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


# Reads back what a report needs: a study's folder, or runs that are finished.


def load(folders: Sequence[Path]) -> tuple[Comparison, list[Group], list[Reference]]:
    """Return a comparison, its groups, and the reference models' evaluations.

    Args:
        folders: one folder that kd compare wrote, or run folders, each with an evaluation.

    Raises:
        InputError: neither; or nothing in it is finished and evaluated.
        IntegrityError: a file is not what its manifest says.
    """
    check_shown(folders)
    first = folders[0]
    if len(folders) == 1 and (first / RESULTS).is_file():
        if not is_study(first):
            return read_comparison(first), [], []
        study = read_study(first)
        return read_comparison(first), groups_of(study, first), read_references(first, study.references)
    groups, remarks = load_runs(folders, silent)
    made = [Group(label, runs) for label, runs in groups.items()]
    lines = recorded_lines([one for group in made for one in group.runs.values()])
    absent = [LABELS[role] for role in LABELS if role not in {one.role for one in lines}]
    if absent:
        remarks += (f"no line for {' or '.join(absent)}: no study keeps it; kd compare with these runs measures it",)
    return conclude(made, ComparisonMeta(next(iter(groups)), remarks), None, lines), made, lines


def finished_table(folder: Path) -> Comparison | None:
    """Return the comparison that a study's own tables hold, None unless they hold every cell.

    Args:
        folder: the study.

    Raises:
        KDError: it holds no study, or a damaged one.
    """
    if not (folder / RESULTS).is_file():
        return None
    found = read_comparison(folder)
    there = {(row.label, seed) for row in found.rows for seed in row.seeds}
    return found if {(entry.label, entry.seed) for entry in _final(read_study(folder))} <= there else None


def comparison_of(folder: Path, baseline: str | None = None) -> Comparison:
    """Return the comparison in a folder; of a study that is not finished, the comparison of the cells that are.

    Args:
        folder: what ``kd compare`` wrote.
        baseline: label that differences are taken to; by default the study's own.

    Raises:
        InputError: the folder holds no comparison, or none of its runs is finished.
    """
    if (folder / RESULTS).is_file() or not is_study(folder):
        return read_comparison(folder, baseline)
    study = read_study(folder)
    groups, final = groups_of(study, folder), _final(study)
    if not groups:
        fix = f"kd compare {typed(folder)} goes on with it"
        raise InputError("CMP-05", "none of its runs is finished", where=str(folder), fix=fix)
    labels = [group.label for group in groups]
    wanted = baseline or (study.baseline if study.baseline in labels else labels[0])
    if wanted not in labels:
        what = f'"{one_line(wanted, 60)}" has no finished run'
        raise UsageError("CLI-18", what, where="--baseline", fix=f"choose one of {', '.join(labels)}")
    done = f"partial: {sum(len(group.runs) for group in groups)} of {len(final)} runs are finished"
    found = conclude(groups, ComparisonMeta(wanted, (done,)), None, read_references(folder, study.references))
    return replace(found, setup=replace(found.setup, unfinished=done))


def groups_of(study: Study, folder: Path) -> list[Group]:
    """Return the finished cells behind each line of a study.

    Args:
        study: its cells.
        folder: where it lies.
    """
    groups: dict[str, dict[int, Finished]] = {}
    for entry in _final(study):
        run, evaluation = folder / entry.folder, folder / entry.folder / entry.evaluation
        if (run / MANIFEST).is_file() and RunFolder(run).is_done and evaluation.is_dir():
            groups.setdefault(entry.label, {})[entry.seed] = (read_run(run), read_results(evaluation))
    return [Group(label, runs) for label, runs in groups.items()]


def _final(study: Study) -> list[Entry]:
    """Return the cells behind the table: with tuning, the chosen values as measured last, of the seeds reported."""
    kept: dict[tuple[str, int], Entry] = {}
    for entry in study.cells:
        if study.chosen.get(entry.label, entry.tried) == entry.tried and entry.seed in study.seeds:
            kept[entry.label, entry.seed] = entry
    order = {label: place for place, label in enumerate(study.labels)}
    return sorted(kept.values(), key=lambda entry: (order.get(entry.label, len(order)), entry.seed))


def write_page(folders: Sequence[Path], target: Path) -> None:
    """Write the report of a study or of runs; a study's digests then hold for it too.

    Args:
        folders: as for :func:`load`.
        target: the file.
    """
    comparison, groups, references = load(folders)
    write_report(target, comparison, groups, references)
    update_digest(target)
