"""``kd data balance``: rows of one stage of a training, of which each value of a column has a quota."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdcli.config.schema import BalanceConfig
from kdcli.data.columns import infer_schema
from kdcli.data.files import inspect_path
from kdcli.data.readers import Record
from kdcli.data.rows import Row, RowReport, check_record, read_rows
from kdcli.distill.generate import Writing
from kdcli.errors import InputError, UsageError
from kdcli.events import Event, Report
from kdcli.loading.session import Session
from kdcli.rows.files import ABOUT, ROWS, check_same, columns_of, write_rows
from kdcli.rows.tail import Short, TailWriter
from kdcli.signals import StopRequest
from kdcli.storage import atomic, lock, stored
from kdcli.text import one_line
from kdcli.version import __version__

UNION = "union.jsonl"
_PURPOSE = 0x62616C616E6365  # keeps these draws apart from others of the same seed


def quotas(
    policy: Literal["natural", "balanced", "adaptive"], counts: Mapping[str, int], rows: int, stage: int, stages: int
) -> dict[str, int]:
    """Return how many rows of each value a stage takes.

    natural takes the counts c of a draw, balanced an equal number of each value, adaptive goes from one to the other::

        floor( (k/K) floor(N/D) + ((K-k)/K) c_d )

    with N rows a stage, D values, stage k of K. In whole numbers, so that no rounding of a share takes a row.

    Args:
        policy: one of the three.
        counts: value -> its rows in a draw of ``rows`` rows that heeds no value.
        rows: of the stage.
        stage: from 1.
        stages: in all.

    >>> quotas("adaptive", {"a": 70, "b": 20, "c": 8, "d": 2}, 100, stage=1, stages=5)
    {'a': 61, 'b': 21, 'c': 11, 'd': 6}
    """
    if policy == "natural":
        return dict(counts)
    even = rows // len(counts)
    if policy == "balanced":
        return dict.fromkeys(counts, even)
    return {value: (stage * even + (stages - stage) * count) // stages for value, count in counts.items()}


@dataclass(frozen=True)
class Taken:
    """What a stage takes of one value.

    Args:
        value: of the column.
        there: rows of the file that have it.
        quota: rows the stage is to have of it.
        fresh: rows of no earlier stage.
        repeated: rows that are there more than once, for want of others.
        written: rows that a teacher wrote, for want of others.
    """

    value: str
    there: int
    quota: int
    fresh: int
    repeated: int
    written: int = 0

    @property
    def lacking(self) -> int:
        """Rows that its quota has and the stage has not."""
        return self.quota - self.fresh - self.repeated - self.written


@dataclass(frozen=True)
class BalanceRecord:
    """Rows of one stage.

    Args:
        file: the stage's rows, as JSON lines.
        union: those of this and all earlier stages.
        rows: how many the stage has.
        rows_in_all: how many the union has.
        taken: of each value.
    """

    file: Path
    union: Path
    rows: int
    rows_in_all: int
    taken: tuple[Taken, ...]


@dataclass
class _Stage:
    """A stage that is chosen, before anything is written.

    Args:
        number: the stage and how many there are.
        size: rows of a stage.
        read: the rows of the file.
        rows: what may be taken of it.
        before: the earlier stages.
        quotas: of each value.
        chosen: which repeat of which row is taken; the first is 0.
        taken: of each value.
    """

    number: tuple[int, int]
    size: int
    read: RowReport
    rows: list["_Candidate"]
    before: list["_Before"]
    quotas: dict[str, int]
    chosen: list[tuple[int, "_Candidate"]]
    taken: list[Taken]


def balance(
    config: BalanceConfig, report: Report, *, command: str = "", session: Session | None = None
) -> BalanceRecord:
    """Choose the rows of a stage: at random in the first, later those of the highest score, within quotas.

    Args:
        config: rows, column, policy, stage, the stages before, the score, and what becomes of short values.
        report: called with notes.
        command: what to type to go on after an interruption.
        session: what is loaded already.

    Raises:
        KDError: of the kind that fits.
        InterruptedRunError: stopped by a signal while a teacher writes; every answer that was done is kept.
    """
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="give one, such as -o stage1")
    writer = TailWriter(config, session or Session()) if config.tail == "write" else None
    stage = _choose(config, report)
    if not stage.chosen and (writer is None or not any(one.lacking for one in stage.taken)):
        what = f"the quotas of {stage.size:,} rows for {len(stage.quotas)} values take none"
        raise InputError("DATA-02", what, where=str(config.data.train), fix="raise --budget")
    folder = Path(config.output)
    atomic.make_folder(folder)
    with lock.hold(folder), StopRequest() as stop:
        atomic.remove_temporaries(folder)
        made_of = {
            "files": stage.read.digest, "by": config.by, "policy": config.policy, "stage": [*stage.number],
            "rows": stage.size, "score": config.score, "tail": config.tail, "seed": config.seed,
            "before": [one.digest for one in stage.before], "columns": config.data.columns,
            **({} if writer is None else {"write": writer.made_of}),
        }  # fmt: skip
        check_same(folder, made_of, "the folder holds another stage")
        if writer is not None:
            _add_written(stage, config, writer, folder, Writing(report, stop, command))
        stage.chosen.sort(key=lambda item: (item[0], item[1].at))
        lines = [one.fields_of(repeat) for repeat, one in stage.chosen]
        union = [*(line for one in stage.before for line in one.lines), *lines]
        about = {
            "kind": "stage", "kd": __version__, "data": config.data.train, "made_of": made_of,
            "keys": [one.key for repeat, one in stage.chosen if not repeat], "quotas": stage.quotas,
        }  # fmt: skip
        write_rows(folder, {ROWS: lines, UNION: _apart(union)}, about)
    return BalanceRecord(folder / ROWS, folder / UNION, len(lines), len(union), tuple(stage.taken))


def _choose(config: BalanceConfig, report: Report) -> _Stage:
    """Read the rows and choose among them."""
    if config.data.train is None:
        raise UsageError("CLI-20", "no data", where="--data", fix="give a file, a folder or a hub id")
    if config.by is None:
        raise UsageError("CLI-20", "no column is named", where="--by", fix="name one, such as --by category")
    stage, stages = stage_of(config.stage)
    size = _rows_of_stage(config.budget, stages)
    before = _stages_before(config.before, stage)
    inspect_path(config.data.train)
    read = read_rows(config.data.train, config.data, limit=config.data.limit)
    for note in read.notes:
        report(Event("note", note))
    columns = columns_of(config.data.train, config.data)
    rows = [_Candidate(at, row, columns[row.where], config.by, config.score) for at, row in enumerate(read.rows)]
    if size > len(rows):
        what = f"a stage has {size:,} rows, and the file has {len(rows):,}"
        raise UsageError("CLI-06", what, where="--budget", fix=f"give at most {len(rows) * stages}")
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([config.seed, stage, _PURPOSE])))
    drawn = Counter(rows[at].value for at in random.permutation(len(rows))[:size])
    by_value: dict[str, list[_Candidate]] = defaultdict(list)
    for one in rows:
        by_value[one.value].append(one)
    counts = {value: drawn[value] for value in sorted(by_value)}
    wanted = quotas(config.policy, counts, size, stage, stages)
    earlier = {key for one in before for key in one.keys}
    chosen: list[tuple[int, _Candidate]] = []
    taken = []
    for value, quota in wanted.items():
        ordered = _ordered(by_value[value], random, scored=config.score is not None and stage > 1)
        fresh = [one for one in ordered if one.key not in earlier][:quota]
        more = _repeated(ordered, quota - len(fresh)) if config.tail == "repeat" else []
        chosen += [(0, one) for one in fresh] + more
        taken.append(Taken(value, len(by_value[value]), quota, len(fresh), len(more)))
    return _Stage((stage, stages), size, read, rows, before, wanted, chosen, taken)


def _add_written(stage: _Stage, config: BalanceConfig, writer: TailWriter, folder: Path, writing: Writing) -> None:
    """Let a teacher write the rows that values lack, and add them to what the stage takes.

    Raises:
        InputError: DATA-02, the stage has no row at all.
    """
    by_value: dict[str, list[_Candidate]] = defaultdict(list)
    for one in stage.rows:
        by_value[one.value].append(one)
    shorts = [
        Short(one.value, [row.row for row in by_value[one.value]], one.lacking) for one in stage.taken if one.lacking
    ]
    known = [one.row for one in stage.rows] + [_row_of(line, config) for one in stage.before for line in one.lines]
    found = writer.write(shorts, stage.read, known, folder, writing)
    column = str(config.by)
    ids = {str(line["id"]) for one in stage.before for line in one.lines if "id" in line}
    ids |= {str(one.fields["id"]) for one in stage.rows if "id" in one.fields}
    names = (name for at in count(1) if (name := f"written-{stage.number[0]}-{at}") not in ids)
    for value, rows in found.items():
        model = by_value[value][0].fields
        for one in rows:
            fields = {**one.columns, column: model[column], "made": one.made}
            fields = {"id": next(names), **fields} if "id" in model else fields
            at = len(stage.rows) + len(stage.chosen)
            stage.chosen.append((0, _Candidate(at, _row_of(fields, config), fields, column, None)))
    stage.taken = [replace(one, written=len(found.get(one.value, ()))) for one in stage.taken]
    if not stage.chosen:
        what = "no row is left, and the teacher wrote none"
        raise InputError("DATA-02", what, where=str(config.data.train), fix="give more rows, or another teacher")


def _row_of(fields: Mapping[str, Any], config: BalanceConfig) -> Row:
    return check_record(Record("", dict(fields)), infer_schema([*fields], config.data.columns, ""))


def stage_of(text: str) -> tuple[int, int]:
    """Return the number of a stage, from 1, and how many there are.

    Raises:
        UsageError: it is not ``k/K``.

    >>> stage_of("3/5")
    (3, 5)
    """
    stage, slash, stages = text.partition("/")
    if not (slash and stage.isdecimal() and stages.isdecimal() and 1 <= int(stage) <= int(stages) <= 1000):
        what = f'"{one_line(text, 40)}" is no stage'
        raise UsageError("CLI-06", what, where="--stage", fix="give its number and how many there are, as in 3/5")
    return int(stage), int(stages)


def _rows_of_stage(budget: int | None, stages: int) -> int:
    if budget is None or budget < stages:
        what = "no budget is given" if budget is None else f"{budget} rows for {stages} stages"
        raise UsageError("CLI-20", what, where="--budget", fix="give the rows of all stages together")
    return budget // stages


@dataclass(frozen=True)
class _Before:
    """An earlier stage: its rows, and what names them."""

    digest: str
    keys: tuple[str, ...]
    lines: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _About:
    """What is read of a stage's ``about.json``."""

    keys: tuple[str, ...]


