"""The fingerprint of an experiment: equal fingerprints give equal bits, others may not resume it."""

import hashlib
import importlib.metadata
import inspect
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kdcli.config.sections import LoraConfig, ServerConfig, TrainConfig
from kdcli.data.tokenize import TokenDataset
from kdcli.distill.compat import Combination
from kdcli.distill.validation import ValidationPlan
from kdcli.loading.info import ModelPair
from kdcli.losses.base import DistillLoss
from kdcli.models.adapters import ADAPTER_WEIGHTS, alpha_of
from kdcli.models.devices import Device
from kdcli.registry.options import Plugin
from kdcli.remote.address import is_url
from kdcli.sources.base import Source
from kdcli.storage import atomic
from kdcli.storage.run_dir import LATER_IN_IDENTITIES
from kdcli.version import __version__

MAY_DIFFER = frozenset({"save_every", "keep", "keep_finished", "log_every", "report_to", "epochs", "max_steps"})
"""Training settings that change no bit of the student; epochs and max_steps enter as ``steps``."""

ONLY_WHEN_SET = frozenset({"keep_zeros"})
"""Training settings that are part of an identity only where they are on, so that those of older runs stay."""

OWN = ("loss", "loss.code", "train.seed")
"""What tells the cells of one comparison apart; everything else must be equal."""


def fingerprint(
    run: Combination,
    train: TrainConfig,
    server: ServerConfig,
    device: Device,
    dataset: TokenDataset,
    corpus: TokenDataset | None,
    steps: int,
    validation: ValidationPlan | None,
) -> dict[str, Any]:
    """Return the flat table of everything that the student's weights depend on.

    Args:
        run: objective, source, teacher, placement.
        train: how it is trained.
        server: how a teacher behind a server is asked.
        device: resolved precision.
        dataset: training rows; their tokens count, not the file's name.
        corpus: rows of the second corpus, if the source reads one.
        steps: optimizer steps of the whole run.
        validation: what is measured while training; it counts where it may end the training, or the source follows it.
    """
    loss, source, pair = run.loss, run.source, run.pair
    assert pair is not None, "a combination with its models"
    seen = str(run.view) if run.view is not None else None
    follows = validation is not None and (validation.config.patience is not None or source.needs().monitor != "")
    code, needs = guest_code(source), source.needs()
    left_out = MAY_DIFFER if train.keep_zeros else MAY_DIFFER | ONLY_WHEN_SET
    trained = {f"train.{name}": value for name, value in train.model_dump(mode="json").items() if name not in left_out}
    return {
        "loss": run.label,
        "loss.code": guest_code(loss),
        "student": pair.student_identity,
        "teacher": pair.teacher.digest if pair.teacher and needs_teacher(loss, pair, source) else None,
        "teacher.seen": seen,
        **_other_tokenizer(pair, loss, source),
        "tokenizer": pair.reader.tokenizer_digest,
        "data": dataset.digest,
        "steps": steps,
        "precision": str(device.compute).removeprefix("torch."),
        "matmul_precision": run.hardware.matmul_precision,
        "threads": run.hardware.threads,
        **({"compile": _compiled(run, seen)} if run.hardware.compile else {}),
        **({"monitor": validation.identity} if validation is not None and follows else {}),
        **_classes(run, pair, needs=needs_teacher(loss, pair, source)),
        **_adapter(run.lora),
        **trained,
        **({"source.code": code} if code else {}),
        **({"corpus": corpus.digest} if corpus is not None else {}),
        **({} if needs.offline else {"data.max_length": run.data.max_length, **_endings(pair)}),
        **({"server.send": server.send} if needs.teacher and is_url(run.teacher or "") else {}),
    }


def _other_tokenizer(pair: ModelPair, loss: DistillLoss, source: Source) -> dict[str, Any]:
    """Return what a teacher of another tokenizer adds to the identity; nothing where both share theirs."""
    if pair.teacher is None or pair.teacher_vocab is None or not needs_teacher(loss, pair, source):
        return {}
    return {"teacher.tokenizer": pair.teacher.tokenizer_digest}


