"""Chooses what a run learns from: the teacher itself, or what a cache remembers of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcli.config import CacheConfig, DataConfig, HardwareConfig
from kdcli.data.dataset import TokenDataset
from kdcli.engine.devices import Device, prepare
from kdcli.engine.events import Report
from kdcli.engine.teacher import LiveTeacher, Teacher
from kdcli.errors import InputError, UsageError
from kdcli.losses.base import DistillLoss
from kdcli.runs.cache_build import build_cache
from kdcli.runs.cache_key import WHOLE, cache_key, check_key, read_key, seen_as
from kdcli.runs.teacher_cache import CacheRecord, Remembered, estimated_bytes, missing_rows, open_cache
from kdcli.runs.workshop import ModelFacts, Workshop, check_data_path


def view_of(cache: str | None, teacher: ModelFacts, data: DataConfig, hardware: HardwareConfig, device: Device) -> str:
    """Say what a student sees of the teacher; nothing is loaded.

    Raises:
        InputError: there is no such cache.
        ExperimentChangedError: it was made of something else.
    """
    if cache is None:
        return WHOLE
    found = read_key(Path(cache))["key"]
    check_key(found, cache_key(teacher, data, hardware, device), Path(cache))
    return seen_as(found)


def refuse_coarse(view: str, loss: DistillLoss, label: str) -> None:
    """Refuse an objective that is not defined on what a compact cache keeps.

    Raises:
        UsageError: names it and says why.
    """
    needs = loss.needs()
    if view.startswith("top ") and needs.teacher and needs.whole:
        raise UsageError(
            "CACHE-06", f"{label} is not defined on a compact cache: {needs.whole}", where="--teacher-cache",
            fix="build an exact cache, or use the teacher itself",
        )  # fmt: skip


def teacher_for(
    cache: str | None,
    facts: ModelFacts,
    dataset: TokenDataset,
    data: DataConfig,
    hardware: HardwareConfig,
    device: Device,
    workshop: Workshop,
) -> Teacher:
    """Return the teacher, or the cache that stands for it on these rows.

    Raises:
        InputError: the cache lacks rows.
        IntegrityError: a file of it is damaged.
    """
    if cache is None:
        teacher = workshop.load_teacher(facts.path, device.device)
        teacher.check_length(max(dataset.lengths))
        return LiveTeacher(teacher)
    found = _opened(Path(cache), cache_key(facts, data, hardware, device), device, workshop)
    missing = missing_rows(found, dataset)
    if missing:
        raise InputError(
            "CACHE-04", f"{missing:,} of {len(dataset):,} rows are not in the cache", where=cache,
            fix="add them: kd cache with the same rows, template and length",
        )  # fmt: skip
    return found


def mentor_for(
    cache: str | None,
    facts: ModelFacts,
    dataset: TokenDataset,
    data: DataConfig,
    hardware: HardwareConfig,
    device: Device,
    workshop: Workshop,
) -> Teacher:
    """Return what a student is measured against: a cache only if nothing is lost and every row is in it."""
    wanted = cache_key(facts, data, hardware, device)
    if cache is not None and seen_as(read_key(Path(cache))["key"]) == WHOLE:
        found = _opened(Path(cache), wanted, device, workshop)
        if not missing_rows(found, dataset):
            return found
    return teacher_for(None, facts, dataset, data, hardware, device, workshop)


def cache(config: CacheConfig, report: Report, *, command: str = "", workshop: Workshop | None = None) -> CacheRecord:
    """Run a teacher over rows once and keep what it says.

    Raises:
        KDError: of the kind that fits, before weights are read where that is possible.
    """
    workshop = workshop or Workshop()
    if config.output is None:
        raise UsageError("CLI-20", "no cache folder", where="-o", fix="give one, such as -o cache")
    facts, datasets, device = _rows(config, workshop)
    return build_cache(Path(config.output), _key(config, facts, device), datasets, facts, workshop, device, report,
                       command=command)  # fmt: skip


def plan_cache(config: CacheConfig) -> dict[str, Any]:
    """Say what a cache would hold and how large it would be; nothing is written, no weight is read."""
    facts, datasets, device = _rows(config, Workshop())
    key, targets = _key(config, facts, device), sum(dataset.targets for dataset in datasets)
    return {
        "teacher": facts.path,
        "device": device.description,
        "kind": seen_as(key),
        "sequences": sum(len(dataset) for dataset in datasets),
        "response_tokens": targets,
        "teacher_tokens": sum(sum(dataset.lengths) - len(dataset) for dataset in datasets),
        "bytes": estimated_bytes(key, facts.width, facts.rows, targets),
    }


def _rows(config: CacheConfig, workshop: Workshop) -> tuple[ModelFacts, Sequence[TokenDataset], Device]:
    if config.teacher is None:
        raise UsageError("CLI-20", "no teacher", where="--teacher", fix="give a folder or a hub id")
    path = check_data_path(config.data.train, "--data")
    device = prepare(config.hardware)
    facts = workshop.look(config.teacher)
    reader = facts if config.student is None else workshop.pair(config.student, config.teacher).reader
    datasets = [workshop.data(path, reader, config.data, role="train")]
    if config.data.eval is not None:
        datasets.append(
            workshop.data(check_data_path(config.data.eval, "--eval-data"), reader, config.data, role="eval")
        )
    return facts, datasets, device


def _key(config: CacheConfig, facts: ModelFacts, device: Device) -> dict[str, Any]:
    top_k = config.top_k if config.kind == "compact" else None
    if top_k is not None and top_k >= facts.rows:
        what = f"{top_k} of {facts.rows:,} tokens leave no rest"
        raise UsageError("CACHE-07", what, where="--top-k", fix=f"keep fewer, at most {facts.rows - 1:,}")
    return cache_key(
        facts, config.data, config.hardware, device, kind=config.kind, dtype=config.store_dtype, top_k=top_k
    )


def _opened(folder: Path, key: dict[str, Any], device: Device, workshop: Workshop) -> Remembered:
    if folder not in workshop.caches:
        workshop.caches[folder] = open_cache(folder, key, device.device)
    found = workshop.caches[folder]
    assert isinstance(found, Remembered), "only caches are kept there"
    return found
