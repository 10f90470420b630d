"""What is known of models before their weights are loaded."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from kdcli.classifiers.model import labels_of, tokenizer_digest, tokenizer_of
from kdcli.classifiers.tiny import HashedWords, is_tiny, parse_tiny, tiny_parameters
from kdcli.config.sections import ServerConfig
from kdcli.data.tokenize import TokenDataset
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, UsageError
from kdcli.models.adapters import NONE
from kdcli.models.checks import ModelFolder, model_digest
from kdcli.models.plain import ignored_generation_settings
from kdcli.models.processor import Processor, processor_of
from kdcli.models.random_init import is_random
from kdcli.models.sizes import sizes_of
from kdcli.models.tokenizer import ends_differ, folder_end_tokens, shared_vocabulary, templates_differ
from kdcli.models.weights import CAUSAL, VISION, build_config, read_generation_config
from kdcli.storage import atomic
from kdcli.students.made import cut_identity, is_made, keeps_weights, scoring_of
from kdcli.text import one_line

# Several teachers given as one: how they are written, and what identifies them together.


_TERM = re.compile(r"(?:(?P<weight>[0-9.eE]+)\*)?(?P<path>[^*]+)")


@dataclass(frozen=True)
class Ensemble:
    """Teachers whose distributions are mixed.

    Args:
        members: each one's folder or hub id.
        weights: of each, above 0, sum 1.
        space: where they are mixed: ``sum w p``, or ``sum w log p`` normalised.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    space: Literal["probability", "log"] = "probability"

    def digest(self, digests: Sequence[str]) -> str:
        """Return what identifies the mixture, given what identifies each member."""
        return hashlib.sha256(repr((tuple(digests), self.weights, self.space)).encode()).hexdigest()


def read_ensemble(text: str) -> Ensemble | None:
    """Read a teacher that is written as a sum of teachers; None if it is a single one.

    ``A+B`` mixes the probabilities in equal shares, ``0.7*A+0.3*B`` in others, ``log(0.7*A+0.3*B)`` the logarithms.
    A folder whose own name looks like that is a single teacher.

    Args:
        text: as typed behind ``--teacher``.

    Raises:
        UsageError: a weight that is not above 0, or a sum that cannot be read.

    >>> read_ensemble("0.6*big+0.2*small").weights
    (0.7499999999999999, 0.25)
    >>> read_ensemble("log(a+b)").space, read_ensemble("org/name")
    ('log', None)
    """
    if "+" not in text or Path(text).expanduser().exists():
        return None
    inner = text.removeprefix("log(").removesuffix(")") if text.startswith("log(") and text.endswith(")") else text
    members, weights = [], []
    for piece in inner.split("+"):
        found = _TERM.fullmatch(piece.strip())
        weight = _number(found["weight"]) if found else 0.0
        if found is None or weight <= 0:
            raise UsageError(
                "CLI-21", f'"{one_line(piece)}" is no share of a teacher', where=f"--teacher {one_line(text)}",
                fix="write folders and weights above 0, as in 0.7*A+0.3*B or log(A+B)",
            )  # fmt: skip
        members.append(found["path"].strip())
        weights.append(weight)
    total = sum(weights)
    shares = tuple(weight / total for weight in weights)
    return Ensemble(tuple(members), shares, "probability" if inner == text else "log")


def require_single(teacher: str | None, what: str, where: str, fix: str) -> None:
    """Refuse several teachers where only one will do.

    Raises:
        UsageError: names what is asked of them.
    """
    if teacher is not None and read_ensemble(teacher) is not None:
        raise UsageError("CLI-22", f"{what}, and {one_line(teacher)} are several teachers", where=where, fix=fix)


