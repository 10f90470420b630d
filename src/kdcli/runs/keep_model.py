"""Keeps a student, its card and its adapter as folders that appear whole or not at all."""

from pathlib import Path
from typing import Any

from kdcli import durable
from kdcli.models.adapter import save_adapter
from kdcli.models.load import LanguageModel
from kdcli.models.save import rehearse_saving, save_student
from kdcli.runs.card import CARD
from kdcli.runs.folder import ADAPTER


def save_model(model: LanguageModel, final: Path, extra: dict[str, Any], card: str) -> None:
    """Write a student and its card as a transformers folder that appears whole or not at all."""

    def fill(target: Path) -> None:
        save_student(model, target)
        (target / CARD).write_text(card, encoding="utf-8")

    durable.commit_folder(final, fill, {"kind": "model", **extra})


def rehearse(model: LanguageModel, run: Path, card: str, *, adapter: bool) -> None:
    """Write all that a run will keep of its student but the weights, and remove it again.

    Args:
        model: the student before training.
        run: the run's folder.
        card: its card.
        adapter: whether its adapter will be kept, too.

    Raises:
        InputError: MOD-25, something of it cannot be saved.
        MachineError: the disk refuses.
    """
    with durable.scratch(run) as place:
        rehearse_saving(model, place)
        (place / CARD).write_text(card, encoding="utf-8")
        if adapter:
            save_adapter(model.adapter, place)


def save_adapter_alone(model: LanguageModel, run: Path) -> None:
    """Write a student's adapter beside it, into a run's folder."""
    durable.commit_folder(run / ADAPTER, lambda target: save_adapter(model.adapter, target), {"kind": "adapter"})
