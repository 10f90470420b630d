"""Trackers of experiments, looked for before anything is trained."""

from collections.abc import Sequence

from accelerate.tracking import filter_trackers
from accelerate.utils import LoggerType

from kdcli.errors import MachineError, UsageError
from kdcli.spelling import nearest
from kdcli.text import one_line

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
    known = [str(kind.value) for kind in LoggerType]
    for name in names:
        if name not in known:
            near = nearest(name, {one: one for one in known})
            fix = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
            raise UsageError("TRACK-01", f'no tracker "{one_line(name, 60)}"', where="train.report_to", fix=fix)
        if not filter_trackers([name], "."):
            fix = f"pip install {_PACKAGES.get(name, name)}"
            raise MachineError("TRACK-02", f"{name} is not installed", where="train.report_to", fix=fix)
