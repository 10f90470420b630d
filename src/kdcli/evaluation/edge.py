"""The cost of running a model on this machine: size, memory, speed, energy."""

import gc
import importlib
import importlib.util
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from kdcli.config.sections import BenchmarkConfig, EdgeConfig
from kdcli.errors import InputError
from kdcli.evaluation.lm_eval.run import Benchmarked, load_tasks, run_tasks
from kdcli.evaluation.lm_eval.tasks import Harness, LmEval, Tasks
from kdcli.evaluation.records import Edge, EvalRecord, is_sparse
from kdcli.events import Event, Report
from kdcli.exports.folder import is_export, open_measured, runner_of, stored_types
from kdcli.loading.session import load_measured
from kdcli.models.devices import Device, peak_memory, process_bytes, reset_peak_memory
from kdcli.models.head import trunk_of
from kdcli.models.headers import TensorInfo
from kdcli.models.internals import cache_in
from kdcli.models.load import LanguageModel
from kdcli.models.zeros import compressed_bytes, zero_share
from kdcli.storage.locate import model_of

# Reads the energy counters that a platform offers; where it offers none, energy is unknown, never 0.


RAPL = Path("/sys/class/powercap")


@runtime_checkable
class Meter(Protocol):
    """Something that counts energy."""

    @property
    def source(self) -> str:
        """What is counted."""
        ...

    def joules(self) -> float:
        """Return the energy since the last call, or since the meter was made."""
        ...


@dataclass
class _Counter:
    """One counter that starts again at its bound."""

    path: Path
    bound: int
    last: int

    def moved(self) -> int:
        now = int(self.path.read_text())
        grown = now - self.last if now >= self.last else now + self.bound - self.last
        self.last = now
        return grown


class Rapl:
    """The processor packages' counters of Linux; they count everything the packages do.

    Args:
        counters: one per package.
    """

    source = "RAPL, whole processor packages"

    def __init__(self, counters: list[_Counter]) -> None:
        self._counters = counters

    def joules(self) -> float:
        """Return the energy since the last call."""
        return sum(counter.moved() for counter in self._counters) * 1e-6


