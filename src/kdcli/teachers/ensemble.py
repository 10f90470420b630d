"""An ensemble of live teachers."""

from typing import Literal

from kdcli.data.batching import Batch
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Packing
from kdcli.teachers.base import LiveTeacher, Mixture, Teacher


class EnsembleTeacher(Teacher):
    """Live teachers of one tokenizer whose distributions are mixed.

    Args:
        models: the teachers; no gradient is taken.
        weights: one above 0 for each, sum 1.
        space: where they are mixed.
    """

    def __init__(
        self, models: tuple[LanguageModel, ...], weights: tuple[float, ...], space: Literal["probability", "log"]
    ) -> None:
        self._models, self.weights = models, weights
        self.space: Literal["probability", "log"] = space

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """All of them."""
        return self._models

    def side(self, batch: Batch, packing: Packing) -> Mixture:
        """Run every trunk and gather the valid tokens' hidden states."""
        members = tuple(LiveTeacher(model).side(batch, packing) for model in self.models)
        return Mixture(members, self.weights, self.space)
