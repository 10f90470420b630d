"""``kd data score``: numbers of rows, found again by what they follow from, and the rows that a rank keeps."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.config.schema import ScoreConfig
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.errors import InputError, NumericsError, UsageError
from kdcli.events import Event, Report
from kdcli.loading.info import ModelInfo, require_single
from kdcli.loading.session import Session, check_data_path
from kdcli.models.devices import Device, prepare
from kdcli.models.load import LanguageModel
from kdcli.registry.build import spec_of
from kdcli.registry.registry import SCORES
from kdcli.remote.address import is_url
from kdcli.rows.files import ROWS, Working, check_same, columns_of, write_rows
from kdcli.scores.base import SIDES, Score, ScoreContext, ScoredRow, ScoreNeeds, Side
from kdcli.scores.build import build_score, in_words
from kdcli.signals import StopRequest
from kdcli.storage import atomic, lock
from kdcli.storage.jsonl import JsonlStore
from kdcli.students.made import is_made
from kdcli.text import one_line
from kdcli.version import __version__

_SECONDS_BETWEEN_FLUSHES = 2.0


@dataclass(frozen=True)
class Summary:
    """What the numbers of one score are like.

    Args:
        score: its spec string.
        rows: how many rows have it.
        fresh: those that this call measured.
        mean: over the rows.
        quantiles: at 0, 5, 50, 95 and 100 %.
    """

    score: str
    rows: int
    fresh: int
    mean: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class ScoreRecord:
    """Rows that were scored.

    Args:
        file: the rows, as JSON lines.
        rows: how many the ranks keep.
        scored: rows that were scored, those not kept included.
        dropped: rows of the file that no training would read, and that have no score.
        scores: of each score what its numbers are like.
        marked: whether the other rows stand in the file too, with no trust in the teacher.
    """

    file: Path
    rows: int
    scored: int
    dropped: int
    scores: tuple[Summary, ...]
    marked: bool = False


def kept_places(values: Sequence[float], low: float, high: float) -> list[int]:
    """Return the places of the values whose rank lies between two shares, in their order.

    Ranks count from the lowest value; equal ones in their order. Of n values the ranks from round(low n) on are
    kept, up to and without round(high n), halves rounded up.

    Args:
        values: the numbers.
        low: share of the lowest that is left out.
        high: share from which on the highest are left out.

    >>> kept_places([0.3, 0.1, 0.2, 0.5, 0.4], low=0.4, high=0.8)  # 0.1 and 0.2 below, 0.5 above
    [0, 4]
    """
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    first, last = (math.floor(share * len(values) + 0.5 + 1e-9) for share in (low, high))
    return sorted(order[first:last])


def scores_of(config: ScoreConfig) -> dict[str, Score]:
    """Return the scores asked for, by their canonical spec strings.

    Raises:
        UsageError: none, one twice, or ranks that keep nothing.
    """
    found: dict[str, Score] = {}
    for text in config.by:
        made = build_score(text)
        if spec_of(made) in found:
            raise UsageError("CLI-08", f"{one_line(text, 60)} given twice", where="--by", fix="name each score once")
        found[spec_of(made)] = made
    if not found:
        raise UsageError("CLI-20", "no score is named", where="--by", fix="name some of: kd scores list")
    if config.keep is not None and (config.low, config.high) != (None, None):
        raise UsageError("CLI-09", "--keep X is --low 1-X", where="--keep", fix="give --keep, or --low and --high")
    low, high = ranks(config)
    if config.mark and (low, high) == (0.0, 1.0):
        fix = "give --keep, or --low and --high"
        raise UsageError("CLI-09", "all rows are kept, so that none is told apart", where="--mark", fix=fix)
    if low >= high:
        what = f"no rank lies from {low:g} on and below {high:g}"
        raise UsageError("CLI-09", what, where="--low", fix="give a --low below --high")
    return found


def ranks(config: ScoreConfig) -> tuple[float, float]:
    """Return the shares between which ranks are kept.

    >>> ranks(ScoreConfig(keep=0.75)), ranks(ScoreConfig(low=0.5, high=0.8))
    ((0.25, 1.0), (0.5, 0.8))
    """
    low = 1.0 - config.keep if config.keep is not None else config.low or 0.0
    return low, 1.0 if config.high is None else config.high


@dataclass(frozen=True)
class Task:
    """What is to be scored, before weights are read.

    Args:
        scores: by spec string.
        models: those that some score needs, by side.
        reader: whose tokenizer reads the rows.
        rows: the rows as tokens.
        held_out: held-out rows; None where no score needs them.
        device: where models compute.
        path: the rows' file.
        notes: what to know about models and rows.
    """

    scores: Mapping[str, Score]
    models: Mapping[Side, ModelInfo]
    reader: ModelInfo
    rows: TokenDataset
    held_out: TokenDataset | None
    device: Device
    path: str
    notes: tuple[str, ...]

    def key(self, spec: str) -> str:
        """Return the name of what one score's numbers follow from, beside the row itself."""
        needs = self.scores[spec].needs()
        models = {side: info for side, info in self.models.items() if needs.reads(side)}
        followed = {
            "score": spec,
            "code": SCORES.code_digest(type(self.scores[spec])),
            "models": {side: info.digest for side, info in models.items()},
            "rows": [info.rows for info in models.values()],
            "ends": self.reader.ends.ids,
            "tokenizer": self.reader.tokenizer_digest,
            "precision": str(self.device.autocast) if models else "",
            "held_out": self.held_out.digest if needs.held_out and self.held_out is not None else "",
        }
        return hashlib.sha256(json.dumps(followed, sort_keys=True).encode()).hexdigest()[:16]


