"""Checkpoints: safetensors and JSON only, written whole, verified by digest, newest valid one wins."""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kdcli.errors import IntegrityError
from kdcli.events import Event, Report
from kdcli.sources.base import StepBatches
from kdcli.storage import atomic, stored
from kdcli.storage.run_dir import check_identity
from kdcli.training.metrics_log import Mark
from kdcli.training.placement import like, together

_NAME = re.compile(r"checkpoint-(\d{8})$")
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_SOURCE, _LEARNED = "source.safetensors", "learned.safetensors"


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Args:
        step: optimizer steps done.
        tokens: response tokens trained on.
        student_tokens: tokens that went through the student's trunk, prompts included.
        seconds: time spent in steps, over all resumes.
        peak_bytes: peak memory, over all resumes.
        generated_tokens: tokens that were generated to train on.
        generation_seconds: the part of ``seconds`` that this took.
        metrics_bytes: length of ``metrics.jsonl`` that belongs to these steps.
        metrics_sha256: its digest; empty in older checkpoints.
        timing_bytes: length of ``timing.jsonl``.
        timing_sha256: its digest; empty in older checkpoints.
        effort: what generating took, as ``TokenCounts`` counts it.
    """

    step: int = 0
    tokens: int = 0
    student_tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    metrics_bytes: int = 0
    metrics_sha256: str = ""
    timing_bytes: int = 0
    timing_sha256: str = ""
    generated_tokens: int = 0
    generation_seconds: float = 0.0
    effort: dict[str, int] = field(default_factory=dict)

    @property
    def marks(self) -> tuple[Mark, Mark]:
        """What counts of ``metrics.jsonl`` and ``timing.jsonl``."""
        return Mark(self.metrics_bytes, self.metrics_sha256), Mark(self.timing_bytes, self.timing_sha256)

    def at(self, metrics: Mark, timing: Mark) -> "State":
        """Return this state with logs of another length."""
        return replace(
            self, metrics_bytes=metrics.size, metrics_sha256=metrics.sha256, timing_bytes=timing.size,
            timing_sha256=timing.sha256,
        )  # fmt: skip


@dataclass(frozen=True)
class _Saved:
    """The shape of ``state.json``; of an older checkpoint, the number of processes is in its identity."""

    state: State
    identity: dict[str, Any]
    processes: int | None = None


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds and what it belongs to.

    Args:
        model: the student.
        learned: the objective's learned parts; empty for most.
        optimizer: their optimizer, whose moments are kept.
        windows: the source's windows, whose state is kept.
        identity: what must be equal for a run to be continued.
        processes: how many train together; another number may go on.
    """

    model: nn.Module
    learned: nn.Module
    optimizer: torch.optim.Optimizer
    windows: StepBatches
    identity: dict[str, Any]
    processes: int = 1


@dataclass(frozen=True)
class GatheredState:
    """What a checkpoint's files hold, whole and on the CPU, however it lay among the processes.

    Args:
        weights: the student's, by name.
        learned: those of the objective's learned parts.
        optimizer: the moments, by parameter and name.
    """

    weights: dict[str, Tensor]
    learned: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def collect(kept: TrainState, *, here: bool = True) -> GatheredState:
    """Bring weights and moments together; where they lie in shards, all processes must call this.

    Args:
        kept: what is to be saved.
        here: whether this process keeps the result.
    """
    return GatheredState(_weights(kept.model, here), _weights(kept.learned, here), _flat_optimizer(kept, here))