def _number(text: str | None) -> float:
    try:
        return 1.0 if text is None else float(text)
    except ValueError:
        return 0.0


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before its weights are loaded.

    Args:
        path: folder or hub id.
        tokenizer: its tokenizer.
        rows: rows of its head.
        ends: the tokens that end its texts.
        digest: sha256 over weight files and config.json.
        tokenizer_digest: sha256 over the tokenizer's files.
        parameters: how many numbers its weight files hold.
        width: numbers in a hidden state.
        quantization: what its linear layers below the head are rounded to; part of the digest too.
        server: where it is served, its model's name included; None for a model that is read here.
        blend: how several teachers are mixed, if it is several.
        members: each of them.
        notes: what its files do not agree on.
        passed_over: settings of its generation_config.json that no way of writing applies.
        vocab: how many leading ids it shares with its partner; None where all its rows count.
        labels: a classifier's classes, empty until rows have told them; None for a language model.
        processor: what prepares images; None for a model of text alone.
    """

    path: str
    tokenizer: PreTrainedTokenizerBase
    rows: int
    ends: EndTokens
    digest: str
    tokenizer_digest: str
    parameters: int
    width: int = 0
    quantization: str = NONE
    server: ServerConfig | None = None
    blend: Ensemble | None = None
    members: tuple["ModelInfo", ...] = ()
    notes: tuple[str, ...] = ()
    vocab: int | None = None
    passed_over: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    processor: Processor | None = None

    @property
    def writing_notes(self) -> tuple[str, ...]:
        """Notes on texts that this model generates."""
        if not self.passed_over:
            return self.notes
        named = ", ".join(self.passed_over)
        return (*self.notes, f"{one_line(self.path)}: {named} of its generation_config.json change no answer here")


@dataclass(frozen=True)
class ModelPair:
    """Student and teacher of a run, before their weights are loaded.

    Args:
        student: spec of a student that is made from the teacher, or the student's folder.
        reader: the model whose tokenizer reads the data: the student, or the teacher that it is made from.
        teacher: the teacher, if one was named.
        vocab: real ids that both share; the student's own where the teacher has others.
        notes: what to know about their vocabularies.
        teacher_vocab: the teacher's real ids where its tokenizer is another one; None where both share theirs.
        difference: how the tokenizers differ; empty where they do not.
        scored_on: rows on which the parts of a student that is cut out of its teacher are scored.
    """

    student: str
    reader: ModelInfo
    teacher: ModelInfo | None
    vocab: int
    notes: tuple[str, ...] = ()
    teacher_vocab: int | None = None
    difference: str = ""
    scored_on: TokenDataset | None = None

    @property
    def classifies(self) -> bool:
        """Whether the student is a classifier of texts."""
        return self.reader.labels is not None

    @property
    def student_is_made(self) -> bool:
        """Whether the student is made on the spot, from the reader."""
        return is_made(self.student)

    @property
    def student_is_random(self) -> bool:
        """Whether the student's weights are drawn from a seed."""
        return is_random(self.student) or is_tiny(self.student)

    @property
    def student_needs_rows(self) -> bool:
        """Whether the student is cut out of the teacher by scores that are taken on rows."""
        return keeps_weights(self.student) and scoring_of(self.student)[0].needs_rows

    @property
    def student_identity(self) -> str:
        """What identifies the student at the start."""
        if keeps_weights(self.student):
            return cut_identity(self.student, self.reader.digest, self.scored_on)
        return self.student if self.student_is_random else self.reader.digest


def facts_of(path: str, checked: ModelFolder, tokenizer: PreTrainedTokenizerBase) -> ModelInfo:
    """Return what a folder's files say of a model; its weights are not read.

    Args:
        path: folder or hub id, as it was given.
        checked: the folder.
        tokenizer: its tokenizer.

    Raises:
        IntegrityError: a file is not what the folder's manifest says.
    """
    table = checked.settings.get("text_config") or checked.settings
    rows = table.get("vocab_size") or checked.settings.get("vocab_size") or len(tokenizer)
    ends, notes = folder_end_tokens(checked, tokenizer, rows, path)
    files = [checked.folder / name for name in _TOKENIZER_FILES if (checked.folder / name).is_file()]
    return ModelInfo(
        path=path,
        tokenizer=tokenizer,
        rows=rows,
        ends=ends,
        digest=model_digest(checked),
        tokenizer_digest=atomic.digest_files(files or _all_files(checked.folder)),
        parameters=sum(info.numel for info in checked.tensors.values()) or _counted(checked),
        width=int(table.get("hidden_size") or table.get("n_embd") or table.get("d_model") or 0),
        notes=notes if checked.files else (*checked.notes, *notes),
        passed_over=ignored_generation_settings(read_generation_config(checked.folder)),
        processor=processor_of(checked.folder) if checked.images else None,
    )


def facts_of_classifier(path: str, checked: ModelFolder) -> ModelInfo:
    """Return what the files of a classifier's folder say of it; its weights are not read.

    Args:
        path: folder or hub id, as it was given.
        checked: the folder.

    Raises:
        IntegrityError: a file is not what the folder's manifest says.
    """
    tokenizer, labels = tokenizer_of(checked), labels_of(checked)
    files = [checked.folder / name for name in _TOKENIZER_FILES if (checked.folder / name).is_file()]
    return ModelInfo(
        path=path,
        tokenizer=tokenizer,
        rows=len(labels),
        ends=EndTokens(),
        digest=model_digest(checked),
        tokenizer_digest=atomic.digest_files(files) if files else tokenizer_digest(tokenizer),
        parameters=sum(info.numel for info in checked.tensors.values()),
        notes=checked.notes,
        labels=labels,
    )