def prepare_task(config: ScoreConfig, session: Session) -> Task:
    """Check everything that can be checked before weights are read.

    Raises:
        UsageError: no score, no data, or a model or rows that a score needs are not given.
        InputError: rows, tokenizers or model folders that cannot be used.
    """
    scores = scores_of(config)
    path = check_data_path(config.data.train, "--data")
    needs = ScoreNeeds()
    for spec, score in scores.items():
        _require(spec, score.needs(), config)
        needs |= score.needs()
    for side in SIDES:
        _refuse_unread(getattr(config, side), side)
    device = prepare(config.hardware)
    if config.student is not None and config.teacher is not None:
        pair = session.pair(config.student, config.teacher)
        assert pair.teacher is not None, "one is named"
        infos: dict[Side, ModelInfo] = {"student": pair.reader, "teacher": pair.teacher}
        reader, notes = pair.reader, pair.notes
    else:
        named: Side = "student" if config.student is not None else "teacher"
        model = config.student or config.teacher
        if model is None:
            fix = "give --student, or --teacher"
            raise UsageError("CLI-20", "no model is given to read the rows", where="--student", fix=fix)
        reader = session.inspect(model)
        infos = {named: reader}
        notes = reader.notes
    rows = session.data(path, reader, config.data, role="train")
    held_out = None
    if needs.held_out:
        held_out = session.data(check_data_path(config.data.eval, "--eval-data"), reader, config.data, role="eval")
    models: dict[Side, ModelInfo] = {}
    for side in SIDES:
        if needs.reads(side):
            models[side] = infos[side]
    return Task(scores, models, reader, rows, held_out, device, path, (*notes, *rows.notes))


def _require(spec: str, needs: ScoreNeeds, config: ScoreConfig) -> None:
    given = {"--student": config.student, "--teacher": config.teacher, "--eval-data": config.data.eval}
    asked = {"--student": needs.student, "--teacher": needs.teacher, "--eval-data": needs.held_out}
    for flag, is_asked in asked.items():
        if is_asked and given[flag] is None:
            what = f"{spec} is measured with {' and '.join(in_words(needs))}"
            raise UsageError("CLI-20", what, where=flag, fix=f"give {flag}")


def _refuse_unread(model: str | None, side: Side) -> None:
    if model is None:
        return
    require_single(model, f"one {side} scores rows", f"--{side}", "give one of them")
    if is_url(model):
        fix = "give the folder of the model that it serves"
        raise UsageError("SERVE-11", "a server does not show the logits that scores read", where=f"--{side}", fix=fix)
    if is_made(model):
        what = "a random model has learnt nothing that a score could tell"
        raise UsageError("CLI-09", what, where=f"--{side} {one_line(model, 60)}", fix="give a model folder")


def score(config: ScoreConfig, report: Report, *, command: str = "", session: Session | None = None) -> ScoreRecord:
    """Score rows that are not scored yet, and write those that the ranks keep, their scores in a column.

    Args:
        config: scores, models, rows and ranks.
        report: called with progress events.
        command: what to type to go on after an interruption.
        session: what is loaded already.

    Raises:
        KDError: of the kind that fits; a mistake in the settings is found before weights are read.
        InterruptedRunError: stopped by a signal; every row that was scored is kept.
    """
    session = session or Session()
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="give one, such as -o scored")
    task = prepare_task(config, session)
    folder = Path(config.output)
    for note in task.notes:
        report(Event("note", note))
    columns = columns_of(task.path, config.data)
    _check_column(columns, config.column, task)
    atomic.make_folder(folder)
    with lock.hold(folder), StopRequest() as stop:
        atomic.remove_temporaries(folder)
        made_of = {"rows": task.rows.digest, "files": task.rows.files, "column": config.column}
        check_same(folder, made_of, "the folder holds scores of other rows")
        working = Working(report, stop, command)
        known, fresh = _measured(task, _Lazily(task, session), folder, working)
        numbers = {spec: [values[_key(one)] for one in task.rows.examples] for spec, values in known.items()}
        low, high = ranks(config)
        kept = kept_places(next(iter(numbers.values())), low, high)
        if not kept:
            what = f"the ranks from {low:g} to {high:g} of {len(task.rows)} rows hold none"
            raise InputError("DATA-02", what, where=task.path, fix="widen them, or give more rows")
        trusted = frozenset(kept) if config.mark else None
        places = range(len(task.rows)) if config.mark else kept
        lines = (_row(columns, task.rows.examples[at], config.column, numbers, at, trusted) for at in places)
        summaries = tuple(_summary(spec, values, fresh[spec]) for spec, values in numbers.items())
        about = {
            "kind": "scored rows", "kd": __version__, "made_of": made_of, "data": task.path,
            "scores": {spec: task.key(spec) for spec in task.scores},
            "models": {side: info.path for side, info in task.models.items()},
            "ranks": [low, high], "kept": len(kept), "rows": len(places), "scored": len(task.rows), "mark": config.mark,
        }  # fmt: skip
        write_rows(folder, {ROWS: lines}, about)
    dropped = 0 if config.data.limit is not None else len(columns) - len(task.rows)
    return ScoreRecord(folder / ROWS, len(kept), len(task.rows), dropped, summaries, config.mark)


