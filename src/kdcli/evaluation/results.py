"""``results.json`` and ``samples.parquet``: written whole, read back to the same numbers."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from kdcli.bounded import ANYWHERE
from kdcli.config.sections import EvalSettings
from kdcli.errors import InputError, IntegrityError
from kdcli.evaluation.answers import AnswerStore, TextSamples
from kdcli.evaluation.lm_eval.run import score_of
from kdcli.evaluation.records import AnswerCounts, Edge, EvalRecord, ScoreInfo
from kdcli.evaluation.scoring import choose_metrics, forms
from kdcli.evaluation.together import joined, same_protocol
from kdcli.metrics.curve import Curve, as_json, from_json
from kdcli.metrics.score import Finish, Score, ratio, total
from kdcli.metrics.titles import current, current_column, current_entry, current_signature
from kdcli.registry.registry import METRICS
from kdcli.statistics import Estimate
from kdcli.statistics.estimate import Unit
from kdcli.storage import atomic, stored

# ``curves.json`` and the pictures of an evaluation.


CURVES = "curves.json"


def write_curves(folder: Path, curves: Sequence[Curve], *, pictures: bool) -> None:
    """Write curves as data, and each as ``NAME.png`` and ``NAME.svg`` if asked for; nothing if there are none."""
    if not curves:
        return
    text = json.dumps([as_json(curve) for curve in curves], indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CURVES).write_text(f"{text}\n", encoding="utf-8")
    if pictures:
        from kdcli.plots import draw

        for curve in curves:
            draw(folder, curve)


def read_curves(folder: Path) -> tuple[Curve, ...]:
    """Read what ``write_curves`` wrote; nothing where there is no file.

    Raises:
        IntegrityError: the file holds something else.
    """
    path = folder / CURVES
    if not path.is_file():
        return ()
    fix = "evaluate again with kd eval"
    found = stored.read_record(path, list[dict[str, Any]], fix=fix)
    try:
        curves = tuple(map(from_json, found))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError("RUN-01", "holds no curves", where=str(path), fix=fix) from error
    return tuple(replace(curve, name=current(curve.name)) for curve in curves)


SCHEMA = 1
RESULTS, SAMPLES = "results.json", "samples.parquet"
_AGAIN = "evaluate again with kd eval"


class _Entry(BaseModel):
    """One score of ``results.json``: its value, and what a reader must know of it."""

    name: str
    better: Literal["higher", "lower", "neither"]
    metric: str
    settings: str
    eats: str = "tokens"
    value: float
    mean: float
    low: float | None
    high: float | None
    count: Annotated[int, Field(lt=2**63)]
    unit: Unit
    error: float | None = None
    p_value: float | None = None
    freedom: float | None = None
    documents: list[float] | None = None


class _Protocol(BaseModel):
    """What is read of a protocol."""

    name: str = ""
    hash: str = ""
    metrics: dict[str, str] = {}
    tasks: dict[str, Any] = {}
    settings: dict[str, Any] = {}


class _Document(BaseModel):
    """The shape of ``results.json``."""

    name: str
    model: str
    examples: Annotated[int, Field(lt=2**63)]
    scores: list[_Entry]
    protocol: _Protocol
    model_digest: str
    evaluation: EvalSettings
    notes: list[str]
    edge: Edge | None = None
    answers: AnswerCounts | None = None


@dataclass(frozen=True)
class Rows:
    """Per-example values, to be written as columns.

    Args:
        where: file and line of each example.
        texts: prompts, references and answers; None where nothing was generated.
        kept: the answers as they came; None where they are kept nowhere.
    """

    where: Sequence[str]
    texts: TextSamples | None
    kept: AnswerStore | None = None


def write_results(
    folder: Path, record: EvalRecord, settings: EvalSettings, rows: Rows, scores: Sequence[Score], *,
    pictures: bool = False,
) -> None:  # fmt: skip
    """Write an evaluation's folder, each curve as a picture if asked for; it appears whole or not at all.

    The folder around it is there. Scores, answers and curves of the same model by the same protocol that are in the
    folder already stay.
    """
    entries = [
        {
            **asdict(info), **asdict(record.estimates[info.name]), "value": record.estimates[info.name].mean,
            **({"documents": record.documents[info.name]} if info.name in record.documents else {}),
        }
        for info in record.infos
    ]  # fmt: skip
    document = {
        "name": record.name,
        "model": record.model,
        "examples": record.examples,
        "scores": entries,
        "protocol": record.protocol,
        "model_digest": record.model_digest,
        "evaluation": settings.model_dump(mode="json"),
        "notes": list(record.notes),
        "edge": asdict(record.edge) if record.edge is not None else None,
        "answers": asdict(record.answers) if record.answers is not None else None,
    }

    table, curves = _table(rows, scores), record.curves
    before = _before(folder, record)
    if before is not None:
        document, table = (
            _joined(before, document),
            _joined_samples(read_samples(folder), table, [one.name for one in scores]),
        )
        curves = tuple({one.name: one for one in (*read_curves(folder), *curves)}.values())

    def fill(target: Path) -> None:
        text = json.dumps(document, indent=1, ensure_ascii=False)
        (target / RESULTS).write_text(f"{text}\n", encoding="utf-8")
        pq.write_table(table, target / SAMPLES)
        write_curves(target, curves, pictures=pictures)
        if rows.kept is not None:
            rows.kept.write_into(target, folder if before is not None else None)
        for path in sorted(folder.iterdir()) if before is not None else ():
            if path.name != atomic.MANIFEST and not (target / path.name).exists():
                shutil.copy2(path, target / path.name)

    atomic.commit_folder(folder, fill, {"kind": "evaluation", "results": SCHEMA})
    if rows.kept is not None:
        rows.kept.forget()


def _before(folder: Path, record: EvalRecord) -> dict[str, Any] | None:
    """Return the document of an evaluation that this one stands together with, None if there is none."""
    try:
        found = _document(folder) if (folder / RESULTS).is_file() else None
    except IntegrityError:
        return None
    if found is None or found["model_digest"] != record.model_digest or found["examples"] != record.examples:
        return None
    return found if same_protocol(found["protocol"], record.protocol) else None


def _joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the document of two evaluations that stand together; what was measured twice is the new one's."""
    entries = {entry["name"]: entry for entry in (*before["scores"], *now["scores"])}
    evaluation = now["evaluation"] | {
        "metrics": list(dict.fromkeys([*before["evaluation"]["metrics"], *now["evaluation"]["metrics"]]))
    }
    if now["protocol"].get("generation") is None and "generation" in before["evaluation"]:
        evaluation["generation"] = before["evaluation"]["generation"]
    either = {name: now[name] if now[name] is not None else before.get(name) for name in ("edge", "answers")}
    return (
        now
        | either
        | {
            "scores": list(entries.values()),
            "protocol": joined(before["protocol"], now["protocol"]),
            "evaluation": evaluation,
            "notes": list(dict.fromkeys([*before["notes"], *now["notes"]])),
        }
    )


