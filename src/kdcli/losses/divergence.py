"""The import path of plug-ins: :mod:`kdcli.losses.divergences.base`."""

from kdcli.losses.divergences.base import Divergence

__all__ = ["Divergence"]
