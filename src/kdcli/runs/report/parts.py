"""What a report is made of: sections with words, pictures, tables and answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Picture:
    """One drawing.

    Args:
        svg: an ``<svg>`` element.
        caption: what stands below it.
    """

    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        caption: what stands above it.
        heads: one text per column.
        rows: one text per column and line; the first column names the line.
        numbers: whether all columns but the first hold numbers.
    """

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = True


@dataclass(frozen=True)
class Sheet:
    """Answers to one prompt.

    Args:
        where: file and line.
        why: why this prompt is shown.
        prompt: what was asked.
        references: valid answers.
        answers: contender -> its answer and a remark.
    """

    where: str
    why: str
    prompt: str
    references: tuple[str, ...]
    answers: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Args:
        anchor: its place in the page.
        title: its heading.
        words: paragraphs that say what is shown and how to read it.
        remarks: list of single sentences.
        pictures: drawings.
        tables: tables.
        sheets: answers side by side.
        texts: long texts, such as command lines.
    """

    anchor: str
    title: str
    words: Sequence[str] = ()
    remarks: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    sheets: Sequence[Sheet] = ()
    texts: Sequence[str] = ()
