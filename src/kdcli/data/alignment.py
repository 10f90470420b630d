"""Tokenizer alignment: the same text for a teacher with another tokenizer, and the boundaries both share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from kdcli.data.tokenize import (
    Example,
    TokenDataset,
    decode,
    decode_after,
    decode_words,
    encode_one,
    encode_pairs,
    first_context,
    follow,
    prompt_prefix,
)
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError

# Where in a text a tokenizer's tokens end, and at which ends two tokenizers meet.


NO_OFFSET = -1
"""Stands for an end that is no place in the text: inside a character, or inside what one token was made of."""

_BROKEN = "\ufffd"
_CONTEXT = 8
"""Tokens before others that are decoded with them."""


@dataclass(frozen=True)
class TokenOffsets:
    """A text as one tokenizer cuts it.

    Args:
        text: the text.
        ids: its tokens, none of them special.
        ends: characters of the text that the first k tokens stand for, k from 0 to their number; ``NO_OFFSET`` where
            that is no whole number of characters.
    """

    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]


def read_text(tokenizer: PreTrainedTokenizerBase, text: str, prompt: str = "") -> TokenOffsets:
    """Cut a text into tokens and find their ends by the places that the tokenizer itself reports.

    Behind a prompt, both are cut as one text; the tokens are those of the text alone, and the first end lies behind
    its beginning where the prompt's last token reaches into it.

    These places are of the text as given, whatever the tokenizer does to it: a space put in front, spaces
    dropped, characters composed anew, bytes of one character apart. A place holds only if every later token
    stands for text after it. The last token ends where the text ends; a first one that is only the space
    put in front ends where the text begins.

    Args:
        tokenizer: any tokenizer; one that reports no places is asked for the text of its first k tokens instead.
        text: the text.
        prompt: what stands before it.
    """
    (joined,) = encode_pairs(tokenizer, [prompt], [text], ["the text"])
    ids, border, start = tuple(joined.ids), joined.border, len(prompt)
    spans = encode_one(tokenizer, prompt + text)[1]
    if spans is None:
        return _by_decoding(tokenizer, ids[border:], text, ids[:border])
    ends = [
        NO_OFFSET if end == NO_OFFSET else max(0, end - start) for end in _ends(tokenizer, ids, spans, prompt + text)
    ]
    if not joined.straddled and border < len(ids):
        ends[border] = 0
    if len(ids) - border > 1 and ends[border + 1] == NO_OFFSET and not decode(tokenizer, ids[border : border + 1]):
        ends[border + 1] = 0
    return TokenOffsets(text, ids[border:], tuple(ends[border:]))


def _ends(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], spans: Sequence[tuple[int, int]], text: str
) -> list[int]:
    later = [len(text)]
    for start, end in reversed(spans):
        later.append(min(later[-1], start if end > start else later[-1]))
    later.reverse()
    ends, reached = [0], 0
    for (_, end), bound in zip(spans, later[1:], strict=True):
        reached = max(reached, end)
        ends.append(reached if bound >= reached else NO_OFFSET)
    ends[-1] = len(text)
    return ends


def read_ids(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], prompt: str = "", context: Sequence[int] = ()
) -> TokenOffsets:
    """Return the text that some tokens stand for, and their ends in it, be the text cut as the tokenizer would or not.

    Args:
        tokenizer: the tokenizer.
        ids: tokens, such as a model wrote.
        prompt: the text before them.
        context: the tokens before them.
    """
    context = context[-_CONTEXT:]
    text = decode_after(tokenizer, context, ids, special=True)
    found = read_text(tokenizer, text, prompt)
    return found if found.ids == tuple(ids) else _by_decoding(tokenizer, tuple(ids), text, context)


def common_boundaries(own: TokenOffsets, other: TokenOffsets) -> tuple[int, ...]:
    """Return, for each end of one reading, how many tokens of the other stand for the same text up to there.

    Of several ends at one place, of which all but the last are followed by a token without text, the last counts.
    If the texts differ, ends meet within the beginning that both share.

    Args:
        own: whose ends are asked for.
        other: where they are looked for.

    Returns:
        a number of tokens of the other reading for each end; ``NO_OFFSET`` where none ends there.

    >>> own = TokenOffsets("abcd", (1, 2, 3), (0, 1, 2, 4))
    >>> common_boundaries(own, TokenOffsets("abcd", (7, 8), (0, 2, 4)))
    (0, -1, 1, 2)
    """
    shared = _shared(own.text, other.text)
    places = {end: count for count, end in enumerate(other.ends) if 0 <= end <= shared}
    last = {end: count for count, end in enumerate(own.ends)}
    return tuple(
        places.get(end, NO_OFFSET) if end != NO_OFFSET and last[end] == count else NO_OFFSET
        for count, end in enumerate(own.ends)
    )


def _shared(one: str, other: str) -> int:
    """Return the length of two texts' common prefix."""
    if one == other:
        return len(one)
    apart = (place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(apart, min(len(one), len(other)))


def _by_decoding(
    tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...], text: str, context: Sequence[int]
) -> TokenOffsets:
    """Take for the text of the first k tokens what the tokenizer decodes them to, where the text begins with that."""
    ends = [0]
    for count in range(1, len(ids) + 1):
        said = decode_after(tokenizer, context, ids[:count], special=True)
        whole = text.startswith(said) and not said.endswith(_BROKEN)
        ends.append(len(said) if whole else NO_OFFSET)
    return TokenOffsets(text, ids, tuple(ends))


@dataclass(frozen=True)
class TokenReader:
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
class AlignedSequence:
    """What the teacher reads of one sequence of the student.

    Args:
        ids: prompt and response in the teacher's tokens, as far as any of the places, and no end token.
        prompt_length: how many of the ids are prompt, at least 1.
        places: for each label of the student, how many response tokens the teacher has read when it has read the same
            text; ``NO_OFFSET`` where it stops nowhere near.
    """

    ids: tuple[int, ...]
    prompt_length: int
    places: tuple[int, ...]

    @property
    def is_aligned(self) -> bool:
        """Whether the teacher has read the text before any label."""
        return any(place != NO_OFFSET for place in self.places)

    def within(self, positions: int | None) -> "AlignedSequence":
        """Return what is left of it for a model of so many positions; places beyond are left out."""
        if positions is None or len(self.ids) <= positions:
            return self
        last = positions - self.prompt_length
        places = tuple(place if place <= last else NO_OFFSET for place in self.places)
        return AlignedSequence(self.ids[:positions], self.prompt_length, places)


class TokenAligner:
    """Turns the student's sequences into the teacher's, by their text.

    The prompt of a row is read as the teacher reads that row, in its own chat template and with its own special
    tokens; its response likewise. A response that a model wrote is decoded first.

    Args:
        own: the student's side.
        other: the teacher's; its rows are those of the student, one for one.
    """

    def __init__(self, own: TokenReader, other: TokenReader) -> None:
        assert len(own.rows) == len(other.rows), "see matched()"
        self.own, self.other = own, other

    def align(self, ids: Sequence[int], prompt_length: int, row: int) -> AlignedSequence:
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
        places = common_boundaries(own, read)[:labels]
        return AlignedSequence((*whole_ids[:border], *read.ids[: max(0, *places)]), border, places)

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


def pair_rows(own: TokenDataset, other: TokenDataset) -> TokenDataset:
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
