"""``kd data split``: rows cut into several files, at random or by what a column holds."""

import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from kdcli.config.schema import SplitConfig
from kdcli.config.sections import DataConfig
from kdcli.data.files import inspect_path
from kdcli.data.rows import Row, read_rows
from kdcli.errors import InputError, UsageError
from kdcli.events import Event, Report
from kdcli.registry.build import build_term, single
from kdcli.registry.options import Plugin
from kdcli.registry.spec import parse_objective
from kdcli.rows.files import check_same, columns_of, write_rows
from kdcli.storage import atomic, lock
from kdcli.text import one_line
from kdcli.version import __version__

_PURPOSE = 0x73706C6974  # keeps these draws apart from others of the same seed
_TRIES = 100


class Split(Plugin, ABC):
    """A way to cut rows into parts; its fields are its options."""

    part: ClassVar[str] = "split"

    @abstractmethod
    def cut(self, rows: Sequence["SplitRow"], shares: Sequence[float], seed: int) -> dict[str, list[int]]:
        """Return the places of each part's rows, in file order.

        Args:
            rows: the rows.
            shares: of each part, sum 1; empty where their number is not given.
            seed: of the draw.
        """


@dataclass(frozen=True)
class SplitRow:
    """What a way to cut sees of a row.

    Args:
        prompt: its prompt; the whole text of a row without one.
        fields: its columns.
        where: file and line.
    """

    prompt: str
    fields: Mapping[str, Any]
    where: str

    def label(self, column: str) -> str:
        """Return what a column says of the row.

        Raises:
            InputError: ROWS-04, it says nothing.
        """
        value = self.fields.get(column)
        if not isinstance(value, str | int | float | bool):
            there = ", ".join(one_line(name, 40) for name in self.fields)
            what = f'column "{one_line(column, 40)}" has no value to split by'
            raise InputError("ROWS-04", what, where=self.where, fix=f"name another column: {there}")
        return str(value)


class Iid(Split):
    """Rows at random; rows of one prompt stay together, so that no part knows another's prompts.

    >>> rows = [SplitRow(str(number), {}, "") for number in range(10)]
    >>> [len(part) for part in Iid().cut(rows, [0.8, 0.2], seed=0).values()]
    [8, 2]
    """

    name: ClassVar[str] = "iid"

    def cut(self, rows: Sequence[SplitRow], shares: Sequence[float], seed: int) -> dict[str, list[int]]:
        """Deal whole groups of one prompt, in an order drawn by lot, each part up to its share."""
        _require_parts(self, shares)
        groups: dict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            groups[row.prompt].append(place)
        order = _random(seed).permutation(len(groups))
        together = list(groups.values())
        found: list[list[int]] = [[] for _ in shares]
        ends = _ends(shares, len(rows))
        part = taken = 0
        for at in order:
            while part < len(shares) - 1 and taken >= ends[part]:
                part += 1
            found[part] += together[at]
            taken += len(together[at])
        return _numbered(found)


class ByColumn(Split):
    """A part for each value of a column.

    >>> rows = [SplitRow("", {"kind": kind}, "") for kind in ("qa", "list", "qa")]
    >>> ByColumn(by="kind").cut(rows, [], seed=0)
    {'list': [1], 'qa': [0, 2]}
    """

    name: ClassVar[str] = "column"

    by: Annotated[str, Field(description="the column")]

    def cut(self, rows: Sequence[SplitRow], shares: Sequence[float], seed: int) -> dict[str, list[int]]:
        """Gather the rows of each value."""
        if shares:
            what = "column has as many parts as the column has values"
            raise UsageError("CLI-09", what, where="--parts", fix="leave it out")
        found: dict[str, list[int]] = {}
        for label, places in _by_label(rows, self.by).items():
            name = _file_name(label)
            found[name if name not in found else f"{name}-{len(found)}"] = places
        return found