def _classes(run: Combination, pair: ModelPair, *, needs: bool) -> dict[str, Any]:
    """Return what classes add to the identity, and how a causal teacher is asked for them; nothing without classes."""
    if pair.reader.labels is None:
        return {}
    found: dict[str, Any] = {"classes": list(pair.reader.labels)}
    if needs and pair.teacher is not None:
        found["data.max_length"] = run.data.max_length
        if pair.teacher.labels is None:
            words = dict(sorted(run.data.class_names.items()))
            found |= {"class_prompt": run.data.class_prompt, "class_names": words, "class_score": run.data.class_score}
    return found


def _compiled(run: Combination, seen: str | None) -> str:
    """Return whose layers are compiled: the teacher's only if it runs, which differs from reading its cache."""
    return "student and teacher" if seen is not None and run.teacher_cache is None else "student"


def _adapter(lora: LoraConfig) -> dict[str, Any]:
    """Return what an adapter adds to the identity; nothing without one."""
    if lora.rank is None:
        return {}
    settings = lora.model_dump(mode="json", exclude={"keep", "start", "freeze_a"}) | {"alpha": alpha_of(lora)}
    if lora.start is not None:
        settings["start"] = atomic.digest_file(Path(lora.start) / ADAPTER_WEIGHTS)
    if lora.freeze_a:
        settings["freeze_a"] = True
    return {f"lora.{name}": value for name, value in settings.items()}


def _endings(pair: ModelPair) -> dict[str, Any]:
    """Return the tokens that end what the models write."""
    teacher = {} if pair.teacher is None else {"end_tokens.teacher": sorted(pair.teacher.ends.ids)}
    return {"end_tokens.student": sorted(pair.reader.ends.ids), **teacher}


def needs_teacher(loss: DistillLoss, pair: ModelPair, source: Source) -> bool:
    """Whether the teacher's weights can change the student: by the loss, by the source, or by its random start."""
    return loss.needs().anything_of_teacher or source.needs().teacher or pair.reader is pair.teacher


def guest_code(part: Plugin) -> str | None:
    """Return the sha256 over the files that hold losses or sources from outside the package; None without any."""
    files = {Path(inspect.getfile(kind)) for kind in _kinds(part) if not kind.__module__.startswith("kdcli.")}
    return atomic.digest_files(files) if files else None


def _kinds(value: Any) -> Iterator[type[Plugin]]:
    """Yield the class of a part and of every part among its options, however deep."""
    if isinstance(value, Plugin):
        yield type(value)
        for name in type(value).model_fields:
            yield from _kinds(getattr(value, name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _kinds(item)


def short_hash(identity: dict[str, Any]) -> str:
    """Return eight hex digits that name an identity; what older runs do not tell is left out, so that theirs stay.

    >>> short_hash({"loss": "akl"}) == short_hash({"loss": "akl", "end_tokens.student": [2]})
    True
    """
    told = {key: value for key, value in identity.items() if key not in LATER_IN_IDENTITIES}
    text = json.dumps(told, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# What a run was made with: recorded, never required to be equal.


_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "evaluate", "rouge-score", "numpy")


def environment() -> dict[str, Any]:
    """Return versions, command line, source revision and threads of this process."""
    return {
        "kd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "revision": _revision(),
        "argv": sys.argv,
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say what changed between two environments in a way that can change the last bits.

    >>> changes({"kd": "1", "threads": 2, "libraries": {}}, {"kd": "1", "threads": 4, "libraries": {}})
    ['threads were 2 and are now 4: the last bits of the numbers may differ']
    """
    pairs = [("kd was", before.get("kd"), now["kd"]), ("threads were", before.get("threads"), now["threads"])]
    for name, version in now["libraries"].items():
        pairs.append((f"{name} was", before.get("libraries", {}).get(name, version), version))
    may = "the last bits of the numbers may differ"
    verb = {"were": "are", "was": "is"}
    return [f"{name} {old} and {verb[name.split()[-1]]} now {new}: {may}" for name, old, new in pairs if old != new]


def _revision() -> str | None:
    """Return the commit of the package's own source tree, with ``-dirty``; None when installed without one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    commands = (["describe", "--always", "--abbrev=12", "--exclude=*"], ["status", "--porcelain", "-uno"])
    try:
        revision, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}-dirty" if changed else revision
