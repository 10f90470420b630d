"""Gives a teacher of another tokenizer the same text to read, and says where both have read as much of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from kdcli.data.examples import Example, TokenDataset
from kdcli.data.reading import NOWHERE, meet, read_ids, read_text
from kdcli.data.tokens import decode_words, encode_one, first_context, follow, prompt_prefix
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError


@dataclass(frozen=True)
class Reader:
    """A model's way to read the training rows.

    Args:
        tokenizer: its tokenizer.
        ends: the tokens that end a response.
        rows: the training rows in its tokens, with its own special tokens and chat template around them.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: EndTokens
    rows: TokenDataset

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text."""
        return prompt_prefix(self.tokenizer)

    @cached_property
    def beginning(self) -> int:
        """The token that stands for an empty prompt."""
        return first_context(self.tokenizer, self.ends)


@dataclass(frozen=True)
class Counterpart:
    """What the teacher reads of one sequence of the student.

    Args:
        ids: prompt and response in the teacher's tokens, as far as any of the places, and no end token.
        prompt_length: how many of the ids are prompt, at least 1.
        places: for each label of the student, how many response tokens the teacher has read when it has read the same
            text; ``NOWHERE`` where it stops nowhere near.
    """

    ids: tuple[int, ...]
    prompt_length: int
    places: tuple[int, ...]

    @property
    def speaks(self) -> bool:
        """Whether the teacher has read the text before any label."""
        return any(place != NOWHERE for place in self.places)

    def within(self, positions: int | None) -> "Counterpart":
        """Return what is left of it for a model of so many positions; places beyond are left out."""
        if positions is None or len(self.ids) <= positions:
            return self
        last = positions - self.prompt_length
        places = tuple(place if place <= last else NOWHERE for place in self.places)
        return Counterpart(self.ids[:positions], self.prompt_length, places)


class Translator:
    """Turns the student's sequences into the teacher's, by their text.

    The prompt of a row is read as the teacher reads that row, in its own chat template and with its own special
    tokens; its response likewise. A response that a model wrote is decoded first.

    Args:
        own: the student's side.
        other: the teacher's; its rows are those of the student, one for one.
    """

    def __init__(self, own: Reader, other: Reader) -> None:
        assert len(own.rows) == len(other.rows), "see matched()"
        self.own, self.other = own, other

    def counterpart(self, ids: Sequence[int], prompt_length: int, row: int) -> Counterpart:
        """Return what the teacher reads.

        Args:
            ids: a whole sequence in the student's tokens, its end token included if it has one.
            prompt_length: how many of them are prompt.
            row: the training row whose prompt it has, as far as is known; -1 for none.
        """
        ids = tuple(ids)
        mine, theirs = self._row(row, ids[:prompt_length])
        labels = len(ids) - prompt_length
        body = self.own.ends.body(ids[prompt_length:])
        asked = ids[:prompt_length]
        whole = mine is not None and theirs is not None and mine.ids == ids
        own = read_text(self.own.tokenizer, mine.response, mine.prompt) if whole and mine is not None else None
        if own is None or own.ids[: len(body)] != body or theirs is None:
            prompt = self._prompt(asked, theirs)
            own = read_ids(self.own.tokenizer, body, mine.prompt if mine is not None else prompt.prompt, asked)
            response = own.text
        else:
            prompt, response = theirs, theirs.response
        read = read_text(self.other.tokenizer, response, prompt.prompt)
        ((whole_ids, border),) = follow(self.other.tokenizer, prompt, [response])
        places = meet(own, read)[:labels]
        return Counterpart((*whole_ids[:border], *read.ids[: max(0, *places)]), border, places)

    def _row(self, row: int, prompt: tuple[int, ...]) -> tuple[Example | None, Example | None]:
        """Return the row as both read it, if the prompt is that row's."""
        mine = self.own.rows.examples[row] if row >= 0 else None
        if mine is None or prompt not in (mine.ids[: mine.prompt_length], mine.question):
            return None, None
        return mine, self.other.rows.examples[row]

    def _prompt(self, prompt: tuple[int, ...], theirs: Example | None) -> Example:
        """Return a row of the teacher's whose prompt says what the student's does."""
        if theirs is not None:
            return theirs
        text = "" if prompt == (self.own.beginning,) else decode_words(self.own.tokenizer, prompt)
        read = encode_one(self.other.tokenizer, text)[0] if text else ()
        ids = (*self.other.prefix, *read) if text else (self.other.beginning,)
        return Example(ids, len(ids), text, (), "a prompt of no row")


def matched(own: TokenDataset, other: TokenDataset) -> TokenDataset:
    """Return the teacher's rows in the order of the student's, one for one.

    Args:
        own: rows as the student reads them.
        other: the same rows as the teacher does; there may be more.

    Raises:
        InputError: TOK-16, a row that the teacher cannot read.
    """
    by_place = {example.where: example for example in other.examples}
    for example in own.examples:
        if example.where not in by_place:
            what = "the student can read this row and the teacher cannot"
            fix = "leave the row out, or choose another --template"
            raise InputError("TOK-16", what, where=example.where, fix=fix)
    found = tuple(by_place[example.where] for example in own.examples)
    return TokenDataset(found, other.notes, other.files, other.template)
