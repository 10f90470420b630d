"""``results.parquet`` and ``samples.parquet``: the long tables from which a comparison is computed."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcli.comparison.cost import Cost
from kdcli.comparison.records import MAKE, RESULTS, SAMPLES, Failure, Setup
from kdcli.config.sections import EvalSettings
from kdcli.distill.records import CONTENDER, Reference, RunRecord
from kdcli.errors import InputError, IntegrityError, UsageError
from kdcli.evaluation.records import AnswerCounts, EvalRecord, ScoreInfo
from kdcli.evaluation.results import read_evaluation_settings, read_samples, scores_of
from kdcli.metrics.score import Score
from kdcli.metrics.titles import current, current_column, current_entry, current_signature
from kdcli.storage import atomic, stored
from kdcli.text import one_line

SCHEMA = 1
_ABOUT = b"kd.comparison"
_COLUMNS = pa.schema(
    [
        ("objective", pa.string()),
        ("seed", pa.int64()),
        ("score", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("better", pa.string()),
        ("metric", pa.string()),
        ("settings", pa.string()),
        ("run", pa.string()),
        ("steps", pa.int64()),
        ("tokens", pa.int64()),
        ("student_tokens", pa.int64()),
        ("teacher_tokens", pa.int64()),
        ("parameters", pa.int64()),
        ("teacher_parameters", pa.int64()),
        ("flops", pa.float64()),
        ("generated_tokens", pa.int64()),
        ("documents", pa.list_(pa.float64())),
        ("generation_flops", pa.float64()),
        ("role", pa.string()),
        ("zeros", pa.float64()),
        ("compressed_bytes", pa.int64()),
    ]
)
_SHARED = ("example", "where", "prompt", "references", "predictions", "ended")


@dataclass(frozen=True)
class ComparisonMeta:
    """What a comparison needs besides its numbers.

    Args:
        baseline: label that differences are taken to.
        remarks: sentences that come first.
        command: the command that can be repeated with more seeds; empty if there is none. It names
            folders, so it is not stored.
        seeds: its training seeds; not stored either.
        failed: cells without numbers.
        rates: label -> the learning rate of its runs, and all that were tried for its objective.
        tuned: whether each line chose its own value of a setting.
        setup: names of models and rows; None in a comparison of an older version.
        starts: label -> label of the student before training that its runs began with; empty where it is one for all.
    """

    baseline: str
    remarks: tuple[str, ...] = ()
    command: str = ""
    seeds: tuple[int, ...] = ()
    failed: tuple[Failure, ...] = ()
    rates: Mapping[str, tuple[float, tuple[float, ...]]] = field(default_factory=dict)
    tuned: bool = False
    setup: Setup | None = None
    starts: Mapping[str, str] = field(default_factory=dict)

    @property
    def one_rate(self) -> bool:
        """Whether all lines were trained with one learning rate, which none of them chose."""
        return not self.tuned and len({rate for rate, _ in self.rates.values()}) <= 1


@dataclass(frozen=True)
class _About:
    """The part of ``ComparisonMeta`` that is stored."""

    baseline: str
    remarks: tuple[str, ...]
    failed: tuple[Failure, ...]
    rates: dict[str, tuple[float, tuple[float, ...]]] = field(default_factory=dict)
    tuned: bool = False
    setup: Setup | None = None
    starts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Facts:
    """The shape of what the schema's metadata hold."""

    about: _About
    infos: tuple[ScoreInfo, ...]
    evaluation: EvalSettings
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run and its evaluation, as a comparison takes them in.

    Args:
        label: the line it belongs to.
        run: the run.
        found: its evaluation.
        cost: what it cost.
    """

    label: str
    run: RunRecord
    found: EvalRecord
    cost: Cost


@dataclass(frozen=True)
class LongFormat:
    """The two tables, with everything read out of them.

    Args:
        results: one row per run and score; what is no number is in the schema's metadata.
        samples: one row per run and example.
    """

    results: pa.Table
    samples: pa.Table
    _scores: dict[tuple[str, str, int | None], dict[str, Score]] = field(default_factory=dict, repr=False)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The schema's metadata."""
        raw = (self.results.schema.metadata or {}).get(_ABOUT)
        if raw is None:
            raise InputError("CMP-05", "not a comparison's results", where=RESULTS, fix="make it with kd compare")
        try:
            facts = stored.parse(raw)
        except ValueError as error:
            raise IntegrityError("RUN-01", "its metadata is not JSON", where=RESULTS, fix=MAKE) from error
        if isinstance(facts, dict) and facts.get("schema") != SCHEMA:
            what = f"has schema {facts.get('schema')}, this version reads {SCHEMA}"
            raise InputError("CMP-05", what, where=RESULTS, fix="make it again with kd compare")
        stored.fit(facts, _Facts, Path(RESULTS), fix=MAKE)
        return facts

    @property
    def about(self) -> ComparisonMeta:
        """What is stored besides the numbers."""
        facts = self.facts["about"]
        failed = tuple(Failure(**{**one, "log": Path(one["log"])}) for one in facts["failed"])
        rates = {label: (rate, tuple(tried)) for label, (rate, tried) in facts.get("rates", {}).items()}
        remarks = tuple(facts["remarks"])
        tuned = facts["tuned"] if "tuned" in facts else _was_tuned(remarks, self.runs if not rates else ())
        setup = stored.fit(facts["setup"], Setup, Path(RESULTS), fix=MAKE) if facts.get("setup") else None
        starts = facts.get("starts", {})
        return ComparisonMeta(facts["baseline"], remarks, "", (), failed, rates, tuned, setup, starts)

    def with_baseline(self, label: str) -> "LongFormat":
        """Return the same tables with another line as the one that differences are taken to.

        Raises:
            UsageError: no line has this label.
        """
        if label not in self.runs:
            what = f'"{one_line(label, 60)}" is no line of this comparison'
            raise UsageError("CLI-18", what, where="--baseline", fix=f"choose one of {', '.join(self.runs)}")
        facts = self.facts | {"about": self.facts["about"] | {"baseline": label}}
        return LongFormat(self.results.replace_schema_metadata({_ABOUT: json.dumps(facts).encode()}), self.samples)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the evaluations themselves had to say, each sentence once."""
        return tuple(self.facts["notes"])

    @property
    def infos(self) -> tuple[ScoreInfo, ...]:
        """The scores, in the order of the columns."""
        return tuple(ScoreInfo(**info) for info in self.facts["infos"])

    @property
    def runs(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Label -> seed -> facts of the run, with its scores' values and documents under ``values``."""
        found = {label: seeds for (role, label), seeds in self._lines.items() if role == CONTENDER}
        return {label: dict(sorted(seeds.items())) for label, seeds in found.items()}

    @property
    def references(self) -> dict[tuple[str, str], dict[int | None, dict[str, Any]]]:
        """Role and label of a reference model -> seed, None without one -> the same facts."""
        return {line: seeds for line, seeds in self._lines.items() if line[0] != CONTENDER}

    def score(self, label: str, seed: int | None, name: str, role: str = CONTENDER) -> Score | None:
        """Return one run's score with its statistics per example; None if it has none of that name."""
        key = (role, label, seed)
        values = self._lines[role, label][seed]["values"]
        if key not in self._scores:
            infos = {info.name: asdict(info) for info in self.infos}
            entries = [infos[one] | found for one, found in values.items()]
            rows = self.samples.filter(pa.array([owner == key for owner in self.owners], pa.bool_()))
            self._scores[key] = scores_of(rows, entries, self.facts["evaluation"])
        return self._scores[key].get(name)

    @cached_property
    def _lines(self) -> dict[tuple[str, str], dict[Any, dict[str, Any]]]:
        found: dict[tuple[str, str], dict[Any, dict[str, Any]]] = {}
        for line in self.results.to_pylist():
            key = (line.get("role") or CONTENDER, line["objective"])
            run = found.setdefault(key, {}).setdefault(line["seed"], {**line, "values": {}})
            run["values"][line["score"]] = {"value": line["value"], "documents": line.get("documents")}
        return found

    @cached_property
    def owners(self) -> list[tuple[str, str, int | None]]:
        """Role, label and seed of each row of the samples."""
        known = "role" in self.samples.column_names
        roles = self.samples["role"].to_pylist() if known else [CONTENDER] * len(self.samples)
        labels, seeds = (self.samples[name].to_pylist() for name in ("objective", "seed"))
        return list(zip(roles, labels, seeds, strict=True))


