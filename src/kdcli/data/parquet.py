"""Reads Parquet files, folders saved by ``datasets``, and data sets of the hub."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from kdcli.data.files import digest_files, offline_if_unreachable, system_error
from kdcli.data.readers import MAX_LINE_BYTES, MAX_TOTAL_BYTES, Place, Record, Records, Table, size_text
from kdcli.errors import InputError, raise_machine_fault
from kdcli.storage import stored
from kdcli.text import one_line

_BATCH_BYTES = 2**26


def open_parquet(path: Path, wanted: Iterable[str] | None) -> Table:
    """Open a Parquet file; its declared size is checked before a page is read.

    Args:
        path: the file.
        wanted: columns that may be needed; the others are not decoded. None for all.

    Raises:
        InputError: not Parquet, or it would expand beyond the limit.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata, columns = file.metadata, tuple(file.schema_arrow.names)
    except OSError as error:
        raise system_error(str(path), error) if error.errno else _not_parquet(path, error) from error
    except pyarrow.ArrowException as error:
        raise _not_parquet(path, error) from error
    groups = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    _check_size(path, sum(groups))
    chosen = [*columns] if wanted is None else [name for name in columns if name in set(wanted)]
    records = _parquet_records(path, chosen, max(groups, default=1), sum(groups))
    return Table(path.name, records, columns, (str(path),), digest_files([path]))


def _not_parquet(path: Path, error: Exception) -> InputError:
    return InputError(
        "DATA-13", f"cannot be read as Parquet: {one_line(str(error), 100)}", where=str(path), fix="write it again"
    )


def _check_size(path: Path, size: int) -> None:
    if size > MAX_TOTAL_BYTES:
        raise InputError(
            "DATA-11",
            f"would expand to {size_text(size)}, over the limit of {size_text(MAX_TOTAL_BYTES)}",
            where=str(path),
            fix="split it into smaller files, or give JSONL",
        )


def _parquet_records(path: Path, columns: list[str], largest_group: int, declared: int) -> Records:
    import pyarrow.parquet

    # A cell is at most as large as its row group; few rows at a time bound what a bomb can decode to.
    batch_rows = max(16, min(1024, _BATCH_BYTES // max(1, largest_group)))
    number, total = 0, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False):
                total += batch.nbytes
                number += batch.num_rows
                _check_size(path, max(total, _projected(total, declared, number, file.metadata.num_rows)))
                for at, fields in enumerate(batch.to_pylist(), number - batch.num_rows + 1):
                    yield Record(Place(path.name, f"row {at}"), fields)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise_machine_fault(error, str(path))
        raise _not_parquet(path, error) from error


def _projected(total: int, declared: int, number: int, rows: int) -> int:
    """Return the decoded size to expect, once far more has come than was declared."""
    return total * rows // number if total > max(_BATCH_BYTES, 8 * declared) else 0


def open_saved(path: Path, splits: Sequence[str]) -> Table:
    """Open a folder written by ``datasets``' ``save_to_disk``; of several splits, the first of ``splits`` it has.

    Raises:
        InputError: no such split, or the folder is damaged.
    """
    notes: tuple[str, ...] = ()
    if (path / "dataset_dict.json").is_file():
        split = _choose(_split_names(path), splits, str(path))
        notes = (f'{path.name}: split "{split}"',)
        path = path / split
    files = sorted(entry for entry in path.iterdir() if entry.suffix in (".arrow", ".json"))
    data = _quietly(lambda module: module.load_from_disk(str(path)), str(path), "DATA-13")
    return Table(path.name, _rows(data, path.name), tuple(data.column_names), _texts(files), digest_files(files), notes)


def _texts(files: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(file) for file in files)


def _split_names(path: Path) -> list[str]:
    try:
        names = stored.parse((path / "dataset_dict.json").read_bytes())["splits"]
        return [name for name in names if (path / name / "state.json").is_file()]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError("DATA-13", "dataset_dict.json is damaged", where=str(path), fix="save it again") from error


def open_hub(name: str, splits: Sequence[str]) -> Table:
    """Open a data set of the hub, ``owner/name`` or ``owner/name:split``; scripts never run.

    Raises:
        InputError: unknown, unreachable, or without such a split.
    """
    repository, _, split = name.partition(":")
    found = _quietly(lambda module: module.load_dataset(repository), name, "DATA-01")
    split = _choose(list(found), (split,) if split else splits, name)
    data = found[split]
    note = f'{repository}: split "{split}"'
    return Table(
        repository, _rows(data, repository), tuple(data.column_names), (), _content_digest(data, repository), (note,)
    )


def _choose(there: Sequence[str], splits: Sequence[str], where: str) -> str:
    for split in splits:
        if split in there:
            return split
    separator = "/" if Path(where).is_dir() else ":"
    offered = " or ".join(f"{where}{separator}{split}" for split in there)
    raise InputError(
        "DATA-02", f'no split "{splits[0]}"; it has {", ".join(there) or "none"}', where=where, fix=f"give {offered}"
    )


def _quietly(load: Callable[[Any], Any], where: str, code: str) -> Any:
    """Call into ``datasets`` without its progress bars; whatever it raises becomes one line."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with offline_if_unreachable() if code == "DATA-01" else nullcontext():
            return load(datasets)
    except Exception as error:
        raise_machine_fault(error, where)
        first = one_line(str(error).partition("\n")[0], 120)
        fix = "a local path must exist; a hub id needs a network" if code == "DATA-01" else "save it again"
        looked = f" here ({Path.cwd()}) nor as a hub data set" if code == "DATA-01" else ""
        raise InputError(
            code, f"cannot be opened{looked}: {type(error).__name__}: {first}", where=where, fix=fix
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def _rows(data: Any, name: str) -> Records:
    with closing(_decoded(data, name)) as rows:
        for number, fields in enumerate(rows, 1):
            where = Place(name, f"row {number}")
            if sum(len(value) for value in fields.values() if isinstance(value, str)) > MAX_LINE_BYTES:
                limit = size_text(MAX_LINE_BYTES)
                yield InputError("DATA-10", f"the row exceeds {limit}", where=where, fix="split the row")
            else:
                yield Record(where, fields)


def _decoded(data: Any, name: str) -> Generator[dict[str, Any], None, None]:
    """Yield rows; what cannot be decoded, such as audio without the package that reads it, is an error of one line."""
    with closing(iter(data)) as rows:
        while True:
            try:
                fields = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise_machine_fault(error, name)
                what = f"a row cannot be decoded: {type(error).__name__}: {one_line(str(error), 100)}"
                raise InputError(
                    "DATA-13", what, where=name, fix="save it again with its columns of text only"
                ) from error
            yield fields


def _content_digest(data: Any, name: str) -> str:
    state = hashlib.sha256()
    for fields in _decoded(data, name):
        state.update(json.dumps(fields, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return state.hexdigest()
