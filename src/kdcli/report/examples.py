"""Answers of all variants to the same prompts, chosen by rule."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kdcli.evaluation.records import EvalRecord
from kdcli.metrics.titles import title
from kdcli.report.sections import AnswerExample, ReportData, Section
from kdcli.text import visible

APART, DRAWN = 8, 8
"""Prompts with the widest disagreement, and prompts drawn."""

LONGEST = 1200
"""Letters of one text."""

_SYMBOLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}

Rows = dict[str, list[dict[str, Any]]]


def side_by_side(material: ReportData) -> Section | None:
    """Return the answers of each contender's first seed to a few prompts; None if none were generated."""
    rows = _rows(material)
    if not rows:
        return None
    every = _references(material) | rows
    score = next((info.name for info in material.ranked if info.input_kind == "texts"), "")
    chosen = choose(rows, score)
    sheets = [replace(_sheet(every, index, why, score), apart=apart(rows, index, score)) for index, why in chosen]
    words = [
        f"First sampled answer of each objective's first seed: the {APART} prompts on which the objectives' scores are "
        f"furthest apart, then {DRAWN} drawn by the digest of the prompt, so none is hand-picked. Control characters "
        "are shown as symbols; long texts are cut."
    ]
    return Section("answers", "Answers side by side", words, sheets=sheets)


def choose(rows: Rows, score: str) -> list[tuple[int, str]]:
    """Return examples to show and why: the same ones for the same answers, whoever asks.

    Args:
        rows: contender -> its samples, in the same order for all.
        score: column that says how far answers are apart; without it answers are compared as texts.
    """
    first = next(iter(rows.values()))
    count = min(len(table) for table in rows.values())

    def digest(index: int) -> str:
        return hashlib.sha256(
            f"{first[index]['where']}\0{first[index]['prompt']}".encode("utf-8", "replace")
        ).hexdigest()

    widest = sorted(range(count), key=lambda index: (-apart(rows, index, score), digest(index)))[:APART]
    kept = [index for index in widest if apart(rows, index, score) > 0] if len(rows) > 1 else []
    drawn = sorted((index for index in range(count) if index not in kept), key=digest)[:DRAWN]
    return [(index, "widest disagreement") for index in kept] + [(index, "drawn") for index in drawn]


def apart(rows: Rows, index: int, score: str) -> float:
    """Return how far the contenders are apart on one prompt, in the score or, without it, in their answers.

    Args:
        rows: contender -> its samples.
        index: the prompt.
        score: column of the score.
    """
    values = [table[index].get(score) for table in rows.values()]
    known = [value for value in values if isinstance(value, float) and value == value]
    if len(known) > 1:
        return max(known) - min(known)
    return float(len({table[index]["predictions"][0] for table in rows.values()}) - 1)


def shown(text: str, most: int = LONGEST) -> str:
    r"""Return a text that may be shown: control characters as symbols, cut at a length.

    >>> shown("a\x1b[31m b")
    'a␛[31m b'
    """
    safe = visible(text.translate(_SYMBOLS))
    return safe if len(safe) <= most else safe[: most - 1] + "…"


def _rows(material: ReportData) -> Rows:
    return _answered(material, {group.label: group.runs[min(group.runs)][1] for group in material.groups})


def _references(material: ReportData) -> Rows:
    return _answered(material, {one.label: next(iter(one.found.values())) for one in material.references})


def _answered(material: ReportData, records: Mapping[str, EvalRecord]) -> Rows:
    found: Rows = {}
    for label, record in records.items():
        samples = material.samples(record)
        if samples is not None and {"prompt", "references", "predictions"} <= set(samples.column_names):
            plain = [name for name in samples.column_names if not name.endswith(".sums")]
            found[label] = samples.select(plain).to_pylist()
    return found


def _sheet(rows: Rows, index: int, why: str, score: str) -> AnswerExample:
    first = next(iter(rows.values()))[index]
    answers = []
    for label, table in rows.items():
        row = table[index]
        value, text = row.get(score), row["predictions"][0]
        remark = f"{title(score)} {value:.1f}" if isinstance(value, float) and value == value else ""
        ended = row.get("ended") or [True]
        remark += "" if ended[0] else f"{' · ' if remark else ''}not ended by the model"
        answers.append((label, shown(text), remark))
    references = tuple(shown(text) for text in first["references"][:3])
    return AnswerExample(first["where"], why, shown(first["prompt"]), references, tuple(answers))
