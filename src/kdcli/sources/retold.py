"""What a teacher of another tokenizer wrote, in the student's tokens."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from kdcli.data.examples import Example
from kdcli.data.tokens import first_context, follow, refuse_rowless
from kdcli.errors import InputError
from kdcli.models.load import LanguageModel
from kdcli.sources.base import Ground
from kdcli.sources.sentences import Sentence, said


def as_teacher(ground: Ground) -> Ground:
    """Return the ground that a teacher stands on while it writes: its own rows, ids and longest sequence.

    Args:
        ground: of the run; returned as it is where both models share a tokenizer.
    """
    if ground.teacher_rows is None or ground.teacher is None:
        return ground
    return replace(
        ground, dataset=ground.teacher_rows, vocab=ground.teacher_vocab, longest=ground.teacher.positions,
        teacher_rows=None, teacher_vocab=None,
    )  # fmt: skip


def retold(sentences: Iterable[Sentence], ground: Ground) -> list[Sentence]:
    """Return a teacher's sentences in the student's tokens, each once: the row's own prompt, and the answer's text.

    An answer that the teacher ended ends with the end token of the same name, or with the student's usual one where
    it has none of that name; one that says nothing is left out, and one that is too long is cut.

    Args:
        sentences: in the teacher's tokens.
        ground: of the run; where both models share a tokenizer, the sentences stay as they are.

    Raises:
        InputError: SRC-01, nothing is left.
    """
    if ground.teacher_rows is None:
        return list(sentences)
    found: dict[tuple[int, ...], Sentence] = {}
    for one in _in_students_tokens(sentences, ground):
        found.setdefault(one.example.ids, one)
    if not found:
        what = "the teacher's answers say nothing in the student's tokens"
        raise InputError("SRC-01", what, where="@teacher", fix="raise max_new_tokens, or choose another teacher")
    return list(found.values())


def _in_students_tokens(sentences: Iterable[Sentence], ground: Ground) -> Iterator[Sentence]:
    student, teacher, rows = ground.student, ground.teacher, ground.teacher_rows
    assert student is not None, "a student reads what is written"
    assert teacher is not None, "somebody wrote"
    assert rows is not None, "asked before"
    beginning = (first_context(student.tokenizer, student.ends),)
    for one in sentences:
        cut, mine = one.example.prompt_length, ground.dataset.examples[one.row]
        asked = one.example.ids[:cut] == rows.examples[one.row].question
        base = mine if asked else Example(beginning, 1, "", (), one.example.where)
        ((ids, border),) = follow(student.tokenizer, base, [said(one, teacher.tokenizer)])
        end = (_end_of(one, teacher, student),) if one.ended else ()
        ids = (*ids, *end)[: ground.longest]
        if len(ids) > border:
            example = replace(
                mine if asked else one.example, ids=ids, prompt_length=border, response="",
                asked=base.question if ids[:border] != base.question else (),
            )  # fmt: skip
            refuse_rowless([example], student.tokenizer, ground.vocab or student.vocab)
            yield replace(one, example=example)


def _end_of(one: Sentence, teacher: LanguageModel, student: LanguageModel) -> int:
    """Return the student's end token that has the name of the one the teacher wrote; else its usual one."""
    name = teacher.tokenizer.convert_ids_to_tokens(one.example.ids[-1])
    same = (token for token in student.ends.ids if student.tokenizer.convert_ids_to_tokens(token) == name)
    return next(same, student.ends.default)
