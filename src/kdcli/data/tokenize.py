"""Tokenizes rows and decodes tokens, and names the row at which a tokenizer fails."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdcli.data.images import RowImages
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, raise_machine_fault
from kdcli.storage.forked import ExceededError, bounded
from kdcli.text import one_line

# Token sequences, and what two sets of them have in common.


@dataclass(frozen=True)
class Example:
    """One sequence of tokens.

    Args:
        ids: prompt, response and, unless the response was cut, one end token.
        prompt_length: how many of the ids are prompt; at least 1.
        prompt: the prompt as text, template and all; empty for plain text.
        references: the answers as the data give them.
        where: file and line.
        choices: answers to choose from, as the data give them and unchecked; None if there are none.
        answer: the right one or its place, likewise; None if the first reference is meant.
        response: the response as text, whole, template and all; empty where a model wrote it.
        asked: tokens of the prompt by itself, where they are others than the first ``prompt_length`` ids; else empty.
        teacher_trust: how far the teacher is trusted on this response, from 0 to 1.
        images: the images of the prompt; None for a row of text alone.
    """

    ids: tuple[int, ...]
    prompt_length: int
    prompt: str
    references: tuple[str, ...]
    where: str
    choices: Any = None
    answer: Any = None
    response: str = ""
    asked: tuple[int, ...] = ()
    teacher_trust: float = 1.0
    images: RowImages | None = None

    @property
    def question(self) -> tuple[int, ...]:
        """The prompt's tokens as given to a model, before anything follows."""
        return self.asked or self.ids[: self.prompt_length]


@dataclass(frozen=True)
class TokenDataset:
    """Sequences ready for batches.

    Args:
        examples: the sequences, in file order.
        notes: what was detected, cut and left out, a sentence each.
        files: sha256 over the files' bytes.
        template: eight hex digits that name the texts of the templates rows were put into.
        cut: the note on responses that were cut at the longest length; empty where none was.
        labels: the classes, where every row is a text and its class; empty for rows of text alone.
    """

    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    files: str = ""
    template: str = ""
    cut: str = ""
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence, prompt and response together."""
        return tuple(len(example.ids) for example in self.examples)

    @cached_property
    def without_prompt(self) -> int:
        """Rows that have no prompt to answer, such as plain texts."""
        return sum(not example.prompt for example in self.examples)

    @cached_property
    def with_images(self) -> int:
        """Rows whose prompt has images."""
        return sum(example.images is not None for example in self.examples)

    @cached_property
    def targets(self) -> int:
        """Response tokens in all, end tokens included."""
        return sum(len(example.ids) - example.prompt_length for example in self.examples)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 over the token ids and prompt lengths, and over the trust in the teacher if rows say it."""
        state = hashlib.sha256()
        for example in self.examples:
            numbers = [len(example.ids), example.prompt_length, *example.ids]
            state.update(np.asarray(numbers, dtype="<i8").tobytes())
        trust = np.asarray([example.teacher_trust for example in self.examples], dtype="<f8")
        if (trust != 1.0).any():
            state.update(trust.tobytes())
        for index, example in enumerate(self.examples):
            if example.images is not None:
                state.update(f"{index} {example.images.digest}".encode())
        return state.hexdigest()


def overlap(train: TokenDataset, held_out: TokenDataset) -> int:
    """Count held-out prompts that occur in the training rows; plain texts are compared whole.

    >>> one, other = (Example((1, 2), 1, f"say {letter}:", (letter,), "") for letter in "ab")
    >>> overlap(TokenDataset((one,)), TokenDataset((one, other)))
    1
    """
    seen = {_essence(example) for example in train.examples}
    return sum(_essence(example) in seen for example in held_out.examples)


def overlap_note(train: TokenDataset, held_out: TokenDataset) -> str | None:
    """Return the warning for held-out prompts that occur in the training rows, or None."""
    count = overlap(train, held_out)
    if not count:
        return None
    return f"DATA-18: {count:,} of {len(held_out):,} held-out prompts occur in the training rows"


def _essence(example: Example) -> str:
    text = " ".join((example.prompt or example.references[0]).split())
    return text if example.images is None else f"{text} {example.images.digest}"


