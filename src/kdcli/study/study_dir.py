"""``study.yaml``, the settings of a study, and ``study.json``, its cells; read without torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcli.errors import ExperimentChangedError, InputError
from kdcli.storage import atomic, stored
from kdcli.storage.digests import check_named, replace_file
from kdcli.storage.run_dir import RunFolder
from kdcli.text import one_line, typed

SETTINGS, CELLS_FILE, RESULTS_FILE = "study.yaml", "study.json", "results.parquet"
SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """One cell as ``study.json`` lists it.

    Args:
        name: what to call it.
        label: the line of the table that it belongs to.
        seed: training seed.
        tried: values of ``--tune`` that it tries, in words; empty without tuning.
        folder: its run folder, relative to the study.
        evaluation: folder of its evaluation, relative to the run folder.
        steps: optimizer steps of the whole run.
    """

    name: str
    label: str
    seed: int
    tried: str
    folder: str
    evaluation: str
    steps: int


@dataclass(frozen=True)
class ReferenceEntry:
    """One evaluation of a model that the study does not train, as ``study.json`` lists it.

    Args:
        label: what its line is called.
        role: "before" for the student before training, or "teacher".
        seed: of a student made at random; None for a model that lies in a folder.
        folder: of the evaluation, relative to the study.
    """

    label: str
    role: str
    seed: int | None
    folder: str


@dataclass(frozen=True)
class Study:
    """What a study consists of.

    Args:
        baseline: label that differences are taken to.
        labels: the lines of the table, in order.
        seeds: training seeds.
        cells: every cell.
        chosen: label -> the value that tuning chose, in words; empty without tuning or before it ended.
        references: evaluations of the student before training and of the teacher; a study of an older version has none.
    """

    baseline: str
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Entry, ...]
    chosen: Mapping[str, str]
    references: tuple[ReferenceEntry, ...] = ()


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study."""
    return (folder / CELLS_FILE).is_file()


def write_study(folder: Path, study: Study, settings: str) -> None:
    """Write both files.

    Args:
        folder: the study's folder; made if need be.
        study: its cells.
        settings: its settings as YAML.

    Raises:
        MachineError: the folder may not be written.
    """
    atomic.make_folder(folder)
    document = {"kind": "study", "schema": SCHEMA, "settings": SETTINGS, **asdict(study)}
    replace_file(folder / SETTINGS, settings)
    replace_file(folder / CELLS_FILE, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_study(folder: Path) -> Study:
    """Read ``study.json``.

    Raises:
        InputError: the folder holds no study.
        IntegrityError: the file is damaged.
        ExperimentChangedError: written by a newer version.
    """
    path = folder / CELLS_FILE
    if not path.is_file():
        raise InputError("CMP-05", "not a study", where=str(folder), fix="give a folder that kd compare -o wrote")
    fix = f"start the comparison again with kd compare -c {typed(folder / SETTINGS)}: finished runs are kept"
    atomic.refuse_link(path)
    check_named(folder, (CELLS_FILE,), fix)
    found = stored.read_record(path, dict[str, Any], fix=fix)
    if found.get("schema") != SCHEMA:
        what = f"schema {found.get('schema')}; this version reads schema {SCHEMA}"
        raise ExperimentChangedError("RUN-02", what, where=str(path), fix="use the version that wrote it")
    return stored.fit(found, Study, path, fix=fix)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not there.

    Raises:
        InputError: it is none.
    """
    if not folder.is_dir():
        raise InputError("RUN-03", "no such folder", where=one_line(str(folder)), fix="give a run or a study")


def check_shown(folders: Sequence[Path]) -> None:
    """Refuse folders of which no comparison can be shown.

    Args:
        folders: one that kd compare wrote, or run folders.

    Raises:
        InputError: the first is not there, or a single one is neither.
    """
    first = folders[0]
    check_folder(first)
    if len(folders) == 1 and not (first / RESULTS_FILE).is_file() and not RunFolder(first).is_run:
        fix = "give a folder of kd compare -o, or of kd distill"
        raise InputError("CMP-05", "neither a study nor a run", where=one_line(str(first)), fix=fix)


def check_settings(folder: Path) -> None:
    """Refuse to go on by settings that are not those the study was started with.

    Raises:
        IntegrityError: ``study.yaml`` is not what was written.
    """
    fix = "restore it, or repeat the command line; where it was changed on purpose, copy it and give the copy with -c"
    check_named(folder, (SETTINGS,), fix)