def _check_column(columns: Mapping[str, Mapping[str, Any]], column: str, task: Task) -> None:
    """Refuse a column of the rows' own, which scores would take the place of."""
    for one in task.rows.examples:
        if not isinstance(columns[one.where].get(column, {}), dict | None):
            what = f'the rows have a column "{one_line(column, 40)}" that holds no scores'
            raise InputError("ROWS-01", what, where=one.where, fix="name another: --set column=kd_scores")


class _Lazily:
    """Loads the models that scores need when the first row is measured with one."""

    def __init__(self, task: Task, session: Session) -> None:
        self._task, self._session = task, session
        self._made: ScoreContext | None = None

    def __call__(self) -> ScoreContext:
        if self._made is None:
            task, device = self._task, self._task.device
            models: dict[Side, LanguageModel] = {}
            for side, info in task.models.items():
                models[side] = self._session.load_teacher(info.path, device.device)
            longest = max((*task.rows.lengths, *(task.held_out.lengths if task.held_out is not None else ())))
            for model in models.values():
                model.check_length(longest)
            held_out = task.held_out.examples if task.held_out is not None else ()
            self._made = ScoreContext(models, held_out, device.autocast)
        return self._made


def _measured(
    task: Task, context: _Lazily, folder: Path, working: Working
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return of each score key -> number of all rows, and how many were measured now.

    A row is read once for all scores; each number goes to disk when it is known.
    """
    wanted = {_key(one): one for one in task.rows.examples}
    with ExitStack() as open_stores:
        stores = {
            spec: open_stores.enter_context(
                closing(JsonlStore(folder / f"{score.name}-{task.key(spec)}.jsonl", seconds=_SECONDS_BETWEEN_FLUSHES))
            )
            for spec, score in task.scores.items()
        }
        known = {
            spec: {key: entry["value"] for key in wanted if (entry := store.find(key)) is not None}
            for spec, store in stores.items()
        }
        fresh = {spec: len(wanted) - len(values) for spec, values in known.items()}
        missing = [key for key in wanted if any(key not in values for values in known.values())]
        if missing:
            working.begin("scoring rows", len(wanted) - len(missing), len(wanted))
        for key in missing:
            row = ScoredRow(wanted[key], context())
            for spec, store in stores.items():
                if key not in known[spec]:
                    known[spec][key] = _value(spec, task.scores[spec], row)
                    store.add({"key": key, "value": known[spec][key]})
            working.step("scoring rows")
    return known, fresh


def _value(spec: str, score: Score, row: ScoredRow) -> float:
    value = float(score.value(row))
    if not math.isfinite(value):
        what, fix = f"{spec} of this row is {value}", "look at the row, and at the model's weights"
        raise NumericsError("ROWS-02", what, where=row.example.where, fix=fix)
    return value


def _key(example: Example) -> str:
    """Return what names a row by its content."""
    text = json.dumps([example.prompt_length, example.ids, example.response])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _row(
    columns: Mapping[str, Mapping[str, Any]], example: Example, column: str, numbers: Mapping[str, Sequence[float]],
    at: int, trusted: frozenset[int] | None,
) -> dict[str, Any]:  # fmt: skip
    fields = columns[example.where]
    before = fields.get(column) or {}
    scored = {**fields, column: {**before, **{spec: values[at] for spec, values in numbers.items()}}}
    return scored if trusted is None else {**scored, "teacher_trust": int(at in trusted)}


def _summary(spec: str, values: Sequence[float], fresh: int) -> Summary:
    ordered, last = sorted(values), len(values) - 1
    points = tuple(ordered[round(share * last)] for share in (0.0, 0.05, 0.5, 0.95, 1.0))
    return Summary(spec, len(values), fresh, math.fsum(values) / len(values), points)
