"""Choices of a row, checked and as tokens: each is a continuation of the row's prompt."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from kdcli.data.readers import kind_of
from kdcli.data.tokenize import Example, TokenDataset, follow_all
from kdcli.errors import InputError
from kdcli.text import one_line

_FIX = "repair the row, or leave it out"


@dataclass(frozen=True)
class Choices:
    """The choices of one row, checked.

    Args:
        texts: the choices, at least two, all different.
        right: which of them is right.
    """

    texts: tuple[str, ...]
    right: int


def check_choices(example: Example) -> Choices:
    """Return a row's choices.

    The right one is ``answer``, as text or as its place from 0; without it, the first reference. Space
    around texts does not count when they are compared.

    Raises:
        InputError: no choices, fewer than two, one empty or twice, or a right answer that is not among them.

    >>> check_choices(Example((1, 2), 1, "p", ("b",), "line 1", choices=["a", "b"])).right
    1
    """
    given = example.choices
    if given is None:
        raise _refuse("DATA-05", 'field "choices" is missing', example, "give a list of answers to choose from")
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        what = f'"choices" must be a list of texts, got {kind_of(given)}'
        raise _refuse("DATA-06", what if not isinstance(given, list) else '"choices" holds what is no text', example)
    bare = [text.strip() for text in given]
    if len(bare) < 2 or "" in bare:
        what = 'an empty text in "choices"' if "" in bare else f'"choices" holds {len(bare)}, at least two are needed'
        raise _refuse("DATA-07", what, example)
    twice = next((text for text, count in Counter(bare).items() if count > 1), None)
    if twice is not None:
        raise _refuse("DATA-07", f'the choice "{one_line(twice, 40)}" stands twice', example)
    return Choices(tuple(given), _right(example, bare))


@dataclass(frozen=True)
class ChoiceTokens:
    """The choices of one row as tokens.

    Args:
        choices: the choices.
        context: what is read before every choice: the prompt, as far as all choices leave its tokens as they are.
        ids: what is read after it for each choice, no end token at its end.
    """

    choices: Choices
    context: tuple[int, ...]
    ids: list[list[int]]


def encode_choices(tokenizer: PreTrainedTokenizerBase, dataset: TokenDataset) -> list[ChoiceTokens]:
    """Return each row's choices as tokens; prompt and choice are tokenised as one text.

    Raises:
        InputError: choices that cannot be used, that have no token, that two of a row share, or that follow images.
    """
    seen = next((example for example in dataset.examples if example.images is not None), None)
    if seen is not None:
        raise _refuse("IMG-06", "choices behind images are not scored", seen, "leave metrics of choices out")
    found, checked = [], [check_choices(example) for example in dataset.examples]
    pairs = [(example, choices.texts) for example, choices in zip(dataset.examples, checked, strict=True)]
    for example, choices, followed in zip(dataset.examples, checked, follow_all(tokenizer, pairs), strict=True):
        wholes = [ids for ids, _ in followed]
        shared = min(_alike(example.question, ids) for ids in wholes)
        if not shared:
            what, fix = "the tokenizer reads prompt and choice as one token", "end the prompt with a line break"
            raise _refuse("DATA-24", what, example, fix)
        tokens = ChoiceTokens(choices, example.question[:shared], [list(ids[shared:]) for ids in wholes])
        _check_tokens(choices, tokens.ids, example)
        found.append(tokens)
    return found


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of two sequences' common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _check_tokens(choices: Choices, ids: list[list[int]], example: Example) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for text, tokens in zip(choices.texts, ids, strict=True):
        if not tokens:
            raise _refuse("DATA-07", f'the choice "{one_line(text, 40)}" has no tokens', example)
        other = seen.setdefault(tuple(tokens), text)
        if other != text:
            what = f'the choices "{one_line(other, 40)}" and "{one_line(text, 40)}" have the same tokens'
            raise _refuse("DATA-24", what, example, "use choices that this tokenizer can tell apart")


def _right(example: Example, bare: list[str]) -> int:
    answer = example.answer if example.answer is not None else example.references[0]
    if type(answer) is int and 0 <= answer < len(bare):
        return answer
    if isinstance(answer, str) and answer.strip() in bare:
        return bare.index(answer.strip())
    shown = one_line(str(answer), 40)
    raise _refuse("DATA-24", f'the answer "{shown}" is not among the {len(bare)} choices', example)


def _refuse(code: str, what: str, example: Example, fix: str = _FIX) -> InputError:
    return InputError(code, what, where=example.where, fix=fix)
