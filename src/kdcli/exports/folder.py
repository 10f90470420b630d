"""Folders of exported models: what ``about.json`` says of one, the model in it, and how far its answers moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from kdcli.data.tokenize import Example
from kdcli.errors import InputError, KDError
from kdcli.exports.formats import FORMATS
from kdcli.exports.gguf_file import Rounding
from kdcli.exports.targets import check_libraries, parse_target
from kdcli.models.checks import ModelFolder, check_settings, drop_unsafe_keys, model_digest, open_folder
from kdcli.models.headers import read_table
from kdcli.models.load import LanguageModel, assemble
from kdcli.models.tokenizer import folder_end_tokens, load_tokenizer
from kdcli.models.weights import build_config
from kdcli.storage import stored
from kdcli.text import one_line

ABOUT = "about.json"
ROWS = 32
"""Rows that an exported model is measured on."""
_QUANTIZATION = "quantization_config"


@dataclass(frozen=True)
class Source:
    """What something was made from.

    Args:
        name: as it was given.
        sha256: what identifies it.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Difference:
    """Differences on the response tokens of some rows.

    Args:
        rows: how many rows.
        tokens: of their responses.
        largest_logit_gap: greatest difference of two logits.
        kl: mean over tokens of KL(source || exported), in nats.
        agreement: share of tokens at which both give the same token the highest probability.
    """

    rows: int
    tokens: int
    largest_logit_gap: float
    kl: float
    agreement: float


@dataclass(frozen=True)
class About:
    """What a folder of an exported model says of itself.

    Args:
        kd: version that wrote it.
        target: format and quantizer.
        source: the model it was made from.
        rows: the rows it was measured on, and how many.
        files: name -> sha256 of each file that holds weights.
        bytes: of these files together.
        source_bytes: of the source's weight files.
        bytes_by_type: type -> bytes of its tensors.
        libraries: name -> version.
        weights: type -> how far its weights moved.
        difference: from the source's answers, measured on the rows.
        lines: texts that the format's own tokenizer was tried on; 0 where it has none.
        same_lines: how many of them it reads as the model's tokenizer does.
        notes: what the format cannot say of the model.
    """

    kd: str
    target: str
    source: Source
    rows: Source
    files: Mapping[str, str]
    bytes: int
    source_bytes: int
    bytes_by_type: Mapping[str, int]
    libraries: Mapping[str, str]
    weights: Mapping[str, Rounding]
    difference: Difference
    lines: int
    same_lines: int
    notes: tuple[str, ...] = ()


def is_export(path: str) -> bool:
    """Whether a path is a folder that ``kd export`` wrote."""
    file = Path(path).expanduser() / ABOUT
    try:
        return file.is_file() and {"kd", "target", "source"} <= stored.read_record(file, dict[str, object]).keys()
    except KDError:
        return False


def read_about(path: str) -> About:
    """Return what a folder says of itself.

    Raises:
        IntegrityError: it is damaged.
    """
    return stored.read_record(Path(path).expanduser() / ABOUT, About)


def open_export(path: str) -> ModelFolder:
    """Return the folder of an exported model as a model folder that was looked at.

    Args:
        path: a folder that ``is_export``.

    Raises:
        KDError: its files are damaged.
    """
    folder, about = Path(path).expanduser(), read_about(path)
    raw = read_table(folder / "config.json", "MOD-02")
    raw.pop(_QUANTIZATION, None)  # what the weights are rounded to is the target's own
    check_settings(raw, folder / "config.json")
    settings, _ = drop_unsafe_keys(raw)
    files = tuple(folder / Path(name).name for name in sorted(about.files))
    missing = [one.name for one in files if not one.is_file()]
    if missing:
        what = f"{one_line(missing[0])} is missing"
        raise InputError("MOD-07", what, where=path, fix="export the model again")
    return ModelFolder(path, folder, settings, files, {})


def open_measured(path: str) -> ModelFolder:
    """Return a model folder, exported or not, that was looked at.

    Raises:
        KDError: it cannot be used.
    """
    return open_export(path) if is_export(path) else open_folder(path)


def load_export(path: str, device: torch.device) -> LanguageModel:
    """Return an exported model, to be measured.

    Args:
        path: a folder that ``is_export``.
        device: where it computes.

    Raises:
        KDError: its files are damaged, or the library that reads them is not installed.
    """
    about, checked = read_about(path), open_export(path)
    target = parse_target(about.target)
    check_libraries(target)
    tokenizer, digest = load_tokenizer(path), model_digest(checked)
    config = build_config(checked.settings, str(checked.folder))
    model = FORMATS[target.format].load(checked.folder, config)
    table = checked.settings.get("text_config") or checked.settings
    ends, _ = folder_end_tokens(checked, tokenizer, table["vocab_size"], path)
    return assemble(model, tokenizer, path, digest, device=device, role="teacher", ends=ends)


def refuse_export(path: str) -> NoReturn:
    """Refuse an exported model where a model is trained, teaches, or is made into another.

    Raises:
        InputError: EXPORT-06.
    """
    what = f"the folder holds an export, {one_line(read_about(path).target, 40)}, which can be measured only"
    raise InputError("EXPORT-06", what, where=one_line(path), fix="give the model that it was made from")


def stored_types(path: str) -> Mapping[str, int]:
    """Return the bytes of an exported model's tensors by type; empty for another folder."""
    return read_about(path).bytes_by_type if is_export(path) else {}


def runner_of(path: str) -> str:
    """Return what runs an exported model here, to stand behind the name of a device; empty for another folder."""
    if not is_export(path):
        return ""
    target = parse_target(read_about(path).target)
    return f", {target}: {FORMATS[target.format].runs_as}"


def difference(before: LanguageModel, after: LanguageModel, rows: Sequence[Example]) -> Difference:
    """Measure two models of one tokenizer against each other, a row at a time, sums in 64 bits.

    Args:
        before: the source.
        after: the exported model.
        rows: the first 32 of them are read.
    """
    gap, divergence, same, tokens = 0.0, 0.0, 0, 0
    limits = [one.positions for one in (before, after) if one.positions is not None]
    read = rows[:ROWS]
    for row in read:
        ids = torch.tensor([row.ids[: min(limits)] if limits else row.ids])
        start = max(row.prompt_length - 1, 0)
        first, second = (_logits(model, ids)[start:-1].double() for model in (before, after))
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        gap = max(gap, (first - second).abs().max().item() if first.numel() else 0.0)
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        tokens += len(first)
    return Difference(len(read), tokens, gap, divergence / max(tokens, 1), same / max(tokens, 1))


def _logits(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        ids = ids.to(model.model.device)
        return model.logits(model.hidden(ids, torch.ones_like(ids))[0]).cpu()
