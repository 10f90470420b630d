"""Checks files, models and objectives of a command before anything heavy is imported."""

from collections.abc import Iterable
from typing import Any

from kdcli.config.trackers import check_trackers
from kdcli.data.files import inspect_path
from kdcli.registry.outline import check_objective
from kdcli.remote.address import is_url
from kdcli.storage.locate import locate

_MADE = ("random:", "cut:")
_SEVERAL = ("+", "*")
"""What stands in the text of a teacher that is a sum of teachers."""


def check_inputs(settings: Any) -> None:
    """Refuse rows and models that are not there, trackers that are not installed, and options out of their bounds.

    What remains, such as the contents of a file, is checked where it is read.

    Args:
        settings: of any command.

    Raises:
        KDError: the first thing that is wrong, in the words of the part that would meet it later.
    """
    data = getattr(settings, "data", None)
    for path in (data.train, data.eval, data.dev, data.corpus) if data is not None else ():
        if path is not None and not path.startswith("@"):
            inspect_path(path)
    for spec in _objectives(settings):
        check_objective(spec)
    train = getattr(settings, "train", None)
    if train is not None:
        check_trackers(train.report_to)
    for name in ("teacher", "student", "model"):
        model = getattr(settings, name, None)
        if model is not None and not (
            model.startswith(_MADE) or is_url(model) or any(sign in model for sign in _SEVERAL)
        ):
            locate(model)


def _objectives(settings: Any) -> Iterable[str]:
    yield from getattr(settings, "losses", ())
    if getattr(settings, "loss", None) is not None:
        yield settings.loss
