"""Provenance: settings that differ, versions, digests, command lines."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.config.resolve import resolve
from kdcli.config.schema import DistillConfig
from kdcli.distill.records import RunRecord
from kdcli.errors import KDError
from kdcli.report.sections import ReportData, Section, Table
from kdcli.storage import atomic, stored
from kdcli.storage.run_dir import CONFIG, RunFolder

_OWN = ("train.seed", "output")
_WEIGHTS = (".safetensors",)


@dataclass(frozen=True)
class _File:
    sha256: str


@dataclass(frozen=True)
class _Listed:
    """What is read of a model folder's manifest."""

    files: dict[str, _File]


def configurations(material: ReportData) -> Section:
    """Return the settings in which contenders differ."""
    settings = {group.label: _settings(group.runs[min(group.runs)][0].folder) for group in material.groups}
    keys = list(dict.fromkeys(key for table in settings.values() for key in table if key not in _OWN))
    differing = [key for key in keys if len({json.dumps(table.get(key)) for table in settings.values()}) > 1]
    heads = ("setting", *settings)
    rows = tuple((key, *(_text(table.get(key)) for table in settings.values())) for key in differing)
    if not rows:
        return Section("settings", "Differences in settings", ["All settings are equal."])
    said = (
        "The lines differ in their objective alone"
        if differing == ["loss"]
        else f"The lines differ in {len(differing)} settings"
    )
    words = [f"{said}; seeds aside, every other setting of the {len(keys)} is equal."]
    return Section("settings", "Differences in settings", words, tables=[Table("", heads, rows, numbers=False)])


def manifest(material: ReportData) -> Section:
    """Return versions, digests and command lines."""
    runs = [run for group in material.groups for _, (run, _) in sorted(group.runs.items())]
    facts = [_facts(run) for run in runs]
    keys = list(dict.fromkeys(key for table in facts for key in table))
    rows = []
    for key in keys:
        values = list(dict.fromkeys(table.get(key, "–") for table in facts))
        rows.append((key, values[0] if len(values) == 1 else "differs between runs: " + " | ".join(values)))
    tables = [
        Table("Shared by the runs", ("what", "value"), tuple(rows), numbers=False),
        _runs(material),
        *_references(material),
        _scores(material),
    ]
    words = ["Digests are sha256. kd verify checks them; kd rerun trains a run again and compares its weights."]
    return Section("manifest", "Manifest", words, tables=tables, texts=commands(material))


def commands(material: ReportData) -> list[str]:
    """Return the command lines that trained the runs, each once."""
    runs = [run for group in material.groups for _, (run, _) in sorted(group.runs.items())]
    return [line for line in dict.fromkeys(_command(run) for run in runs) if line]


def weights_digest(model: Path) -> str:
    """Return one sha256 over the digests of a model folder's weight files; empty if it has no manifest.

    Args:
        model: folder whose manifest lists its files.
    """
    path = model / atomic.MANIFEST
    if not path.is_file():
        return ""
    files = stored.read_record(path, _Listed).files
    found = [entry.sha256 for name, entry in sorted(files.items()) if name.endswith(_WEIGHTS)]
    return found[0] if len(found) == 1 else " ".join(found)


def _facts(run: RunRecord) -> dict[str, str]:
    made = RunFolder(run.folder).manifest()["environment"]
    facts = {
        "kd": made.get("kd"),
        "source revision": made.get("revision"),
        "Python": made.get("python"),
        "platform": made.get("platform"),
        "device": made.get("device"),
        **made.get("libraries", {}),
    }
    named = ("teacher", "student", "tokenizer", "data", "precision", "matmul_precision", "threads")
    facts |= {f"identity: {key}": run.identity.get(key) for key in named}
    return {key: _text(value) for key, value in facts.items() if value is not None}


def _runs(material: ReportData) -> Table:
    rows = []
    for group in material.groups:
        for seed, (run, found) in sorted(group.runs.items()):
            status = RunFolder(run.folder).status()
            when = f"{status.get('started', '')} – {status.get('updated', '')}"
            cells = (group.label, str(seed), run.folder.name, weights_digest(run.model), found.model_digest, when)
            rows.append(cells)
    heads = ("objective", "seed", "folder", "weights", "evaluated model", "started – finished")
    return Table("Runs", heads, tuple(rows), numbers=False)


def _references(material: ReportData) -> list[Table]:
    """Return the models that were not trained here, if there are any."""
    rows = tuple(
        (one.label, "" if seed is None else str(seed), found.model_digest)
        for one in material.references
        for seed, found in one.found.items()
    )
    heads = ("model", "seed", "evaluated model")
    return [Table("Reference models", heads, rows, numbers=False)] if rows else []


def _scores(material: ReportData) -> Table:
    rows = tuple((info.title, info.settings) for info in material.scores)
    return Table("How each score was computed", ("score", "signature"), rows, numbers=False)


def _command(run: RunRecord) -> str:
    words = RunFolder(run.folder).manifest()["environment"].get("argv", [])
    return shlex.join([Path(words[0]).name, *words[1:]]) if words else ""


def _settings(folder: Path) -> dict[str, Any]:
    """Return a run's settings by dotted name; empty if its file cannot be read any more."""
    try:
        return _flat(resolve(DistillConfig, file=folder / CONFIG).model_dump(mode="json"))
    except KDError:
        return {}


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
