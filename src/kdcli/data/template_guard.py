"""Renders rows with a tokenizer's chat template in child processes of limited time and memory."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.data.check import Row
from kdcli.data.prompts import render
from kdcli.data.tables import MAX_LINE_BYTES, size_text
from kdcli.errors import InputError
from kdcli.forked import SECONDS, ExceededError, bounded

_FIX = "do not use this tokenizer's template; --template alpaca or plain"


def render_guarded(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, seconds: float = SECONDS
) -> Iterator[tuple[str, str] | InputError]:
    """Yield prompt and response of each row in the tokenizer's chat template, or why the template refuses the row.

    Templates come with a tokenizer and may loop or allocate without end, for some rows and not for others.

    Args:
        rows: the rows.
        tokenizer: supplies the template.
        seconds: processor time for some hundred rows; for one, where these take longer.

    Raises:
        InputError: TOK-09, the template takes too long, too much memory, or makes too much text of a row.
    """

    def work(part: range) -> bytes:
        return json.dumps([_rendered(rows[at], tokenizer) for at in part]).encode()

    try:
        for answer in bounded([_size(row) for row in rows], work, seconds):
            for found in json.loads(answer):
                yield InputError(**found) if isinstance(found, dict) else (found[0], found[1])
    except ExceededError as error:
        what = f"the chat template exceeded {error.spent}"
        raise InputError("TOK-09", what, where=rows[error.item].where, fix=_FIX) from error


def _rendered(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | dict[str, Any]:
    try:
        prompt, response = render(row, "chat", tokenizer)
    except InputError as error:
        return {"code": error.code, "what": error.what, "where": error.where, "fix": error.fix}
    if len(prompt) + len(response) > MAX_LINE_BYTES:
        what = f"the chat template makes {size_text(len(prompt) + len(response))} of one row"
        return {"code": "TOK-09", "what": what, "where": row.where, "fix": _FIX}
    return prompt, response


def _size(row: Row) -> int:
    said = sum(len(value) for turn in row.messages for value in turn.values() if isinstance(value, str))
    return len(row.prompt) + len(row.responses[0]) + said
