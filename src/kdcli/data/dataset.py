"""Turns rows into token sequences whose response part is known exactly."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from kdcli.config.sections import DataConfig
from kdcli.data.few_shot import Feedback
from kdcli.data.images import ImageReader, RowImages, find_images
from kdcli.data.readers import counted, short_place
from kdcli.data.rows import Row, RowReport, read_rows
from kdcli.data.templates import check_template, choose_template, render, render_guarded, template_digest
from kdcli.data.tokenize import (
    Example,
    Joined,
    TokenDataset,
    decode,
    decode_words,
    encode_pairs,
    first_context,
    overlap,
    overlap_note,
    prompt_prefix,
)
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError

__all__ = ["Example", "TokenDataset", "load_dataset", "overlap", "overlap_note"]


SPLITS = {"train": ("train",), "prompts": ("train",), "eval": ("test", "validation", "valid", "dev", "eval")}
_SHOWN = 3
Role = Literal["train", "eval", "prompts"]


def load_dataset(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    ends: EndTokens,
    limit: int | None = None,
    role: Role = "train",
    images: ImageReader | None = None,
    feedback: Feedback | None = None,
) -> TokenDataset:
    """Read rows, put them into their template and tokenise prompt and response as one text.

    Args:
        path: file, saved ``datasets`` folder or hub id.
        tokenizer: the models' tokenizer.
        config: columns, template and length limits.
        ends: the tokens that end a response; the first closes one that names none.
        limit: use the first so many rows.
        role: says which split a folder or hub data set is read from; of "prompts", answers are not read.
        images: what prepares the images of rows; None where rows of text alone can be read.
        feedback: rows of which each prompt shows a few.

    Raises:
        InputError: nothing usable, a bad row, or a tokenizer or template that fails.
        UsageError: an unknown template or column map.
        MachineError: not permitted.
    """
    check_template(config.template)
    report = read_rows(path, config, limit=limit, splits=SPLITS[role], answered=role != "prompts")
    if images is None and not config.skip_bad:
        _refuse_images(report.rows)
    rows = report.rows
    if feedback is not None:
        rows = tuple(replace(row, feedback=feedback.text(number)) for number, row in enumerate(rows))
    texts, refused = _render_all(rows, config, tokenizer)
    maker = _Maker(tokenizer, config, ends, images, Path(path).expanduser().parent)
    examples = maker.make(texts)
    if not examples and maker.refused:
        raise maker.refused[0]
    if not examples:
        raise _nothing_left(path, config, report, maker, refused)
    chosen = choose_template(texts[0].row, config.template, tokenizer)
    notes = [*report.notes, f"template: {chosen if '{' not in chosen else 'custom text'}"]
    notes += [f"{counted(len(refused), 'row')} left out: {refused[0].what}"] if refused else []
    notes += maker.notes()
    if shown := sum(example.images is not None for example in examples):
        notes.append(f"{counted(shown, 'row')} with images")
    if role == "train" and (several := sum(len(row.responses) > 1 for row in report.rows)):
        notes.append(f"{counted(several, 'row')} with several responses; training takes the first")
    names = [choose_template(text.row, config.template, tokenizer) for text in texts]
    return TokenDataset(examples, tuple(notes), report.digest, template_digest(names, tokenizer), maker.cut_note)


def _refuse_images(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.images:
            raise _unread(row)


def _unread(row: Row) -> InputError:
    what = f"the row has {counted(len(row.images), 'image')}, and text alone is read here"
    fix = "give kd distill or kd eval models of images and text, or take the images out of the rows"
    return InputError("IMG-01", what, where=row.where, fix=fix)


@dataclass(frozen=True)
class _Text:
    row: Row
    prompt: str
    response: str
    chat: bool


def _render_all(
    rows: Sequence[Row], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[_Text], list[InputError]]:
    texts: list[_Text] = []
    refused: list[InputError] = []
    chat = choose_template(rows[0], config.template, tokenizer) == "chat"
    rendered = (_attempt(row, config.template, tokenizer) for row in rows)
    for row, found in zip(rows, render_guarded(rows, tokenizer) if chat else rendered, strict=True):
        if not isinstance(found, InputError):
            texts.append(_Text(row, *found, chat))
        elif config.skip_bad:
            refused.append(found)
        else:
            raise found
    if not texts:
        raise refused[0]
    return texts, refused


def _attempt(row: Row, template: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | InputError:
    try:
        return render(row, template, tokenizer)
    except InputError as error:
        return error


@dataclass
class _Maker:
    """Makes examples and keeps account of what was dropped or cut."""

    tokenizer: PreTrainedTokenizerBase
    config: DataConfig
    ends: EndTokens
    images: ImageReader | None = None
    beside: Path = Path()
    refused: list[InputError] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    over_prompt_limit: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    end_inside: list[str] = field(default_factory=list)
    end_first: list[str] = field(default_factory=list)
    straddled: list[str] = field(default_factory=list)

    def make(self, texts: Sequence[_Text]) -> tuple[Example, ...]:
        where = [text.row.where for text in texts]
        pairs = encode_pairs(
            self.tokenizer, [text.prompt for text in texts], [text.response for text in texts], where, guarded=True
        )
        prefix = prompt_prefix(self.tokenizer)
        shared: dict[int, int] = {}  # one int object per id keeps millions of tokens small
        examples = []
        for text, pair in zip(texts, pairs, strict=True):
            found = self._with_images(text, pair) if text.row.images else None
            if isinstance(found, InputError):
                if not self.config.skip_bad:
                    raise found
                self.refused.append(found)
                continue
            images, pair = found or (None, pair)
            # A chat template writes its own special tokens.
            example = self._example(text, pair, () if text.chat else prefix)
            if example is not None and images is not None:
                example = replace(example, images=images)
            if example is not None:
                ids, asked = (
                    tuple(shared.setdefault(number, number) for number in part) for part in (example.ids, example.asked)
                )
                examples.append(replace(example, ids=ids, asked=asked))
        return tuple(examples)

    def _with_images(self, text: _Text, pair: Joined) -> tuple[RowImages, Joined] | InputError:
        """Return a row's images and its tokens with those that stand for them, or why the row cannot be used."""
        row, reader = text.row, self.images
        try:
            if reader is None:
                raise _unread(row)
            files = find_images(row.images, self.beside, row.where)
            places = reader.places(text.prompt)
            if places != len(files):
                what = f"the prompt has a place for {places} of {counted(len(files), 'image')}"
                fix = 'give a part {"type": "image"} for each, or leave such rows out with --skip-bad'
                raise InputError("IMG-03", what, where=row.where, fix=fix)
            if pair.straddled or tuple(pair.ids[: pair.border]) != tuple(pair.prompt):
                what = "the answer begins inside a token of the prompt, behind which images cannot be told apart"
                raise InputError("IMG-03", what, where=row.where, fix="let the prompt end in no space")
            images = RowImages(reader, text.prompt, files, row.where)
            ids, _ = images.read()
            answer = pair.ids[pair.border :]
            if not reader.image_token_ids.isdisjoint(answer):
                what = "the answer holds the token that stands for an image, which is never a label"
                raise InputError("IMG-03", what, where=row.where, fix="take it out of the answer")
        except InputError as error:
            return error
        return images, Joined([*ids, *answer], len(ids), ids)

    def _example(self, text: _Text, pair: Joined, prefix: tuple[int, ...]) -> Example | None:
        row = text.row
        before = () if tuple(pair.ids[: len(prefix)]) == prefix else prefix
        ids, border, asked = [*before, *pair.ids], len(before) + pair.border, (*before, *pair.prompt)
        if not border:
            first = prefix or (first_context(self.tokenizer, self.ends),)
            written = tuple(ids[: len(first)]) == first  # a text that spells it has no second one
            ids, border, asked = ids if written else [*first, *ids], len(first), first
            if written and first[-1] in self.ends:
                self.end_first.append(row.where)
        if pair.straddled and text.response:
            self.straddled.append(row.where)
        whole = self._fit(ids, border, len(asked), row.where)
        if whole is None:
            return None
        differs = asked != tuple(whole[:border])
        references = row.responses
        if not any(references) and text.response:  # an answer without words of its own, such as a call of a tool
            references = (decode_words(self.tokenizer, whole[border:]).strip(),)
        return Example(
            tuple(whole), border, text.prompt, references, row.where, row.choices, row.answer, text.response,
            asked if differs else (), row.teacher_trust,
        )  # fmt: skip

    def _fit(self, ids: list[int], border: int, asked: int, where: str) -> list[int] | None:
        limit, longest = self.config.max_prompt_length, max(border, asked)
        if limit is not None and longest > limit:
            self.over_prompt_limit.append(where)
            return None
        if longest >= self.config.max_length:
            self.too_long.append(where)
            return None
        ids = ids[:border] + self._ended(ids[border:], where)
        if len(ids) > self.config.max_length:
            self.cut.append(where)
        return ids[: self.config.max_length]

    def _ended(self, response: list[int], where: str) -> list[int]:
        """Cut a response behind the first end token that its text holds; close one that holds none with the usual."""
        if self.ends.leading(response):
            self.end_first.append(where)
        place = self.ends.place(response)
        if place is None:
            return [*response, self.ends.default]
        if decode(self.tokenizer, response[place + 1 :]).strip():
            self.end_inside.append(where)
        return response[: place + 1]

    def notes(self) -> list[str]:
        longest = self.config.max_length
        bad = [refused.what for refused in self.refused]
        left = [f"{counted(len(bad), 'row')} left out: {bad[0]}"] if bad else []
        told = (
            (self.over_prompt_limit, "row", f"dropped: prompt over {self.config.max_prompt_length} tokens"),
            (self.too_long, "row", f"dropped: the prompt alone fills {longest} tokens"),
            self._told_of_cut,
            (self.end_inside, "response", "ended early: an end token stood inside"),
            (self.end_first, "response", "opened with an end token, which ends nothing there"),
            (
                self.straddled,
                "answer",
                "begun by a token of the prompt, which is not learnt; let prompts end in no space",
            ),
        )
        return [*left, *(_note(*one) for one in told if one[0])]

    @property
    def cut_note(self) -> str:
        return _note(*self._told_of_cut) if self.cut else ""

    @property
    def _told_of_cut(self) -> tuple[Sequence[str], str, str]:
        return self.cut, "response", f"cut at {self.config.max_length} tokens, without end token"


