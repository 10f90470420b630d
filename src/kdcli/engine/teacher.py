"""What the engine asks of a teacher: hidden states of the tokens that count, and a head to read them."""

from typing import Protocol, runtime_checkable

from kdcli.data.collate import Batch
from kdcli.engine.inside import Look, look_at_teacher
from kdcli.engine.mixture import Mixture
from kdcli.engine.pack import Packing
from kdcli.engine.projection import Projection
from kdcli.losses.coarse import Coarse
from kdcli.losses.layers import Layers
from kdcli.models.load import LanguageModel


@runtime_checkable
class Teacher(Protocol):
    """A teacher as the engine sees it, running or remembered."""

    def side(self, batch: Batch, packing: Packing) -> Projection | Mixture | Coarse:
        """Return what it says of a micro-batch's valid tokens, without gradient.

        Hidden states and the head that reads them, or those of several models and how to mix them; or, of a
        compact cache, the likeliest tokens and the rest.
        """
        ...


@runtime_checkable
class OpenTeacher(Teacher, Protocol):
    """A teacher whose layers can be looked at while it runs."""

    model: LanguageModel

    def look(self, batch: Batch, packing: Packing, layers: Layers) -> Look:
        """Return what :meth:`side` does, and the layers asked for."""
        ...


class LiveTeacher:
    """A teacher that runs, under whatever autocast the caller is in.

    On a CPU every sequence goes through the trunk alone and without padding: its hidden states then
    depend on the sequence only, not on its company, so what was kept from an earlier pass equals a new
    pass bit for bit. On an accelerator the micro-batch stays together.

    Args:
        model: the teacher; no gradient is taken.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Run the trunk and gather the valid tokens' hidden states."""
        return self.look(batch, packing, Layers()).side

    def look(self, batch: Batch, packing: Packing, layers: Layers) -> Look:
        """Run the trunk once and gather the valid tokens' states in the layers asked for, too."""
        return look_at_teacher(self.model, batch, packing, layers)
