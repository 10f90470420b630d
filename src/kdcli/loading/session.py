"""Loads each tokenizer, data set and teacher of a study once."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.classifiers.model import ClassModel, load_classifier, settled, tiny_student
from kdcli.classifiers.tiny import is_tiny
from kdcli.config.sections import DataConfig, LoraConfig, ServerConfig
from kdcli.data.class_rows import check_label, class_dataset, labels_in, read_class_rows
from kdcli.data.dataset import SPLITS, Role, load_dataset
from kdcli.data.few_shot import Feedback
from kdcli.data.files import inspect_path
from kdcli.data.rows import RowReport
from kdcli.data.tokenize import TokenDataset, refuse_rowless
from kdcli.errors import UsageError
from kdcli.exports.folder import is_export, load_export, open_export, refuse_export
from kdcli.loading.info import (
    ModelInfo,
    ModelPair,
    facts_of,
    facts_of_classifier,
    facts_of_several,
    facts_of_tiny,
    notes_on_pair,
    read_ensemble,
    require_single,
)
from kdcli.models.adapters import NONE, attach, check_quantization
from kdcli.models.checks import (
    ModelFolder,
    check_manifest,
    has_weights,
    is_classifier,
    open_config_only,
    open_folder,
)
from kdcli.models.load import LanguageModel, load_model
from kdcli.models.random_init import random_student
from kdcli.models.tokenizer import (
    difference,
    load_tokenizer,
    padding_note,
    real_ids,
    refuse_same_model,
    shared_vocabulary,
)
from kdcli.remote.address import address_of, is_url, served_identity
from kdcli.remote.client import Client
from kdcli.storage.locate import model_of
from kdcli.students.made import Cut, cut_student, is_made, keeps_weights
from kdcli.students.scores import Scores
from kdcli.students.supernet import make_supernet
from kdcli.students.supernet_spec import is_supernet
from kdcli.text import one_line


@dataclass
class Session:
    """Everything loaded so far; shared by the cells of a comparison.

    Args:
        planning: whether this is about another machine: weights and libraries may be there and not here.
        exports: whether a folder that ``kd export`` wrote may stand for a model; it can be measured, and not trained.
    """

    planning: bool = False
    exports: bool = False

    _facts: dict[str, ModelInfo] = field(default_factory=dict)
    _data: dict[tuple[str, ...], TokenDataset] = field(default_factory=dict)
    _teachers: dict[tuple[str, torch.device, str], LanguageModel] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _scores: dict[tuple[str, torch.device], Scores] = field(default_factory=dict)
    _class_rows: dict[tuple[str, ...], RowReport] = field(default_factory=dict)
    caches: dict[Path, Any] = field(default_factory=dict)
    """Teacher caches opened and checked before."""
    class_tables: dict[tuple[str, ...], Any] = field(default_factory=dict)
    """What teachers said of the classes of rows."""

    def inspect(self, path: str, *, classifiers: bool = False) -> ModelInfo:
        """Return what identifies a model; its tokenizer is loaded, its weights are not.

        Args:
            path: folder, hub id, or several of them.
            classifiers: whether it may be a classifier of texts, rather than a language model.
        """
        if classifiers and read_ensemble(path) is None and is_classifier(model_of(path)):
            return self._inspect_classifier(path)
        blend = read_ensemble(path)
        if path not in self._facts and blend is not None:
            self._facts[path] = facts_of_several(path, blend, tuple(self.inspect(one) for one in blend.members))
        if path not in self._facts:
            folder = model_of(path)
            checked = self._open(folder)
            if folder != path:
                check_manifest(checked.folder)
            tokenizer = load_tokenizer(folder)
            self._facts[path] = facts_of(path, checked, tokenizer)
        return self._facts[path]

    def _inspect_classifier(self, path: str) -> ModelInfo:
        if path not in self._facts:
            folder = model_of(path)
            checked = open_folder(folder, classifier=True)
            if folder != path:
                check_manifest(checked.folder)
            self._facts[path] = facts_of_classifier(path, checked)
        return self._facts[path]

    def _open(self, folder: str) -> ModelFolder:
        if is_export(folder):
            return open_export(folder) if self.exports else refuse_export(folder)
        if self.planning and not has_weights(folder):
            return open_config_only(folder)
        return open_folder(folder, images=True)

    def inspect_teacher(self, path: str, quantization: str = NONE) -> ModelInfo:
        """Return what identifies a teacher, rounded or not.

        Raises:
            MachineError: the library that rounds is not installed.
        """
        if not self.planning:
            check_quantization(quantization)
        facts = self.inspect(path)
        if quantization == NONE:
            return facts
        return replace(facts, digest=f"{facts.digest}+{quantization}", quantization=quantization)

    def inspect_served(self, server: ServerConfig, reader: ModelInfo) -> ModelInfo:
        """Return what identifies a teacher behind a server: its name there, and the student's tokenizer.

        Raises:
            KDError: the server cannot be asked for its model's name, where none is set.
        """
        named = server.model_copy(update={"model": server.model or self._name(server)})
        digest = served_identity(str(named.model), address_of(named).url)
        return replace(reader, path=str(server.url), digest=digest, parameters=0, width=0, server=named)

    def _name(self, server: ServerConfig) -> str:
        if str(server.url) not in self._names:
            self._names[str(server.url)] = Client(server).model()
        return self._names[str(server.url)]

    def pair(
        self,
        student: str | None,
        teacher: str | None,
        quantization: str = NONE,
        server: ServerConfig | None = None,
        *,
        across: bool = False,
        data: DataConfig | None = None,
    ) -> ModelPair:
        """Inspect both models, and check that their vocabularies agree or say how they differ.

        A student that classifies texts has the classes of its training rows, and no vocabulary to share.

        Args:
            student: folder, hub id, ``random:``, ``cut:`` or ``tiny:`` spec.
            teacher: folder, hub id, several of them, or the address of a server.
            quantization: what the teacher's weights are rounded to.
            server: how a served teacher is asked.
            across: let different tokenizers pass, for the caller to judge.
            data: where the training rows of a classifier come from.

        Raises:
            UsageError: no student, or one that is made from a teacher without one.
            InputError: a model that cannot be used, or different tokenizers.
        """
        if student is None:
            raise UsageError("CLI-20", "no student", where="--student", fix="give a folder, a hub id or random:...")
        _check_task(data.task if data is not None else "auto", student)
        if classifies(student):
            return self._class_pair(student, teacher, quantization, data or DataConfig())
        made, kind = is_made(student), student.partition(":")[0]
        if teacher is not None and is_url(teacher):
            if made:
                raise UsageError(
                    "SERVE-10", f"a {kind} student takes its form from a teacher, and a server shows none",
                    where=f"--student {student}", fix="give a student folder",
                )  # fmt: skip
            here = self.inspect(student)
            there = self.inspect_served((server or ServerConfig()).model_copy(update={"url": teacher}), here)
            shared = shared_vocabulary(here.tokenizer, here.tokenizer, here.rows, here.rows)
            return ModelPair(student, here, there, shared, notes_on_pair(here, there))
        if made and teacher is None:
            raise UsageError(
                "CLI-20", f"a {kind} student takes its family and tokenizer from a teacher",
                where=f"--student {student}", fix="give --teacher",
            )  # fmt: skip
        if keeps_weights(student):
            what = f"a {kind} student has the weights of one teacher"
            require_single(teacher, what, "--teacher", "give one of them")
        if teacher is not None and not made:
            blend = read_ensemble(teacher)
            for one in blend.members if blend is not None else (teacher,):
                refuse_same_model(model_of(one), model_of(student))
        there = self.inspect_teacher(teacher, quantization) if teacher is not None else None
        first = there.members[0] if there is not None and there.members else there
        here = first if made else self.inspect(student)
        assert here is not None, "a student that is made has a teacher"
        other = there or here
        differ = difference(here.tokenizer, other.tokenizer, min(here.rows, other.rows)) if across else None
        if differ is not None:
            own, theirs = (
                real_ids(one.tokenizer, one.rows, role) for one, role in ((here, "student"), (other, "teacher"))
            )
            note = f"{differ}; each reads the text in its own"
            return ModelPair(
                student, here, there, own, (note, *notes_on_pair(here, other, across=True)), theirs, differ
            )
        vocab = shared_vocabulary(here.tokenizer, other.tokenizer, here.rows, other.rows)
        note = padding_note(vocab, here.rows, other.rows)
        notes = (*((note,) if note else ()), *notes_on_pair(here, other))
        return ModelPair(student, replace(here, vocab=vocab), there, vocab, notes)

    def _class_pair(self, student: str, teacher: str | None, quantization: str, data: DataConfig) -> ModelPair:
        """Inspect a student that classifies texts, and its teacher, a classifier or a causal LM."""
        if teacher is not None and is_url(teacher):
            what = "a server shows no probability of a class"
            raise UsageError("CLS-03", what, where=f"--teacher {teacher}", fix="give the teacher's folder")
        require_single(teacher, "classes are learnt from one teacher", "--teacher", "give one of them")
        path = check_data_path(data.train, "--data")
        given = labels_in(self._rows_of_classes(path, data, "train"), path)
        if is_tiny(student):
            here = facts_of_tiny(student, given)
        else:
            found = self.inspect(student, classifiers=True)
            here = replace(found, labels=settled(found.labels or (), given, student))
        labels = here.labels or ()
        if teacher is None:
            return ModelPair(student, here, None, len(labels), here.notes)
        refuse_same_model(model_of(teacher), model_of(student))
        there = self.inspect(teacher, classifiers=True)
        if there.labels is None:
            there = self.inspect_teacher(teacher, quantization)
        elif quantization != NONE:
            what = "a classifier's layers are not rounded"
            raise UsageError("CLS-03", what, where="teacher_quantization", fix="leave it out")
        for label in labels if there.labels is not None else ():
            check_label(label, there.labels or (), f"--teacher {one_line(teacher)}", "the teacher's classes are")
        return ModelPair(student, here, there, len(labels), tuple(dict.fromkeys([*here.notes, *there.notes])))

    def _rows_of_classes(self, path: str, config: DataConfig, role: Role) -> RowReport:
        limit = config.eval_limit if role == "eval" else config.limit
        key = (path, role, str(limit), str(sorted(config.columns.items())), str(config.skip_bad))
        if key not in self._class_rows:
            self._class_rows[key] = read_class_rows(path, config, limit=limit, splits=SPLITS[role])
        return self._class_rows[key]

    def data(
        self, path: str, reader: ModelInfo, config: DataConfig, *, role: Role, images: bool = False,
        feedback: Feedback | None = None,
    ) -> TokenDataset:  # fmt: skip
        """Return tokenised rows; ``role`` is "train", "prompts" or "eval" and chooses split and limit.

        Args:
            path: where they are.
            reader: the model whose tokenizer, and whose processor of images, reads them.
            config: columns, template and limits.
            role: what they are for.
            images: whether rows may have images, if the reader prepares them.
            feedback: rows of which each prompt shows a few.
        """
        processor = reader.processor if images else None
        limit = config.eval_limit if role == "eval" else config.limit
        shape = config.model_copy(update=dict.fromkeys(("train", "eval", "limit", "eval_limit", "corpus", "made")))
        key = (path, reader.tokenizer_digest, str(reader.ends.ids), role, str(limit), shape.model_dump_json())
        if feedback is not None:
            key = (*key, f"{feedback.digest} {feedback.count} {feedback.seed}")
        if reader.labels is not None:
            key = (*key, *reader.labels)
            if key not in self._data:
                rows = self._rows_of_classes(path, config, role)
                self._data[key] = class_dataset(rows, reader.tokenizer, reader.labels, config.max_length)
            return self._data[key]
        if processor is not None:
            key = (*key, processor.digest)
        if key not in self._data:
            self._data[key] = load_dataset(
                path, reader.tokenizer, config, ends=reader.ends, limit=limit,
                role=role, images=processor, feedback=feedback,
            )  # fmt: skip
        found = self._data[key]
        refuse_rowless(found.examples, reader.tokenizer, reader.rows if reader.vocab is None else reader.vocab)
        return found

    def load_teacher(self, path: str, device: torch.device, quantization: str = NONE) -> LanguageModel:
        """Return one teacher, loaded once per device.

        Raises:
            UsageError: it is several.
        """
        require_single(path, "one teacher is asked for", "--teacher", "give one of them")
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
        self, pair: ModelPair, *, seed: int, device: torch.device, lora: LoraConfig | None = None
    ) -> LanguageModel:
        """Return a fresh student: its weights, or those of its adapter, are about to change."""
        if pair.classifies:
            labels = pair.reader.labels or ()
            if is_tiny(pair.student):
                return tiny_student(pair.student, labels, seed=seed, device=device)
            return load_classifier(model_of(pair.student), device=device, role="student", labels=labels)
        if pair.student_is_random:
            return random_student(pair.student, model_of(pair.reader.path), seed=seed, device=device)
        if is_supernet(pair.student):
            found = make_supernet(pair.student, model_of(pair.reader.path), rows=pair.scored_on, device=device)
        elif pair.student_is_made:
            found = self.cut(pair, device).student
        else:
            found = load_model(model_of(pair.student), device=device, role="student")
        if lora is None or lora.rank is None:
            return found
        return replace(found, adapter=attach(found.model, lora, seed=seed, name=pair.student))

    def cut(self, pair: ModelPair, device: torch.device) -> Cut:
        """Return a fresh student that is cut out of the teacher; its parts are scored once."""
        key = (pair.student_identity, device)
        found = cut_student(
            pair.student, model_of(pair.reader.path), rows=pair.scored_on, device=device, known=self._scores.get(key)
        )
        self._scores[key] = found.scores
        return found


def classifies(student: str | None) -> bool:
    """Whether a student is a classifier of texts: a ``tiny:`` spec, or a folder of one.

    Args:
        student: as typed; None for none.
    """
    if student is None or is_made(student) or is_url(student):
        return False
    return is_tiny(student) or is_classifier(model_of(student))


def _check_task(task: str, student: str) -> None:
    """Refuse a student that does not do what the settings say it does."""
    if task != "auto" and (task == "class") != classifies(student):
        where = f"--task {task}"
        if task == "class":
            what = f"{one_line(student, 80)} is a language model, and classes are learnt by a classifier"
            raise UsageError("CLS-04", what, where=where, fix="give --student tiny:kind=bow, or a classifier's folder")
        what = f"{one_line(student, 80)} is a classifier, and text is learnt by a language model"
        raise UsageError("CLS-04", what, where=where, fix="leave --task out, or give a language model as --student")


def load_class_reader(facts: ModelInfo, device: torch.device) -> ClassModel:
    """Return a classifier that is measured or learnt from, and not trained.

    Args:
        facts: what is known of it; its classes are called as they say.
        device: where it computes.
    """
    return load_classifier(model_of(facts.path), device=device, role="teacher", labels=facts.labels)


def load_measured(path: str, device: torch.device, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Return a model that is measured and not trained: of a model folder, or of one that ``kd export`` wrote.

    Args:
        path: run folder, model folder or hub id.
        device: where it computes.
        dtype: type of the parameters; those of an exported model have their own.

    Raises:
        KDError: the folder cannot be used, or a library that reads it is not installed.
    """
    folder = model_of(path)
    return (
        load_export(folder, device)
        if is_export(folder)
        else load_model(folder, device=device, role="teacher", dtype=dtype)
    )


def check_data_path(path: str | None, flag: str) -> str:
    """Return a data path that exists, before anything is loaded for it.

    Raises:
        UsageError: none was given.
        InputError: nothing is there.
    """
    if path is None:
        raise UsageError("CLI-20", "no data", where=flag, fix="give a file, a folder or a hub id")
    inspect_path(path)
    return path


def evaluation_digest(dataset: TokenDataset) -> str:
    """Return the sha256 over a test set's tokens and references."""
    state = hashlib.sha256(dataset.digest.encode())
    for example in dataset.examples:
        state.update(repr(example.references).encode())
        if example.choices is not None:
            state.update(repr((example.choices, example.answer)).encode())
    return state.hexdigest()
