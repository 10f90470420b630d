"""Loads each tokenizer, data set and teacher of a study once, and says what identifies them."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdcli import durable
from kdcli.config import DataConfig, LoraConfig, ServerConfig
from kdcli.data.dataset import TokenDataset, load_dataset
from kdcli.data.files import find
from kdcli.engine.teacher import Teacher
from kdcli.errors import InputError, UsageError
from kdcli.models.adapter import attach
from kdcli.models.folder import ModelFolder, open_folder
from kdcli.models.load import LanguageModel, load_model, load_tokenizer
from kdcli.models.quantise import NONE, check_quantization
from kdcli.models.random import is_random, random_student
from kdcli.models.tokenizer import end_ids
from kdcli.models.vocabulary import padding_note, refuse_same_model, shared_vocabulary
from kdcli.models.weights import read_generation_config
from kdcli.runs.ensemble import Blend, read_blend, refuse_blend
from kdcli.runs.folder import model_of
from kdcli.runs.serving.address import address_of, is_served
from kdcli.runs.serving.client import Client

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before its weights are loaded.

    Args:
        path: folder or hub id.
        tokenizer: its tokenizer.
        rows: rows of its head.
        end_id: the token that ends a response.
        digest: sha256 over weight files and config.json.
        tokenizer_digest: sha256 over the tokenizer's files.
        parameters: how many numbers its weight files hold.
        width: numbers in a hidden state.
        quantization: what its linear layers below the head are rounded to; part of the digest too.
        server: where it is served, its model's name included; None for a model that is read here.
        blend: how several teachers are mixed, if it is several.
        members: each of them.
    """

    path: str
    tokenizer: PreTrainedTokenizerBase
    rows: int
    end_id: int
    digest: str
    tokenizer_digest: str
    parameters: int
    width: int = 0
    quantization: str = NONE
    server: ServerConfig | None = None
    blend: Blend | None = None
    members: tuple["ModelFacts", ...] = ()


@dataclass(frozen=True)
class Pair:
    """Student and teacher of a run, before their weights are loaded.

    Args:
        student: spec of a random student, or the student's folder.
        reader: the model whose tokenizer reads the data: the student, or the teacher of a random one.
        teacher: the teacher, if one was named.
        vocab: real ids that both share.
        notes: what to know about their vocabularies.
    """

    student: str
    reader: ModelFacts
    teacher: ModelFacts | None
    vocab: int
    notes: tuple[str, ...] = ()

    @property
    def student_is_random(self) -> bool:
        """Whether the student is made on the spot."""
        return is_random(self.student)

    @property
    def student_identity(self) -> str:
        """What identifies the student at the start."""
        return self.student if is_random(self.student) else self.reader.digest


@dataclass
class Workshop:
    """Everything loaded so far; shared by the cells of a comparison."""

    _facts: dict[str, ModelFacts] = field(default_factory=dict)
    _data: dict[tuple[str, ...], TokenDataset] = field(default_factory=dict)
    _teachers: dict[tuple[str, torch.device, str], LanguageModel] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    caches: dict[Path, Teacher] = field(default_factory=dict)
    """Teacher caches opened and checked before."""

    def look(self, path: str) -> ModelFacts:
        """Return what identifies a model; its tokenizer is loaded, its weights are not."""
        blend = read_blend(path)
        if path not in self._facts and blend is not None:
            self._facts[path] = _blended(path, blend, tuple(self.look(one) for one in blend.members))
        if path not in self._facts:
            checked = open_folder(model_of(path))
            tokenizer = load_tokenizer(model_of(path))
            self._facts[path] = _facts(path, checked, tokenizer)
        return self._facts[path]

    def look_teacher(self, path: str, quantization: str = NONE) -> ModelFacts:
        """Return what identifies a teacher, rounded or not.

        Raises:
            MachineError: the library that rounds is not installed.
        """
        check_quantization(quantization)
        facts = self.look(path)
        if quantization == NONE:
            return facts
        return replace(facts, digest=f"{facts.digest}+{quantization}", quantization=quantization)

    def look_served(self, server: ServerConfig, reader: ModelFacts) -> ModelFacts:
        """Return what identifies a teacher behind a server: its name there, and the student's tokenizer.

        Raises:
            KDError: the server cannot be asked for its model's name, where none is set.
        """
        named = server.model_copy(update={"model": server.model or self._name(server)})
        place = f"{named.model} at {address_of(named).url}"
        return replace(reader, path=str(server.url), digest=place, parameters=0, width=0, server=named)

    def _name(self, server: ServerConfig) -> str:
        if str(server.url) not in self._names:
            self._names[str(server.url)] = Client(server).model()
        return self._names[str(server.url)]

    def pair(
        self, student: str | None, teacher: str | None, quantization: str = NONE, server: ServerConfig | None = None
    ) -> Pair:
        """Look at both models and check that they speak the same tokens.

        Raises:
            UsageError: no student, or a random one without a teacher to take its form from.
            InputError: a model that cannot be used, or different tokenizers.
        """
        if student is None:
            raise UsageError("CLI-20", "no student", where="--student", fix="give a folder, a hub id or random:...")
        random = is_random(student)
        if teacher is not None and is_served(teacher):
            if random:
                raise UsageError(
                    "SERVE-10", "a random student takes its form from a teacher, and a server shows none",
                    where=f"--student {student}", fix="give a student folder",
                )  # fmt: skip
            here = self.look(student)
            there = self.look_served((server or ServerConfig()).model_copy(update={"url": teacher}), here)
            return Pair(student, here, there, shared_vocabulary(here.tokenizer, here.tokenizer, here.rows, here.rows))
        if random and teacher is None:
            raise UsageError(
                "CLI-20", "a random student takes its family and tokenizer from a teacher",
                where=f"--student {student}", fix="give --teacher",
            )  # fmt: skip
        if teacher is not None and not random:
            blend = read_blend(teacher)
            for one in blend.members if blend is not None else (teacher,):
                refuse_same_model(model_of(one), model_of(student))
        there = self.look_teacher(teacher, quantization) if teacher is not None else None
        first = there.members[0] if there is not None and there.members else there
        here = first if random else self.look(student)
        assert here is not None, "a random student has a teacher"
        other = there or here
        vocab = shared_vocabulary(here.tokenizer, other.tokenizer, here.rows, other.rows)
        note = padding_note(vocab, here.rows, other.rows)
        return Pair(student, here, there, vocab, (note,) if note else ())

    def data(self, path: str, reader: ModelFacts, config: DataConfig, *, role: str) -> TokenDataset:
        """Return tokenised rows; ``role`` is "train" or "eval" and chooses split and limit."""
        limit = config.limit if role == "train" else config.eval_limit
        shape = config.model_copy(update=dict.fromkeys(("train", "eval", "limit", "eval_limit", "corpus", "made")))
        key = (path, reader.tokenizer_digest, str(reader.end_id), role, str(limit), shape.model_dump_json())
        if key not in self._data:
            self._data[key] = load_dataset(
                path, reader.tokenizer, config, end_id=reader.end_id, limit=limit,
                role="train" if role == "train" else "eval",
            )  # fmt: skip
        return self._data[key]

    def load_teacher(self, path: str, device: torch.device, quantization: str = NONE) -> LanguageModel:
        """Return one teacher, loaded once per device.

        Raises:
            UsageError: it is several.
        """
        refuse_blend(path, "one teacher is asked for", "--teacher", "give one of them")
        key = (path, device, quantization)
        if key not in self._teachers:
            self._teachers[key] = load_model(model_of(path), device=device, role="teacher", quantization=quantization)
        return self._teachers[key]

    def forget_emptied(self) -> None:
        """Drop the teachers whose weights went into shards, so that they are loaded anew where they are asked for."""
        for key, teacher in list(self._teachers.items()):
            if not all(map(Tensor.numel, teacher.model.parameters())):
                del self._teachers[key]

    def load_student(
        self, pair: Pair, *, seed: int, device: torch.device, lora: LoraConfig | None = None
    ) -> LanguageModel:
        """Return a fresh student: its weights, or those of its adapter, are about to change."""
        if is_random(pair.student):
            return random_student(pair.student, model_of(pair.reader.path), seed=seed, device=device)
        found = load_model(model_of(pair.student), device=device, role="student")
        if lora is None or lora.rank is None:
            return found
        return replace(found, adapter=attach(found.model, lora, seed=seed, name=pair.student))


