"""The short text that names everything which changes a metric's number."""

import importlib.metadata
from collections.abc import Mapping, Sequence

TEACHER_FACTS = frozenset({"kl_from_teacher", "kl_to_teacher", "agree"})
"""Token facts that cannot be had without a teacher."""


def signature(name: str, settings: str, options: Mapping[str, int], libraries: Sequence[str]) -> str:
    """Join everything that changes a number; libraries come with their installed version.

    >>> signature("ece", "top:1|norm:l1", {"bins": 15}, ())
    'ece|bins:15|top:1|norm:l1'
    """
    versions = [f"lib:{library}-{importlib.metadata.version(library)}" for library in libraries]
    chosen = [f"{key}:{value}" for key, value in options.items()]
    return "|".join([name, *versions, *chosen, *([settings] if settings else [])])
