"""Decides whether teacher and student speak of the same tokens."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kdcli.errors import InputError
from kdcli.models.tokenizer import added_tokens, check_rows
from kdcli.text import one_line

_PROBES = (
    "The quick brown fox, 12 + 34 = 46.\nÄgypten, naïve café; 日本語 🙂\tdef f(x): return x",
    '  two  spaces, "quotes", it\'s 3.14159 and UPPER-lower_case\n\n\nend',
)
ACROSS = "use ce+1.5*uld, or ce on the teacher's text (--config seqkd), or models with the same tokenizer"
"""What to do where tokenizers differ."""


def shared_vocabulary(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_rows: int,
    teacher_rows: int,
) -> int:
    """Return how many leading vocabulary rows are real on both sides.

    Heads often hold more rows than there are tokens, and differ in how many; both are to be
    restricted to the number returned here before any softmax.

    Args:
        student_tokenizer: the student's.
        teacher_tokenizer: the teacher's.
        student_rows: rows of the student's head.
        teacher_rows: rows of the teacher's head.

    Raises:
        InputError: TOK-03 where the tables or the tokenisation differ, TOK-04 where rows are missing.
    """
    differ = difference(student_tokenizer, teacher_tokenizer, min(student_rows, teacher_rows))
    if differ is not None:
        raise InputError("TOK-03", differ, fix=ACROSS)
    own, other = (
        real_ids(student_tokenizer, student_rows, "student"),
        real_ids(teacher_tokenizer, teacher_rows, "teacher"),
    )
    return min(own, other)


def difference(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, rows: int | None = None
) -> str | None:
    """Say how two tokenizers differ, in their tables or in how they cut some texts; None where they do not.

    Args:
        student: one tokenizer.
        teacher: the other.
        rows: rows of the smaller head; added tokens beyond it are no tokens of both and are left out.
    """
    ours, theirs = _table(student, rows), _table(teacher, rows)
    if ours != theirs:
        return _different(ours, theirs)
    for text in _PROBES:
        cut, other = (tokenizer.encode(text, add_special_tokens=False) for tokenizer in (student, teacher))
        if cut != other:
            return _cut_differently(cut, other, student)
    return None


def _table(tokenizer: PreTrainedTokenizerBase, rows: int | None) -> dict[str, int]:
    table = tokenizer.get_vocab()
    beyond = set() if rows is None else {name for name, index in added_tokens(tokenizer).items() if index >= rows}
    return {name: index for name, index in table.items() if name not in beyond}


def real_ids(tokenizer: PreTrainedTokenizerBase, rows: int, role: str, *, where: str = "") -> int:
    """Return how many leading vocabulary rows of a model have a token.

    Added tokens without a row, such as a padding token that was never trained, are not counted: they can only come
    from a text that spells them, and :func:`refuse_rowless` names that text.

    Args:
        tokenizer: what gives the ids.
        rows: rows of the model's head.
        role: "student" or "teacher", for the message.
        where: the model's path, for the message.

    Raises:
        InputError: TOK-04, there are ids without a row that no added token has.
    """
    check_rows(tokenizer, rows, where, f" of the {role}")
    return min(rows, max(tokenizer.get_vocab().values()) + 1)


def templates_differ(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *, across: bool = False
) -> str | None:
    """Say how the chat templates of two models differ; None where they do not.

    Args:
        student: the tokenizer of one.
        teacher: that of the other.
        across: whether each reads the rows with its own tokenizer, and so in its own template.
    """
    ours, theirs = student.chat_template, teacher.chat_template
    if ours == theirs:
        return None
    reads = "each reads conversations in its own" if across else "the teacher reads conversations in the student's"
    if not ours or not theirs:
        without, has = ("student", "teacher") if not ours else ("teacher", "student")
        return f"the {without} has no chat template, the {has} has one" + (f"; {reads}" if ours and not across else "")
    if not isinstance(ours, str) or not isinstance(theirs, str):
        return f"chat templates of student and teacher differ; {reads}"
    pairs = zip(ours, theirs, strict=False)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))
    first, second = (_token(text[max(0, place - 10) : place + 20]) for text in (ours, theirs))
    where = f"first at character {place + 1:,}: {first} for the student, {second} for the teacher"
    return f"chat templates of student and teacher differ, {where}; {reads}"


def padding_note(real: int, student_rows: int, teacher_rows: int) -> str | None:
    """Return a sentence on rows without a token, None where every row has one.

    >>> padding_note(500, 512, 500)
    'vocabulary: student 512 rows, teacher 500 rows; both restricted to the 500 real ids'
    """
    if student_rows == teacher_rows == real:
        return None
    sizes = f"student {student_rows:,} rows, teacher {teacher_rows:,} rows"
    return f"vocabulary: {sizes}; both restricted to the {real:,} real ids"


def same_model(teacher: str, student: str) -> bool:
    """Tell whether two paths or hub ids name one model."""
    first, second = Path(teacher).expanduser(), Path(student).expanduser()
    if first.exists() and second.exists():
        return first.samefile(second)
    return teacher == student


def refuse_same_model(teacher: str, student: str) -> None:
    """Refuse to distil a model into itself.

    Raises:
        InputError: MOD-18.
    """
    if same_model(teacher, student):
        raise InputError(
            "MOD-18",
            f"teacher and student are both {one_line(student)}; every divergence would start at 0",
            fix="give another student, such as random:layers=2,width=64,heads=4",
        )


def _different(student: dict[str, int], teacher: dict[str, int]) -> str:
    ours, theirs = ({index: token for token, index in table.items()} for table in (student, teacher))
    differing = sorted(index for index in ours.keys() | theirs.keys() if ours.get(index) != theirs.get(index))
    sizes = f"student {len(student):,} tokens, teacher {len(teacher):,}"
    if not differing:
        return f"tokenizers differ ({sizes}): ids are given twice"
    first = differing[0]
    shown = f"{first:,} is {_token(ours.get(first))} for the student and {_token(theirs.get(first))} for the teacher"
    return f"tokenizers differ ({sizes}) in {len(differing):,} ids; first: id {shown}"


def _cut_differently(ours: list[int], theirs: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    pairs = zip(ours, theirs, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    pieces = [_token(_name(ids, place, tokenizer)) for ids in (ours, theirs)]
    return (
        f"tokenizers have one table but cut text differently: {pieces[0]} for the student, {pieces[1]} for the teacher"
    )


def _name(ids: list[int], place: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
    return str(tokenizer.convert_ids_to_tokens(ids[place])) if place < len(ids) else None


def _token(token: str | None) -> str:
    return "no token" if token is None else f'"{one_line(token, 40)}"'
