"""What a run was made with: recorded, never required to be equal."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from kdcli import __version__

_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "evaluate", "rouge-score", "numpy")


def environment() -> dict[str, Any]:
    """Return versions, command line, source revision and threads of this process."""
    return {
        "kd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "revision": _revision(),
        "argv": sys.argv,
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say what changed between two environments in a way that can change the last bits.

    >>> changes({"kd": "1", "threads": 2, "libraries": {}}, {"kd": "1", "threads": 4, "libraries": {}})
    ['threads were 2 and are now 4: the last bits of the numbers may differ']
    """
    pairs = [("kd was", before.get("kd"), now["kd"]), ("threads were", before.get("threads"), now["threads"])]
    for name, version in now["libraries"].items():
        pairs.append((f"{name} was", before.get("libraries", {}).get(name, version), version))
    may = "the last bits of the numbers may differ"
    verb = {"were": "are", "was": "is"}
    return [f"{name} {old} and {verb[name.split()[-1]]} now {new}: {may}" for name, old, new in pairs if old != new]


def _revision() -> str | None:
    """Return the commit of the package's own source tree, with ``-dirty``; None when installed without one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    commands = (["describe", "--always", "--abbrev=12", "--exclude=*"], ["status", "--porcelain", "-uno"])
    try:
        revision, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}-dirty" if changed else revision
