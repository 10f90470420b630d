"""``kd cache``: builds a teacher cache."""

import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.data.batching import Batch, collate, micro_batches
from kdcli.data.readers import size_text
from kdcli.data.tokenize import TokenDataset
from kdcli.errors import InputError, IntegrityError, InterruptedRunError, MachineError
from kdcli.events import Event, Report
from kdcli.loading.info import ModelInfo
from kdcli.loading.session import Session
from kdcli.losses.topk import TopKWithTail
from kdcli.models.devices import Device
from kdcli.models.internals import attention_of
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Predictions, find_valid
from kdcli.signals import StopRequest
from kdcli.storage import atomic, lock
from kdcli.storage.run_dir import NOT_CONTENT
from kdcli.teachers.base import LiveTeacher, Teacher
from kdcli.teachers.cache_files import ERRORS, HEAD, KEY, errors_text, read_key
from kdcli.teachers.cached import (
    HIDDEN,
    IDS,
    LIBRARY,
    LOG_PROBS,
    CacheRecord,
    Summary,
    check_key,
    estimated_bytes,
    missing_from,
    save_head,
    tried_of,
    write_key,
)
from kdcli.teachers.remote import RemoteTeacher
from kdcli.teachers.token_store import TokenStore, sequence_keys

_SHARD_BYTES, _SHARD_SECONDS = 64 * 2**20, 60.0
_MICRO_TOKENS = 4096


def build_cache(
    folder: Path,
    key: dict[str, Any],
    datasets: Sequence[TokenDataset],
    teacher: ModelInfo,
    session: Session,
    device: Device,
    report: Report,
    *,
    command: str = "",
) -> CacheRecord:
    """Run the teacher over every sequence that is not there yet.

    Args:
        folder: the cache; made if it is not there.
        key: what it is made of.
        datasets: rows to cover.
        teacher: the model; its weights are loaded only if something is missing.
        session: loads it.
        device: where to compute.
        report: called with its size and with progress events.
        command: what to type to go on after an interruption.

    Raises:
        ExperimentChangedError: the folder holds a cache of something else.
        InterruptedRunError: stopped by a signal; what was done is kept.
        MachineError: it does not fit on the disk.
    """
    started = time.monotonic()
    atomic.make_folder(folder)
    _refuse_others(folder)
    with lock.hold(folder), StopRequest() as stop:
        atomic.remove_temporaries(folder)
        key = _as_begun(folder, key, report)
        known = _known(folder, key, report)
        store, of = TokenStore(folder), atomic.digest_record(key)
        for name in store.drop_damaged(partial(_belongs, of=of, known=known)):
            report(Event("warning", f"{folder / name} was damaged; it is built again"))
        missing, whole = missing_from(store, datasets), known and _has_head(folder, key, of, report)
        if len(missing) or not whole:
            _check_room(folder, estimated_bytes(key, teacher.width, teacher.rows, missing.targets), missing, report)
            if teacher.server is None:
                source: Teacher = LiveTeacher(session.load_teacher(teacher.path, device.device, teacher.quantization))
            else:
                source = RemoteTeacher(teacher.server, teacher.tokenizer, teacher.rows, key["top_k"])
            if not whole:
                _write_key(folder, key, source.single)
            _through(_Build(folder, key, store, source, device, report), missing, stop, command)
        _write_errors(folder, key, store)
    return _record(folder, store, len(missing), time.monotonic() - started)


def _through(work: "_Build", missing: TokenDataset, stop: StopRequest, command: str) -> None:
    """Run to the end; whatever ends it sooner, what was done is kept."""
    try:
        for _ in work.run(missing):
            if stop.signal_number:
                work.flush()
                what = f"stopped after {len(work.store):,} sequences, saved"
                raise InterruptedRunError(stop.signal_number, what, fix=f"go on with: {command or 'the same line'}")
    except (InputError, MachineError):
        work.flush()
        raise


