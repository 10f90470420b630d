"""Whether this machine has a compiler for torch.compile."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from kdcli.errors import MachineError
from kdcli.text import one_line

_PROGRAM = '#include <Python.h>\n#include <cmath>\nextern "C" double probe(double x) { return std::tanh(x); }\n'
_PATIENCE = 60.0
_FIX = "install one, such as g++ with Python's headers, name it in CXX, or leave hardware.compile out"


def check_toolchain(device: str) -> None:
    """Compile one line the way the layers will be: with the C++ compiler that ``CXX`` names, or g++.

    Args:
        device: torch's name of the device type; a GPU needs triton too.

    Raises:
        MachineError: COMPILE-01, there is no compiler, it does not work, or triton is missing.
    """
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise _refuse("triton is not installed", "install PyTorch's build for this GPU, or leave hardware.compile out")
    compiler = os.environ.get("CXX", "g++")
    found = shutil.which(compiler)
    if found is None:
        raise _refuse(f"there is no C++ compiler: {one_line(compiler, 60)} is not found", _FIX)
    with tempfile.TemporaryDirectory(prefix="kd-probe-") as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(_PROGRAM, encoding="utf-8")
        headers = sysconfig.get_path("include")
        words = [found, "-shared", "-fPIC", "-std=c++17", f"-I{headers}", str(source), "-o", f"{folder}/probe.so"]
        try:
            ended = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _refuse(f"{one_line(found, 60)} cannot be run: {one_line(str(error), 100)}", _FIX) from error
    if ended.returncode != 0:
        said = next((line for line in ended.stderr.splitlines() if "error" in line), ended.stderr)
        raise _refuse(f"{one_line(found, 60)} cannot compile: {one_line(said, 120)}", _FIX)


def _refuse(what: str, fix: str) -> MachineError:
    return MachineError("COMPILE-01", what, where="hardware.compile", fix=fix)
