"""Puts a row into its template: where the prompt ends and the answer begins."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from kdcli.data.readers import MAX_LINE_BYTES, size_text
from kdcli.data.rows import Row, text_of
from kdcli.errors import InputError, KDError, UsageError, raise_machine_fault
from kdcli.storage.forked import SECONDS, ExceededError, bounded
from kdcli.text import one_line

# Which keys of a conversation's turns, and which other variables, a chat template reads.


_Kind = Literal["turns", "turn"]
_SAME = frozenset(
    {"list", "reverse", "sort", "selectattr", "rejectattr", "select", "reject", "unique", "batch", "slice"}
)
_ONE = frozenset({"first", "last", "random"})
_METHODS = frozenset({"get", "items", "keys", "values"})
_SAYS_NOTHING = frozenset({"length", "count"})


@dataclass(frozen=True)
class Reads:
    """What a template reads.

    Args:
        keys: keys of turns.
        every_key: whether it passes whole turns on, so that any key may be seen.
        variables: names that it takes from outside.
    """

    keys: frozenset[str]
    every_key: bool
    variables: frozenset[str]

    def reads(self, key: str) -> bool:
        """Whether a key of a turn can have an effect."""
        return self.every_key or key in self.keys


@lru_cache(maxsize=16)
def keys_read(template: str) -> Reads:
    """Return the keys and variables that a chat template reads, found in its syntax and not by running it.

    Args:
        template: in the language of Jinja2, with the tags that transformers adds.

    >>> found = keys_read("{% for m in messages %}{{ m.role + m['content'] }}{% endfor %}{{ tools }}")
    >>> sorted(found.keys), found.every_key, sorted(found.variables)
    (['content', 'role'], False, ['messages', 'tools'])
    """
    tree = Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(template)
    search = _Search()
    while True:
        before = search.state()
        search.look_at(tree)
        if search.state() == before:
            return Reads(frozenset(search.keys), search.every_key, frozenset(meta.find_undeclared_variables(tree)))


class _Generation(Extension):
    """The tag ``{% generation %}`` of transformers: what stands inside is put out as it is."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> Sequence[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass
class _Search:
    """Follows the list of turns, and single turns, through variables, filters and macros."""

    kinds: dict[str, _Kind] = field(default_factory=lambda: {"messages": "turns"})
    macros: dict[str, nodes.Macro] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    every_key: bool = False

    def state(self) -> tuple[Any, ...]:
        return len(self.kinds), len(self.macros), len(self.keys), self.every_key

    def look_at(self, tree: nodes.Node) -> None:
        """Visit every node once; to be repeated until nothing new is found."""
        for node in _walk(tree):
            if isinstance(node, nodes.Macro):
                self.macros[node.name] = node
            elif isinstance(node, nodes.For):
                self._bind(node.target, self._inside(node.iter))
            elif isinstance(node, nodes.Assign):
                self._assign(node)
            elif isinstance(node, nodes.Compare):
                self._compare(node)
            elif isinstance(node, nodes.Output | nodes.Concat):
                self.every_key |= any(self.kind(one) is not None for one in node.nodes)
            elif isinstance(node, nodes.Getattr | nodes.Getitem | nodes.Filter | nodes.Call):
                self.kind(node)

    def kind(self, node: nodes.Node | None) -> _Kind | None:
        """Return whether an expression stands for the turns, or for one; keys that it takes are written down."""
        if isinstance(node, nodes.Name):
            return self.kinds.get(node.name)
        if isinstance(node, nodes.NSRef):
            return self.kinds.get(f"{node.name}.{node.attr}")
        if isinstance(node, nodes.Getattr):
            return self._attribute(node)
        if isinstance(node, nodes.Getitem):
            return self._item(node)
        if isinstance(node, nodes.Filter):
            return self._filter(node)
        if isinstance(node, nodes.Call):
            return self._call(node)
        if isinstance(node, nodes.CondExpr):
            return self.kind(node.expr1) or self.kind(node.expr2)
        if isinstance(node, nodes.Add | nodes.Or | nodes.And):
            return self.kind(node.left) or self.kind(node.right)
        if isinstance(node, nodes.List | nodes.Tuple):
            return "turns" if any(self.kind(one) is not None for one in node.items) else None
        return None

    def _bind(self, target: nodes.Node, kind: _Kind | None) -> None:
        if kind is not None and isinstance(target, nodes.Name):
            self.kinds[target.name] = kind
        if kind is not None and isinstance(target, nodes.NSRef):
            self.kinds[f"{target.name}.{target.attr}"] = kind

    def _assign(self, node: nodes.Assign) -> None:
        value = node.node
        self._bind(node.target, self.kind(value))
        if not isinstance(value, nodes.Call) or not isinstance(node.target, nodes.Name):
            return
        if isinstance(value.node, nodes.Name) and value.node.name == "namespace":
            for one in value.kwargs:
                self._bind(nodes.NSRef(node.target.name, one.key), self.kind(one.value))

    def _inside(self, node: nodes.Node) -> _Kind | None:
        """Return what a loop over an expression meets; a loop over one turn meets all its keys."""
        kind = self.kind(node)
        self.every_key |= kind == "turn"
        return "turn" if kind == "turns" else None

    def _attribute(self, node: nodes.Getattr) -> _Kind | None:
        if isinstance(node.node, nodes.Name):
            known = self.kinds.get(f"{node.node.name}.{node.attr}")
            if known is not None:
                return known
            if node.node.name == "loop" and node.attr in ("previtem", "nextitem"):
                return "turn"
        if self.kind(node.node) == "turn" and node.attr not in _METHODS:
            self.keys.add(node.attr)
        return None

    def _item(self, node: nodes.Getitem) -> _Kind | None:
        kind = self.kind(node.node)
        if kind == "turns":
            return "turns" if isinstance(node.arg, nodes.Slice) else "turn"
        if kind == "turn":
            self._key(node.arg)
        return None

    def _key(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            self.keys.add(node.value)
        else:
            self.every_key = True

    def _filter(self, node: nodes.Filter) -> _Kind | None:
        kind = self.kind(node.node)
        if kind is None:
            return None
        names = [*node.args, *(one.value for one in node.kwargs if one.key == "attribute")]
        if kind == "turns" and node.name in ("selectattr", "rejectattr", "map", "groupby", "sort") and names:
            self._key(names[0])
        if kind == "turns" and (node.name in _SAME or node.name in _ONE):
            return "turns" if node.name in _SAME else "turn"
        if node.name not in _SAYS_NOTHING and not (kind == "turns" and node.name in ("map", "groupby")):
            self.every_key = True
        return None

    def _call(self, node: nodes.Call) -> _Kind | None:
        if isinstance(node.node, nodes.Getattr) and self.kind(node.node.node) == "turn":
            if node.node.attr == "get" and node.args:
                self._key(node.args[0])
            else:
                self.every_key = True
            return None
        if not isinstance(node.node, nodes.Name):
            return None
        macro = self.macros.get(node.node.name)
        if macro is not None:
            given = dict(zip((one.name for one in macro.args), node.args, strict=False))
            given |= {one.key: one.value for one in node.kwargs}
            for name, value in given.items():
                self._bind(nodes.Name(name, "store"), self.kind(value))
            return None
        if node.node.name not in ("namespace", "raise_exception"):
            self.every_key |= any(self.kind(one) is not None for one in node.args)
        return None

    def _compare(self, node: nodes.Compare) -> None:
        for one in node.ops:
            if one.op in ("in", "notin") and self.kind(one.expr) == "turn":
                self._key(node.expr)


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def try_keys_read(template: str) -> Reads | None:
    """Return what a template reads; None where its syntax is wrong, which its rendering will say."""
    try:
        return keys_read(template)
    except (TemplateError, RecursionError):
        return None


TEMPLATES = ("auto", "chat", "alpaca", "plain")
FEEDBACK = "{feedback}"
"""Where a template takes the examples that ``kd generate --feedback`` shows."""

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
"""Keys under which templates read an answer's reasoning."""
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
            ``{input}`` or, where the row has it, ``{feedback}``, in which ``\n`` may stand for a line break.
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
    if row.feedback is not None:
        parts[FEEDBACK] = row.feedback
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found.group()], template)


