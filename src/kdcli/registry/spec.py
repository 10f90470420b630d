"""Spec strings: of an objective, ``0.5*ce+0.5*akl:mu=0.6@student:rate=0.5``, and the options of a student's.

Grammar::

    objective := term ("+" term)* ["@" source]
    term      := [weight "*"] name [":" key=value ("," key=value)*]
    name      := word | module:Class | ./file.py:Class
    value     := text without separators | "(" objective ")"

A value in parentheses is itself an objective; ``hard.mu=0.7`` reaches into the
objective given as ``hard``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from kdcli.errors import UsageError
from kdcli.text import one_line

_LONGEST = 10_000
_DEEPEST = 20
_EXPONENT = re.compile(r"(?:^|[=*(,])[+-]?(\d+\.?\d*|\.\d+)[eE]$")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
_KEY = re.compile(r"[A-Za-z_][\w.]*$")
_NAME = re.compile(r"[A-Za-z_][\w.-]*$|.*\.py$")


@dataclass(frozen=True)
class Term:
    """One weighted loss of an objective, or its source."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0

    def __str__(self) -> str:
        weight = "" if self.weight == 1.0 else f"{self.weight!r}*"
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{weight}{self.name}{':' if options else ''}{options}"


@dataclass(frozen=True)
class ObjectiveSpec:
    """A parsed spec string; ``str()`` prints it in canonical form.

    >>> str(parse_objective("0.5*ce + 0.50*akl:mu=0.6"))
    '0.5*ce+0.5*akl:mu=0.6'
    """

    terms: tuple[Term, ...]
    source: Term | None = None

    def __str__(self) -> str:
        source = f"@{self.source}" if self.source else ""
        return "+".join(str(term) for term in self.terms) + source


def parse_objective(text: str) -> ObjectiveSpec:
    """Parse a spec string.

    Args:
        text: the objective as typed.

    Returns:
        the terms and the optional source; names are not looked up here.

    Raises:
        UsageError: names the piece that cannot be read.

    >>> parse_objective("jsd:beta=0.1@student:rate=0.5").source.options["rate"]
    '0.5'
    """
    if len(text) > _LONGEST:
        raise _bad(text, f"{len(text):,} characters, at most {_LONGEST:,}", "shorten it")
    body, *sources = _split(text.strip(), "@")
    if len(sources) > 1:
        raise _bad(text, f'two sources, "@{sources[0]}" and "@{sources[1]}"', "give one")
    terms = tuple(_parse_term(piece, text) for piece in _split(body, "+"))
    return ObjectiveSpec(terms, _parse_source(sources[0], text) if sources else None)


def _parse_source(piece: str, whole: str) -> Term:
    if len(_split(piece, "*")) > 1:
        raise _bad(whole, f'the source "@{piece}" has a weight', "weights belong to losses; remove it")
    return _parse_term(piece, whole)


def _parse_term(piece: str, whole: str) -> Term:
    *weights, rest = _split(piece, "*")
    name, colon, options = _split_name(rest.strip())
    if not _NAME.match(name.partition(":")[0]):
        what = f'"{name}" is not a name' if name else "a term is empty"
        raise _bad(whole, what, "write names joined by +, as in 0.5*ce+0.5*akl:mu=0.6")
    weight = _parse_weight([text.strip() for text in weights], whole)
    return Term(name, dict(_parse_options(options, name, whole)) if colon else {}, weight)


def _parse_weight(texts: list[str], whole: str) -> float:
    if not texts:
        return 1.0
    if len(texts) > 1 or not _NUMBER.match(texts[0]):
        raise _bad(whole, f'"{texts[-1]}" is not a weight', "write a number before *, as in 0.5*ce")
    weight = float(texts[0])
    if weight < 0 or not math.isfinite(weight):
        raise _bad(whole, f"the weight {texts[0]} must be a finite number >= 0", "as in 0.5*ce")
    return weight


def _parse_options(text: str, name: str, whole: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for pair in _split(text, ","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (equals and _KEY.match(key) and value):
            raise _bad(whole, f'"{pair.strip()}" after {name} is not key=value', f"write {name}:key=value,key=value")
        if key in seen:
            raise _bad(whole, f'option "{key}" of {name} is given twice', "keep one")
        seen.add(key)
        yield key, value


def student_options(spec: str, known: Sequence[str], code: str, example: str) -> dict[str, str]:
    """Return the options of a student's spec, ``kind:name=value,name=value``, unread.

    Args:
        spec: as typed.
        known: names of options.
        code: of the error.
        example: a spec that can be used.

    Raises:
        UsageError: a part that is no option, an unknown one, or one that is given twice.

    >>> student_options("cut: layers=2, ffn=64", ("layers", "ffn"), "CUT-02", "cut:layers=4")
    {'layers': '2', 'ffn': '64'}
    """

    def bad(what: str, fix: str) -> UsageError:
        return UsageError(code, what, where=f'student "{one_line(spec)}"', fix=fix)

    found: dict[str, str] = {}
    for pair in filter(str.strip, spec.partition(":")[2].split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            raise bad(f'"{one_line(pair.strip(), 40)}" is not option=value', f"write {example}")
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise bad(
                f'unknown option "{one_line(name, 40)}"',
                f"did you mean {near[0]}?" if near else f"use {', '.join(known)}",
            )
        if name in found:
            raise bad(f'"{name}" is given twice', "keep one")
        found[name] = value
    return found


def _split_name(text: str) -> tuple[str, bool, str]:
    """Split ``name:options``; a guest's name (``./file.py:Class``) holds a colon itself."""
    parts = _split(text, ":")
    size = 2 if len(parts) > 1 and parts[1] and "=" not in parts[1] else 1
    return ":".join(parts[:size]).strip(), len(parts) > size, ":".join(parts[size:])


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside parentheses; a ``+`` inside ``1e+4`` does not count."""
    pieces, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth < 0 or depth > _DEEPEST:
            break
        if letter == separator and depth == 0 and not (separator == "+" and _EXPONENT.search(text[start:index])):
            pieces.append(text[start:index])
            start = index + 1
    if depth > _DEEPEST:
        raise _bad(text, f"parentheses are nested more than {_DEEPEST} deep", "use fewer")
    if depth != 0:
        raise _bad(text, "parentheses do not match", "close every ( with )")
    return [*pieces, text[start:]]


def _bad(text: str, what: str, fix: str) -> UsageError:
    return UsageError("SPEC-01", one_line(what), where=f'objective "{one_line(text)}"', fix=fix)
