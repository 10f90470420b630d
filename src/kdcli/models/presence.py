"""Whether an accelerator can be here at all, said without loading PyTorch; of what is left open, PyTorch is asked."""

import ctypes
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from kdcli.errors import MachineError

_DRIVERS = ("libcuda.so.1", "libamdhip64.so", "nvcuda.dll")


def check_present(kind: str) -> None:
    """Refuse an accelerator that certainly is not here.

    Args:
        kind: as for --device.

    Raises:
        MachineError: CLI-15.
    """
    if (kind == "cuda" and _no_cuda()) or (kind == "mps" and sys.platform != "darwin"):
        raise no_device(kind)


def no_device(kind: str) -> MachineError:
    """Return the error of an accelerator that is not here."""
    return MachineError("CLI-15", f"no {kind.upper()} device", where=f"--device {kind}", fix="use --device cpu")


@cache
def _no_cuda() -> bool:
    """Whether PyTorch was built without CUDA, or no driver can be loaded; a build for ROCm brings its own."""
    try:
        build = version("torch").partition("+")[2]
    except PackageNotFoundError:
        return False
    if build == "cpu" or sys.platform == "darwin":
        return True
    return not build.startswith("rocm") and not any(_loads(name) for name in _DRIVERS)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
