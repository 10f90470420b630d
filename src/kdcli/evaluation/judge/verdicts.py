"""Ratio, win rate and consistency of a judge's scores, with intervals."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdcli.bounded import NOT_NEGATIVE, PERCENT
from kdcli.errors import InputError, MachineError
from kdcli.evaluation.judge.prompt import HIGHEST, LOWEST
from kdcli.metrics.score import Array, Score, ratio
from kdcli.storage import stored
from kdcli.text import one_line

NOTHING = np.nan


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What a judge gave.

    Args:
        model: score of each answer, NaN where there is none, ``[examples, answers, orders]``; the
            order 0 shows the answer first, the order 1 shows the reference first.
        reference: score of the reference in the same judgements, the same shape; None if it was not judged.
    """

    model: Array
    reference: Array | None = None

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Which answers were scored in every order, ``[examples, answers]``."""
        known = np.isfinite(self.model)
        return np.asarray((known if self.reference is None else known & np.isfinite(self.reference)).all(-1))


def scores_of(verdicts: Verdicts) -> list[Score]:
    r"""Return the scores of a model that a judge has seen.

    With :math:`m_i` and :math:`r_i` the mean scores of example i's answer and reference over both orders:
    ``judge_score`` is the mean of m, ``judge_ratio`` is :math:`100 \sum_i m_i / \sum_i r_i`, the ratio of
    MiniLLM (arXiv 2306.08543, section 3.1), ``judge_win_rate`` the share of answers with m > r, ties
    half, ``judge_consistency`` the share whose winner (or tie) is the same in both orders, and
    ``judge_first_bonus`` by how much an answer gains on average from standing first.

    Args:
        verdicts: a judge's scores.

    Returns:
        scores whose sums are per example; an example no answer of which was judged counts for nothing.

    >>> found = scores_of(Verdicts(np.array([[[8.0, 6.0]], [[4.0, 4.0]]]), np.array([[[7.0, 7.0]], [[8.0, 8.0]]])))
    >>> {score.name: round(score.value, 2) for score in found}["judge_ratio"]
    73.33
    """
    add = partial(_add_up, judged=verdicts.judged)
    mean = verdicts.model.mean(-1)
    found = [Score("judge_score", add(mean, np.ones_like(mean)), ratio(), "higher", bounds=(LOWEST, HIGHEST))]
    if verdicts.reference is None:
        return found
    reference = verdicts.reference.mean(-1)
    won = 0.5 + 0.5 * np.sign(mean - reference)
    found += [
        Score("judge_ratio", add(mean, reference), ratio(100.0), "higher", bounds=NOT_NEGATIVE),
        Score("judge_win_rate", add(won, np.ones_like(won)), ratio(100.0), "higher", bounds=PERCENT),
    ]
    if verdicts.model.shape[-1] == 2:
        gaps = verdicts.model - verdicts.reference
        same = (np.sign(gaps[..., 0]) == np.sign(gaps[..., 1])).astype(np.float64)
        bonus = (gaps[..., 0] - gaps[..., 1]) / 2
        found += [
            Score("judge_consistency", add(same, np.ones_like(same)), ratio(100.0), "neither", bounds=PERCENT),
            Score("judge_first_bonus", add(bonus, np.ones_like(bonus)), ratio(), "neither"),
        ]
    return found


def _add_up(top: Array, bottom: Array, *, judged: NDArray[np.bool_]) -> Array:
    """Return numerator and denominator of each example, means over its judged answers, ``[examples, 2]``."""
    count = np.maximum(judged.sum(-1, keepdims=True), 1)
    parts = np.stack([np.where(judged, top, 0.0), np.where(judged, bottom, 0.0)], axis=-1)
    return parts.sum(1) / count


# Reads scores that a judge gave elsewhere: one JSON object per line.


_FIX = 'write {"id": 0, "score": 7, "reference_score": 8} on each line; "prompt" or the order may stand for "id"'


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    id: int | None = Field(default=None, ge=0)
    prompt: str | None = None
    score: float | None = None
    scores: tuple[float, ...] | None = Field(default=None, min_length=1, strict=False)
    reference_score: float | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "_Line":
        if (self.score is None) == (self.scores is None):
            raise ValueError('give "score" or "scores"')
        return self

    @property
    def given(self) -> tuple[float, ...]:
        return self.scores if self.scores is not None else (float(self.score or 0.0),)


def read_judged(path: Path, prompts: list[str], answers: int) -> Verdicts:
    """Read scores given elsewhere and match them with the answers they are about.

    Args:
        path: JSONL; each line holds ``score``, or ``scores`` with one per answer, perhaps
            ``reference_score``, and ``id`` (the example, counted from 0) or ``prompt``; without
            both, lines are in the order of the examples.
        prompts: the prompt of each example.
        answers: how many answers each example has.

    Returns:
        the scores; an example without a line has none.

    Raises:
        InputError: JUDGE-02, names the line that cannot be used.
        MachineError: JUDGE-02, the file may not be read.
    """
    lines = _lines(path)
    places = _places(lines, prompts)
    both = {line.reference_score is not None for _, line in lines}
    if len(both) > 1:
        where = next(where for where, line in lines if line.reference_score is None)
        raise InputError("JUDGE-02", "reference_score is missing, other lines have it", where=where, fix=_FIX)
    shape = (len(prompts), answers, 1)
    model, reference = np.full(shape, NOTHING), np.full(shape, NOTHING)
    for place, (where, line) in zip(places, lines, strict=True):
        if np.isfinite(model[place]).any():
            raise InputError("JUDGE-02", "the example has been scored before", where=where, fix="keep one line of it")
        if len(line.given) not in (1, answers):
            what = f"{len(line.given)} scores for {answers} answers"
            raise InputError("JUDGE-02", what, where=where, fix="give one per answer, or one")
        model[place, :, 0] = line.given
        reference[place] = NOTHING if line.reference_score is None else line.reference_score
    return Verdicts(model, reference if both == {True} else None)


def _lines(path: Path) -> list[tuple[str, _Line]]:
    try:
        raw = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        what = f"not found; looked in {Path.cwd()}"
        raise InputError("JUDGE-02", what, where=one_line(str(path)), fix="check the path") from error
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise MachineError("JUDGE-02", what, where=one_line(str(path)), fix="check the path") from error
    found = [
        (f"{one_line(path.name)} line {number}", line)
        for number, line in ((number, _line(path, number, line)) for number, line in enumerate(raw, start=1))
        if line is not None
    ]
    if not found:
        raise InputError("JUDGE-02", "the file holds no scores", where=one_line(str(path)), fix=_FIX)
    return found


def _line(path: Path, number: int, raw: bytes) -> _Line | None:
    if not raw.strip():
        return None
    try:
        return _Line.model_validate(stored.parse(raw.decode("utf-8-sig")))
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = one_line(f"{place}: {first['msg']}" if place else first["msg"], 120)
    except ValueError as error:
        what = f"not JSON: {one_line(str(error), 80)}"
    raise InputError("JUDGE-02", what, where=f"{one_line(path.name)} line {number}", fix=_FIX)


def _places(lines: list[tuple[str, _Line]], prompts: list[str]) -> list[int]:
    """Return the example that each line is about."""
    by_prompt: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(place)
    named = [line.id is not None or line.prompt is not None for _, line in lines]
    if not any(named):
        if len(lines) != len(prompts):
            what = f"{len(lines)} scores without id or prompt for {len(prompts)} examples"
            raise InputError("JUDGE-02", what, where=lines[0][0], fix=_FIX)
        return [*range(len(lines))]
    return [_place(where, line, by_prompt, len(prompts)) for where, line in lines]


def _place(where: str, line: _Line, by_prompt: dict[str, list[int]], examples: int) -> int:
    if line.id is not None:
        if line.id >= examples:
            what = f"id {line.id}, but there are {examples} examples"
            raise InputError("JUDGE-02", what, where=where, fix="count examples from 0")
        return line.id
    found = by_prompt.get(line.prompt or "", [])
    if len(found) != 1:
        what = f'{len(found) or "no"} examples have the prompt "{one_line(str(line.prompt), 40)}"'
        raise InputError("JUDGE-02", what, where=where, fix="give the example's id, counted from 0")
    return found[0]
