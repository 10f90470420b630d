"""Chooses what a run learns from: the teacher itself, or what a cache remembers of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcli.config import CacheConfig, DataConfig, DistillConfig, HardwareConfig, ServerConfig
from kdcli.data.dataset import TokenDataset
from kdcli.engine.devices import Device, prepare
from kdcli.engine.ensemble import EnsembleTeacher, living
from kdcli.engine.events import Report
from kdcli.engine.teacher import LiveTeacher, Teacher
from kdcli.errors import InputError, UsageError
from kdcli.losses.base import DistillLoss
from kdcli.losses.build import build_objective
from kdcli.metrics.describe import describe
from kdcli.models.vocabulary import real_ids
from kdcli.registry import LOSSES
from kdcli.runs.cache_build import build_cache
from kdcli.runs.cache_key import WHOLE, cache_key, check_key, read_key, seen_as
from kdcli.runs.ensemble import refuse_blend
from kdcli.runs.model_facts import ModelFacts
from kdcli.runs.serving.address import address_of, is_served
from kdcli.runs.teacher_cache import CacheRecord, Remembered, estimated_bytes, missing_rows, open_cache
from kdcli.runs.workshop import Workshop, check_data_path

ASKED_LIVE = "asked while training"


def view_of(
    cache: str | None,
    teacher: ModelFacts,
    data: DataConfig,
    hardware: HardwareConfig,
    device: Device,
    *,
    fixed: bool = True,
) -> str:
    """Say what a student sees of the teacher; nothing is loaded.

    Args:
        cache: the teacher's cache; None for none.
        teacher: the teacher.
        data: template and length.
        hardware: precision of matrix products.
        device: where it computes.
        fixed: whether every sequence is a row of the data set, so that a cache can be made before.

    Raises:
        UsageError: SERVE-10, a server that a cache should stand for.
        InputError: there is no such cache.
        ExperimentChangedError: it was made of something else.
    """
    if cache is None and teacher.server is not None and not fixed:
        return f"top {teacher.server.top_k} and the rest in one bin, {ASKED_LIVE}"
    if cache is None and teacher.server is not None:
        raise UsageError(
            "SERVE-10", "a teacher behind a server reads the data's rows once, for a compact cache",
            where=f"--teacher {teacher.path}",
            fix="kd cache --kind compact with this teacher, --student and --data; then add --teacher-cache",
        )  # fmt: skip
    if cache is None:
        return WHOLE
    refuse_blend(teacher.path, "a cache remembers one teacher", "--teacher-cache", "leave the teacher cache out")
    found = read_key(Path(cache))["key"]
    check_key(found, cache_key(teacher, data, hardware, device), Path(cache))
    return seen_as(found)


def server_of(config: DistillConfig) -> ServerConfig:
    """Return how a served teacher is asked; what a cache says of the model's name need not be asked for again."""
    server = config.server.model_copy(update={"url": config.teacher})
    if config.teacher is None or not is_served(config.teacher) or config.teacher_cache is None or server.model:
        return server
    name, _, url = str(read_key(Path(config.teacher_cache))["key"].get("teacher")).rpartition(" at ")
    return server.model_copy(update={"model": name or None}) if url == address_of(server).url else server


def refuse_coarse(view: str, loss: DistillLoss, label: str) -> None:
    """Refuse an objective that is not defined on what a compact cache keeps.

    Raises:
        UsageError: names it and says why.
    """
    if not view.startswith("top "):
        return
    known = int(view.split()[1])
    why = _why_not(loss, known)
    if why is None:
        return
    if view.endswith(ASKED_LIVE):
        raise UsageError(
            "SERVE-12", f"{label} is not defined on the {known} tokens that a server is asked for: {why}",
            where="--teacher", fix=f"use the teacher itself, or an objective that would work: {_working(known)}",
        )  # fmt: skip
    raise UsageError(
        "CACHE-06", f"{label} is not defined on a compact cache: {why}", where="--teacher-cache",
        fix=f"build an exact cache, use the teacher itself, or an objective that would work: {_working(known)}",
    )  # fmt: skip