def save(folder: Path, kept: TrainState, state: State, keep: int, collected: GatheredState) -> Path:
    """Write a checkpoint durably, then remove the oldest ones beyond ``keep``; newer ones are damaged and stay."""
    drawn = {name: value.cpu().contiguous() for name, value in kept.windows.state().items()}
    final = folder / f"checkpoint-{state.step:08d}"

    def fill(target: Path) -> None:
        save_file(collected.weights, target / _WEIGHTS)
        save_file(collected.optimizer, target / _OPTIMIZER)
        if collected.learned:
            save_file(collected.learned, target / _LEARNED)
        if drawn:
            save_file(drawn, target / _SOURCE)
        text = json.dumps({"state": asdict(state), "identity": kept.identity, "processes": kept.processes})
        (target / _STATE).write_text(text, encoding="utf-8")

    atomic.commit_folder(final, fill, {"kind": "checkpoint", "step": state.step})
    prune(folder, state.step, keep)
    return final


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove the checkpoints before a step beyond the newest so many, that of the step included.

    Raises:
        MachineError: one cannot be removed.
    """
    reached = [path for path in checkpoints(folder) if _step(path) <= step]
    for old in reached[keep:]:
        atomic.remove_folder(old)


def restore(folder: Path, kept: TrainState, report: Report) -> State:
    """Load the newest checkpoint whose digests hold, or return a fresh state.

    Raises:
        ExperimentChangedError: the run was started with other settings.
        IntegrityError: there are checkpoints and none is valid.
    """
    found = checkpoints(folder)
    damaged: IntegrityError | None = None
    for path in found:
        try:
            atomic.verify_folder(path)
        except IntegrityError as error:
            damaged = damaged or error
            report(Event("warning", f"{path.name} is damaged ({error.what}); looking for an older one"))
            continue
        saved = stored.read_record(path / _STATE, _Saved)
        check_identity(saved.identity, kept.identity, folder)
        _load(path, kept)
        kept.windows.restore(load_file(path / _SOURCE) if (path / _SOURCE).is_file() else {})
        report(Event("note", f"resuming from {path.name}"))
        before = saved.processes or saved.identity.get("world_size", kept.processes)
        if before != kept.processes:
            report(Event("note", _regrouped(before, kept.processes)))
        return saved.state
    if damaged is not None:
        raise damaged
    return State()


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint of a run folder, None without any; its digests are not checked."""
    return next(map(_step, checkpoints(folder)), None)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def checkpoints(folder: Path) -> list[Path]:
    """Return every checkpoint of a run folder, newest first; digests are not checked."""
    return sorted((path for path in folder.glob("checkpoint-*") if _NAME.match(path.name)), reverse=True)


def _regrouped(before: int, now: int) -> str:
    many = f"{before} process{'es' if before > 1 else ''}"
    return (
        f"the run was saved by {many} and goes on with {now}: the steps hold the same sequences; "
        "sums round and dropout draws differently, so its bits differ from those of a run without the change"
    )


def _weights(model: nn.Module, here: bool) -> dict[str, Tensor]:
    """What training can change, each storage once: tied weights are saved under their first name."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    seen: set[tuple[int, torch.Size]] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = (id(tensor) if isinstance(tensor, DTensor) else tensor.data_ptr(), tensor.shape)
        if name in frozen or (key in seen and tensor.numel()):
            continue
        seen.add(key)
        _take(unique, name, tensor, here)
    return unique


def _named(kept: TrainState) -> dict[str, nn.Parameter]:
    learned = {f"learned/{name}": parameter for name, parameter in kept.learned.named_parameters()}
    return {**dict(kept.model.named_parameters()), **learned}


def _flat_optimizer(kept: TrainState, here: bool) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, parameter in _named(kept).items():
        for key, value in kept.optimizer.state.get(parameter, {}).items():
            _take(flat, f"{name}/{key}", value, here)
    return flat


def _take(found: dict[str, Tensor], name: str, tensor: Tensor, here: bool) -> None:
    """Gather one tensor at a time, so that no device ever holds the whole of them."""
    if here or isinstance(tensor, DTensor):
        whole = together(tensor.detach())
        if here:
            found[name] = whole.cpu().contiguous()


@torch.no_grad()
def _load(path: Path, kept: TrainState) -> None:
    own = kept.model.state_dict(keep_vars=True)
    for name, value in load_file(path / _WEIGHTS).items():
        own[name].copy_(like(value, own[name]))
    if (path / _LEARNED).is_file():
        kept.learned.load_state_dict(load_file(path / _LEARNED))
    flat = load_file(path / _OPTIMIZER)
    parameters, optimizer = _named(kept), kept.optimizer
    for name, value in flat.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        device = parameter.device if value.ndim or optimizer.defaults.get("fused") else "cpu"
        optimizer.state[parameter][key] = like(value.to(device), parameter) if value.ndim else value.to(device)