def check_data_path(path: str | None, flag: str) -> str:
    """Return a data path that exists, before anything is loaded for it.

    Raises:
        UsageError: none was given.
        InputError: nothing is there.
    """
    if path is None:
        raise UsageError("CLI-20", "no data", where=flag, fix="give a file, a folder or a hub id")
    find(path)
    return path


def evaluation_digest(dataset: TokenDataset) -> str:
    """Return the sha256 over a test set's tokens and references."""
    state = hashlib.sha256(dataset.digest.encode())
    for example in dataset.examples:
        state.update(repr(example.references).encode())
        if example.choices is not None:
            state.update(repr((example.choices, example.answer)).encode())
    return state.hexdigest()


def _facts(path: str, checked: ModelFolder, tokenizer: PreTrainedTokenizerBase) -> ModelFacts:
    table = checked.settings.get("text_config") or checked.settings
    rows = table.get("vocab_size") or checked.settings.get("vocab_size") or len(tokenizer)
    generation = read_generation_config(checked.folder)
    named = generation.eos_token_id if generation is not None else table.get("eos_token_id")
    files = [checked.folder / name for name in _TOKENIZER_FILES if (checked.folder / name).is_file()]
    return ModelFacts(
        path=path,
        tokenizer=tokenizer,
        rows=rows,
        end_id=end_ids(named, tokenizer, rows, path)[0],
        digest=durable.digest_files([*checked.files, checked.folder / "config.json"]),
        tokenizer_digest=durable.digest_files(files or _all_files(checked.folder)),
        parameters=sum(info.numel for info in checked.tensors.values()),
        width=int(table.get("hidden_size") or table.get("n_embd") or table.get("d_model") or 0),
    )


def _blended(path: str, blend: Blend, members: tuple[ModelFacts, ...]) -> ModelFacts:
    """Return what identifies several teachers together.

    Raises:
        InputError: they do not speak the same tokens.
    """
    first = members[0]
    for other in members[1:]:
        try:
            shared_vocabulary(first.tokenizer, other.tokenizer, first.rows, other.rows)
        except InputError as error:
            what = f"the teachers {first.path} and {other.path} do not share a tokenizer"
            fix = "mix teachers of one tokenizer"
            raise InputError(error.code, what, where=f"--teacher {path}", fix=fix) from error
    return ModelFacts(
        path=path,
        tokenizer=first.tokenizer,
        rows=min(member.rows for member in members),
        end_id=first.end_id,
        digest=blend.digest([member.digest for member in members]),
        tokenizer_digest=first.tokenizer_digest,
        parameters=sum(member.parameters for member in members),
        width=sum(member.width for member in members),
        blend=blend,
        members=members,
    )


def _all_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and "token" in path.name]
