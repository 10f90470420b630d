"""Checks that finished runs may stand in one table."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdcli.distill.fingerprint import OWN
from kdcli.distill.records import RunRecord
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.protocol import differing_settings
from kdcli.evaluation.records import EvalRecord
from kdcli.text import one_line

_RUN = {
    "teacher": "teacher",
    "student": "student at the start",
    "tokenizer": "tokenizer",
    "data": "training data",
}
_BUDGET = ("steps", "train.batch_size")
_PROTOCOL = {
    "data": "test set",
    "examples": "held-out rows",
    "generation": "sampling of answers",
    "teacher": "teacher compared with",
    "precision": "precision of the evaluation",
}

Finished = tuple[RunRecord, EvalRecord]


def check_same(finished: Sequence[Finished]) -> list[str]:
    """Refuse runs that differ in more than their objective and training settings.

    Returns:
        a sentence for each training setting that differs.

    Raises:
        InputError: names the field, both runs and both values.
    """
    first = finished[0]
    for other in finished[1:]:
        for field, ours, theirs in _differences(first, other):
            raise InputError(
                "CMP-01",
                f"{field} differs: {_shown(ours)} in {first[0].folder}, {_shown(theirs)} in {other[0].folder}",
                where="kd compare",
                fix="compare runs made alike, or train them together with kd compare OBJECTIVE ...",
            )
    return list(_remarks([run.identity for run, _ in finished]))


def label_runs(finished: Sequence[Finished]) -> list[str]:
    """Name each run's line: its objective, with the settings that tell it from another of the same seed.

    Raises:
        UsageError: one run is given twice.
    """
    names = [run.loss for run, _ in finished]
    keys = [(run.loss, run.seed) for run, _ in finished]
    if len(set(keys)) == len(keys):
        return names
    differing = _differing([run.identity for run, _ in finished])
    labels = [
        f"{run.loss} ({', '.join(f'{key}={run.identity.get(key)}' for key in differing)})" if differing else run.loss
        for run, _ in finished
    ]
    seen: dict[tuple[str, int], RunRecord] = {}
    for label, (run, _) in zip(labels, finished, strict=True):
        twin = seen.setdefault((label, run.seed), run)
        if twin is not run:
            what = f"{twin.folder} and {run.folder} are the same run"
            raise UsageError("CMP-03", what, where="kd compare", fix="give one of them")
    return labels


def _differences(first: Finished, other: Finished) -> Iterator[tuple[str, Any, Any]]:
    (run, found), (run2, found2) = first, other
    for key, name in _RUN.items():
        ours, theirs = run.identity.get(key), run2.identity.get(key)
        if ours != theirs and not (key == "teacher" and None in (ours, theirs)):
            yield name, ours, theirs
    if _budget(run) != _budget(run2):
        yield "token budget", f"{_budget(run):,} sequences", f"{_budget(run2):,} sequences"
    for path, ours, theirs in differing_settings(found.protocol, found2.protocol):
        yield f"{path} of the protocols {_protocols(found, found2)}", ours, theirs
    for key, name in _PROTOCOL.items():
        ours, theirs = found.protocol.get(key), found2.protocol.get(key)
        if ours != theirs and not (key in ("teacher", "generation") and None in (ours, theirs)):
            yield name, ours, theirs
    ours, theirs = found.protocol.get("metrics", {}), found2.protocol.get("metrics", {})
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            yield f"metric {name}", ours[name], theirs[name]
    ours, theirs = found.protocol.get("tasks", {}), found2.protocol.get("tasks", {})
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            yield f"task {name}", ours[name], theirs[name]


def _protocols(found: EvalRecord, found2: EvalRecord) -> str:
    return " and ".join(f"{one.protocol.get('name')}-{one.protocol.get('hash')}" for one in (found, found2))


def _budget(run: RunRecord) -> int:
    """Sequences seen: of equal data the same number holds the same tokens, but for the luck of a seed's last pass."""
    return math.prod(run.identity.get(key, 1) for key in _BUDGET)


def _differing(identities: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = [key for key in identities[0] if key not in (*OWN, *_RUN)]
    return [key for key in keys if any(other.get(key) != identities[0].get(key) for other in identities)]


def _remarks(identities: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for key in _differing(identities):
        values = dict.fromkeys(str(identity.get(key)) for identity in identities)
        yield f"{key} is not the same in all runs: {', '.join(values)}"


def _shown(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:12]}…" if is_digest else one_line(text, 120)
