"""``kd export``: a model in another program's format, with what that changed."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData

from kdcli.config import resolve
from kdcli.config.schema import DistillConfig, ExportConfig
from kdcli.config.sections import DataConfig
from kdcli.data.tokenize import TokenDataset
from kdcli.distill.model_card import CARD, license_of, on_hub, shown_name, table
from kdcli.errors import InputError, UsageError
from kdcli.events import Event, Report
from kdcli.exports.folder import ABOUT, About, Difference, Source, difference, load_export, read_about
from kdcli.exports.formats import FORMATS
from kdcli.exports.gguf_file import Rounding
from kdcli.exports.targets import FORMATS as NEEDS
from kdcli.exports.targets import TARGETS, Target, check_libraries, parse_target
from kdcli.loading.info import ModelInfo
from kdcli.loading.session import Session, check_data_path, evaluation_digest
from kdcli.models.checks import ModelFolder, open_folder
from kdcli.models.devices import prepare
from kdcli.models.load import LanguageModel, load_model, save_settings
from kdcli.storage import atomic
from kdcli.storage.locate import model_of
from kdcli.storage.run_dir import CONFIG, RunFolder
from kdcli.text import markdown_cell, one_line, typed
from kdcli.version import __version__

_LINES = 1000
"""Texts that the format's own tokenizer is tried on, at most."""


@dataclass(frozen=True)
class ExportRecord:
    """A model that was exported, or would be.

    Args:
        folder: where it lies; None where nothing was written.
        target: format and quantizer.
        source: the model, as it was given.
        sha256: what identifies it.
        files: name -> sha256 of each file that holds weights; empty where nothing was written.
        bytes: of these files together.
        source_bytes: of the source's weight files.
        weights: type -> how far its weights moved.
        difference: from the source's answers; None where nothing was written.
        lines: texts that the format's own tokenizer was tried on; 0 where it has none.
        same_lines: how many of them it reads as the model's tokenizer does.
        notes: what the format cannot say of the model.
        already: whether it was there before.
    """

    folder: Path | None
    target: str
    source: str
    sha256: str
    files: Mapping[str, str]
    bytes: int
    source_bytes: int
    weights: Mapping[str, Rounding]
    difference: Difference | None
    lines: int
    same_lines: int
    notes: tuple[str, ...] = ()
    already: bool = False


@dataclass(frozen=True)
class _Asked:
    """An export whose parts are checked; no weight is read."""

    target: Target
    facts: ModelInfo
    checked: ModelFolder
    rows: TokenDataset
    notes: tuple[str, ...]

    @property
    def identity(self) -> str:
        return f"{self.target} of {self.facts.digest} on {evaluation_digest(self.rows)}"


def make_export(config: ExportConfig, report: Report, session: Session | None = None) -> ExportRecord:
    """Write a model in another program's format, and measure what that changed.

    A folder that holds this very export is left as it is.

    Args:
        config: the model, the format, rows and folder.
        report: called with progress events.
        session: what is loaded already.

    Raises:
        KDError: of the kind that fits; a mistake in the settings is found before weights are read.
    """
    asked = _prepare(config, session or Session())
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="name one")
    folder = Path(config.output)
    if folder.parent.is_dir():
        atomic.remove_temporaries(folder.parent)
    if (found := _already(folder, asked.identity)) is not None:
        return found
    for note in (*asked.facts.notes, *asked.rows.notes, *asked.notes):
        report(Event("note", note))
    device = prepare(config.hardware).device
    report(Event("stage", f"exporting to {asked.target}"))
    model = load_model(model_of(asked.facts.path), device=torch.device("cpu"), role="teacher")
    atomic.make_folder(folder.parent)

    def fill(place: Path) -> None:
        _fill(place, model, asked, device, report)

    atomic.commit_folder(folder, fill, {"kind": "export", "export": asked.identity})
    return _record(read_about(str(folder)), folder)


def plan_export(config: ExportConfig) -> ExportRecord:
    """Say what would be exported; nothing is written, no weight is read."""
    asked = _prepare(config, Session())
    size = sum(file.stat().st_size for file in asked.checked.files)
    return ExportRecord(
        None, str(asked.target), asked.facts.path, asked.facts.digest, {}, 0, size, {}, None, 0, 0, asked.notes
    )


def _prepare(config: ExportConfig, session: Session) -> _Asked:
    if config.to is None:
        raise UsageError("CLI-20", "no format", where="--to", fix=f"give one of {', '.join(TARGETS)}")
    if config.model is None:
        raise UsageError("CLI-20", "no model", where="kd export", fix="give a run, a model folder or a hub id")
    target = parse_target(config.to)
    check_libraries(target)
    facts, checked = session.inspect(config.model), open_folder(model_of(config.model))
    notes = FORMATS[target.format].check(checked, facts.tokenizer, facts.rows)
    data, path = _rows_of(config)
    rows = session.data(check_data_path(path, "--data"), facts, data, role="eval")
    return _Asked(target, facts, checked, rows, notes)