def _joined_samples(before: pa.Table, now: pa.Table, scores: Sequence[str]) -> pa.Table:
    """Return the columns of both tables, of equal rows; those of a score that was measured twice are the new one's."""
    if len(before) != len(now):
        return now
    again = {f"{name}{kind}" for name in scores for kind in ("", ".sums", ".answers")}
    for name in before.column_names:
        if name not in now.column_names and name not in again:
            now = now.append_column(before.schema.field(name), before[name])
    return now


def make_place(folder: Path, output: str | None) -> None:
    """Make the folder around an evaluation's, without what killed writers left in it.

    Of a run that has gone, nothing is made again.

    Args:
        folder: the evaluation's.
        output: what the user asked for; None where it lies in a run.

    Raises:
        IntegrityError: the run's folder of evaluations is a link.
        MachineError: it cannot be made.
    """
    if output is not None:
        atomic.make_folder(folder.parent)
    else:
        atomic.make_inside(folder.parents[1], folder.parent.name)
    atomic.remove_temporaries(folder.parent)


def read_results(folder: Path) -> EvalRecord:
    """Read an evaluation back.

    Raises:
        IntegrityError: a file is not what the manifest says.
        InputError: the folder holds no evaluation.
    """
    document = _document(folder)
    estimates = {
        entry["name"]: Estimate(**{name: entry[name] for name in Estimate.__dataclass_fields__ if name in entry})
        for entry in document["scores"]
    }
    infos = tuple(
        ScoreInfo(**{name: entry[name] for name in ScoreInfo.__dataclass_fields__ if name in entry})
        for entry in document["scores"]
    )
    return EvalRecord(
        document["name"],
        document["model"],
        folder,
        document["examples"],
        estimates,
        infos,
        document["protocol"],
        document["model_digest"],
        tuple(document["notes"]),
        read_curves(folder),
        _edge(document.get("edge")),
        {entry["name"]: tuple(entry["documents"]) for entry in document["scores"] if "documents" in entry},
        None if document.get("answers") is None else AnswerCounts(**document["answers"]),
    )


def read_scores(folder: Path) -> dict[str, Score]:
    """Read an evaluation's scores with their per-example statistics, for paired comparisons."""
    document = _document(folder)
    return scores_of(read_samples(folder), document["scores"], document["evaluation"])


