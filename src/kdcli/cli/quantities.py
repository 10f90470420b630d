"""Parses sizes and rates: 8GiB, 50GB/s, 2TFLOPS."""

import math
import re

from kdcli.errors import UsageError
from kdcli.text import one_line

_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30, "TI": 2.0**40}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([KMGTP]?)(I?)(.*)")
_UNITS = {"bytes": ("", "B"), "bytes per second": ("", "B", "B/S"), "operations per second": ("", "FLOPS", "FLOP/S")}


def amount(text: str, unit: str, flag: str, example: str) -> float:
    """Read a positive amount with a unit.

    Args:
        text: as typed; K, M, G, T, P count by 1000, Ki, Mi, Gi, Ti by 1024.
        unit: "bytes", "bytes per second" or "operations per second".
        flag: where it was typed.
        example: what to type instead.

    Raises:
        UsageError: CLI-06, it cannot be read or is not positive.

    >>> amount("8GiB", "bytes", "--memory", "8GiB"), amount("50 GB/s", "bytes per second", "--bandwidth", "50GB/s")
    (8589934592.0, 50000000000.0)
    """
    found = _AMOUNT.fullmatch(text.strip().upper())
    if found:
        number, letter, binary, rest = found.groups()
        factor = _BINARY.get(letter + "I") if binary else _FACTORS[letter]
        value = float(number) * (factor or 0.0)
        if rest.strip() in _UNITS[unit] and 0 < value < math.inf and not (binary and "FLOP" in rest):
            return value
    what = f'must be {unit}, got "{one_line(text, 40)}"'
    raise UsageError("CLI-06", what, where=flag, fix=f"write {example}")


def count(text: str, flag: str) -> int:
    """Read a whole number from 1 to 10**9.

    Raises:
        UsageError: CLI-06, it is none.

    >>> count("4096", "--context")
    4096
    """
    plain = text.strip().replace("_", "")
    if plain.isascii() and plain.isdecimal() and 1 <= int(plain[:12]) <= 10**9:
        return int(plain)
    what = f'must be a whole number from 1, got "{one_line(text, 40)}"'
    raise UsageError("CLI-06", what, where=flag, fix="write a number such as 4096")