def _refuse_others(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    ours = (KEY, ERRORS, HEAD, *NOT_CONTENT)
    if any(item.name not in ours and not item.name.startswith((".tmp-", "shard-")) for item in folder.iterdir()):
        raise InputError("CACHE-01", "not a teacher cache, and not empty", where=str(folder), fix="choose another -o")


def _as_begun(folder: Path, key: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return the key that an older cache in the folder has, which does not say which library made it."""
    try:
        found = read_key(folder)["key"] if (folder / KEY).is_file() else key
    except IntegrityError:
        return key
    if LIBRARY in found or not TokenStore(folder).shards():
        return key
    what = (
        f"{folder / KEY} does not say which {LIBRARY} made the cache; rows that are missing are made by {key[LIBRARY]}"
    )
    report(Event("warning", what))
    return {name: value for name, value in key.items() if name != LIBRARY}


def _known(folder: Path, key: dict[str, Any], report: Report) -> bool:
    """Whether the folder says that it is a cache of this; one without a shard becomes one of anything.

    Raises:
        ExperimentChangedError: it is a cache of something else.
    """
    if not (folder / KEY).is_file():
        return False
    try:
        found = read_key(folder)["key"]
    except IntegrityError as error:
        report(Event("warning", f"{error.where} was damaged ({error.what}); it is made again"))
        return False
    if found != key and not TokenStore(folder).shards():
        return False
    check_key(found, key, folder, free=())
    return True


def _belongs(manifest: dict[str, Any], *, of: str, known: bool) -> bool:
    """Whether a shard or the head is part of this cache; older ones do not say: ``cache.json`` says it for them."""
    return known if "of" not in manifest else manifest["of"] == of


def _has_head(folder: Path, key: dict[str, Any], of: str, report: Report) -> bool:
    """Whether the teacher's head is there, where the cache needs it."""
    if key["kind"] != "exact":
        return True
    try:
        return _belongs(atomic.verify_folder(folder / HEAD), of=of, known=True)
    except IntegrityError as error:
        report(Event("warning", f"{error.where} was damaged ({error.what}); it is made again"))
        return False


def _check_room(folder: Path, size: int, missing: TokenDataset, report: Report) -> None:
    free = shutil.disk_usage(folder).free
    what = f"teacher cache: {missing.targets:,} response tokens, about {size_text(size)} in {folder}"
    if size > free:
        fix = "free space; kd cache --store-dtype bf16 or --kind compact keeps less"
        raise MachineError("DISK-02", f"{what}; {size_text(free)} are free", where=str(folder), fix=fix)
    report(Event("note", what))


class _Build:
    """Runs the teacher over sequences and writes shards as they fill."""

    def __init__(
        self,
        folder: Path,
        key: dict[str, Any],
        store: TokenStore,
        teacher: Teacher,
        device: Device,
        report: Report,
    ) -> None:
        self.folder, self.key, self.store = folder, key, store
        self.device, self.report = device, report
        self.model, self.teacher = teacher.single, teacher
        self.entries: list[tuple[str, dict[str, Tensor]]] = []
        self.bytes, self.since, self.read = 0, time.monotonic(), 0
        self.summary = None
        if self.model is not None and key["kind"] == "compact":
            self.summary = Summary(key, self.model, device, tried=tried_of(store))

    def run(self, missing: TokenDataset) -> Iterator[None]:
        """Work through the sequences, longest first; yields after every micro-batch."""
        total, done, started = len(missing), 0, time.monotonic()
        self.report(Event("stage", "running the teacher", total=total))
        for indexes in micro_batches(list(range(total)), missing.lengths, _MICRO_TOKENS):
            self._take(collate(missing.examples, indexes, 0 if self.model is None else self.model.pad_id))
            done += len(indexes)
            speed = self.read / max(time.monotonic() - started, 1e-9)
            values = {"tokens_per_second": speed}
            self.report(Event("progress", "running the teacher", done=done, total=total, values=values))
            if self.bytes >= _SHARD_BYTES or time.monotonic() - self.since > _SHARD_SECONDS:
                self.flush()
            yield
        self.flush()

    def flush(self) -> None:
        """Write what has gathered as a shard; what could not be written is forgotten, never written again."""
        entries, self.entries = self.entries, []
        about = {"of": atomic.digest_record(self.key), "teacher_tokens": self.read}
        if self.summary is not None:
            about |= {"lost": self.summary.take()}
        self.bytes, self.since, self.read = 0, time.monotonic(), 0
        if entries:
            self.store.add(entries, about)

    def _take(self, batch: Batch) -> None:
        moved = batch.to(self.device.device)
        packing = find_valid(moved.labels)
        with torch.autocast(self.device.device.type, self.device.autocast, enabled=self.device.autocast is not None):
            side = self.teacher.side(moved, packing)
        tensors = self._tensors(side)
        pieces = {
            name: value.cpu().split(packing.lengths[packing.lengths > 0].tolist()) for name, value in tensors.items()
        }
        for at, key in enumerate(sequence_keys(batch)):
            self.entries.append((key, {name: parts[at] for name, parts in pieces.items()}))
        self.bytes += sum(value.numel() * value.element_size() for value in tensors.values())
        self.read += batch.tokens

    def _tensors(self, side: Predictions | TopKWithTail) -> dict[str, Tensor]:
        """Return what is stored of the teacher's view of some tokens."""
        if side.bins is not None:
            return {IDS: side.bins.ids.int(), LOG_PROBS: side.bins.log_probs}
        one = None if side.whole is None else side.whole.single
        assert one is not None, "refused before: a cache is of one teacher"
        if self.summary is not None:
            return self.summary.of(one)
        return {HIDDEN: one.hidden.to(getattr(torch, self.key["dtype"]))}


def _write_key(folder: Path, key: dict[str, Any], teacher: LanguageModel | None) -> None:
    """Write the head that an exact cache needs, then what the cache is."""
    head, made_with = {}, {}
    if teacher is not None:
        made_with = {"torch": torch.__version__, "attention": attention_of(teacher.model)}
    if teacher is not None and key["kind"] == "exact":
        head = {"scale": teacher.head.scale, "softcap": teacher.head.softcap}
        about = {"kind": "head", "of": atomic.digest_record(key)}
        atomic.commit_folder(folder / HEAD, lambda target: save_head(teacher.head, target), about)
    write_key(folder, key, head, made_with)


def _write_errors(folder: Path, key: dict[str, Any], store: TokenStore) -> None:
    """Write what a compact cache loses, which its shards know."""
    text = errors_text(key, store.manifests())
    if text is not None and not ((folder / ERRORS).is_file() and (folder / ERRORS).read_bytes() == text.encode()):
        atomic.write_file(folder / ERRORS, text)


def _record(folder: Path, store: TokenStore, added: int, seconds: float) -> CacheRecord:
    found = read_key(folder)
    read = found["teacher_tokens"] + sum(int(one.get("teacher_tokens", 0)) for one in store.manifests())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return CacheRecord(folder, found["key"]["kind"], len(store), added, read, size, seconds)
