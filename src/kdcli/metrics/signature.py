"""The signature of a metric: everything that changes its number."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Option: TypeAlias = int | float | str | tuple[int, ...]
"""Value of a metric's option."""

TEACHER_FACTS = frozenset(
    {
        "kl_from_teacher",
        "kl_to_teacher",
        "agree",
        "jsd",
        "total_variation",
        "top1_by_teacher",
        "brier_by_teacher",
        "nll_by_teacher",
    }
)
"""Token facts that cannot be had without a teacher."""

DEVELOPMENT_FACTS = frozenset({"scaled_top1_prob", "scaled_brier", "scaled_label_logp", "temperature"})
"""Token facts that cannot be had without development rows to fit a temperature on."""


def signature(name: str, settings: str, options: Mapping[str, Option], libraries: Sequence[str]) -> str:
    """Join everything that changes a number; libraries come with their installed version.

    >>> signature("ece", "top:1|norm:l1", {"bins": 15}, ())
    'ece|bins:15|top:1|norm:l1'
    """
    versions = [f"lib:{library}-{importlib.metadata.version(library)}" for library in libraries]
    chosen = [f"{key}:{_shown(value)}" for key, value in options.items() if value != ()]
    return "|".join([name, *versions, *chosen, *([settings] if settings else [])])


def _shown(value: Option) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