_TEXTS_AT_ONCE = 1000


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: Sequence[str], *, guarded: bool = False
) -> list[list[int]]:
    """Return the token ids of each text, without special tokens around it and without truncation.

    Args:
        tokenizer: any tokenizer.
        texts: the texts.
        where: for each text its file and line.
        guarded: whether to tokenise in child processes of limited time and memory, as texts of a file are.

    Raises:
        InputError: TOK-07, the tokenizer fails on a text; TOK-09, it takes too long or too much memory.
    """
    if guarded:
        return _guarded(tokenizer, texts, where)
    ids: list[list[int]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        try:
            ids.extend(_encode(tokenizer, texts[part]))
        except BaseException as error:
            if not _is_fault_of_tokenizer(error):
                raise
            raise_machine_fault(error, "the tokenizer")
            raise _blame(tokenizer, texts[part], where[part], error) from error
    return ids


def _guarded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: Sequence[str]) -> list[list[int]]:
    def work(part: range) -> bytes:
        found = encode(tokenizer, [texts[at] for at in part], [where[at] for at in part])
        numbers = np.fromiter((token for ids in found for token in ids), np.int32)
        return np.asarray([len(found), *map(len, found)], np.int64).tobytes() + numbers.tobytes()

    ids: list[list[int]] = []
    try:
        for answer in bounded([len(text) for text in texts], work):
            (count,) = np.frombuffer(answer, np.int64, 1)
            lengths = np.frombuffer(answer, np.int64, count, offset=8)
            numbers, start = np.frombuffer(answer, np.int32, offset=8 * (1 + count)).tolist(), 0
            for length in lengths.tolist():
                ids.append(numbers[start : start + length])
                start += length
    except ExceededError as error:
        raise InputError(
            "TOK-09",
            f"the tokenizer took more than {error.spent} for one text",
            where=where[error.item],
            fix="leave the row out, or use another tokenizer",
        ) from error
    return ids


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoded["input_ids"]


def _is_fault_of_tokenizer(error: BaseException) -> bool:
    # A panic inside the Rust tokenizer arrives as PanicException, which is no Exception.
    return type(error).__name__ == "PanicException" or (
        isinstance(error, Exception) and not isinstance(error, MemoryError)
    )


def _blame(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: Sequence[str], error: BaseException
) -> InputError:
    guilty = where[0]
    for text, place in zip(texts, where, strict=True):
        try:
            _encode(tokenizer, [text])
        except BaseException as again:
            if not _is_fault_of_tokenizer(again):
                raise
            guilty, error = place, again
            break
    said = one_line(str(error) or type(error).__name__, 100)
    return InputError(
        "TOK-07", f"the tokenizer failed: {said}", where=guilty, fix="leave the row out, or use another tokenizer"
    )


