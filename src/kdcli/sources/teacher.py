"""Sequence-level distillation: the teacher answers the prompts once, before training."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from kdcli.data.tokenize import Example, first_context, follow, refuse_rowless
from kdcli.errors import InputError
from kdcli.models.load import LanguageModel
from kdcli.sources.base import SourceContext, SourceNeeds
from kdcli.sources.completions import TeacherCompletion, completion_text
from kdcli.sources.sequences import KNOWN, RowWindows, TrainingSequence, row_uniforms
from kdcli.sources.teacher_text.options import TeacherTextOptions
from kdcli.sources.teacher_text.store import TeacherText, generator_of, teacher_text
from kdcli.sources.token_counts import Made, TokenCounts

# What a teacher of another tokenizer wrote, in the student's tokens.


def teacher_view(context: SourceContext) -> SourceContext:
    """Return the context of a teacher that generates: its own rows, ids and longest sequence.

    Args:
        context: of the run; returned as it is where both models share a tokenizer.
    """
    if context.teacher_rows is None or context.teacher is None:
        return context
    return replace(
        context, dataset=context.teacher_rows, vocab=context.teacher_vocab, longest=context.teacher.positions,
        teacher_rows=None, teacher_vocab=None,
    )  # fmt: skip


def retokenized(sentences: Iterable[TeacherCompletion], context: SourceContext) -> list[TeacherCompletion]:
    """Return a teacher's sentences in the student's tokens, each once: the row's own prompt, and the answer's text.

    An answer that the teacher ended ends with the end token of the same name, or with the student's usual one where
    it has none of that name; one that says nothing is left out, and one that is too long is cut.

    Args:
        sentences: in the teacher's tokens.
        context: of the run; where both models share a tokenizer, the sentences stay as they are.

    Raises:
        InputError: SRC-01, nothing is left.
    """
    if context.teacher_rows is None:
        return list(sentences)
    found: dict[tuple[int, ...], TeacherCompletion] = {}
    for one in _in_students_tokens(sentences, context):
        found.setdefault(one.example.ids, one)
    if not found:
        what = "the teacher's answers say nothing in the student's tokens"
        raise InputError("SRC-01", what, where="@teacher", fix="raise max_new_tokens, or choose another teacher")
    return list(found.values())


def _in_students_tokens(sentences: Iterable[TeacherCompletion], context: SourceContext) -> Iterator[TeacherCompletion]:
    student, teacher, rows = context.student, context.teacher, context.teacher_rows
    assert student is not None, "a student reads what is written"
    assert teacher is not None, "a teacher wrote the text"
    assert rows is not None, "asked before"
    beginning = (first_context(student.tokenizer, student.ends),)
    for one in sentences:
        cut, mine = one.example.prompt_length, context.dataset.examples[one.row]
        asked = one.example.ids[:cut] == rows.examples[one.row].question
        base = mine if asked else Example(beginning, 1, "", (), one.example.where)
        ((ids, border),) = follow(student.tokenizer, base, [completion_text(one, teacher.tokenizer)])
        end = (_end_of(one, teacher, student),) if one.ended else ()
        ids = (*ids, *end)[: context.longest]
        if len(ids) > border:
            example = replace(
                mine if asked else one.example, ids=ids, prompt_length=border, response="",
                asked=base.question if ids[:border] != base.question else (),
            )  # fmt: skip
            refuse_rowless([example], student.tokenizer, context.vocab or student.vocab)
            yield replace(one, example=example)


def _end_of(one: TeacherCompletion, teacher: LanguageModel, student: LanguageModel) -> int:
    """Return the student's end token that has the name of the one the teacher wrote; else its usual one."""
    name = teacher.tokenizer.convert_ids_to_tokens(one.example.ids[-1])
    same = (token for token in student.ends.ids if student.tokenizer.convert_ids_to_tokens(token) == name)
    return next(same, student.ends.default)


