"""Distil a language model into a small one, and compare divergence objectives honestly.

Everything is loaded on first use. Whole runs and studies, as the commands do them::

    kdcli.distill(teacher="./T", student="./S", data="train.jsonl", loss="akl", output="runs/akl")
    kdcli.compare(losses=["fkl", "akl"], seeds=[0, 1, 2], ..., output="study")
    kdcli.evaluate("runs/akl", data="test.jsonl", metric=["rougeL", "ece"])
    kdcli.load_study("study")

Objectives inside a trainer of your own::

    kdcli.objective("0.5*ce+0.5*akl:mu=0.6")
    kdcli.token_losses(objective, student_logits, teacher_logits, labels)
    kdcli.fused_loss(objective, student_hidden, student_head, teacher_hidden, teacher_head, labels)
"""

import importlib
from typing import Any

from kdcli.version import __version__

__all__ = [
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "fused_loss",
    "load_study",
    "objective",
    "token_losses",
]

_HOMES = {
    **dict.fromkeys(("compare", "evaluate", "load_study"), "kdcli.interface"),
    **dict.fromkeys(("fused_loss", "objective", "token_losses"), "kdcli.api"),
}


def __getattr__(name: str) -> Any:
    if name == "distill":  # a package that can be called
        return importlib.import_module("kdcli.distill")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kdcli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
