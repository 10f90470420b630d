"""Distil a language model into a small one, and compare divergence objectives honestly.

The library's three entry points load torch on first use only::

    kdcli.objective("0.5*ce+0.5*akl:mu=0.6")
    kdcli.token_losses(objective, student_logits, teacher_logits, labels)
    kdcli.fused_loss(objective, student_hidden, student_head, teacher_hidden, teacher_head, labels)
"""

import importlib
from typing import Any

from kdcli.version import __version__

__all__ = ["__version__", "fused_loss", "objective", "token_losses"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("kdcli.api"), name)
    raise AttributeError(f"module 'kdcli' has no attribute {name!r}")
