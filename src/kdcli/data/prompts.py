"""Puts a row into its template: where the prompt ends and the answer begins."""

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError
from transformers import PreTrainedTokenizerBase

from kdcli.data.chat_keys import Reads, try_keys_read
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
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts")
"""Names by which templates know an answer's thoughts."""
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
    turns = row.messages if row.turn is None else (*row.messages, row.turn)
    for number, turn in enumerate(turns):
        for name in _more(turn):
            raise _unread(row, f'messages[{number}] has "{one_line(name, 40)}"', None)
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
    answer = dict(row.turn) if row.turn is not None else {"role": "assistant", "content": row.responses[0]}
    if not turns:
        question = "\n\n".join(part for part in (row.prompt, row.context) if part)
        turns = [{"role": "user", "content": question}]
    try:
        template = tokenizer.get_chat_template(tools=row.extras.get("tools"))
        _refuse_unread(row, [*turns, answer], try_keys_read(template))
        prompt = _apply(tokenizer, turns, row.extras, add_generation_prompt=True)
        if row.turn is None and not row.responses[0]:
            return prompt, ""
        whole = _apply(tokenizer, [*turns, answer], row.extras, add_generation_prompt=False)
    except KDError:
        raise
    except Exception as error:
        raise _template_error(row, error) from error
    content = answer.get("content") or ""
    if _thoughts(content) and content.strip() not in whole:
        return prompt, _with_thoughts(row, prompt, whole, content)
    if not whole.startswith(prompt):
        raise _changed(row, prompt, whole)
    _refuse_dropped(row, answer, whole[len(prompt) :])
    return prompt, whole[len(prompt) :]


def _refuse_unread(row: Row, turns: Sequence[Mapping[str, Any]], reads: Reads | None) -> None:
    """Refuse keys of turns, and what stands beside the turns, that the template does not read."""
    if reads is None:
        return
    for number, turn in enumerate(turns):
        for name in _more(turn):
            if not reads.reads(name):
                raise _unread(row, f'messages[{number}] has "{one_line(name, 40)}"', reads)
    for name in row.extras:
        if name not in reads.variables:
            raise _unread(row, f'the row has "{one_line(name, 40)}"', reads)


def _more(turn: Mapping[str, Any]) -> list[str]:
    """Return the keys of a turn that say something beside its role and content."""
    return [name for name, value in turn.items() if name not in ("role", "content") and value not in (None, "", [], {})]


def _unread(row: Row, what: str, reads: Reads | None) -> InputError:
    known = f"; of turns it reads {', '.join(sorted(reads.keys))}" if reads is not None and reads.keys else ""
    reader = "the chat template" if reads is not None else "a template that is no chat template"
    return InputError(
        "DATA-25",
        f"{what}, which {reader} does not read{known}",
        where=row.where,
        fix="take it out, give it the name that the template reads, or leave such rows out with --skip-bad",
    )


def _refuse_dropped(row: Row, answer: Mapping[str, Any], response: str) -> None:
    """Refuse an answer whose thoughts, given under a key of their own, the template leaves out."""
    for name in _THOUGHTS:
        thoughts = answer.get(name)
        if isinstance(thoughts, str) and thoughts.strip() and thoughts.strip() not in response:
            raise InputError(
                "TOK-15",
                f'the chat template leaves out the answer\'s "{name}"',
                where=row.where,
                fix=f'write the thoughts into "content", between <think> and </think>, without "{name}"',
            )


def _thoughts(content: str) -> re.Match[str] | None:
    """Return where an answer's thoughts are closed, if it has any."""
    return re.search(r"</(think|thinking|thought|reasoning)>", content)


def _with_thoughts(row: Row, prompt: str, whole: str, content: str) -> str:
    """Return the response with the thoughts that the template took out of it, as a model has to write it.

    The words are the answer's own, without the mark that the prompt has opened already; what the template writes
    behind an answer follows.
    """
    closed = _thoughts(content)
    assert closed is not None, "asked before"
    mark, visible = f"<{closed.group(1)}>", content[closed.end() :]
    place = whole.rfind(visible) if visible.strip() else -1
    shown = visible if place >= 0 else visible.strip()
    place = whole.rfind(shown) if shown else -1
    if place < 0:
        raise InputError(
            "TOK-15", "the chat template leaves out the answer's thoughts, and no words follow them",
            where=row.where, fix="let words follow the thoughts, or use --template plain",
        )  # fmt: skip
    said = content[: closed.end()] + (visible if shown == visible else visible.rstrip())
    opened = prompt.rstrip()
    if opened.endswith(mark):
        said = said.lstrip().removeprefix(mark).removeprefix(prompt[len(opened) :])
    return said + whole[place + len(shown) :]


def _changed(row: Row, prompt: str, whole: str) -> InputError:
    opened = re.search(r"<(?:think|thinking|thought|reasoning)>\s*$", prompt)
    if opened is not None:
        return InputError(
            "TOK-15",
            f'the template\'s prompt opens "{one_line(opened.group().strip(), 20)}", and the answer has no thoughts',
            where=row.where,
            fix='begin the answer with its thoughts, "<think>...</think>", or use another template',
        )
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
    return InputError(
        "TOK-10",
        "the chat template changes the prompt once the answer follows, first at "
        f'"{one_line(prompt[max(0, at - 20) : at + 20], 60)}"',
        where=row.where,
        fix="use another template, such as --template alpaca or plain",
    )


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, Any]],
    extras: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    def rendered(said: list[dict[str, Any]]) -> str:
        text: Any = tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=add_generation_prompt, **extras
        )
        if not isinstance(text, str):
            raise TypeError(f"rendered to {type(text).__name__}, not text")
        return text

    text = rendered(turns)
    if any(turn.get("content", "") is None for turn in turns) and "None" in text:
        # Some templates put out a content that is null as a word.
        empty = rendered([{**turn, "content": turn.get("content") or ""} for turn in turns])
        text = empty if empty.count("None") < text.count("None") else text
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