class TeacherSource(TeacherTextOptions):
    """The teacher's answers to the prompts of the training rows, made once before training and kept.

    With ``ce`` this is SeqKD: train on what the teacher says. ``decode=beam`` is the original form, sampling the
    usual one with large models. ``prompts=bos`` is data-free distillation: the teacher makes whole texts from the
    token that begins one. What is made depends on teacher, prompts and options, ``seed`` among them, and not on the
    run: all runs with the same ``data.teacher_text`` folder and all cells of a comparison share it. The filters choose
    among what was made. A step has as many sequences as with the rows themselves: each row's prompt with one of its
    answers, another one in each epoch; where all answers to a prompt were filtered out, another prompt's.
    All rows are asked, also those that a run shorter than an epoch never comes to: ``--limit N`` asks fewer.
    A teacher of another tokenizer reads the prompts in its own tokens; its answers go to the student as text.

    >>> TeacherSource(decode="beam", answers=2).needs().teacher
    True
    """

    mixable: ClassVar[bool] = True
    needs_no_training: ClassVar[bool] = True
    name: ClassVar[str] = "teacher"
    summary: ClassVar[str] = "the teacher's answers, made once and kept (SeqKD, data-free)"
    reference: ClassVar[str] = "Kim and Rush 2016 (arXiv 1606.07947), section 3.2"

    def needs(self) -> SourceNeeds:
        """Ask for the teacher, to write; beams are followed by the model itself, other words may come from anywhere."""
        words = self.decode != "beam"
        return SourceNeeds(teacher=True, offline=False, facts=KNOWN, origins=frozenset({"teacher"}), text_only=words)

    def open(self, context: SourceContext) -> "TeacherWindows":
        """Return the windows of a run; what is not made yet is made now, if the teacher is there."""
        return TeacherWindows(context, self)

    def kept(self, text: TeacherText, tokenizer: PreTrainedTokenizerBase) -> list[TeacherCompletion]:
        """Return the sentences that pass the filters, each once.

        Args:
            text: everything that was written.
            tokenizer: the teacher's.

        Raises:
            InputError: none does, or one is to be judged by a likelihood or an answer that is unknown.
        """
        found: dict[tuple[int, ...], TeacherCompletion] = {}
        for one in text.sentences:
            if self.fault(one, tokenizer) is None:
                found.setdefault(one.example.ids, one)
        if not found:
            what = f"none of the teacher's {len(text.sentences):,} answers passes the filters"
            raise InputError(
                "SRC-01", what, where=str(text.folder or "@teacher"), fix="widen min_tokens, max_nll, ended or agree"
            )
        return list(found.values())


class TeacherWindows(RowWindows):
    """Windows in which each row's prompt is followed by an answer of the teacher.

    Args:
        context: data set, settings and models.
        source: its options.
    """

    def __init__(self, context: SourceContext, source: TeacherSource) -> None:
        super().__init__(context)
        self.source = source
        if context.teacher is not None or context.generator is not None:
            assert self.pool, "answers are there before the first step"

    @cached_property
    def _text(self) -> TeacherText:
        return teacher_text(self.source, teacher_view(self.context))

    @cached_property
    def pool(self) -> list[TeacherCompletion]:
        """Every answer that may be trained on."""
        tokenizer = generator_of(teacher_view(self.context)).tokenizer
        return retokenized(self.source.kept(self._text, tokenizer), self.context)

    @property
    def made(self) -> Made:
        """What the teacher wrote, before any filter."""
        every, fresh = self._text.sentences, self._text.fresh
        new = [one for one in every if (one.row, one.answer) in fresh]
        return Made(
            sum(one.targets for one in every), self._took(every), sum(one.targets for one in new), self._took(new),
            self._text.seconds,
        )  # fmt: skip

    def _took(self, sentences: Sequence[TeacherCompletion]) -> TokenCounts:
        """Return what answers take: a prompt is read once for all of its answers, and a model here reads them again."""
        by_prompt: dict[int, list[tuple[int, int]]] = {}
        for one in sentences:
            by_prompt.setdefault(one.row, []).append((one.example.prompt_length, one.targets))
        total = TokenCounts()
        for lengths in by_prompt.values():
            prompt, longest = lengths[0][0], max(said for _, said in lengths)
            if self.source.decode == "beam":
                width = self.source.beams
                total += TokenCounts.of("teacher", width * (prompt + longest - 1), width * longest)
            else:
                later = sum(said - 1 for _, said in lengths)
                total += TokenCounts.of("teacher", prompt + later, 1 + later)
            total += TokenCounts() if self.context.generator is not None else TokenCounts.of_answers("teacher", lengths)
        return total

    @cached_property
    def by_row(self) -> dict[int, list[TeacherCompletion]]:
        """The answers to each row's prompt."""
        found: dict[int, list[TeacherCompletion]] = {}
        for one in self.pool:
            found.setdefault(one.row, []).append(one)
        return found

    def write(self, step: int, rows: Sequence[int]) -> list[TrainingSequence]:
        """Return, for each row, one of the teacher's answers."""
        drawn = row_uniforms(self.context.train.seed, step, rows)
        epoch = step // self.steps_per_epoch
        found = []
        for row, coin in zip(rows, drawn, strict=True):
            own = self.by_row.get(row) or [self.pool[int(coin * len(self.pool))]]
            found.append(TrainingSequence(own[epoch % len(own)].example, row, "teacher"))
        return found