class Nvml:
    """The counter of an NVIDIA device.

    Args:
        library: the module ``pynvml``, initialised.
        handle: the device.
    """

    source = "NVML, whole device"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self._last = self._read()

    def joules(self) -> float:
        """Return the energy since the last call."""
        before, self._last = self._last, self._read()
        return (self._last - before) * 1e-3

    def _read(self) -> int:
        return int(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def energy_meter(device: torch.device, rapl: Path = RAPL) -> Meter | None:
    """Return a meter of what computes here; None where the platform reports no energy.

    Args:
        device: NVML is read for a CUDA device, RAPL for the CPU.
        rapl: where Linux keeps its counters.
    """
    return _nvml(device) if device.type == "cuda" else _rapl(rapl) if device.type == "cpu" else None


def _rapl(root: Path) -> Rapl | None:
    counters = []
    for zone in sorted(root.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue  # a part of a package, which would be counted twice
        try:
            path = zone / "energy_uj"
            counters.append(_Counter(path, int((zone / "max_energy_range_uj").read_text()), int(path.read_text())))
        except (OSError, ValueError):
            continue  # only root may read it on most systems
    return Rapl(counters) if counters else None


def _nvml(device: torch.device) -> Nvml | None:
    if importlib.util.find_spec("pynvml") is None:
        return None
    library = importlib.import_module("pynvml")
    try:
        library.nvmlInit()
        return Nvml(library, library.nvmlDeviceGetHandleByIndex(device.index or 0))
    except library.NVMLError:
        return None


_SCALE = 4


@dataclass(frozen=True)
class _Timed:
    first: float
    rest: float


@dataclass(frozen=True)
class Speed:
    """How fast a model answers one request at a time.

    Args:
        first_token_seconds: median time from prompt to first token.
        tokens_per_second: median speed after the first token.
        hardware: device, type and threads.
    """

    first_token_seconds: float
    tokens_per_second: float
    hardware: str


def measure_speed(model: LanguageModel, config: EdgeConfig, device: Device, report: Report) -> Speed:
    """Measure the speed of a model that is loaded, as :func:`measure_edge` does.

    Raises:
        InputError: its context is too short, or it keeps no cache.
    """
    _check_room(model, config)
    times, _, _ = _repeated(model, config, device, report)
    speeds = [(config.new_tokens - 1) / one.rest for one in times]
    first = statistics.median(one.first for one in times)
    return Speed(first, statistics.median(speeds), hardware_of(device))


def measure_edge(path: str, config: EdgeConfig, device: Device, report: Report) -> Edge:
    """Measure a model that answers one request at a time.

    One prompt of ``prompt_tokens`` is read and ``new_tokens`` are added greedily, with a key-value cache and
    without stopping at an end token; once to warm up, then ``repeats`` times. Speeds are medians.

    Args:
        path: model folder or hub id.
        config: lengths and repeats.
        device: where to compute; weights are held in its dtype.
        report: called with progress events.

    Returns:
        sizes of the files, and what was measured.

    Raises:
        InputError: the model cannot be used, its context is too short, or it keeps no cache.
    """
    checked = open_measured(path)
    before = process_bytes(device)
    model = load_measured(path, device.device, device.compute)
    tensors = list(checked.tensors.values()) or [
        TensorInfo("F32", tuple(one.shape)) for one in model.model.parameters()
    ]
    _check_room(model, config)
    gc.collect()
    reset_peak_memory(device.device)
    times, joules, source = _repeated(model, config, device, report)
    zeros = None if is_export(path) else zero_share(model.model)
    first, speed = [one.first for one in times], [(config.new_tokens - 1) / one.rest for one in times]
    return Edge(
        parameters=sum(one.numel() for one in model.model.parameters()),
        disk_bytes=sum(file.stat().st_size for file in checked.files),
        bytes_by_dtype=stored_types(path) or bytes_by_dtype(tensors),
        int8_bytes=int8_bytes(tensors),
        peak_bytes=max(peak_memory(device.device) - before, 0),
        first_token_seconds=statistics.median(first),
        first_token_range=(min(first), max(first)),
        tokens_per_second=statistics.median(speed),
        tokens_per_second_range=(min(speed), max(speed)),
        joules_per_token=joules / (config.repeats * config.new_tokens) if joules else None,
        energy_source=source,
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        repeats=config.repeats,
        hardware=hardware_of(device) + runner_of(path),
        zeros=zeros,
        compressed_bytes=compressed_bytes(checked.files) if is_sparse(zeros) else None,
    )


def _repeated(
    model: LanguageModel, config: EdgeConfig, device: Device, report: Report
) -> tuple[list[_Timed], float | None, str]:
    """Return the times of the repeats, their energy and what reported it; the first answer warms up."""
    report(Event("stage", "measuring speed", total=config.repeats))
    prompt = _prompt(model, config.prompt_tokens)
    _speak(model, prompt, config.new_tokens, device)
    meter, times = energy_meter(device.device), []
    for done in range(config.repeats):
        times.append(_speak(model, prompt, config.new_tokens, device))
        report(Event("progress", "measuring speed", done=done + 1, total=config.repeats))
    return (times, None, "") if meter is None else (times, meter.joules(), meter.source)


def hardware_of(device: Device) -> str:
    """Return what computes: the device, its threads and the type of the numbers."""
    name = torch.cuda.get_device_name(device.device) if device.device.type == "cuda" else ""
    where = name or f"{device.device.type}, {torch.get_num_threads()} threads"
    return f"{where}, {str(device.compute).removeprefix('torch.')}"


def bytes_by_dtype(tensors: Sequence[TensorInfo]) -> dict[str, int]:
    """Return the bytes of tensors by the type they are stored in.

    >>> bytes_by_dtype([TensorInfo("F32", (2, 3)), TensorInfo("BF16", (4,))])
    {'BF16': 8, 'F32': 24}
    """
    found: dict[str, int] = {}
    for info in tensors:
        found[info.dtype] = found.get(info.dtype, 0) + info.numel * info.bytes_per_number
    return dict(sorted(found.items()))


def int8_bytes(tensors: Sequence[TensorInfo]) -> int:
    """Return the bytes after storing every matrix in 8 bits with one fp32 scale per row; vectors stay as they are.

    >>> int8_bytes([TensorInfo("F32", (2, 3)), TensorInfo("F32", (4,))])
    30
    """
    return sum(
        info.numel + _SCALE * (info.numel // info.shape[-1])
        if len(info.shape) > 1 and info.numel and info.bytes_per_number > 1
        else info.numel * info.bytes_per_number
        for info in tensors
    )


def _check_room(model: LanguageModel, config: EdgeConfig) -> None:
    total = config.prompt_tokens + config.new_tokens
    if model.positions is not None and total > model.positions:
        what = f"{total} tokens do not fit the model's context of {model.positions}"
        raise InputError("EDGE-01", what, where=model.path, fix="lower edge.prompt_tokens and edge.new_tokens")


def _prompt(model: LanguageModel, length: int) -> Tensor:
    """Return the ids of a prompt; which ones they are does not change the cost."""
    return torch.arange(length, device=model.model.device)[None] % model.vocab


def _speak(model: LanguageModel, prompt: Tensor, new: int, device: Device) -> _Timed:
    """Read the prompt and add tokens; return the time to the first one and that of the others."""
    trunk = trunk_of(model.model)
    with torch.inference_mode():
        started = _now(device)
        seen = trunk(input_ids=prompt, use_cache=True)
        token = _likeliest(model, seen.last_hidden_state)
        first = _now(device)
        for _ in range(new - 1):
            seen = trunk(input_ids=token, use_cache=True, **_cache(model, seen))
            token = _likeliest(model, seen.last_hidden_state)
        return _Timed(first - started, _now(device) - first)


def _cache(model: LanguageModel, seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cache that a forward pass handed back, as the argument that takes it."""
    handed = cache_in(seen)
    if handed is None:
        what = f"{type(model.model).__name__} hands back no cache when it is asked for one"
        raise InputError("EDGE-02", what, where=model.path, fix="leave --edge out")
    return dict([handed])


def _likeliest(model: LanguageModel, hidden: Tensor) -> Tensor:
    return model.logits(hidden[:, -1]).argmax(-1, keepdim=True)


def _now(device: Device) -> float:
    if device.device.type == "cuda":
        torch.cuda.synchronize(device.device)
    return time.perf_counter()


# Measurements besides scores on rows: benchmarks, and size, memory, speed and energy on this machine.


TASKS = "tasks"
"""Where a record's protocol says what its benchmarks' numbers follow from; known once they have run."""


@dataclass(frozen=True)
class ExtraMeasurements:
    """What was measured besides the scores on rows.

    Args:
        benchmarked: scores of tasks.
        edge: what the model costs here; None where that was not asked for.
    """

    benchmarked: Benchmarked = field(default_factory=lambda: Benchmarked((), {}, 0, {}))
    edge: Edge | None = None

    def join(self, record: EvalRecord) -> EvalRecord:
        """Return the record with this in it."""
        found = self.benchmarked
        protocol = record.protocol | ({TASKS: found.protocol} if found.protocol else {})
        estimates = record.estimates | found.estimates
        infos = record.infos + found.infos
        return replace(
            record, estimates=estimates, infos=infos, protocol=protocol, edge=self.edge, documents=found.values
        )


@dataclass(frozen=True)
class ExtraTools:
    """What will run the tasks, and the tasks."""

    harness: Harness
    tasks: Tasks


def load_extra_tools(benchmarks: BenchmarkConfig) -> ExtraTools | None:
    """Return the loaded tasks, None without any; what is wrong with them is found before any weight is read.

    Raises:
        UsageError: BENCH-01, lm-evaluation-harness is not installed.
        InputError: BENCH-02, no such task.
        MachineError: BENCH-04, a task's documents cannot be had.
    """
    if not benchmarks.tasks:
        return None
    harness = LmEval()
    return ExtraTools(harness, load_tasks(harness, benchmarks))


def measure_extras(
    edge: EdgeConfig,
    benchmarks: BenchmarkConfig,
    model: str,
    device: Device,
    report: Report,
    ready: ExtraTools | None = None,
) -> ExtraMeasurements:
    """Measure what the settings ask for besides the scores on rows; the model is loaded for it, and released.

    Args:
        edge: whether size and speed are measured, and how.
        benchmarks: tasks of lm-evaluation-harness.
        model: run or model folder.
        device: where to compute.
        report: called with progress events.
        ready: the tasks, and what runs them; None without tasks.

    Raises:
        KDError: the model or a task cannot be used.
    """
    path = model_of(model)
    found = measure_edge(path, edge, device, report) if edge.measure else None
    if ready is None:
        return ExtraMeasurements(edge=found)
    loaded = load_measured(path, device.device, device.compute)
    return ExtraMeasurements(run_tasks(loaded, ready.tasks, benchmarks, report, ready.harness), found)
