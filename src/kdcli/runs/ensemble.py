"""Several teachers given as one: how they are written, and what identifies them together."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdcli.errors import UsageError
from kdcli.text import one_line

_TERM = re.compile(r"(?:(?P<weight>[0-9.eE]+)\*)?(?P<path>[^*]+)")


@dataclass(frozen=True)
class Blend:
    """Teachers whose distributions are mixed.

    Args:
        members: each one's folder or hub id.
        weights: of each, above 0, sum 1.
        space: where they are mixed: ``sum w p``, or ``sum w log p`` normalised.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    space: Literal["probability", "log"] = "probability"

    def digest(self, digests: Sequence[str]) -> str:
        """Return what identifies the mixture, given what identifies each member."""
        return hashlib.sha256(repr((tuple(digests), self.weights, self.space)).encode()).hexdigest()


def read_blend(text: str) -> Blend | None:
    """Read a teacher that is written as a sum of teachers; None if it is a single one.

    ``A+B`` mixes the probabilities in equal shares, ``0.7*A+0.3*B`` in others, ``log(0.7*A+0.3*B)`` the logarithms.
    A folder whose own name looks like that is a single teacher.

    Args:
        text: as typed behind ``--teacher``.

    Raises:
        UsageError: a weight that is not above 0, or a sum that cannot be read.

    >>> read_blend("0.6*big+0.2*small").weights
    (0.7499999999999999, 0.25)
    >>> read_blend("log(a+b)").space, read_blend("org/name")
    ('log', None)
    """
    if "+" not in text or Path(text).expanduser().exists():
        return None
    inner = text.removeprefix("log(").removesuffix(")") if text.startswith("log(") and text.endswith(")") else text
    members, weights = [], []
    for piece in inner.split("+"):
        found = _TERM.fullmatch(piece.strip())
        weight = _number(found["weight"]) if found else 0.0
        if found is None or weight <= 0:
            raise UsageError(
                "CLI-21", f'"{one_line(piece)}" is no share of a teacher', where=f"--teacher {one_line(text)}",
                fix="write folders and weights above 0, as in 0.7*A+0.3*B or log(A+B)",
            )  # fmt: skip
        members.append(found["path"].strip())
        weights.append(weight)
    total = sum(weights)
    shares = tuple(weight / total for weight in weights)
    return Blend(tuple(members), shares, "probability" if inner == text else "log")


def refuse_blend(teacher: str | None, what: str, where: str, fix: str) -> None:
    """Refuse several teachers where only one will do.

    Raises:
        UsageError: names what is asked of them.
    """
    if teacher is not None and read_blend(teacher) is not None:
        raise UsageError("CLI-22", f"{what}, and {one_line(teacher)} are several teachers", where=where, fix=fix)


def _number(text: str | None) -> float:
    try:
        return 1.0 if text is None else float(text)
    except ValueError:
        return 0.0
