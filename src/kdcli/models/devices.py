"""Chooses device and precision."""

import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from kdcli import distributed
from kdcli.config.sections import HardwareConfig
from kdcli.distributed import check_count, cores
from kdcli.errors import MachineError, UsageError
from kdcli.models.presence import no_device


@dataclass(frozen=True)
class Device:
    """Where a run computes.

    Args:
        device: torch device.
        autocast: dtype of the forward pass; None computes in fp32.
        description: one line naming the choices.
        planned: memory in bytes of a GPU that need not be here; None for a device that is.
    """

    device: torch.device
    autocast: torch.dtype | None
    description: str
    planned: int | None = None

    @property
    def compute(self) -> torch.dtype:
        """Dtype of the head products."""
        return self.autocast or torch.float32


def planned_device(hardware: HardwareConfig, memory: int) -> Device:
    """Return GPUs to plan for that need not be here; bf16 unless another dtype is set.

    Args:
        hardware: the run's settings.
        memory: bytes of each GPU.

    Raises:
        UsageError: the dtype is not supported, or the run is to compute on something else.
    """
    if hardware.device not in ("auto", "cuda"):
        what = f"a plan for GPUs of a given size, and --device {hardware.device}"
        raise UsageError("CLI-09", what, where="--gpu-memory", fix="leave one of them out")
    _refuse_fp16(hardware)
    half = hardware.dtype != "fp32"
    many = f"{hardware.gpus} GPUs" if hardware.gpus > 1 else "a GPU"
    description = (
        f"planned for {many} of {memory / 2**30:.4g} GiB, {'bf16 autocast' if half else 'fp32'}; not on this machine"
    )
    return Device(torch.device("cuda"), torch.bfloat16 if half else None, description, memory)


def memory_of(device: Device) -> int | None:
    """Return the bytes of a GPU's memory, of one that is here or planned for; None where none computes."""
    if device.planned is not None or device.device.type != "cuda":
        return device.planned
    return torch.cuda.get_device_properties(device.device).total_memory


def _refuse_fp16(hardware: HardwareConfig) -> None:
    if hardware.dtype == "fp16":
        raise UsageError(
            "CLI-16",
            "fp16 training needs loss scaling, which kd does not do",
            where="--dtype fp16",
            fix="use fp32 or bf16",
        )


def prepare(hardware: HardwareConfig) -> Device:
    """Resolve ``auto``, set threads and matmul precision.

    Raises:
        MachineError: the device is missing, or there are fewer than processes on this machine.
        UsageError: the dtype is not supported on it.
    """
    kind = _kind(hardware.device)
    _refuse_fp16(hardware)
    half = hardware.dtype == "bf16" or (hardware.dtype == "auto" and kind == "cuda" and torch.cuda.is_bf16_supported())
    if hardware.threads:
        check_count(hardware.threads, cores(), "CPU cores", "--threads")
        torch.set_num_threads(hardware.threads)
    torch.set_float32_matmul_precision(hardware.matmul_precision)
    why = "" if hardware.dtype != "auto" else " (auto)"
    name = torch.cuda.get_device_name() if kind == "cuda" else f"{torch.get_num_threads()} threads"
    several = f" · {distributed.world()} processes" if distributed.world() > 1 else ""
    description = (
        f"{kind}{several} · {'bf16 autocast' if half else 'fp32'}{why} · {name} · matmul {hardware.matmul_precision}"
    )
    return Device(_place(kind), torch.bfloat16 if half else None, description)


def check_processes(hardware: HardwareConfig) -> None:
    """Refuse more processes of one run than this machine can hold: one for each GPU, or for each core of a CPU.

    Raises:
        MachineError: names how many there can be.
    """
    kind = _kind(hardware.device)
    most, what = {"cuda": (torch.cuda.device_count(), "CUDA devices"), "mps": (1, "MPS device")}.get(
        kind, (cores(), "CPU cores")
    )
    check_count(hardware.gpus, most, what, "--gpus")


def _place(kind: str) -> torch.device:
    """Return this process' device: of several processes on a machine each has a GPU of its own."""
    several = distributed.world()
    if several == 1 or kind == "cpu":
        return torch.device(kind)
    number, there = distributed.local_rank(), torch.cuda.device_count() if kind == "cuda" else 1
    if number >= there:
        what = f"process {number} of this machine has no {kind.upper()} device: there are {there}"
        raise MachineError("CLI-15", what, where="--gpus", fix=f"use --gpus {there}, or --device cpu")
    if kind == "cuda":
        torch.cuda.set_device(number)
    return torch.device(kind, number)


def _kind(wanted: str) -> str:
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[wanted]:
        raise no_device(wanted)
    return wanted


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes since the last reset: the device's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def process_bytes(device: Device) -> int:
    """Return what this process holds before any model: on a CPU the interpreter and its libraries, on a GPU nothing."""
    if device.device.type != "cpu":
        return 0
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
