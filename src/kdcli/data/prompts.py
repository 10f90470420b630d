"""Puts a row into its template: where the prompt ends and the answer begins."""

import difflib
import hashlib
import re
from collections.abc import Iterable

from jinja2.exceptions import SecurityError
from transformers import PreTrainedTokenizerBase

from kdcli.data.check import Row
from kdcli.errors import InputError, KDError, UsageError, raise_machine_fault
from kdcli.text import one_line

TEMPLATES = ("auto", "chat", "alpaca", "plain")

_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_PLAIN = "{instruction}\n{input}\n"


def check_template(template: str) -> None:
    """Refuse a template that is neither a known name nor a text with ``{instruction}``.

    Raises:
        UsageError: offers the nearest name.
    """
    if template in TEMPLATES or "{instruction}" in template:
        return
    near = difflib.get_close_matches(template.lower(), TEMPLATES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        "DATA-23",
        f'unknown template "{one_line(template, 60)}"',
        where="template",
        fix=f"{hint}use {', '.join(TEMPLATES)}, or a text that holds {{instruction}}",
    )


def choose_template(row: Row, template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template a row gets: ``auto`` resolved, and refused where it cannot apply.

    Raises:
        UsageError: unknown template, or one that a plain text cannot fill.
        InputError: a conversation, and the tokenizer has no chat template.
    """
    check_template(template)
    if template == "auto":
        template = {"messages": "chat", "instruction": "alpaca"}.get(row.form, "plain")
    if row.form == "text" and template != "plain":
        raise UsageError(
            "DATA-23",
            f'plain text has no instruction to fill the template "{one_line(template, 40)}"',
            where=row.where,
            fix="use --template plain or auto",
        )
    if template == "chat" and not tokenizer.chat_template:
        raise InputError(
            "TOK-10",
            "the tokenizer has no chat template",
            where=row.where,
            fix="use --template alpaca, plain, or a text with {instruction}",
        )
    return template


def template_digest(names: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return eight hex digits that name the texts of templates: another wording gives others.

    Args:
        names: templates as ``choose_template`` returns them; repeated ones count once.
        tokenizer: supplies the chat template.
    """
    texts = {"alpaca": _ALPACA + _ALPACA_INPUT, "plain": _PLAIN, "chat": str(tokenizer.chat_template)}
    state = hashlib.sha256()
    for name in sorted(set(names)):
        state.update(f"{texts.get(name, name)}\0".encode())
    return state.hexdigest()[:8]


def render(row: Row, template: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    r"""Return the prompt and the first answer as the model will read them; of a row without one, the prompt alone.

    Args:
        row: the row.
        template: auto, chat, alpaca, plain, or a text holding ``{instruction}`` and perhaps
            ``{input}``, in which ``\n`` may stand for a line break.
        tokenizer: supplies the chat template.

    Raises:
        UsageError: a template that does not exist or cannot apply.
        InputError: the chat template refuses the row, or does not keep the prompt as it was.
    """
    chosen = choose_template(row, template, tokenizer)
    if chosen == "chat":
        return _chat(row, tokenizer)
    return _prompt(row, chosen), row.responses[0]


def _prompt(row: Row, template: str) -> str:
    if template == "plain":
        if row.form in ("text", "prompt"):
            return row.prompt
        return "\n".join(part for part in (row.prompt, row.context) if part) + "\n"
    if template == "alpaca":
        template = _ALPACA_INPUT if row.context else _ALPACA
    else:
        template = template.replace("\\n", "\n")
    instruction = row.prompt
    if row.context and "{input}" not in template:
        instruction = f"{instruction}\n\n{row.context}"
    parts = {"{instruction}": instruction, "{input}": row.context}
    return re.sub(r"\{instruction\}|\{input\}", lambda found: parts[found.group()], template)


def _chat(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    turns = [dict(turn) for turn in row.messages]
    if not turns:
        question = "\n\n".join(part for part in (row.prompt, row.context) if part)
        turns = [{"role": "user", "content": question}]
    answer = {"role": "assistant", "content": row.responses[0]}
    try:
        prompt = _apply(tokenizer, turns, add_generation_prompt=True)
        if not row.responses[0]:
            return prompt, ""
        whole = _apply(tokenizer, [*turns, answer], add_generation_prompt=False)
    except Exception as error:
        raise _template_error(row, error) from error
    if not whole.startswith(prompt):
        at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        raise InputError(
            "TOK-10",
            "the chat template changes the prompt once the answer follows, first at "
            f'"{one_line(prompt[max(0, at - 20) : at + 20], 60)}"',
            where=row.where,
            fix="use another template, such as --template alpaca or plain",
        )
    return prompt, whole[len(prompt) :]


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    if not isinstance(text, str):
        raise TypeError(f"rendered to {type(text).__name__}, not text")
    return text


def _template_error(row: Row, error: Exception) -> KDError:
    raise_machine_fault(error, row.where)
    if isinstance(error, SecurityError):
        return InputError(
            "TOK-08",
            "the chat template tries to reach Python internals",
            where=row.where,
            fix="do not use this tokenizer; it is not to be trusted",
        )
    said = one_line(str(error) or type(error).__name__, 120)
    return InputError(
        "TOK-10",
        f'the chat template says "{said}"',
        where=row.where,
        fix="repair the turns, leave the row out, or use --template plain",
    )
