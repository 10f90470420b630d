"""Tokenizers as GGUF states them: tokens, their types, scores or merges, and how text is split first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.errors import InputError
from kdcli.text import one_line

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, as GGUF numbers them."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {f"{_WORDS}\\p{{N}}{{1,3}}{_REST}": "llama-bpe", f"{_WORDS}\\p{{N}}{_REST}": "qwen2"}
"""The regular expression by which a byte-level tokenizer splits text first -> its name in GGUF."""
_SPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tables.

    Args:
        model: gpt2 for byte-level BPE, llama for BPE of SentencePiece's form.
        split: the name of what splits text first.
        tokens: all of them; rows of the embedding without a token come last.
        types: of each token.
        merges: pairs in their order; empty for the form of SentencePiece.
        scores: of each token; empty for byte-level BPE.
        space_first: whether a space is put before a text; None where the model has no such flag.
        notes: what the format cannot say of this tokenizer.
    """

    model: str
    split: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_first: bool | None = None
    notes: tuple[str, ...] = ()


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> Vocabulary:
    """Return a tokenizer's tables.

    Args:
        tokenizer: byte-level BPE as of GPT-2, Llama 3 or Qwen2, or BPE of SentencePiece's form with byte fallback.
        rows: of the embedding.
        where: the model's folder, for messages.

    Raises:
        InputError: EXPORT-04, a kind that GGUF's readers do not know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refuse("one without a tokenizer.json", where)
    form: dict[str, Any] = json.loads(backend.to_str())
    model = form["model"]
    if model["type"] != "BPE":
        raise _refuse(f"of the kind {one_line(model['type'], 40)}", where)
    if any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout")):
        raise _refuse("BPE with marks at the ends of words, or with dropout", where)
    tokens, types = _tokens(form, rows)
    merges = tuple(" ".join(one) if isinstance(one, list) else one for one in model["merges"])
    steps = _steps(form.get("pre_tokenizer"), "pretokenizers")
    if steps and steps[-1]["type"] == "ByteLevel":
        split = _split_of(steps, where)
        if any(step["type"] != "NFC" for step in _steps(form.get("normalizer"), "normalizers")):
            raise _refuse("byte-level BPE that changes the text first", where)
        return Vocabulary("gpt2", split, tokens, types, merges=merges)
    if not model.get("byte_fallback"):
        raise _refuse("BPE without byte-level splitting and without byte fallback", where)
    space_first, notes = _spaces(form, steps, where)
    scores = _scores(tokens, [one.replace(" ", "", 1) for one in merges])
    return Vocabulary("llama", "default", tokens, types, (), scores, space_first, notes)


def _tokens(form: Mapping[str, Any], rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the token of each row of the embedding, and its type."""
    model = form["model"]
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    for token, number in model["vocab"].items():
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        tokens[number], types[number] = token, BYTE if is_byte else NORMAL
    for added in form.get("added_tokens") or ():
        if added["id"] >= rows:  # no row of the embedding: the model never meets it
            continue
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None and model.get("byte_fallback"):
        types[unknown] = UNKNOWN
    return tuple(tokens), tuple(types)


def _steps(form: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if form is None:
        return []
    return list(form[inner]) if form["type"] == "Sequence" else [form]


def _split_of(steps: Sequence[Mapping[str, Any]], where: str) -> str:
    *before, level = steps
    if level.get("add_prefix_space"):
        raise _refuse("byte-level BPE that puts a space before a text", where)
    if not before and level.get("use_regex", True):
        return "gpt-2"
    if len(before) == 1 and before[0]["type"] == "Split" and not level.get("use_regex", True):
        found = _SPLITS.get(str(before[0]["pattern"].get("Regex")))
        if found is not None and before[0]["behavior"] == "Isolated" and not before[0].get("invert"):
            return found
    raise _refuse("byte-level BPE that splits text in a way of its own", where)


def _spaces(form: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], where: str) -> tuple[bool, tuple[str, ...]]:
    """Return whether a space is put before a text, and what else is done to it that the format has no word for."""
    first, spelled, unsaid = False, False, []
    for step in _steps(form.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            first = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == _SPACE:
            spelled = True
        else:
            unsaid.append(step["type"])
    if len(steps) == 1 and steps[0]["type"] == "Metaspace" and steps[0]["replacement"] == _SPACE:
        first, spelled = first or steps[0].get("prepend_scheme", "always") != "never", True
    elif steps:
        raise _refuse(f"BPE that splits text by {one_line(str(steps[0]['type']), 40)}", where)
    if not spelled:
        raise _refuse(f"BPE that does not write a space as {_SPACE}", where)
    named = ", ".join(dict.fromkeys(unsaid))
    said = f"the tokenizer changes text first ({named}), which GGUF cannot say: such texts get other tokens there"
    return first, (said,) if unsaid else ()


def _scores(tokens: Sequence[str], made: Sequence[str]) -> tuple[float, ...]:
    """Return minus the number of the first merge that makes a token; 0 for what no merge makes."""
    number: dict[str, int] = {}
    for index, token in enumerate(made):
        number.setdefault(token, index + 1)
    return tuple(-float(number.get(token, 0)) for token in tokens)


def _refuse(kind: str, where: str) -> InputError:
    what = f"GGUF has no name for this tokenizer, {kind}"
    return InputError(
        "EXPORT-04", what, where=one_line(where), fix="give --to safetensors:int8, which keeps it as it is"
    )