def read_samples(folder: Path) -> pa.Table:
    """Read what was measured example by example; the folder's digests are not checked here.

    Raises:
        IntegrityError: the file is missing or no parquet.
    """
    try:
        table = pq.read_table(folder / SAMPLES)
    except (pa.ArrowException, OSError) as error:
        where = str(folder / SAMPLES)
        raise IntegrityError("RUN-01", "cannot be read as parquet", where=where, fix=_AGAIN) from error
    return table.rename_columns([*map(current_column, table.column_names)])


def read_evaluation_settings(folder: Path) -> dict[str, Any]:
    """Return the settings an evaluation was made with."""
    return _document(folder)["evaluation"]


def scores_of(table: pa.Table, entries: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any]) -> dict[str, Score]:
    """Return scores from their per-example statistics; a metric whose code may not run is read from the rows alone.

    Args:
        table: the rows of one evaluation, as in its ``samples.parquet``.
        entries: name, direction and value of each score, its input kind, and of a benchmark's score its documents.
        evaluation: settings that say how the metrics were made.
    """
    settings = EvalSettings.model_validate(evaluation)
    known = tuple(name for name in settings.metrics if METRICS.may_resolve(name))
    ours = settings.model_copy(update={"metrics": known})
    made = forms(choose_metrics(ours, teacher=True)) if known else {}
    return {
        entry["name"]: score_of(entry["name"], entry["value"], entry.get("documents"), entry["better"])
        if entry.get("eats") == "tasks"
        else _score(entry, table, made.get(entry["name"]))
        for entry in entries
    }


def _edge(found: Mapping[str, Any] | None) -> Edge | None:
    """Return what the model cost, where that was measured; JSON has no tuples."""
    if found is None:
        return None
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return Edge(**fields)


def _ratio_in(entry: Mapping[str, Any], table: pa.Table) -> Finish | None:
    """Return the ratio that turns the stored statistics into the stored scores, None where there is no such ratio."""
    sums, shown = _column(table, f"{entry['name']}.sums"), _column(table, entry["name"])
    if sums is None or shown is None or sums.ndim != 2 or sums.shape[1] != 2:
        return None
    plain = ratio()
    whole = float(plain(total(sums)))
    scale = entry["value"] / whole if whole else 1.0
    made = ratio(scale)(sums)
    return ratio(scale) if np.allclose(made, shown, rtol=1e-9, atol=1e-12, equal_nan=True) else None


def _score(entry: Mapping[str, Any], table: pa.Table, made: Score | None) -> Score:
    name, better = entry["name"], entry["better"]
    finish, bounds = (made.finish, made.bounds) if made is not None else (_ratio_in(entry, table), ANYWHERE)
    sums = _column(table, f"{name}.sums")
    if sums is None or finish is None:
        return Score(name, None, finish or np.asarray, better, corpus=entry["value"], bounds=bounds)
    return Score(name, sums, finish, better, answers=_column(table, f"{name}.answers"), bounds=bounds)


def _column(table: pa.Table, name: str) -> Any:
    return np.array(table[name].to_pylist(), dtype=np.float64) if name in table.column_names else None


def _table(rows: Rows, scores: Sequence[Score]) -> pa.Table:
    columns: dict[str, Any] = {"example": list(range(len(rows.where))), "where": list(rows.where)}
    if rows.texts is not None:
        columns |= {
            "prompt": rows.texts.prompts,
            "references": rows.texts.references,
            "predictions": rows.texts.predictions,
            "ended": rows.texts.ended,
        }
    for score in scores:
        if score.sums is not None and score.per_example is not None:
            columns[score.name] = score.per_example
            columns[f"{score.name}.sums"] = score.sums.tolist()
            if score.answers is not None:
                columns[f"{score.name}.answers"] = score.answers.tolist()
    return pa.table(columns)


def _document(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    if not path.is_file():
        raise InputError("EVAL-03", "no results.json", where=str(folder), fix="make it with kd eval")
    atomic.verify_folder(folder)
    document = stored.read_record(path, dict[str, Any], fix=_AGAIN)
    stored.fit(document, _Document, path, fix=_AGAIN)
    return _with_current_names(document)


def _with_current_names(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document under the names that metrics and scores have now."""
    protocol, evaluation = document["protocol"], document["evaluation"]
    found = {name: current_signature(text) for name, text in protocol.get("metrics", {}).items()}
    metrics = {"metrics": {current(name): text for name, text in found.items()}} if "metrics" in protocol else {}
    asked = {"metrics": [*map(current, evaluation["metrics"])]} if "metrics" in evaluation else {}
    return document | {
        "scores": [*map(current_entry, document["scores"])],
        "protocol": protocol | metrics,
        "evaluation": evaluation | asked,
    }
