"""Rows as examples in a prompt (few-shot), and the rows that are read out of a text in the same layout."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcli.data.columns import FormName
from kdcli.data.rows import Row

_PURPOSE = 0x73686F7473  # keeps these draws apart from others of the same seed
_LABELS = {"prompt": "Prompt", "context": "Context", "response": "Response"}
_USUAL = {
    "prompt": {"prompt": "prompt", "response": "completion"},
    "instruction": {"instruction": "instruction", "input": "input", "response": "output"},
    "text": {"text": "text"},
    "messages": {"messages": "messages"},
}
"""Form -> field -> the column that it has where nothing else is said."""

Parts = Mapping[str, str]
"""What an example is made of, by name: prompt, context, response."""


@dataclass(frozen=True)
class ExampleLayout:
    r"""How rows of one form are laid out as examples.

    Each part begins a line with its name and a colon; a blank line stands between examples.

    Args:
        form: of the rows; of plain texts an example is ``Text: ...``.

    >>> layout = ExampleLayout("prompt")
    >>> print(layout.show(Row("2 + 2", ("4",), "line 1")))
    Prompt: 2 + 2
    Response: 4
    >>> [dict(one) for one in layout.parse(" 1 + 2\nResponse: 3\n\nPrompt: 5 +", ended=False)]
    [{'prompt': '1 + 2', 'response': '3'}]
    """

    form: FormName = "prompt"

    @property
    def _labels(self) -> dict[str, str]:
        if self.form == "text":
            return {"response": "Text"}
        return _LABELS if self.form == "instruction" else {name: _LABELS[name] for name in ("prompt", "response")}

    @property
    def cue(self) -> str:
        """The beginning of an example, which a prompt may end with."""
        return f"{next(iter(self._labels.values()))}:"

    def show(self, row: Row) -> str:
        """Return a row as an example; empty if it cannot be told apart in this layout, or has more than its parts."""
        parts = _parts_of(row)
        if parts is None:
            return ""
        lines = [f"{label}: {parts[name]}" for name, label in self._labels.items() if parts.get(name)]
        text = "\n".join(lines)
        same = [*self.parse(text, ended=True)] == [{name: text for name, text in parts.items() if text}]
        return text if same else ""

    def parse(self, text: str, *, ended: bool) -> list[Parts]:
        """Return the examples in a text that goes on behind :attr:`cue` or begins with it.

        Args:
            text: what was written; an example without all its parts is left out.
            ended: whether its writer ended it; if not, the last example may be half and is left out.
        """
        names = {label: name for name, label in self._labels.items()}
        order = tuple(names.values())
        beginning = "" if text.lstrip().startswith(self.cue) else f"{self.cue} "
        pieces = re.split(rf"^[ \t]*({'|'.join(names)}):", beginning + text.lstrip(), flags=re.MULTILINE)
        found: list[list[tuple[str, str]]] = []
        for label, part in zip(pieces[1::2], pieces[2::2], strict=True):
            if names[label] == order[0]:
                found.append([])
            found[-1].append((names[label], part.strip()))
        needed = tuple(name for name in order if name != "context")
        whole = [one for one in (found if ended else found[:-1]) if tuple(name for name, _ in one) in (order, needed)]
        parts = [{name: text for name, text in one if text} for one in whole]
        return [one for one in parts if all(name in one for name in needed)]

    def columns(self, parts: Parts, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return an example as the columns of a row.

        Args:
            parts: of the example.
            columns: field -> column, as :class:`~kdcli.data.rows.RowReport` has them; the usual names if not given.
        """
        names = {**_USUAL[self.form], **(columns or {})}
        if self.form == "text":
            return {names["text"]: parts["response"]}
        if self.form == "messages":
            turns = [("user", parts["prompt"]), ("assistant", parts["response"])]
            return {names["messages"]: [{"role": role, "content": text} for role, text in turns]}
        asked = names["prompt" if self.form == "prompt" else "instruction"]
        context = {names["input"]: parts["context"]} if parts.get("context") else {}
        return {asked: parts["prompt"], **context, names["response"]: parts["response"]}


def _parts_of(row: Row) -> dict[str, str] | None:
    """Return the parts of a row; None if it has others, such as choices or several turns."""
    prompt = row.prompt
    if row.form == "messages":
        turns = [*row.messages, *([row.turn] if row.turn is not None else [])]
        plain = all(set(one) == {"role", "content"} and isinstance(one["content"], str) for one in turns)
        if not plain or [one["role"] for one in turns] != ["user", "assistant"]:
            return None
        prompt = turns[0]["content"]
    if row.choices is not None or row.extras or row.form == "class":
        return None
    parts = {"prompt": prompt.strip(), "context": row.context.strip(), "response": row.responses[0].strip()}
    return {"response": parts["response"]} if row.form == "text" else parts


def text_key(parts: Parts) -> tuple[str, ...]:
    """Return what is equal of two examples that differ in white space alone."""
    return tuple(" ".join(parts.get(name, "").split()) for name in _LABELS)


def row_key(row: Row) -> tuple[str, ...]:
    """Return :func:`text_key` of a row, of its first response."""
    return text_key(_parts_of(row) or {"prompt": row.prompt, "context": row.context, "response": row.responses[0]})


def draw(rows: int, count: int, seed: int, number: int) -> list[int]:
    """Return the places of the rows that one prompt shows: drawn by (seed, number) alone, none twice.

    Args:
        rows: how many there are.
        count: how many are shown at most.
        seed: of the draws.
        number: of the prompt.
    """
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, number, _PURPOSE])))
    return [int(at) for at in random.permutation(rows)[:count]]


@dataclass(frozen=True)
class Feedback:
    """Rows of which each prompt shows a few, where its template says ``{feedback}``.

    Args:
        shown: the rows as examples.
        places: where each stands.
        count: rows of a prompt at most.
        seed: of the draws.
        digest: sha256 of the file.
        form: of the rows.
    """

    shown: Sequence[str]
    places: Sequence[str]
    count: int
    seed: int
    digest: str
    form: FormName

    def drawn(self, number: int) -> list[int]:
        """Return the places in :attr:`shown` of the examples of one prompt, counted from 0."""
        return draw(len(self.shown), self.count, self.seed, number)

    def text(self, number: int) -> str:
        """Return the examples of one prompt."""
        return "\n\n".join(self.shown[at] for at in self.drawn(number))
