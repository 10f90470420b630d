"""Rows for classifiers: a text and the class that it belongs to, as tokens and a number."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from kdcli.config.sections import DataConfig
from kdcli.data.columns import CLASS_FORMS
from kdcli.data.readers import counted
from kdcli.data.rows import RowReport, read_rows
from kdcli.data.tokenize import Example, TokenDataset, encode
from kdcli.errors import InputError
from kdcli.text import one_line

_SHOWN = 12


def read_class_rows(path: str, config: DataConfig, *, limit: int | None, splits: Sequence[str]) -> RowReport:
    """Read texts and their labels; each row's prompt is its text, and its response its label.

    Args:
        path: as for :func:`kdcli.data.rows.read_rows`.
        config: column map, and whether bad rows are left out.
        limit: read no further than this many good rows.
        splits: split to take where there are several.

    Raises:
        InputError: rows that cannot be used.
    """
    return read_rows(path, config, limit=limit, splits=splits, forms=CLASS_FORMS)


def labels_in(report: RowReport, path: str) -> tuple[str, ...]:
    """Return the classes that rows have, numbers by size and before words, words by the alphabet.

    Args:
        report: the rows.
        path: their file, for messages.

    Raises:
        InputError: CLS-01, fewer than two.
    """
    found = {row.responses[0] for row in report.rows}
    if len(found) < 2:
        what = f'every row has the label "{one_line(min(found), 40)}": a classifier has two classes or more'
        raise InputError("CLS-01", what, where=path, fix="give rows of several classes")
    return tuple(sorted(found, key=lambda label: (not label.isdecimal(), len(label) * label.isdecimal(), label)))


def class_dataset(
    report: RowReport, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], longest: int
) -> TokenDataset:
    """Return rows as sequences whose one response token is the number of the class.

    Args:
        report: the rows.
        tokenizer: of the classifier.
        labels: its classes, in the order of its logits.
        longest: tokens of text and class together.

    Raises:
        InputError: CLS-02, a label that is no class; or a text that the tokenizer fails on.
    """
    places = {label: place for place, label in enumerate(labels)}
    for row in report.rows:
        check_label(row.responses[0], labels, row.where, "the classes are")
    where = [row.where for row in report.rows]
    texts = class_tokens(tokenizer, [row.prompt for row in report.rows], where, longest - 1, guarded=True)
    examples = tuple(
        Example(
            (*ids, places[row.responses[0]]), len(ids), row.prompt, row.responses, row.where, list(labels),
            row.responses[0], row.responses[0], teacher_trust=row.teacher_trust,
        )
        for row, ids in zip(report.rows, texts.ids, strict=True)
    )  # fmt: skip
    notes = [*report.notes, _shares([row.responses[0] for row in report.rows], labels)]
    cut = f"{counted(texts.cut, 'text')} cut at {longest - 1} tokens" if texts.cut else ""
    return TokenDataset(examples, (*notes, *filter(None, [cut])), report.digest, "", cut, tuple(labels))


def check_label(label: str, labels: Sequence[str], where: str, known: str) -> None:
    """Refuse a label that is no class.

    Args:
        label: the label.
        labels: the classes.
        where: where it stands.
        known: whose classes these are, as the beginning of their list.

    Raises:
        InputError: CLS-02.
    """
    if label not in labels:
        named = ", ".join(one_line(one, 40) for one in labels[:_SHOWN]) + (", ..." if len(labels) > _SHOWN else "")
        what = f'the label "{one_line(label, 40)}" is no class; {known} {named}'
        raise InputError("CLS-02", what, where=where, fix="correct the label, or leave the row out")


def _shares(given: Sequence[str], labels: Sequence[str]) -> str:
    counts = Counter(given)
    parts = [f"{one_line(label, 40)} {counts[label] / len(given):.0%}" for label in labels[:_SHOWN]]
    return f"{len(labels)} classes: {', '.join(parts)}{', ...' if len(labels) > _SHOWN else ''}"


@dataclass(frozen=True)
class ClassTokens:
    """Texts as a classifier reads them.

    Args:
        ids: of each text, the tokenizer's own special tokens around it.
        cut: how many texts had more tokens than there is room for; their ends are left out.
    """

    ids: list[tuple[int, ...]]
    cut: int


def class_tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    where: Sequence[str],
    longest: int | None,
    *,
    guarded: bool = False,
) -> ClassTokens:
    """Tokenise texts for a classifier.

    Args:
        tokenizer: any tokenizer.
        texts: the texts.
        where: of each, its file and line.
        longest: tokens at most, special ones included; None for any number.
        guarded: as for :func:`kdcli.data.tokenize.encode`.

    Raises:
        InputError: the tokenizer fails on a text, or gives it no token.
    """
    before, after = _around(tokenizer)
    room = None if longest is None else max(longest - len(before) - len(after), 1)
    found, cut = [], 0
    for ids, place in zip(encode(tokenizer, texts, where, guarded=guarded), where, strict=True):
        if not ids:
            raise InputError("DATA-07", "the text has no token", where=place, fix="repair the row, or leave it out")
        cut += room is not None and len(ids) > room
        found.append((*before, *ids[:room], *after))
    return ClassTokens(found, cut)


@lru_cache(maxsize=4)
def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that a tokenizer puts before and behind a text."""
    bare = encode(tokenizer, ["a"], ["the tokenizer's probe"])[0]
    full = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()
