"""Reads predictions made elsewhere: one JSON object per line with prediction(s) and reference(s)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcli.data.readers import kind_of
from kdcli.errors import InputError, MachineError
from kdcli.evaluation.answers import TextSamples
from kdcli.storage import stored
from kdcli.text import one_line

_FIX = 'write {"prediction": "...", "references": ["..."]} on each line'


def read_predictions(path: Path, *, need_references: bool = True) -> tuple[TextSamples, list[str]]:
    """Read answers and references.

    Args:
        path: JSONL; each line holds ``prediction`` or ``predictions``, and ``reference`` or
            ``references``; ``prompt`` is kept if there, and ``ended``, true or false or one per prediction,
            if every line has it.
        need_references: whether a line without reference is refused.

    Returns:
        the texts, and file and line of each.

    Raises:
        InputError: names the line that cannot be used.
        MachineError: the file may not be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        what = f"not found; looked in {Path.cwd()}"
        raise InputError("DATA-01", what, where=str(path), fix="check the path") from error
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise MachineError("DATA-01", what, where=str(path), fix="check the path") from error
    texts, where, known = TextSamples([], [], [], []), [], True
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        place = f"{one_line(path.name)} line {number}"
        row = _row(raw, place)
        answers = _texts(row, "prediction", place, needed=True)
        texts.predictions.append(answers)
        texts.references.append(_texts(row, "reference", place, needed=need_references))
        texts.prompts.append(_prompt(row, place))
        texts.ended.append(_ended(row, len(answers), place))
        known = known and "ended" in row
        where.append(place)
    if not where:
        raise InputError("DATA-02", "the file holds no rows", where=str(path), fix=_FIX)
    _check_counts(texts, where)
    return replace(texts, ended_is_known=known), where


def _row(raw: bytes, place: str) -> dict[str, Any]:
    try:
        row = stored.parse(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise InputError("DATA-04", f"not JSON: {one_line(str(error), 80)}", where=place, fix=_FIX) from error
    if not isinstance(row, dict):
        raise InputError("DATA-04", "not an object", where=place, fix=_FIX)
    return row


def _texts(row: dict[str, Any], name: str, place: str, *, needed: bool) -> list[str]:
    value = row.get(f"{name}s", row.get(name))
    if value is None and not needed:
        return []
    if value is None and not row.keys() & {name, f"{name}s"}:
        raise InputError("DATA-05", f'field "{name}" is missing', where=place, fix=_FIX)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        bad = next((one for one in found if not isinstance(one, str)), found) if isinstance(found, list) else found
        what = (
            f'"{name}" must be text or a list of texts, got {"a list with " if bad is not found else ""}{kind_of(bad)}'
        )
        fix = f'write "" for an empty answer: {{"{name}": ""}}' if bad is None else _FIX
        raise InputError("DATA-06", what, where=place, fix=fix)
    for text in found:
        check_text(text, name, place)
    return found


def _prompt(row: dict[str, Any], place: str) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        return ""
    check_text(prompt, "prompt", place)
    return prompt


def check_text(text: str, name: str, place: str) -> None:
    """Refuse a text that no file can hold.

    Args:
        text: the text.
        name: the field that it stands in.
        place: file and line.

    Raises:
        InputError: DATA-08.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f'"{name}" holds half a surrogate pair at character {error.start + 1}'
        raise InputError("DATA-08", what, where=place, fix=_FIX) from error


def _ended(row: dict[str, Any], answers: int, place: str) -> list[bool]:
    value = row.get("ended", True)
    found = [value] * answers if isinstance(value, bool) else value
    if not isinstance(found, list) or len(found) != answers or not all(isinstance(each, bool) for each in found):
        what = f'"ended" must be true or false, or a list of {answers} of them'
        raise InputError("DATA-06", what, where=place, fix='write "ended": true')
    return found


def _check_counts(texts: TextSamples, where: list[str]) -> None:
    first = len(texts.predictions[0])
    for place, answers in zip(where, texts.predictions, strict=True):
        if len(answers) != first:
            what = f"{len(answers)} predictions, but {first} in the first row"
            raise InputError("DATA-06", what, where=place, fix="give equally many for every row")