def facts_of_tiny(spec: str, labels: tuple[str, ...] = ()) -> ModelInfo:
    """Return what a ``tiny:`` spec says of the classifier that it stands for.

    Args:
        spec: as typed.
        labels: its classes, as far as they are known.

    Raises:
        UsageError: SPEC-02.
    """
    words = HashedWords(parse_tiny(spec)["vocab"])
    digest = hashlib.sha256(spec.encode()).hexdigest()
    return ModelInfo(
        spec, words, len(labels), EndTokens(), digest, tokenizer_digest(words), tiny_parameters(spec, len(labels)),
        labels=labels,
    )  # fmt: skip


def _counted(checked: ModelFolder) -> int:
    """Return how many parameters a config asks for, shared ones once."""
    kind = VISION if checked.images else CAUSAL
    return sizes_of(build_config(checked.settings, str(checked.folder), kind)).parameters


def facts_of_several(path: str, blend: Ensemble, members: tuple[ModelInfo, ...]) -> ModelInfo:
    """Return what identifies several teachers together.

    Raises:
        InputError: their vocabularies differ.
    """
    first = members[0]
    for other in members[1:]:
        try:
            shared_vocabulary(first.tokenizer, other.tokenizer, first.rows, other.rows)
        except InputError as error:
            what = f"the teachers {first.path} and {other.path} do not share a tokenizer"
            fix = "mix teachers of one tokenizer"
            raise InputError(error.code, what, where=f"--teacher {path}", fix=fix) from error
    return ModelInfo(
        path=path,
        tokenizer=first.tokenizer,
        rows=min(member.rows for member in members),
        ends=first.ends,
        digest=blend.digest([member.digest for member in members]),
        tokenizer_digest=first.tokenizer_digest,
        parameters=sum(member.parameters for member in members),
        width=sum(member.width for member in members),
        blend=blend,
        members=members,
        notes=_notes_on_several(members),
    )


def fault_of_images(teacher: ModelInfo, reader: ModelInfo, *, across: bool = False) -> tuple[str, str] | None:
    """Say why a teacher does not read the images that a model reads, and what would do; None where it does.

    Args:
        teacher: as it was looked at.
        reader: the model that reads the rows; it prepares images.
        across: whether the teacher has another tokenizer.
    """
    own, theirs = reader.processor, teacher.processor
    fix = "give the folder of one teacher of the student's family"
    if teacher.server is not None:
        return "a server is asked for tokens without images", fix
    if teacher.members:
        return "several teachers are not mixed on images", fix
    if teacher.quantization != NONE:
        return "a rounded teacher is not made for them", "leave teacher_quantization out"
    if across:
        return "a teacher of another tokenizer has other tokens for them", fix
    if theirs is None:
        return "the teacher reads text alone", fix
    if own is None or theirs.digest != own.digest or theirs.image_token_ids != own.image_token_ids:
        what = "the processors of student and teacher prepare them in different ways"
        return what, "give a teacher and a student of one family, with one processor"
    return None


def notes_on_pair(student: ModelInfo, teacher: ModelInfo, *, across: bool = False) -> tuple[str, ...]:
    """Return what to know about end tokens and chat templates of student and teacher.

    Args:
        student: what reads the rows.
        teacher: its teacher.
        across: whether the teacher reads them with a tokenizer of its own.
    """
    found = (
        ends_differ(student.ends, teacher.ends, (student.tokenizer, teacher.tokenizer)),
        templates_differ(student.tokenizer, teacher.tokenizer, across=across),
    )
    return tuple(dict.fromkeys([*student.notes, *teacher.notes, *(one for one in found if one)]))


def _notes_on_several(members: tuple[ModelInfo, ...]) -> tuple[str, ...]:
    notes = [note for member in members for note in member.notes]
    for other in members[1:]:
        if set(other.ends.ids) != set(members[0].ends.ids):
            notes.append(f"end tokens of the teachers differ; texts end as those of {members[0].path} do")
        if other.tokenizer.chat_template != members[0].tokenizer.chat_template:
            notes.append(f"chat templates of the teachers {members[0].path} and {other.path} differ")
    return tuple(dict.fromkeys(notes))


def _all_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and "token" in path.name]
