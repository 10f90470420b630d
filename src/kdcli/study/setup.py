"""Names of the models and rows behind a comparison, from the settings of its runs or of its study."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcli.comparison.aggregate import Group
from kdcli.comparison.records import Setup
from kdcli.comparison.tables_store import ComparisonMeta, LongFormat
from kdcli.config.resolve import resolve
from kdcli.config.schema import CompareConfig, DistillConfig
from kdcli.distill.records import CONTENDER
from kdcli.errors import KDError
from kdcli.storage.run_dir import CONFIG, RunFolder
from kdcli.students.made import is_made
from kdcli.study.study_dir import SETTINGS


def setup_of_runs(groups: Sequence[Group]) -> Setup | None:
    """Return what the settings of the first run say, with all students; None where they cannot be read any more."""
    run, found = next(iter(groups[0].runs.values()))
    others = [next(iter(group.runs.values()))[0].folder for group in groups[1:]]
    try:
        config = resolve(DistillConfig, file=run.folder / CONFIG, environ={})
        rows = RunFolder(run.folder).status().get("rows")
        all_of = [config, *(resolve(DistillConfig, file=folder / CONFIG, environ={}) for folder in others)]
    except KDError:
        return None
    students = ", ".join(dict.fromkeys(name_of(one.student) for one in all_of))
    return replace(_named(config), student=students, rows=rows, examples=found.examples, test=found.name)


def completed(about: ComparisonMeta, tidy: LongFormat, folder: Path | None) -> Setup:
    """Return the setup with what the tables themselves hold; names of an older comparison come from its study.yaml."""
    setup = about.setup or (_of_study(folder) if folder is not None else Setup())
    owner = next((role, label, seed) for role, label, seed in tidy.owners if role == CONTENDER)
    protocols = {part[9:] for info in tidy.infos for part in info.settings.split("|") if part.startswith("protocol:")}
    return replace(
        setup,
        examples=setup.examples or tidy.owners.count(owner),
        protocol=min(protocols) if len(protocols) == 1 else "",
        rates=tuple(sorted({rate for rate, _ in about.rates.values()})),
        tuned=about.tuned,
    )


def name_of(place: str | None) -> str:
    """Return what to call a model or a file: the last part of its path, that above where it says nothing.

    >>> name_of("models/llama-1B/"), name_of("runs/akl/model"), name_of("random:layers=2"), name_of("a/train.jsonl")
    ('llama-1B', 'akl', 'random:layers=2', 'train.jsonl')
    """
    if not place or is_made(place) or "://" in place:
        return place or ""
    parts = [part for part in place.split("/") if part not in ("", ".", "..")]
    parts = parts[:-1] if len(parts) > 1 and parts[-1] == "model" else parts
    return parts[-1] if parts else place


def _of_study(folder: Path) -> Setup:
    try:
        return _named(resolve(CompareConfig, file=folder / SETTINGS, environ={}))
    except KDError:
        return Setup()


def _named(config: Any) -> Setup:
    return Setup(
        teacher=name_of(config.teacher),
        student=name_of(config.student),
        data=name_of(config.data.train),
        batch_size=config.train.batch_size,
        test=name_of(config.data.eval),
    )