class Dirichlet(Split):
    """Parts of which each has its own mixture of a column's values: the usual way to make clients that differ.

    For each value its rows are dealt in shares drawn from a Dirichlet distribution whose parameters are all
    ``alpha``: the smaller it is, the fewer parts have most of a value's rows; a large one is like ``iid``. Drawn
    again, up to 100 times, until no part has fewer than ``least`` rows.

    Reference: Hsu et al. 2019, arXiv:1909.06335 (mixtures from a Dirichlet distribution, there over clients).

    >>> rows = [SplitRow("", {"kind": str(number % 3)}, "") for number in range(30)]
    >>> parts = Dirichlet(by="kind", alpha=0.5).cut(rows, [0.5, 0.5], seed=0)
    >>> sorted(place for part in parts.values() for place in part) == list(range(30))
    True
    """

    name: ClassVar[str] = "dirichlet"

    alpha: Annotated[float, Field(gt=0, le=1e6, description="evenness of the mixtures")] = 0.3
    by: Annotated[str, Field(description="the column")]
    least: Annotated[int, Field(ge=1, description="rows that each part has at least")] = 1

    def cut(self, rows: Sequence[SplitRow], shares: Sequence[float], seed: int) -> dict[str, list[int]]:
        """Deal the rows of each value by shares of its own."""
        _require_parts(self, shares)
        if len({round(share, 9) for share in shares}) > 1:
            what = "dirichlet draws the shares of its parts itself"
            raise UsageError("CLI-09", what, where="--parts", fix="give the number of parts")
        labels = _by_label(rows, self.by)
        random = _random(seed)
        for _ in range(_TRIES):
            found: list[list[int]] = [[] for _ in shares]
            for places in labels.values():
                drawn = random.dirichlet([self.alpha] * len(shares))
                mixed = [places[at] for at in random.permutation(len(places))]
                start = 0
                for part, end in enumerate(_ends(drawn, len(places))):
                    found[part] += mixed[start:end]
                    start = end
            if min(map(len, found)) >= self.least:
                return _numbered(found)
        what = f"in {_TRIES} draws some part had fewer than {self.least} of {len(rows):,} rows"
        where, fix = f"dirichlet:alpha={self.alpha:g}", "raise alpha, or cut fewer parts"
        raise InputError("ROWS-05", what, where=where, fix=fix)


SPLITS: dict[str, type[Split]] = {kind.name: kind for kind in (Iid, ByColumn, Dirichlet)}
"""Ways to cut rows, by name."""


def build_split(text: str, flag: str = "--by") -> Split:
    """Build the way to cut that a spec string names.

    Args:
        text: as typed; ``column:NAME`` stands for ``column:by=NAME``.
        flag: where it was typed.

    Raises:
        UsageError: no such way, or options that it does not have.

    >>> build_split("dirichlet:by=category").alpha
    0.3
    """
    name, _, column = text.partition(":")
    if name.strip() == ByColumn.name and column and "=" not in column:
        return ByColumn(by=column)
    term = single(parse_objective(text))
    if term is None or term.name not in SPLITS:
        what = f'"{one_line(text, 60)}" is no way to cut rows'
        fix = "give iid, column:by=NAME or dirichlet:alpha=.3,by=NAME"
        raise UsageError("CLI-06", what, where=flag, fix=fix)
    return build_term(SPLITS[term.name], term)


@dataclass(frozen=True)
class Part:
    """One file of a split.

    Args:
        file: its rows, as JSON lines.
        rows: how many it has.
        values: of the column that was split by: value -> rows; empty where there is none.
    """

    file: Path
    rows: int
    values: Mapping[str, int]


@dataclass(frozen=True)
class SplitRecord:
    """Rows that were cut into parts.

    Args:
        folder: where the parts lie.
        rows: in all parts together.
        parts: the files.
    """

    folder: Path
    rows: int
    parts: tuple[Part, ...]


def split(config: SplitConfig, report: Report) -> SplitRecord:
    """Cut the rows of a file into parts; every row goes to one of them, and keeps its columns.

    Args:
        config: rows, how they are cut, and the folder.
        report: called with notes.

    Raises:
        KDError: of the kind that fits.
    """
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="give one, such as -o parts")
    if config.data.train is None:
        raise UsageError("CLI-20", "no data", where="--data", fix="give a file, a folder or a hub id")
    inspect_path(config.data.train)
    way, shares = build_split(config.by), shares_of(config.parts)
    return write_parts(cut_rows(config.data, way, shares, config.seed, report), Path(config.output))


@dataclass(frozen=True)
class CutRows:
    """Rows and the part that each goes to.

    Args:
        rows: all of them.
        parts: name of a part -> places of its rows.
        made_of: what the parts follow from, as JSON.
        data: where the rows came from.
        by: the column that they were cut by, if there is one.
    """

    rows: Sequence[SplitRow]
    parts: Mapping[str, Sequence[int]]
    made_of: Mapping[str, Any]
    data: str
    by: str | None


