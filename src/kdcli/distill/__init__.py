"""One training run, from checked settings to a saved student: ``kd distill``."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package, which can be called: ``kdcli.distill(...)`` trains, ``kdcli.distill.plan`` is a module in it."""

    def __call__(self, *config: Any, **settings: Any) -> Any:
        """Train; see :func:`kdcli.interface.distill`."""
        from importlib import import_module

        return import_module("kdcli.interface").distill(*config, **settings)


sys.modules[__name__].__class__ = _Callable
