"""Reference lines of finished runs: from the study that trained them, or measured where the models are here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcli import settings
from kdcli.config import DistillConfig, EvalSettings
from kdcli.engine.events import Report
from kdcli.errors import InputError, KDError
from kdcli.metrics.describe import describe
from kdcli.models.random import is_random
from kdcli.runs.cells import CELLS
from kdcli.runs.evaluation.protocol import differing_settings
from kdcli.runs.evaluation.results import read_evaluation_settings
from kdcli.runs.folder import CONFIG
from kdcli.runs.model_facts import Pair
from kdcli.runs.records import BEFORE, TEACHER, EvalRecord, Reference, RunRecord
from kdcli.runs.references import (
    LABELS,
    Measured,
    Measurement,
    Planned,
    measure_references,
    plan_lines,
    plan_model,
    read_references,
)
from kdcli.runs.study import is_study, read_study
from kdcli.runs.workshop import Workshop

Finished = tuple[RunRecord, EvalRecord]
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
        report: told what happens.

    Raises:
        InputError: a model of ``models`` that cannot be measured on the rows of the runs.
    """
    known = recorded_lines(finished)
    missing = [role for role in LABELS if role not in {one.role for one in known}]
    done = Measured(known)
    if not (missing or models):
        return done
    run, found = finished[0]
    workshop = Workshop()
    try:
        config, pair, absent = _models_of(run, found, rows, workshop)
        planned = plan_lines(config, pair, sorted({one.seed for one, _ in finished}), workshop)
        outside = tuple(_outside(models, config, pair))
    except (KDError, OSError) as error:
        why = error.what if isinstance(error, KDError) else str(error)
        if models:
            where, fix = str(models[0]), "give the rows with --eval-data, or measure the model alone with kd eval"
            raise InputError("CMP-06", f"cannot be measured as the runs were: {why}", where=where, fix=fix) from error
        done.remarks = [f"no line for {' or '.join(LABELS[role] for role in missing)}: {why}"]
        return done
    identities = [one.identity for one, _ in finished]
    wanted = []
    for one in planned.measurements:
        if one.role in missing and _is_theirs(one.role, one.seed, one.subject.facts.digest, identities):
            wanted.append(one)
        elif one.role in missing:
            absent.setdefault(one.role, f"no line for {one.label}: its folder holds another model than then")
    made = measure_references(Planned((*wanted, *outside)), place, found, workshop, report)
    done.references += [one for one in made.references if _fit(one, finished)]
    for why in planned.remarks:
        absent.setdefault(TEACHER, why)
    done.remarks = [why for role, why in absent.items() if role in missing] + made.remarks
    done.failed = made.failed
    for one in made.references:
        if not _fit(one, finished):
            done.remarks.append(f"no line for {one.label}: rows or protocol would not be those of the runs")
    lost = [one.label for one in outside if one.label not in {line.label for line in done.references}]
    if lost:
        whys = [remark for remark in done.remarks if remark.startswith(f"no line for {lost[0]}: ")]
        whys += [one.message for one in done.failed if one.loss == lost[0]]
        raise InputError("CMP-06", whys[0], where=lost[0], fix="give the runs' rows with --eval-data")
    return done


def _models_of(
    run: RunRecord, found: EvalRecord, rows: str | None, workshop: Workshop
) -> tuple[DistillConfig, Pair, dict[str, str]]:
    """Return a run's settings as it was evaluated, and its models; only what lies on this disk is looked at.

    Returns:
        settings, models, and role -> why there is no line for it.
    """
    config = settings.resolve(DistillConfig, file=run.folder / CONFIG)
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
    if not is_random(student) and not Path(student).expanduser().is_dir():
        raise InputError("CMP-06", f"the student before training, {student}, is no folder here", where=str(run.folder))
    changes = {"teacher": teacher, "evaluation": measured, "data": data, "teacher_cache": None}
    config = config.model_copy(update=changes)
    return config, workshop.pair(config.student, teacher, config.teacher_quantization, across=True), absent


def _outside(models: Sequence[Path], config: DistillConfig, pair: Pair) -> Iterator[Measurement]:
    names = [path.resolve().name for path in models]
    for number, (path, name) in enumerate(zip(models, names, strict=True)):
        label = name if names.count(name) == 1 and name not in LABELS.values() else f"model {path}"
        one = plan_model(str(path), label, config, pair)
        yield replace(one, folder=f"reference/model-{number}")


def _fit(one: Reference, finished: Sequence[Finished]) -> bool:
    return all(_fits(one.role, seed, record, finished) for seed, record in one.found.items())


def _fits(role: str, seed: int | None, record: EvalRecord, finished: Sequence[Finished]) -> bool:
    """Whether an evaluation is of the runs' own model of that role, measured as their students were."""
    theirs = _is_theirs(role, seed, record.model_digest, [run.identity for run, _ in finished])
    return theirs and _alike(record, finished[0][1])


def _is_theirs(role: str, seed: int | None, digest: str, identities: Sequence[Mapping[str, Any]]) -> bool:
    if role == BEFORE:
        start = identities[0].get("student")
        return digest == (start if seed is None else f"{start} seed {seed}")
    return role != TEACHER or digest in {one.get("teacher") for one in identities} - {None}


def _alike(record: EvalRecord, beside: EvalRecord) -> bool:
    """Whether two evaluations were made by one protocol on one set of rows; texts alone do not depend on the tokens."""
    ours, theirs = record.protocol, beside.protocol
    keys = ("precision",) if all(info.eats in _NO_TOKENS for info in record.infos) else ("data", "precision")
    if any(ours.get(key) != theirs.get(key) for key in keys) or any(differing_settings(ours, theirs)):
        return False
    return None in (ours.get("generation"), theirs.get("generation")) or ours["generation"] == theirs["generation"]
