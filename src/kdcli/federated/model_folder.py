"""The student of a federation as an ordinary model folder: weights, tokenizer, card, and what it comes from."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from kdcli.distill.make_student import ORIGIN
from kdcli.distill.model_card import CARD, license_of, on_hub, shown_name, table
from kdcli.distill.prepare import Prepared
from kdcli.federated.rounds import RoundRecord
from kdcli.storage import atomic
from kdcli.text import markdown_cell
from kdcli.version import __version__


def write(
    final: Path, model: Path, whole: Prepared, identity: Mapping[str, Any], records: Sequence[RoundRecord]
) -> None:
    """Write the student after the last round, unless it is there.

    Args:
        final: its folder.
        model: what the last round left.
        whole: one run on all rows, checked.
        identity: what the federation is.
        records: of all rounds, from the student before them on.

    Raises:
        IntegrityError: the folder is there and damaged.
        MachineError: the disk is full or may not be written.
    """
    rounds = len(records) - 1
    if final.is_dir() and atomic.verify_folder(final).get("rounds") == rounds:
        return
    pair = whole.pair
    origin = {
        "kd": __version__,
        "student": {"name": shown_name(pair.student), "identity": str(whole.identity["student"])},
        "teacher": None if pair.teacher is None else shown_name(pair.teacher.path),
        "identity": identity,
        "rounds": [_told(one) for one in records],
    }

    def fill(target: Path) -> None:
        shutil.copytree(model, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(atomic.MANIFEST, CARD))
        (target / ORIGIN).write_text(json.dumps(origin, indent=1, default=str) + "\n", encoding="utf-8")
        (target / CARD).write_text(_card(whole, identity, records), encoding="utf-8")

    atomic.commit_folder(final, fill, {"kind": "model", "rounds": rounds})


def _told(record: RoundRecord) -> dict[str, Any]:
    """Return a round without what differs from one machine to the next."""
    measured_here = ("compute_seconds", "communication_seconds", "joules")
    return {name: value for name, value in asdict(record).items() if name not in measured_here}


def _card(whole: Prepared, identity: Mapping[str, Any], records: Sequence[RoundRecord]) -> str:
    pair = whole.pair
    student = pair.student if not pair.student_is_made else None
    data = ModelCardData(
        base_model=[student] if student is not None and on_hub(student) else None, license=license_of(student),
        library_name="transformers", pipeline_tag="text-generation", tags=["distillation", "federated", "kd"],
    )  # fmt: skip
    made_from = [("student at the start", shown_name(pair.student), str(whole.identity["student"]))]
    if pair.teacher is not None:
        made_from.insert(0, ("teacher", shown_name(pair.teacher.path), pair.teacher.digest))
    made_from.append(("training rows", f"{len(whole.dataset):,}", whole.dataset.digest))
    named = ("split", "clients", "server", "lora_mean", "weigh", "fraction", "drop", "train.epochs", "train.max_steps")
    settings = [(name, str(identity[name])) for name in named if identity.get(name) is not None]
    shown = [
        (str(one.round), f"{len(one.returned)} of {len(one.asked)}", f"{one.tokens:,}",
         "" if one.perplexity is None else f"{one.perplexity:.4g}")
        for one in records
    ]  # fmt: skip
    lines = [
        f"# {markdown_cell(shown_name(pair.student))}, {markdown_cell(whole.label)}, federated", "",
        "A student trained by clients on rows of their own, whose weights a server averaged.", "",
        *table(["made from", "what", "sha256"], made_from), "",
        *table(["setting", "value"], [("objective", whole.label), *settings, ("seed", str(whole.train.seed))]), "",
        *table(["round", "clients", "tokens", "held-out perplexity"], shown), "",
        f"All settings and numbers: {ORIGIN}.",
    ]  # fmt: skip
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n").content
