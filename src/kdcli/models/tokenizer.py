"""Loads and checks tokenizers, their end tokens, and compares vocabularies."""

import base64
import binascii
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, MachineError, raise_machine_fault
from kdcli.models.checks import ModelFolder
from kdcli.models.headers import read_table
from kdcli.models.internals import tokenizer_class_from_name
from kdcli.models.weights import read_generation_config, silence_transformers
from kdcli.storage import forked
from kdcli.storage.forked import ExceededError, bounded
from kdcli.storage.locate import locate
from kdcli.text import one_line

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json", "vocab.model")
_PROBE = "The quick brown fox, 12 + 34 = 46.\nÄgypten, naïve café; 日本語 🙂\tdef f(x): return x"


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id; code in the folder is never run.

    Args:
        path: folder or hub id as typed.

    Raises:
        InputError: TOK-01 none there, TOK-02 damaged, TOK-09 takes too long or too much memory, TOK-11 needs code.
        MachineError: TOK-12 and ENV-05, a package that reads it is not installed; ENV-03, the disk refuses.
    """
    folder = locate(path, looked_for="tokenizer.json", code="TOK-01")
    _check_files(folder)
    try:
        with silence_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), config=_config(folder), trust_remote_code=False, local_files_only=True
            )
            next(bounded([len(_PROBE)], lambda _: len(tokenizer.encode(_PROBE)).to_bytes(8, "big")))
    except ExceededError as error:
        raise InputError(
            "TOK-09",
            f"the tokenizer took more than {error.spent} for one line of text",
            where=str(folder),
            fix="use another tokenizer",
        ) from error
    except BaseException as error:
        # The tokenizers library panics with an error that is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        _check_readers(folder)
        raise_machine_fault(error, str(folder))
        reason = one_line(str(error).strip() or type(error).__name__, 160)
        raise InputError(
            "TOK-02", f"the tokenizer cannot be loaded: {reason}", where=str(folder), fix="copy it again"
        ) from error
    return tokenizer


def _check_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _FILES) and not [*folder.glob("*.tiktoken")]:
        raise InputError(
            "TOK-01",
            f"no tokenizer in {one_line(str(folder))} (looked for tokenizer.json)",
            fix="copy the tokenizer's files there",
        )
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            table = read_table(folder / name, "TOK-02")
            if name == "tokenizer_config.json":
                _refuse_code(table, folder / name)


def _check_readers(folder: Path) -> None:
    """Name the packages that a folder without tokenizer.json is read with and that are not installed.

    Raises:
        MachineError: TOK-12.
    """
    if (folder / "tokenizer.json").is_file():
        return
    for path in sorted(folder.iterdir()):
        needed = _readers(path) if path.is_file() else {}
        missing = [name for name, module in needed.items() if not _installed(module)]
        if missing:
            what = f"{path.name} is read with {' and '.join(missing)}, which is not installed"
            fix = f"pip install {' '.join(missing)}; or copy the tokenizer's tokenizer.json there"
            raise MachineError("TOK-12", what, where=str(folder), fix=fix)


def _readers(path: Path) -> dict[str, str]:
    """Return the packages that read a tokenizer's file: name to install -> module."""
    if path.name == "tekken.json":
        return {"mistral-common": "mistral_common"}
    if path.suffix == ".tiktoken" or (path.suffix == ".model" and _is_ranks(path)):
        return {"tiktoken": "tiktoken"}
    if path.suffix == ".model":
        return {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    return {}


def _is_ranks(path: Path) -> bool:
    """Whether a file holds tiktoken's lines: a token in base64, a space, its rank."""
    with path.open("rb") as file:
        token, _, rank = file.readline(1000).partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.strip().isdigit()
    except (binascii.Error, ValueError):
        return False


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _refuse_code(table: dict[str, Any], path: Path) -> None:
    """Refuse a tokenizer class that only the folder's own code defines."""
    name = table.get("tokenizer_class")
    if not table.get("auto_map"):
        return
    plain = name.removesuffix("Fast") if isinstance(name, str) else ""
    if not plain or (tokenizer_class_from_name(plain) or tokenizer_class_from_name(f"{plain}Fast")) is None:
        raise InputError(
            "TOK-11",
            f'tokenizer class "{one_line(str(name), 60)}" needs code from the folder, which is never run',
            where=str(path),
            fix="save it as tokenizer.json and drop auto_map",
        )


def _config(folder: Path) -> PreTrainedConfig:
    """Return a config of the folder's family, so that AutoTokenizer reads no other file for it."""
    path = folder / "config.json"
    table = read_table(path, "MOD-02") if path.is_file() else {}
    family, name = table.get("model_type"), table.get("tokenizer_class")
    config = CONFIG_MAPPING[family]() if isinstance(family, str) and family in CONFIG_MAPPING else PreTrainedConfig()
    if isinstance(name, str):
        config.tokenizer_class = name
    return config


def pad_id(tokenizer: PreTrainedTokenizerBase, ends: EndTokens, rows: int) -> int:
    """Return an id to fill padding with; padding is always masked, so any valid id does."""
    candidates = (tokenizer.pad_token_id, *ends.ids, 0)
    return next(token for token in candidates if type(token) is int and 0 <= token < rows)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that were added to a tokenizer's own table: text -> id."""
    return {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int, path: str, whose: str = "") -> None:
    """Refuse a tokenizer whose own table has ids for which the model has no row.

    An added token may lack a row: it stands in no text but one that spells it.

    Args:
        tokenizer: the model's tokenizer.
        rows: rows of the model's head.
        path: the model, for messages.
        whose: words that follow "embedding rows".

    Raises:
        InputError: TOK-04.
    """
    added = added_tokens(tokenizer)
    highest = max((index for name, index in tokenizer.get_vocab().items() if name not in added), default=0)
    if highest >= rows:
        raise InputError(
            "TOK-04",
            f"the tokenizer's highest token id {highest} >= {rows} embedding rows{whose}",
            where=path,
            fix="use the tokenizer this model was trained with",
        )


# Which tokens end a model's texts: everything in its folder that names one is asked.


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
    """Return what decides where a model's answer ends and which of its tokens are words, besides weights and prompt.

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


# Compares the vocabularies of teacher and student.


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
    """Whether two paths or hub ids name one model."""
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