def _stages_before(folders: Sequence[str], stage: int) -> list[_Before]:
    if len(folders) != stage - 1:
        what = f"stage {stage} follows on {stage - 1}, and {len(folders)} are given"
        raise UsageError("CLI-20", what, where="--before", fix="give the folder of each earlier stage")
    found = []
    for name in folders:
        path = Path(name) / ROWS
        if not (Path(name) / ABOUT).is_file() or not path.is_file():
            raise InputError("ROWS-06", "is no stage", where=name, fix="give the folder of an earlier kd data balance")
        about = stored.read_record(Path(name) / ABOUT, _About, fix="make the stage again")
        lines = tuple(stored.parse(line) for line in path.read_bytes().splitlines())
        found.append(_Before(atomic.digest_file(path), tuple(about.keys), lines))
    return found


class _Candidate:
    """A row that a stage may take.

    Args:
        at: its place in the file.
        row: the row.
        fields: its columns.
        column: the column of its value.
        score: name of the score that ranks it, if any.
    """

    def __init__(self, at: int, row: Row, fields: dict[str, Any], column: str, score: str | None) -> None:
        self.at, self.row, self.fields = at, row, fields
        self.value = _value(fields, column, row.where)
        self.score = 0.0 if score is None else _score(fields, score, row.where)
        self.key = hashlib.sha256(repr(replace(row, where="")).encode("utf-8", "surrogatepass")).hexdigest()[:24]

    def fields_of(self, repeat: int) -> dict[str, Any]:
        """Return the columns of the row; its repeats have an id of their own."""
        again = {"id": f"{self.fields['id']}#{repeat + 1}"} if repeat and "id" in self.fields else {}
        return {**self.fields, **again}