def cut_rows(data: DataConfig, way: Split, shares: Sequence[float], seed: int, report: Report) -> CutRows:
    """Say which row of a file goes to which part; nothing is written.

    Args:
        data: the rows, of which ``train`` names the file.
        way: how they are cut.
        shares: of each part, sum 1; empty where their number is not given.
        seed: of the draw.
        report: called with notes.

    Raises:
        InputError: rows that cannot be cut so.
    """
    assert data.train is not None, "checked before"
    read = read_rows(data.train, data, limit=data.limit)
    for note in read.notes:
        report(Event("note", note))
    columns = columns_of(data.train, data)
    rows = [SplitRow(_prompt(row), columns[row.where], row.where) for row in read.rows]
    found = way.cut(rows, shares, seed)
    empty = [name for name, places in found.items() if not places]
    if empty:
        what = f"{len(empty)} of {len(found)} parts would be empty: {len(rows):,} rows, {_groups(rows):,} prompts"
        raise InputError("ROWS-05", what, where=data.train, fix="cut fewer parts, or give more rows")
    made_of = {
        "files": read.digest, "by": way.name, "options": way.model_dump(mode="json"), "shares": list(shares),
        "seed": seed, "rows": len(rows), "columns": data.columns,
    }  # fmt: skip
    return CutRows(rows, found, made_of, data.train, getattr(way, "by", None))


def write_parts(cut: CutRows, folder: Path) -> SplitRecord:
    """Write each part as a file of rows.

    Args:
        cut: the rows and where they go.
        folder: of the parts; made if need be.

    Raises:
        ExperimentChangedError: it holds another split.
        MachineError: it may not be written.
    """
    rows, found = cut.rows, cut.parts
    atomic.make_folder(folder)
    with lock.hold(folder):
        atomic.remove_temporaries(folder)
        check_same(folder, cut.made_of, "the folder holds another split")
        files = {f"{name}.jsonl": [dict(rows[at].fields) for at in places] for name, places in found.items()}
        about = {"kind": "split", "kd": __version__, "data": cut.data, "made_of": cut.made_of}
        write_rows(folder, files, {**about, "parts": {name: len(places) for name, places in found.items()}})
    parts = tuple(
        Part(folder / f"{name}.jsonl", len(places), _counts(rows, places, cut.by)) for name, places in found.items()
    )
    return SplitRecord(folder, len(rows), parts)


def shares_of(parts: Sequence[float] | None) -> list[float]:
    """Return the share of each part, from a number of parts or from the shares.

    Raises:
        UsageError: neither a number of parts nor shares that add up to 1.

    >>> shares_of((4.0,)), shares_of((0.8, 0.2)), shares_of(None)
    ([0.25, 0.25, 0.25, 0.25], [0.8, 0.2], [])
    """
    if parts is None:
        return []
    if len(parts) == 1:
        (number,) = parts
        if number != int(number) or not 2 <= number <= 10_000:
            what = f"a number of parts is a whole one from 2 to 10,000, got {number:g}"
            raise UsageError("CLI-07", what, where="--parts", fix="as in --parts 8, or --parts 0.9,0.1")
        return [1.0 / int(number)] * int(number)
    if abs(math.fsum(parts) - 1.0) > 1e-6:
        what = f"shares must add up to 1, and these are {math.fsum(parts):g}"
        raise UsageError("CLI-06", what, where="--parts", fix="as in --parts 0.8,0.1,0.1")
    return list(parts)


def _prompt(row: Row) -> str:
    return f"{row.prompt}\n{row.context}" if row.prompt else row.responses[0]


def _groups(rows: Iterable[SplitRow]) -> int:
    return len({row.prompt for row in rows})


def _counts(rows: Sequence[SplitRow], places: Sequence[int], column: str | None) -> dict[str, int]:
    return dict(sorted(Counter(rows[at].label(column) for at in places).items())) if column is not None else {}


def _by_label(rows: Sequence[SplitRow], column: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        found[row.label(column)].append(place)
    return {label: found[label] for label in sorted(found)}


def _file_name(label: str) -> str:
    """Return a value as the name of a file.

    >>> _file_name("open qa/2"), _file_name("..")
    ('open_qa_2', '__')
    """
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in label)[:80] or "_"


def _require_parts(way: Split, shares: Sequence[float]) -> None:
    if not shares:
        raise UsageError("CLI-20", f"{way.name} needs a number of parts", where="--parts", fix="as in --parts 8")


def _ends(shares: Iterable[float], count: int) -> list[int]:
    """Return where each part ends, the last one with the last row; each is rounded on the way, not by itself."""
    sums = np.cumsum(np.asarray(list(shares), dtype=np.float64))
    return [math.floor(count * share / sums[-1] + 0.5) for share in sums]


def _numbered(parts: Sequence[list[int]]) -> dict[str, list[int]]:
    digits = max(2, len(str(len(parts) - 1)))
    return {f"part-{number:0{digits}d}": sorted(places) for number, places in enumerate(parts)}


def _random(seed: int) -> np.random.RandomState:
    """Return draws that are the same in every numpy version, as only its legacy generator promises."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, _PURPOSE])))
