"""Several evaluations in one folder: scores of one protocol are merged, another protocol gets its own folder."""

import contextlib
import glob
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcli.errors import IntegrityError
from kdcli.evaluation.records import EvalRecord
from kdcli.events import Event, Report

_SOME_NEED = ("generation", "teacher", "development", "benchmarks", "text")
"""Entries of a protocol that a metric may do without: None or absent where none of those asked for needs them."""
_HEX = "[0-9a-f]" * 8
_LISTS = ("metrics", "tasks")
"""Entries that name what was measured, each with its signature."""


def same_protocol(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether scores of two recorded protocols may stand together, whichever metrics each measured.

    >>> one = {"data": "a", "generation": None, "metrics": {"perplexity": "p"}}
    >>> other = {"data": "a", "generation": {"temperature": 0.0}, "metrics": {"rougeL": "r"}}
    >>> same_protocol(one, other), same_protocol(one, other | {"data": "b"})
    (True, False)
    """
    for name in (ours.keys() | theirs.keys()) - {*_LISTS, *_SOME_NEED}:
        if ours.get(name) != theirs.get(name):
            return False
    for name in _SOME_NEED:
        one, other = _plain(ours.get(name)), _plain(theirs.get(name))
        if one != other and None not in (one, other):
            return False
    for name in _LISTS:
        one, other = ours.get(name, {}), theirs.get(name, {})
        if any(one[key] != other[key] for key in one.keys() & other.keys()):
            return False
    return True


def holds(there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether an evaluation's protocol covers everything that is asked for now; tasks are known once they have run."""
    needed = [name for name in _SOME_NEED if asked.get(name) is not None and name != "text"]
    metrics = there.get("metrics", {})
    return (
        same_protocol(there, asked)
        and all(there.get(name) is not None for name in needed)
        and all(name in metrics for name in asked.get("metrics", {}))
    )


def joined(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol of an evaluation that measured both."""
    both = {**before, **{name: value for name, value in now.items() if value is not None or name not in before}}
    lists = {name: {**before.get(name, {}), **now.get(name, {})} for name in _LISTS if name in before or name in now}
    return both | lists


def only(there: EvalRecord, asked: Mapping[str, Any]) -> EvalRecord:
    """Return the part of an evaluation that was asked for: its scores of these metrics, and of tasks if any."""
    metrics = asked.get("metrics", {})
    tasks = "benchmarks" in asked
    infos = tuple(info for info in there.infos if (tasks if info.input_kind == "tasks" else info.metric in metrics))
    names = {info.name for info in infos}
    ran = {"tasks": there.protocol["tasks"]} if tasks and "tasks" in there.protocol else {}
    return replace(
        there,
        infos=infos,
        estimates={name: one for name, one in there.estimates.items() if name in names},
        documents={name: one for name, one in there.documents.items() if name in names},
        protocol={**asked, **ran},
    )


def place_of(
    base: Path,
    protocol: Mapping[str, Any],
    model_digest: str,
    read: Callable[[Path], EvalRecord | None],
    report: Report,
) -> Path:
    """Return the folder where an evaluation belongs: the one of its protocol, the first if there is none.

    Args:
        base: the folder of the first evaluation on these rows.
        protocol: what the numbers follow from.
        model_digest: what identifies the model; an evaluation of another model in the first folder gives way.
        read: reads an evaluation back; None where there is none.
        report: called with warnings: scores kept elsewhere, replaced, or damaged.
    """
    try:
        first = read(base)
    except IntegrityError as error:
        report(Event("warning", f"{error.where} {error.what}: the evaluation is made again"))
        return base
    if first is None or (first.model_digest == model_digest and same_protocol(first.protocol, protocol)):
        return base
    if first.model_digest != model_digest:
        report(Event("warning", f"{base} held scores of another model: they are replaced"))
        return base
    own = base.with_name(f"{base.name}-{_hash(protocol)}")
    for folder in other_protocols(base):
        with contextlib.suppress(IntegrityError):
            there = read(folder)
            if there and there.model_digest == model_digest and same_protocol(there.protocol, protocol):
                own = folder
                break
    report(Event("note", f"{base} keeps its scores, which are by another protocol; these are in {own}"))
    return own


def other_protocols(base: Path) -> list[Path]:
    """Return the folders of further protocols on the rows of an evaluation."""
    return sorted(base.parent.glob(f"{glob.escape(base.name)}-{_HEX}"))


def _hash(protocol: Mapping[str, Any]) -> str:
    """Return eight hex digits that name a protocol's own folder."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]


def _plain(value: Any) -> Any:
    """Leave out of the settings of generation what changes no number."""
    return {key: one for key, one in value.items() if key != "batch_tokens"} if isinstance(value, dict) else value
