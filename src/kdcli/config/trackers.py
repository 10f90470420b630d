"""Trackers of experiments: which there are, and whether they are installed; nothing is imported for it."""

import importlib.util
from collections.abc import Sequence

from kdcli.config.names import nearest
from kdcli.errors import MachineError, UsageError
from kdcli.text import one_line

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "aim": ("aim",),
    "clearml": ("clearml",),
    "comet_ml": ("comet_ml",),
    "dvclive": ("dvclive",),
    "swanlab": ("swanlab",),
}
"""Name that accelerate knows -> the modules of which one must be there."""

_PACKAGES = {"comet_ml": "comet-ml"}
"""Tracker -> the package that brings it, where the names differ."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that accelerate does not know, or that is not installed.

    Args:
        names: what ``train.report_to`` names.

    Raises:
        UsageError: TRACK-01, an unknown name.
        MachineError: TRACK-02, its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            near = nearest(name, {one: one for one in TRACKERS})
            fix = f"did you mean {near}?" if near else f"there are {', '.join(TRACKERS)}"
            raise UsageError("TRACK-01", f'no tracker "{one_line(name, 60)}"', where="train.report_to", fix=fix)
        if not any(importlib.util.find_spec(module) for module in TRACKERS[name]):
            fix = f"pip install {_PACKAGES.get(name, name)}"
            raise MachineError("TRACK-02", f"{name} is not installed", where="train.report_to", fix=fix)