def _note(places: Sequence[str], noun: str, what: str) -> str:
    return f"{counted(len(places), noun)} {what} ({_first(places)})"


def _first(places: Sequence[str]) -> str:
    lines = [short_place(place) for place in places[:_SHOWN]]
    return ", ".join(lines) + (", …" if len(places) > _SHOWN else "")


def _nothing_left(
    path: str, config: DataConfig, report: RowReport, maker: _Maker, refused: Sequence[InputError]
) -> InputError:
    counts = {
        "with a prompt that fills the length": len(maker.too_long),
        "with a prompt over the prompt limit": len(maker.over_prompt_limit),
        "bad": len(report.bad),
        "refused by the chat template": len(refused),
    }
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    total = len(report.rows) + len(report.bad)
    name = "max_length" if maker.too_long else "max_prompt_length"
    return InputError(
        "DATA-02",
        f"0 usable rows (of {total}: {reasons})",
        where=path,
        fix=f"raise data.{name} (now {getattr(config, name)})",
    )


# Keeps a share of the training rows out of training, chosen by what the rows say and not by where they stand.


def split_development(rows: TokenDataset, share: float) -> tuple[TokenDataset, TokenDataset]:
    """Return the rows to train on and the development rows.

    Rows of one prompt stay together, so that no development prompt is trained on. The choice depends
    on the rows alone: not on their order, a seed, or other rows' number beyond the share.

    Args:
        rows: all training rows.
        share: of the rows to keep out, above 0 and below 1; at least one row is kept out.

    Raises:
        InputError: all rows have one prompt, so nothing would be left.

    >>> rows = TokenDataset(tuple(Example((1, n), 1, f"say {n}:", (str(n),), f"line {n}") for n in range(20)))
    >>> [len(part) for part in split_development(rows, 0.1)]
    [18, 2]
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(rows.examples):
        groups.setdefault(_digest(example), []).append(index)
    wanted, kept_out = max(1, math.floor(share * len(rows) + 0.5)), set()
    for digest in sorted(groups)[: len(groups) - 1]:
        if len(kept_out) >= wanted:
            break
        kept_out.update(groups[digest])
    if not kept_out:
        raise InputError(
            "DATA-20",
            "all rows have the same prompt: none can be kept for development",
            fix="give development rows: --set data.dev=FILE",
        )
    rest = tuple(example for index, example in enumerate(rows.examples) if index not in kept_out)
    held = tuple(example for index, example in enumerate(rows.examples) if index in kept_out)
    note = f"{counted(len(held), 'training row')} of {len(rows):,} kept out of training for development"
    return replace(rows, examples=rest, notes=(*rows.notes, note)), replace(rows, examples=held, notes=())


def _digest(example: Example) -> str:
    """Return the sha256 of a row's prompt; of its text where there is no prompt."""
    text = example.prompt or (example.references[0] if example.references else repr(example.ids))
    text = text if example.images is None else f"{text} {example.images.digest}"
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()
