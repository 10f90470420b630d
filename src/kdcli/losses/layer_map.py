"""Which of the teacher's layers each of the student's is compared with."""

import math
import re

from kdcli.errors import UsageError
from kdcli.losses.layers import Dims, Pair
from kdcli.text import one_line

_LAST = re.compile(r"last:([1-9]\d{0,5})$")
_PAIRS = re.compile(r"\d{1,6}-\d{1,6}(/\d{1,6}-\d{1,6})*$")


def check_map(text: str) -> str:
    """Return a layer map as it was typed.

    Raises:
        ValueError: it cannot be read.
    """
    if text == "uniform" or _LAST.match(text) or _PAIRS.match(text):
        return text
    raise ValueError(f'map must be uniform, last:K or pairs such as 1-2/3-8, got "{one_line(text, 60)}"')


def layer_pairs(text: str, dims: Dims, *, first: int, name: str) -> tuple[Pair, ...]:
    """Return the pairs of layers that a map names.

    ``uniform`` pairs every block s of the student with block ceil(s T / S) of the teacher, of S and T
    blocks; ``last:K`` pairs the last K of both; ``1-2/3-8`` names pairs, student first.

    Args:
        text: as typed.
        dims: how many layers there are.
        first: the first layer there is: 0 for hidden states, where 0 is what the first block reads, 1 for attention.
        name: the objective, for messages.

    Raises:
        UsageError: FEAT-01, a layer that does not exist.

    >>> from kdcli.losses.layers import ModelShape
    >>> dims = Dims(ModelShape(3, 64, 4), ModelShape(8, 256, 8))
    >>> layer_pairs("uniform", dims, first=0, name="hidden"), layer_pairs("last:2", dims, first=0, name="hidden")
    (((1, 3), (2, 6), (3, 8)), ((2, 7), (3, 8)))
    """
    ours, theirs = dims.student.layers, dims.teacher.layers
    if text == "uniform":
        return tuple((layer, math.ceil(layer * theirs / ours)) for layer in range(1, ours + 1))
    last = _LAST.match(text)
    if last:
        count = int(last.group(1))
        if count > min(ours, theirs):
            raise _refuse(name, text, f"there are {ours} layers in the student and {theirs} in the teacher", dims)
        return tuple((ours - count + step, theirs - count + step) for step in range(1, count + 1))
    pairs = [(int(one), int(other)) for one, other in (pair.split("-") for pair in text.split("/"))]
    for index, (role, there) in enumerate((("student", ours), ("teacher", theirs))):
        wrong = next((pair[index] for pair in pairs if not first <= pair[index] <= there), None)
        if wrong is not None:
            raise _refuse(name, text, f"the {role} has layers {first} to {there}, not {wrong}", dims)
    return tuple(dict.fromkeys(pairs))


def _refuse(name: str, text: str, why: str, dims: Dims) -> UsageError:
    deepest = min(dims.student.layers, dims.teacher.layers)
    return UsageError(
        "FEAT-01", f"map={text} is impossible: {why}", where=name,
        fix=f"use map=uniform, map=last:{deepest} or pairs up to {dims.student.layers}-{dims.teacher.layers}",
    )  # fmt: skip