def make_tidy(
    cells: Sequence[Cell], infos: Sequence[ScoreInfo], about: ComparisonMeta, references: Sequence[Reference] = ()
) -> LongFormat:
    """Put evaluated runs into the two tables.

    Args:
        cells: line by line, seed by seed.
        infos: the scores that all of them have.
        about: what is needed beside the numbers.
        references: models that were not trained here.
    """
    lines = [_line(cell, info) for cell in cells for info in infos if info.name in cell.found.estimates]
    others = [(one, seed, found) for one in references for seed, found in one.found.items()]
    lines += [
        _reference_line(one, seed, found, info)
        for one, seed, found in others
        for info in infos
        if _has(found, info, cells[0].found)
    ]
    measured = [*((one.label, found) for one, _, found in others), *((cell.label, cell.found) for cell in cells)]
    failed = [asdict(one) | {"log": str(one.log)} for one in about.failed]
    facts = {
        "schema": SCHEMA,
        "about": {
            "baseline": _storable(about.baseline),
            "remarks": about.remarks,
            "failed": failed,
            **_rates(about),
            "tuned": about.tuned,
            **({"setup": asdict(about.setup)} if about.setup is not None else {}),
            **_starts(about),
        },
        "infos": [asdict(info) for info in infos],
        "evaluation": read_evaluation_settings(_folder_of(cells[0].found)),
        "notes": [*dict.fromkeys(note for _, found in measured for note in found.notes), *_answer_notes(measured)],
    }
    schema = _COLUMNS.with_metadata({_ABOUT: json.dumps(facts).encode()})
    try:
        results = pa.Table.from_pylist(lines, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        what = f"a record of a run or an evaluation holds a value of another type: {one_line(str(error), 120)}"
        raise IntegrityError("RUN-01", what, where=RESULTS, fix=MAKE) from error
    tables = [_samples(cell.found, (CONTENDER, cell.label, cell.run.seed), infos) for cell in cells]
    tables += [_samples(found, (one.role, one.label, seed), infos) for one, seed, found in others]
    samples = pa.concat_tables(tables, promote_options="permissive")
    return LongFormat(results, samples)


def _answer_notes(measured: Sequence[tuple[str, EvalRecord]]) -> Iterator[str]:
    """Say how many answers of each line were cut or empty, where any was."""
    totals: dict[str, list[AnswerCounts]] = {}
    for label, found in measured:
        if found.answers is not None:
            totals.setdefault(str(_storable(label)), []).append(found.answers)
    place = next((one.place for found in totals.values() for one in found), "")
    for what, name in ((f"cut{place}, before an end token", "cut"), ("empty", "empty")):
        counts = {label: sum(getattr(one, name) or 0 for one in found) for label, found in totals.items()}
        if any(counts.values()):
            of = {label: sum(one.answers for one in found) for label, found in totals.items()}
            parts = [f"{label} {count:,} of {of[label]:,}" for label, count in counts.items()]
            yield f"answers {what}: {', '.join(parts)}"


def write_tidy(folder: Path, tidy: LongFormat) -> None:
    """Write both tables."""
    for name, table in ((SAMPLES, tidy.samples), (RESULTS, tidy.results)):
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        atomic.write_file(folder / name, buffer.getvalue())


def read_tidy(folder: Path) -> LongFormat:
    """Read both tables back.

    Raises:
        InputError: the folder holds no comparison.
        IntegrityError: a file cannot be read.
    """
    for name in (RESULTS, SAMPLES):
        if not (folder / name).is_file():
            raise InputError("CMP-05", f"no {name}", where=str(folder), fix="give a folder that kd compare wrote")
    try:
        tidy = LongFormat(*(pq.read_table(folder / name) for name in (RESULTS, SAMPLES)))
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError("RUN-01", "cannot be read as parquet", where=str(folder), fix=MAKE) from error
    assert tidy.facts, "reading them checks them"
    return _with_current_names(tidy)


def _with_current_names(tidy: LongFormat) -> LongFormat:
    """Return the tables under the names that metrics and scores have now."""
    results, samples, facts = tidy.results, tidy.samples, tidy.facts
    for name, change in (("score", current), ("metric", current), ("settings", current_signature)):
        values = [None if one is None else change(one) for one in results[name].to_pylist()]
        results = results.set_column(results.column_names.index(name), name, pa.array(values, pa.string()))
    evaluation = facts["evaluation"]
    asked = {"metrics": [*map(current, evaluation["metrics"])]} if "metrics" in evaluation else {}
    facts = facts | {"infos": [*map(current_entry, facts["infos"])], "evaluation": evaluation | asked}
    results = results.replace_schema_metadata({_ABOUT: json.dumps(facts).encode()})
    return LongFormat(results, samples.rename_columns([*map(current_column, samples.column_names)]))


def _was_tuned(remarks: Iterable[str], labels: Iterable[str]) -> bool:
    """Whether lines had values of their own, as far as older tables say so: in their sentences and labels."""
    return any(remark.startswith("tuned on ") for remark in remarks) or any("[lr=" in label for label in labels)


def _rates(about: ComparisonMeta) -> dict[str, Any]:
    rates = {_storable(label): [rate, list(tried)] for label, (rate, tried) in about.rates.items()}
    return {"rates": rates} if rates else {}


def _starts(about: ComparisonMeta) -> dict[str, Any]:
    starts = {_storable(label): _storable(start) for label, start in about.starts.items()}
    return {"starts": starts} if starts else {}


def _line(cell: Cell, info: ScoreInfo) -> dict[str, Any]:
    return {
        **_value(cell.label, cell.run.seed, cell.found, info),
        "run": _storable(cell.run.folder.name),
        "role": CONTENDER,
        **asdict(cell.cost),
    }


def _reference_line(one: Reference, seed: int | None, found: EvalRecord, info: ScoreInfo) -> dict[str, Any]:
    return {**_value(one.label, seed, found, info), "role": one.role, "parameters": one.parameters}


def _has(found: EvalRecord, info: ScoreInfo, beside: EvalRecord) -> bool:
    """Whether an evaluation has a score that was taken as another evaluation took it; tasks on the same documents."""
    same = any(
        one.name == info.name
        and one.metric == info.metric
        and (one.settings == info.settings or one.input_kind != "tasks")
        for one in found.infos
    )
    documents = [len(record.documents.get(info.name, ())) for record in (found, beside)]
    return same and documents[0] == documents[1]


def _value(label: str, seed: int | None, found: EvalRecord, info: ScoreInfo) -> dict[str, Any]:
    one = found.estimates[info.name]
    return {
        "objective": _storable(label),
        "seed": seed,
        "score": info.name,
        "value": one.mean,
        "low": one.low,
        "high": one.high,
        "better": info.better,
        "metric": info.metric,
        "settings": info.settings,
        "documents": found.documents.get(info.name),
    }


def _samples(found: EvalRecord, owner: tuple[str, str, int | None], infos: Sequence[ScoreInfo]) -> pa.Table:
    table = read_samples(_folder_of(found))
    wanted = [*_SHARED, *(f"{info.name}{kind}" for info in infos for kind in ("", ".sums", ".answers"))]
    table = table.select([name for name in wanted if name in table.column_names])
    role, label, seed = owner
    count = len(table)
    table = table.add_column(0, "objective", pa.array([_storable(label)] * count, pa.string()))
    table = table.add_column(1, "seed", pa.array([seed] * count, pa.int64()))
    return table.append_column("role", pa.array([role] * count, pa.string()))


def _folder_of(found: EvalRecord) -> Path:
    assert found.folder is not None, "an evaluation in a comparison lies in a folder"
    return found.folder


def _storable(text: str) -> str:
    """Replace what UTF-8 cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