def prompt_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids a tokenizer puts before a text by itself, such as its BOS.

    Raises:
        InputError: the tokenizer fails on a single letter.
    """
    bare = encode(tokenizer, ["a"], ["the tokenizer's probe"])[0]
    full = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


@dataclass(frozen=True)
class Joined:
    """A prompt and what follows it, tokenised as one text.

    Args:
        ids: tokens of the whole text.
        border: how many of them are prompt; a token that stands for text on both sides is.
        prompt: tokens of the prompt by itself, which a model is asked; mostly the first of ``ids``.
        straddled: whether a token stands for text on both sides.
    """

    ids: list[int]
    border: int
    prompt: list[int]
    straddled: bool = False


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    texts: Sequence[str],
    where: Sequence[str],
    *,
    guarded: bool = False,
) -> list[Joined]:
    """Tokenise each prompt together with what follows it, and find the border between the two.

    The ids are those of the whole text. Where the prompt by itself has the same first tokens, the border lies behind
    them: what follows is what a model has to write. Elsewhere the tokenizer's own report of characters says it, and
    for a tokenizer that reports none, the texts of the first k tokens.

    Args:
        tokenizer: any tokenizer; no special tokens are put around a text.
        prompts: may be empty.
        texts: what follows each.
        where: for each its file and line.
        guarded: as for :func:`encode`.

    Raises:
        InputError: TOK-07 and TOK-09, the tokenizer fails on a text; TOK-14, it does not tell where the prompt ends.
    """
    asked = [at for at, prompt in enumerate(prompts) if prompt]
    wholes = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    places = [*where, *(where[at] for at in asked)]
    ids = encode(tokenizer, [*wholes, *(prompts[at] for at in asked)], places, guarded=guarded)
    alone: list[list[int]] = [[] for _ in prompts]
    for at, read in zip(asked, ids[len(wholes) :], strict=True):
        alone[at] = read
    found = []
    for prompt, text, place, before, whole in zip(prompts, texts, where, alone, ids, strict=False):
        if whole[: len(before)] == before:
            found.append(Joined(whole, len(before), before))
        else:
            border, straddled = _border(tokenizer, prompt, text, whole, before, place)
            found.append(Joined(whole, border, before, straddled))
    return found


def _border(
    tokenizer: PreTrainedTokenizerBase, prompt: str, text: str, ids: list[int], alone: list[int], where: str
) -> tuple[int, bool]:
    """Return how many tokens of a whole text begin before the end of its prompt, and whether one reaches beyond."""
    spans = encode_one(tokenizer, prompt + text)[1]
    if spans is None:
        return _border_by_decoding(tokenizer, prompt, prompt + text, ids, where)
    count = next((at for at, (start, _) in enumerate(spans) if start >= len(prompt)), len(spans))
    reached = max((end for _, end in spans[:count]), default=0)
    # Byte-level tokenizers may report a token without the space in front of it, which may be the prompt's last.
    swallowed = reached < len(prompt) and count < len(spans) and len(alone) > count
    return count + swallowed, swallowed or reached > len(prompt)


def _border_by_decoding(
    tokenizer: PreTrainedTokenizerBase, prompt: str, whole: str, ids: list[int], where: str
) -> tuple[int, bool]:
    if decode(tokenizer, ids) == whole:
        for count in range(len(ids) + 1):
            said = decode(tokenizer, ids[:count])
            if len(said) >= len(prompt) and whole.startswith(said):
                return count, len(said) > len(prompt)
    what = "the tokenizer reads the prompt otherwise when the answer follows, and does not report where it ends"
    raise InputError("TOK-14", what, where=where, fix="use a tokenizer with a tokenizer.json, or another --template")


def follow(
    tokenizer: PreTrainedTokenizerBase, example: Example, texts: Sequence[str]
) -> list[tuple[tuple[int, ...], int]]:
    """Return the tokens of a row's prompt followed by each of some texts, and how many of them are prompt.

    Special tokens before the row's prompt stay as they are; no end token is added.

    Args:
        tokenizer: what made the row.
        example: the row, of which only the prompt is read.
        texts: what follows.

    Raises:
        InputError: the tokenizer fails on a text.
    """
    return follow_all(tokenizer, [(example, texts)], guarded=False)[0]


def follow_all(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Example, Sequence[str]]], *, guarded: bool = True
) -> list[list[tuple[tuple[int, ...], int]]]:
    """Return for each of several rows what :func:`follow` returns.

    Args:
        tokenizer: what made the rows.
        pairs: rows with the texts that follow each.
        guarded: as for :func:`encode`.
    """
    asked = [(example, text) for example, texts in pairs for text in texts]
    prompts, texts, places = ([*column] for column in zip(*((e.prompt, t, e.where) for e, t in asked), strict=True))
    joined = iter(encode_pairs(tokenizer, prompts, texts, places, guarded=guarded))
    found = []
    for example, texts in pairs:
        found.append([])
        for one in (next(joined) for _ in texts):
            before = example.question[: len(example.question) - len(one.prompt)]
            found[-1].append(((*before, *one.ids), len(before) + one.border))
    return found


def decode_after(
    tokenizer: PreTrainedTokenizerBase, context: Sequence[int], ids: Sequence[int], *, special: bool = False
) -> str:
    """Return the text that some ids stand for behind others; by themselves, tokenizers drop a space in front.

    Args:
        tokenizer: what made them.
        context: the ids before.
        ids: the ids.
        special: whether special tokens are part of the text.
    """
    read = decode if special else decode_words
    before, whole = read(tokenizer, context), read(tokenizer, [*context, *ids])
    return whole[len(before) :] if whole.startswith(before) else read(tokenizer, ids)


def without_prefix(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text without the special tokens in front that a tokenizer of this kind puts there by itself.

    A server that reads a text puts them there; a chat template may have written them already.
    """
    written = "".join(str(tokenizer.convert_ids_to_tokens(token)) for token in prompt_prefix(tokenizer))
    return text.removeprefix(written)


def first_context(tokenizer: PreTrainedTokenizerBase, ends: EndTokens) -> int:
    """Return the token that stands for an empty prompt: the tokenizer's BOS, or the usual end token."""
    bos = tokenizer.bos_token_id
    return bos if isinstance(bos, int) else ends.default


def decode_words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of some ids, special tokens left out and spaces as they are."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of some ids, special tokens included and spaces as they are."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


def encode_one(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]] | None]:
    """Return the token ids of one text and, if the tokenizer knows, the characters ``(start, end)`` each stands for.

    Args:
        tokenizer: any tokenizer.
        text: the text; nothing is put around it and nothing cut off.
    """
    if not getattr(tokenizer, "is_fast", False):
        return tuple(_encode(tokenizer, [text])[0]), None
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
                      return_token_type_ids=False, padding=False, truncation=False, verbose=False)  # fmt: skip
    return tuple(found["input_ids"]), list(found["offset_mapping"])


def refuse_rowless(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse sequences with a token for which a model has no row.

    Args:
        examples: the sequences.
        tokenizer: what made them.
        rows: ids that the models share.

    Raises:
        InputError: TOK-04, names the token and the first row that holds it.
    """
    if max(tokenizer.get_vocab().values(), default=0) < rows:
        return
    for one in examples:
        if max(one.ids) >= rows:
            found = next(token for token in one.ids if token >= rows)
            name = one_line(str(tokenizer.convert_ids_to_tokens(found)), 40)
            what = f'the text holds "{name}", id {found:,}, and the model has {rows:,} embedding rows'
            fix = "take it out of the text, or enlarge the model's embedding before training"
            raise InputError("TOK-04", what, where=one.where, fix=fix)
