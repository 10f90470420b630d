"""Calls a tokenizer on many texts and names the row at which it fails."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from kdcli.data.examples import Example
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, raise_machine_fault
from kdcli.text import one_line

_TEXTS_AT_ONCE = 1000


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens around it and without truncation.

    Args:
        tokenizer: any tokenizer.
        texts: the texts.
        where: for each text its file and line.

    Raises:
        InputError: the tokenizer fails on a text.
    """
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