def _rows_of(config: ExportConfig) -> tuple[DataConfig, str]:
    """Return the rows to measure on, and how they are read: those that are given, else the run's held-out ones."""
    if config.data.train is not None:
        return config.data, config.data.train
    run = Path(str(config.model)).expanduser()
    if RunFolder(run).is_run:
        data = resolve.resolve(DistillConfig, file=run / CONFIG).data
        if data.eval is not None and Path(data.eval).expanduser().exists():
            return data, data.eval
    what = "no rows to measure the exported model on"
    raise UsageError("EXPORT-07", what, where="--data", fix="give --data FILE")


def _already(folder: Path, identity: str) -> ExportRecord | None:
    """Return the record of a folder that holds this export; None where there is room for one.

    Raises:
        InputError: EXPORT-08, the folder holds something else.
        IntegrityError: it holds this export, and a file is not what it was.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    manifest = atomic.read_manifest(folder) if (folder / atomic.MANIFEST).is_file() else {}
    if manifest.get("export") != identity:
        what = "the folder holds something else" if not manifest.get("export") else "the folder holds another export"
        fix = f"give another folder, or remove {typed(folder)}"
        raise InputError("EXPORT-08", what, where=str(folder), fix=fix)
    atomic.verify_folder(folder)
    return _record(read_about(str(folder)), folder, already=True)


def _fill(place: Path, model: LanguageModel, asked: _Asked, device: torch.device, report: Report) -> None:
    """Write everything into a folder that is not there yet, and read it back to measure it."""
    how = FORMATS[asked.target.format]
    save_settings(model, place)
    written = how.write(model, asked.checked, asked.target.quantizer, place)
    texts = [example.prompt + example.response for example in asked.rows.examples[:_LINES]]
    same = how.same_tokens(place, model.tokenizer, texts)
    files = {name: atomic.digest_file(place / name) for name in written.files}
    about = About(
        kd=__version__,
        target=str(asked.target),
        source=Source(shown_name(asked.facts.path), asked.facts.digest),
        rows=Source(f"{len(asked.rows):,} rows", evaluation_digest(asked.rows)),
        files=files,
        bytes=sum((place / name).stat().st_size for name in files),
        source_bytes=sum(file.stat().st_size for file in asked.checked.files),
        bytes_by_type=written.bytes_by_type,
        libraries=_versions(asked.target),
        weights=written.weights,
        difference=Difference(0, 0, 0.0, 0.0, 0.0),
        lines=0 if same is None else len(texts),
        same_lines=same or 0,
        notes=asked.notes,
    )
    _write_about(place, about)  # enough to be read back; what is measured is added
    report(Event("stage", "measuring the exported model"))
    torch.nn.Module.to(model.model, device)
    measured = difference(model, load_export(str(place), device), asked.rows.examples)
    _write_about(place, About(**{**about.__dict__, "difference": measured}))
    (place / CARD).write_text(_card(read_about(str(place)), asked), encoding="utf-8")


def _write_about(place: Path, about: About) -> None:
    (place / ABOUT).write_text(json.dumps(asdict(about), indent=1) + "\n", encoding="utf-8")


def _versions(target: Target) -> dict[str, str]:
    names = ("torch", "transformers", "safetensors", *NEEDS[target.format].modules)
    return {name: importlib.metadata.version(name) for name in names}


def _record(about: About, folder: Path, *, already: bool = False) -> ExportRecord:
    return ExportRecord(
        folder, about.target, about.source.name, about.source.sha256, about.files, about.bytes, about.source_bytes,
        about.weights, about.difference, about.lines, about.same_lines, about.notes, already,
    )  # fmt: skip


def _card(about: About, asked: _Asked) -> str:
    """Return the model card: what it was made from, how weights were rounded, and what that changed."""
    source = asked.facts.path
    data = ModelCardData(
        base_model=[source] if on_hub(source) else None, license=license_of(source), pipeline_tag="text-generation",
        tags=["kd", asked.target.format], base_model_relation="quantized", quantization=about.target,
    )  # fmt: skip
    name, found = f"{about.source.name}, {about.target}", about.difference
    made_from = [("base model", about.source.name, about.source.sha256)]
    made_from += [("file", name, digest) for name, digest in about.files.items()]
    made_from += [("rows measured on", about.rows.name, about.rows.sha256)]
    weights = [
        (kind, f"{one.tensors:,}", f"{one.largest:.4g}", f"{one.bound:.4g}") for kind, one in about.weights.items()
    ]
    measured = [
        ("response tokens of the rows", f"{found.tokens:,} of {found.rows:,} rows"),
        ("largest difference of two logits", f"{found.largest_logit_gap:.4g}"),
        ("KL(base model, this one) per token", f"{found.kl:.4g} nats"),
        ("tokens with the same likeliest next token", f"{found.agreement:.2%}"),
        ("bytes", f"{about.bytes:,} of {about.source_bytes:,}"),
    ]
    if about.lines:
        measured.append(("texts that its tokenizer reads alike", f"{about.same_lines:,} of {about.lines:,}"))
    lines = [
        f"# {markdown_cell(one_line(name, 200))}", "", "A model exported by kd.", "",
        *table(["made from", "what", "sha256"], made_from), "",
        *table(["weights kept as", "tensors", "largest error, in steps", "bound"], weights), "",
        *table(["measured", "value"], measured),
        *(line for note in about.notes for line in ("", f"{markdown_cell(note)}.")),
        "", "Versions: " + ", ".join(f"{name} {version}" for name, version in about.libraries.items()) + ".",
    ]  # fmt: skip
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n").content