def _chat(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    turns: list[dict[str, Any]] = [dict(turn) for turn in row.messages]
    answer: dict[str, Any] = (
        dict(row.turn) if row.turn is not None else {"role": "assistant", "content": row.responses[0]}
    )
    if not turns:
        question = "\n\n".join(part for part in (row.prompt, row.context) if part)
        turns = [{"role": "user", "content": question}]
        if row.images:  # templates of models of images read parts
            turns[0]["content"] = [*({"type": "image"} for _ in row.images), {"type": "text", "text": question}]
            answer["content"] = [{"type": "text", "text": row.responses[0]}]
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
    content = text_of(answer.get("content")) or ""
    if _thoughts(content) and content.strip() not in whole:
        return prompt, _with_thoughts(row, prompt, whole, content)
    if not whole.startswith(prompt):
        raise _changed(row, prompt, whole)
    _refuse_dropped(row, answer, whole[len(prompt) :])
    return prompt, whole[len(prompt) :]


def _refuse_unread(row: Row, turns: Sequence[Mapping[str, Any]], reads: Reads | None) -> None:
    """Refuse keys of turns and of the row that the template does not read."""
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
    """Return the keys of a turn, besides role and content, that are not empty."""
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
    """Refuse an answer whose reasoning, given under a key of its own, the template leaves out."""
    for name in _THOUGHTS:
        thoughts = answer.get(name)
        if isinstance(thoughts, str) and thoughts.strip() and thoughts.strip() not in response:
            raise InputError(
                "TOK-15",
                f'the chat template leaves out the answer\'s "{name}"',
                where=row.where,
                fix=f'write the reasoning into "content", between <think> and </think>, without "{name}"',
            )


def _thoughts(content: str) -> re.Match[str] | None:
    """Return where an answer's reasoning ends, if it has any."""
    return re.search(r"</(think|thinking|thought|reasoning)>", content)


def _with_thoughts(row: Row, prompt: str, whole: str, content: str) -> str:
    """Return the response with the reasoning that the template took out of it, as a model has to generate it.

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
            "TOK-15", "the chat template leaves out the answer's reasoning, and no text follows it",
            where=row.where, fix="let text follow the reasoning, or use --template plain",
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
            f'the template\'s prompt opens "{one_line(opened.group().strip(), 20)}", and the answer has no reasoning',
            where=row.where,
            fix='begin the answer with its reasoning, "<think>...</think>", or use another template',
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


# Renders rows with a tokenizer's chat template in child processes of limited time and memory.


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
    said += sum(len(text_of(turn.get("content"))) for turn in row.messages if isinstance(turn.get("content"), list))
    return len(row.prompt) + len(row.responses[0]) + said