def refuse_measuring(metrics: Sequence[str], *, measured: bool) -> None:
    """Refuse scores that compare with a teacher of whom a server shows a part.

    Raises:
        UsageError: SERVE-10, names them and those that can be had.
    """
    bad = [name for name in metrics if describe(name).needs_teacher]
    if measured and bad:
        rest = ",".join(name for name in metrics if name not in bad) or "perplexity"
        what = f"{', '.join(bad)} needs the whole teacher, and a server shows a part of it"
        raise UsageError("SERVE-10", what, where="--metric", fix=f"give --metric {rest}")


def _why_not(loss: DistillLoss, known: int) -> str | None:
    """Say why an objective is not defined where so many tokens of a teacher are known; None where it is."""
    needs = loss.needs()
    if not needs.teacher:
        return None
    few = f"it needs {needs.known} known tokens or more, since the student's own mass leads it; there is {known}"
    return needs.whole or (few if known < needs.known else None)


def _working(known: int) -> str:
    """Return the registered objectives that a compact cache of so many tokens serves, ones on layers left out."""
    found = {name: build_objective(name) for name in LOSSES.names()}
    return ", ".join(
        name for name, loss in found.items() if not loss.needs().features and _why_not(loss, known) is None
    )


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
        teacher = live_teacher(facts, device, workshop)
        for model in living(teacher):
            model.check_length(max(dataset.lengths))
        return teacher
    found = _opened(Path(cache), cache_key(facts, data, hardware, device), device, workshop)
    missing = missing_rows(found, dataset)
    if missing:
        raise InputError(
            "CACHE-04", f"{missing:,} of {len(dataset):,} rows are not in the cache", where=cache,
            fix="add them: kd cache with the same rows, template and length",
        )  # fmt: skip
    return found


def live_teacher(facts: ModelFacts, device: Device, workshop: Workshop) -> LiveTeacher | EnsembleTeacher:
    """Return a teacher that runs, or several that speak as one."""
    if facts.blend is not None:
        models = tuple(workshop.load_teacher(one.path, device.device, facts.quantization) for one in facts.members)
        return EnsembleTeacher(models, facts.blend.weights, facts.blend.space)
    return LiveTeacher(workshop.load_teacher(facts.path, device.device, facts.quantization))


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
    refuse_blend(config.teacher, "a cache remembers one teacher", "--teacher", "train from the teachers themselves")
    path = check_data_path(config.data.train, "--data")
    device = prepare(config.hardware)
    if is_served(config.teacher):
        _check_served(config)
    if config.student is None:
        facts = reader = workshop.look_teacher(config.teacher, config.teacher_quantization)
    else:
        pair = workshop.pair(config.student, config.teacher, config.teacher_quantization, config.server)
        reader, found = pair.reader, pair.teacher
        assert found is not None, "one is named"
        facts = found
    datasets = [workshop.data(path, reader, config.data, role="train")]
    if config.data.eval is not None:
        datasets.append(
            workshop.data(check_data_path(config.data.eval, "--eval-data"), reader, config.data, role="eval")
        )
    return facts, datasets, device


def _check_served(config: CacheConfig) -> None:
    if config.kind != "compact":
        what = "a server shows the likeliest tokens, no hidden states"
        raise UsageError("SERVE-10", what, where=f"--kind {config.kind}", fix="give --kind compact")
    if config.student is None:
        what = "a server shows no tokenizer"
        raise UsageError("SERVE-10", what, where="--student", fix="give the student, whose tokenizer it must share")


def _key(config: CacheConfig, facts: ModelFacts, device: Device) -> dict[str, Any]:
    top_k = config.top_k if config.kind == "compact" else None
    real = real_ids(facts.tokenizer, facts.rows, "teacher") if top_k is not None else 0
    if top_k is not None and top_k >= real:
        what = f"{top_k} of {real:,} tokens leave no rest"
        raise UsageError("CACHE-07", what, where="--top-k", fix=f"keep fewer, at most {real - 1:,}")
    return cache_key(
        facts, config.data, config.hardware, device, kind=config.kind, dtype=config.store_dtype, top_k=top_k
    )


def _opened(folder: Path, key: dict[str, Any], device: Device, workshop: Workshop) -> Remembered:
    if folder not in workshop.caches:
        workshop.caches[folder] = open_cache(folder, key, device.device)
    found = workshop.caches[folder]
    assert isinstance(found, Remembered), "only caches are kept there"
    return found
