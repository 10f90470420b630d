"""Where in a text a tokenizer's tokens end, and at which ends two tokenizers meet."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from kdcli.data.tokens import decode, decode_after, encode_one, encode_pairs

NOWHERE = -1
"""Stands for an end that is no place in the text: inside a character, or inside what one token was made of."""

_BROKEN = "\ufffd"
_CONTEXT = 8
"""Tokens before others that are decoded with them."""


@dataclass(frozen=True)
class Reading:
    """A text as one tokenizer cuts it.

    Args:
        text: the text.
        ids: its tokens, none of them special.
        ends: characters of the text that the first k tokens stand for, k from 0 to their number; ``NOWHERE`` where
            that is no whole number of characters.
    """

    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]


def read_text(tokenizer: PreTrainedTokenizerBase, text: str, prompt: str = "") -> Reading:
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
    ends = [NOWHERE if end == NOWHERE else max(0, end - start) for end in _ends(tokenizer, ids, spans, prompt + text)]
    if not joined.straddled and border < len(ids):
        ends[border] = 0
    if len(ids) - border > 1 and ends[border + 1] == NOWHERE and not decode(tokenizer, ids[border : border + 1]):
        ends[border + 1] = 0
    return Reading(text, ids[border:], tuple(ends[border:]))


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
        ends.append(reached if bound >= reached else NOWHERE)
    ends[-1] = len(text)
    return ends


def read_ids(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], prompt: str = "", context: Sequence[int] = ()
) -> Reading:
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


def meet(own: Reading, other: Reading) -> tuple[int, ...]:
    """Return, for each end of one reading, how many tokens of the other stand for the same text up to there.

    Of several ends at one place, of which all but the last are followed by a token without text, the last counts.
    If the texts differ, ends meet within the beginning that both share.

    Args:
        own: whose ends are asked for.
        other: where they are looked for.

    Returns:
        a number of tokens of the other reading for each end; ``NOWHERE`` where none ends there.

    >>> own = Reading("abcd", (1, 2, 3), (0, 1, 2, 4))
    >>> meet(own, Reading("abcd", (7, 8), (0, 2, 4)))
    (0, -1, 1, 2)
    """
    shared = _shared(own.text, other.text)
    places = {end: count for count, end in enumerate(other.ends) if 0 <= end <= shared}
    last = {end: count for count, end in enumerate(own.ends)}
    return tuple(
        places.get(end, NOWHERE) if end != NOWHERE and last[end] == count else NOWHERE
        for count, end in enumerate(own.ends)
    )


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    if one == other:
        return len(one)
    apart = (place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(apart, min(len(one), len(other)))


def _by_decoding(
    tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...], text: str, context: Sequence[int]
) -> Reading:
    """Take for the text of the first k tokens what the tokenizer decodes them to, where the text begins with that."""
    ends = [0]
    for count in range(1, len(ids) + 1):
        said = decode_after(tokenizer, context, ids[:count], special=True)
        whole = text.startswith(said) and not said.endswith(_BROKEN)
        ends.append(len(said) if whole else NOWHERE)
    return Reading(text, ids, tuple(ends))