def _value(fields: Mapping[str, Any], column: str, where: str) -> str:
    value = fields.get(column)
    if not isinstance(value, str | int | float | bool):
        there = ", ".join(one_line(name, 40) for name in fields)
        what = f'column "{one_line(column, 40)}" has no value to balance by'
        raise InputError("ROWS-04", what, where=where, fix=f"name another column: {there}")
    return str(value)


def _score(fields: Mapping[str, Any], name: str, where: str) -> float:
    scores = fields.get("scores")
    value = scores.get(name) if isinstance(scores, dict) else None
    if not isinstance(value, int | float):
        what = f"the row has no score {one_line(name, 40)}"
        fix = f"kd data score --by {one_line(name, 40)} ..., and give its rows.jsonl"
        raise InputError("ROWS-07", what, where=where, fix=fix)
    return float(value)


def _ordered(rows: Sequence[_Candidate], random: np.random.RandomState, *, scored: bool) -> list[_Candidate]:
    """Return rows as a stage takes them: the highest score first, equal ones in file order; by lot without a score."""
    mixed = [rows[at] for at in random.permutation(len(rows))]
    return sorted(rows, key=lambda one: (-one.score, one.at)) if scored else mixed


def _repeated(ordered: Sequence[_Candidate], lacking: int) -> list[tuple[int, _Candidate]]:
    """Return rows again, the whole list as often as it takes and then its head."""
    return [(1 + at // len(ordered), ordered[at % len(ordered)]) for at in range(lacking)]


def _apart(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of several stages, of which those of one id have others from the second on."""
    seen: Counter[Any] = Counter()
    found = []
    for line in lines:
        name = line.get("id")
        seen[str(name)] += 1
        again = name is not None and seen[str(name)] > 1
        found.append({**line, "id": f"{name}#{seen[str(name)]}"} if again else line)
    return found
