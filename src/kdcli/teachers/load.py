"""Loads the teacher of a run: live, or from a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcli.config.schema import CacheConfig
from kdcli.config.sections import DataConfig, HardwareConfig
from kdcli.data.tokenize import TokenDataset
from kdcli.errors import InputError, UsageError
from kdcli.events import Report, silent
from kdcli.loading.info import ModelInfo, require_single
from kdcli.loading.session import Session, check_data_path
from kdcli.models.devices import Device, prepare
from kdcli.models.tokenizer import real_ids
from kdcli.remote.address import is_url
from kdcli.teachers.base import LiveTeacher, Teacher, live_models
from kdcli.teachers.cache_build import build_cache
from kdcli.teachers.cache_files import read_key
from kdcli.teachers.cached import (
    CachePlan,
    CacheRecord,
    Remembered,
    TeacherView,
    cache_key,
    estimated_bytes,
    missing_rows,
    open_cache,
)
from kdcli.teachers.class_view import class_teacher
from kdcli.teachers.ensemble import EnsembleTeacher


def teacher_for(
    cache: str | None,
    facts: ModelInfo,
    dataset: TokenDataset,
    data: DataConfig,
    hardware: HardwareConfig,
    device: Device,
    session: Session,
    report: Report = silent,
) -> Teacher:
    """Return the teacher, or the cache that stands for it on these rows.

    Raises:
        InputError: the cache lacks rows.
        IntegrityError: a file of it is damaged.
    """
    if dataset.labels:
        return class_teacher(facts, dataset, data, device, session, report)
    if cache is None:
        teacher = live_teacher(facts, device, session)
        for model in live_models(teacher):
            model.check_length(max(dataset.lengths))
        return teacher
    found = _opened(Path(cache), cache_key(facts, data, hardware, device), device, session)
    missing = missing_rows(found, dataset)
    if missing:
        raise InputError(
            "CACHE-04", f"{missing:,} of {len(dataset):,} rows are not in the cache", where=cache,
            fix="add them: kd cache with the same rows, template and length",
        )  # fmt: skip
    return found


def live_teacher(facts: ModelInfo, device: Device, session: Session) -> LiveTeacher | EnsembleTeacher:
    """Return a live teacher, or an ensemble of several."""
    if facts.blend is not None:
        models = tuple(session.load_teacher(one.path, device.device, facts.quantization) for one in facts.members)
        return EnsembleTeacher(models, facts.blend.weights, facts.blend.space)
    return LiveTeacher(session.load_teacher(facts.path, device.device, facts.quantization))


def evaluation_teacher(
    cache: str | None,
    facts: ModelInfo,
    dataset: TokenDataset,
    data: DataConfig,
    hardware: HardwareConfig,
    device: Device,
    session: Session,
) -> Teacher:
    """Return what a student is measured against: a cache only if nothing is lost and every row is in it."""
    wanted = cache_key(facts, data, hardware, device)
    if cache is not None and TeacherView.of_cache(read_key(Path(cache))["key"]).is_whole:
        found = _opened(Path(cache), wanted, device, session)
        if not missing_rows(found, dataset):
            return found
    return teacher_for(None, facts, dataset, data, hardware, device, session)


def cache(config: CacheConfig, report: Report, *, command: str = "", session: Session | None = None) -> CacheRecord:
    """Run a teacher over rows once and keep what it says.

    Raises:
        KDError: of the kind that fits, before weights are read where that is possible.
    """
    session = session or Session()
    if config.output is None:
        raise UsageError("CLI-20", "no cache folder", where="-o", fix="give one, such as -o cache")
    facts, datasets, device = _rows(config, session)
    return build_cache(Path(config.output), _key(config, facts, device), datasets, facts, session, device, report,
                       command=command)  # fmt: skip


def plan_cache(config: CacheConfig) -> CachePlan:
    """Say what a cache would hold and how large it would be; nothing is written, no weight is read."""
    facts, datasets, device = _rows(config, Session())
    key, targets = _key(config, facts, device), sum(dataset.targets for dataset in datasets)
    return CachePlan(
        teacher=facts.path,
        device=device.description,
        holds=str(TeacherView.of_cache(key)),
        sequences=sum(len(dataset) for dataset in datasets),
        response_tokens=targets,
        teacher_tokens=sum(sum(dataset.lengths) - len(dataset) for dataset in datasets),
        bytes=estimated_bytes(key, facts.width, facts.rows, targets),
    )


def _rows(config: CacheConfig, session: Session) -> tuple[ModelInfo, Sequence[TokenDataset], Device]:
    if config.teacher is None:
        raise UsageError("CLI-20", "no teacher", where="--teacher", fix="give a folder or a hub id")
    require_single(config.teacher, "a cache holds one teacher", "--teacher", "train from the teachers themselves")
    path = check_data_path(config.data.train, "--data")
    device = prepare(config.hardware)
    if is_url(config.teacher):
        _check_served(config)
    if config.student is None:
        facts = reader = session.inspect_teacher(config.teacher, config.teacher_quantization)
    else:
        pair = session.pair(config.student, config.teacher, config.teacher_quantization, config.server)
        reader, found = pair.reader, pair.teacher
        assert found is not None, "one is named"
        facts = found
    datasets = [session.data(path, reader, config.data, role="train", images=True)]
    if config.data.eval is not None:
        datasets.append(
            session.data(
                check_data_path(config.data.eval, "--eval-data"), reader, config.data, role="eval", images=True
            )
        )
    return facts, datasets, device


def _check_served(config: CacheConfig) -> None:
    if config.kind != "compact":
        what = "a server shows the likeliest tokens, no hidden states"
        raise UsageError("SERVE-10", what, where=f"--kind {config.kind}", fix="give --kind compact")
    if config.student is None:
        what = "a server shows no tokenizer"
        raise UsageError("SERVE-10", what, where="--student", fix="give the student, whose tokenizer it must share")


def _key(config: CacheConfig, facts: ModelInfo, device: Device) -> dict[str, Any]:
    top_k = config.top_k if config.kind == "compact" else None
    real = real_ids(facts.tokenizer, facts.rows, "teacher") if top_k is not None else 0
    if top_k is not None and top_k >= real:
        what = f"{top_k} of {real:,} tokens leave no rest"
        raise UsageError("CACHE-07", what, where="--top-k", fix=f"keep fewer, at most {real - 1:,}")
    return cache_key(
        facts, config.data, config.hardware, device, kind=config.kind, dtype=config.store_dtype, top_k=top_k
    )


def _opened(folder: Path, key: dict[str, Any], device: Device, session: Session) -> Remembered:
    if folder not in session.caches:
        session.caches[folder] = open_cache(folder, key, device.device)
    found: Remembered = session.caches[folder]
    return found
