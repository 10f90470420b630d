"""What makes an experiment this experiment: equal identities give equal bits, others are refused."""

import hashlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcli import durable
from kdcli.config import DistillConfig, LoraConfig
from kdcli.data.dataset import TokenDataset
from kdcli.engine.devices import Device
from kdcli.losses.base import DistillLoss
from kdcli.models.adapter import alpha_of
from kdcli.runs.workshop import Pair

MAY_DIFFER = frozenset({"save_every", "keep", "log_every", "report_to", "epochs", "max_steps"})
"""Training settings that change no bit of the student; epochs and max_steps enter as ``steps``."""

OWN = ("loss", "loss.code", "train.seed")
"""What tells the cells of one comparison apart; everything else must be equal."""


def identity_of(
    config: DistillConfig,
    label: str,
    loss: DistillLoss,
    pair: Pair,
    dataset: TokenDataset,
    device: Device,
    steps: int,
    seen: str | None = None,
    ending: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the flat table of everything the student's bits follow from.

    Args:
        config: the run's settings.
        label: the objective in canonical form.
        loss: the objective, whose code counts if it is a guest's.
        pair: student and teacher.
        dataset: training rows; their tokens count, not the file's name.
        device: resolved precision.
        steps: optimizer steps of the whole run.
        seen: what the student sees of the teacher: the whole of it, or what a cache kept.
        ending: what may end training early.
    """
    train = {
        f"train.{name}": value for name, value in config.train.model_dump(mode="json").items() if name not in MAY_DIFFER
    }
    return {
        "loss": label,
        "loss.code": guest_code(loss),
        "student": pair.student_identity,
        "teacher": pair.teacher.digest if pair.teacher and needs_teacher(loss, pair) else None,
        "teacher.seen": seen,
        "tokenizer": pair.reader.tokenizer_digest,
        "data": dataset.digest,
        "steps": steps,
        "precision": str(device.compute).removeprefix("torch."),
        "matmul_precision": config.hardware.matmul_precision,
        "threads": config.hardware.threads,
        **({"gpus": config.hardware.gpus} if config.hardware.gpus > 1 else {}),
        **({"monitor": ending} if ending else {}),
        **_adapter(config.lora),
        **train,
    }


def _adapter(lora: LoraConfig) -> dict[str, Any]:
    """Return what an adapter adds to the identity; nothing without one."""
    if lora.rank is None:
        return {}
    settings = lora.model_dump(mode="json", exclude={"keep"}) | {"alpha": alpha_of(lora)}
    return {f"lora.{name}": value for name, value in settings.items()}


def needs_teacher(loss: DistillLoss, pair: Pair) -> bool:
    """Whether the teacher's weights can change the student: by the loss, or by its random start's form."""
    return loss.needs().teacher or pair.reader is pair.teacher


def guest_code(loss: DistillLoss) -> str | None:
    """Return the sha256 over the files that hold losses from outside the package; None without any."""
    files = {Path(inspect.getfile(kind)) for kind in _kinds(loss) if not kind.__module__.startswith("kdcli.")}
    return durable.digest_files(files) if files else None


def _kinds(value: Any) -> Iterator[type[DistillLoss]]:
    """Yield the class of a loss and of every loss among its options, however deep."""
    if isinstance(value, DistillLoss):
        yield type(value)
        for name in type(value).model_fields:
            yield from _kinds(getattr(value, name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _kinds(item)


def short_hash(identity: dict[str, Any]) -> str:
    """Return eight hex digits that name an identity.

    >>> short_hash({"loss": "akl"}) == short_hash({"loss": "akl"})
    True
    """
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
