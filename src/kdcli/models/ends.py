"""Which tokens end a model's texts: everything in its folder that names one is asked."""

import hashlib
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli import forked
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError
from kdcli.models.folder import ModelFolder
from kdcli.models.weights import read_generation_config
from kdcli.text import one_line

_ANSWER = "qzxanswerxzq"
_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
_SECONDS, _MEMORY = 5.0, 512 * 2**20
_TAILS: dict[tuple[str, str, int], bytes] = {}
_FIX = "set eos_token_id in generation_config.json"


def folder_end_tokens(
    checked: ModelFolder, tokenizer: PreTrainedTokenizerBase, rows: int, path: str
) -> tuple[EndTokens, tuple[str, ...]]:
    """Return the tokens that end a model's texts, and a note where not all of its files name the same.

    Args:
        checked: the model's folder.
        tokenizer: its tokenizer.
        rows: rows of the model's head.
        path: the model, for messages.

    Raises:
        InputError: TOK-13 where there is no end token, TOK-04 where one lies outside the rows.
    """
    settings = checked.settings.get("text_config")
    table = {**checked.settings, **(settings if isinstance(settings, dict) else {})}
    generation = read_generation_config(checked.folder)
    return end_tokens(generation and generation.eos_token_id, tokenizer, rows, path, table.get("eos_token_id"))


def end_tokens(
    generation: Any, tokenizer: PreTrainedTokenizerBase, rows: int, path: str, config: Any = None
) -> tuple[EndTokens, tuple[str, ...]]:
    """Return the tokens that end a model's texts, and a note where not all that name one name the same.

    Those of generation_config.json come first, then config.json's, the tokenizer's and the one with which the chat
    template ends an answer. What generation_config.json does not name counts only if it is a special token: a family's
    usual end token may be an ordinary word in this vocabulary.

    Args:
        generation: ``eos_token_id`` of the generation config: a token id, several, or None.
        tokenizer: the model's tokenizer.
        rows: rows of the model's head.
        path: the model, for messages.
        config: ``eos_token_id`` of config.json.

    Raises:
        InputError: TOK-13 where there is no end token, TOK-04 where one lies outside the rows.
    """
    first = _ids(generation)
    _check(first if first else _ids(config), rows, path)
    named = {"generation_config.json": first} if first else {}
    special = special_ids(tokenizer)
    others = {"config.json": config, "the tokenizer's eos_token": tokenizer.eos_token_id}
    for place, found in others.items():
        ids = [token for token in _ids(found) if type(token) is int and 0 <= token < rows]
        named[place] = [token for token in ids if token in special or not any(named.values())]
    turn = turn_end(tokenizer)
    named["the chat template"] = [turn] if turn is not None and turn < rows else []
    ids = tuple(dict.fromkeys(token for found in named.values() for token in found))
    if not ids:
        _check(_ids(tokenizer.eos_token_id), rows, path)
        what = "no end token: neither generation_config.json nor the tokenizer names one"
        raise InputError("TOK-13", what, where=path, fix=_FIX)
    return EndTokens(ids), tuple(_notes(named, tokenizer, path))


def _notes(named: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase, path: str) -> Iterator[str]:
    """Say who names which token, where that is not one and the same."""
    told = {place: ids for place, ids in named.items() if ids}
    first = next(iter(told.values()))
    if any(set(ids) - set(first) for ids in told.values()):
        parts = [
            f"{shown(ids, tokenizer)} ({place})" for place, ids in told.items() if ids is first or set(ids) - set(first)
        ]
        yield f"{one_line(path)}: each of {', '.join(parts)} ends a text"


def shown(ids: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the names of tokens, quoted."""
    return ", ".join(f'"{one_line(str(tokenizer.convert_ids_to_tokens(token)), 40)}"' for token in ids)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that a tokenizer leaves out where it decodes words alone."""
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset({*tokenizer.all_special_ids, *added})


def answer_key(tokenizer: PreTrainedTokenizerBase, ends: EndTokens) -> str:
    """Return what decides where a model's answer ends and which of its tokens are words, beside weights and prompt.

    Args:
        tokenizer: the model's tokenizer.
        ends: the tokens that end its texts.
    """
    words = hashlib.sha256(repr(sorted(special_ids(tokenizer))).encode()).hexdigest()[:8]
    return f"ends {','.join(map(str, sorted(ends.ids)))} special {words}"


def ends_differ(
    student: EndTokens, teacher: EndTokens, read_by: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
) -> str | None:
    """Say how the end tokens of student and teacher differ by name; None where they do not.

    Args:
        student: the student's.
        teacher: the teacher's.
        read_by: both tokenizers, the student's first.
    """
    names = [
        {str(tokenizer.convert_ids_to_tokens(token)) for token in ends.ids}
        for ends, tokenizer in zip((student, teacher), read_by, strict=True)
    ]
    if names[0] == names[1]:
        return None
    ours, theirs = (shown(ends.ids, tokenizer) for ends, tokenizer in zip((student, teacher), read_by, strict=True))
    return f"end tokens differ: the student's texts end at {ours}, the teacher's at {theirs}"


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special or added token that follows an answer in the chat template; None where there is none.

    The template is foreign: it is rendered in a child process of bounded time and memory, once per template.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str) or not template:
        return None
    key = (template, repr(sorted(tokenizer.special_tokens_map.items())), len(tokenizer))
    if key not in _TAILS:
        _TAILS[key] = forked.in_child(lambda: _tail(tokenizer), seconds=_SECONDS, memory=_MEMORY) or b""
    tail = _TAILS[key].decode(errors="replace")
    if not tail:
        return None
    ids = tokenizer(tail, add_special_tokens=False, verbose=False)["input_ids"]
    marks = {*special_ids(tokenizer), *tokenizer.added_tokens_decoder}
    return next((token for token in ids if token in marks), None)


def _tail(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return what a chat template puts behind an answer."""
    whole = str(tokenizer.apply_chat_template(_TURNS, tokenize=False, add_generation_prompt=False))
    return whole.rpartition(_ANSWER)[2].encode() if _ANSWER in whole else b""


def _ids(named: Any) -> list[Any]:
    return list(named) if isinstance(named, list | tuple) else [] if named is None else [named]


def _check(ids: list[Any], rows: int, path: str) -> None:
    for token in ids:
        if type(token) is not int or not 0 <= token < rows:
            what = f"end token id {one_line(str(token), 40)} is not one of the model's {rows} rows"
            raise InputError("TOK-04", what, where=path, fix=_FIX)
