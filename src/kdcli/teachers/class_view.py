"""A teacher's classes: those of a classifier, or what a causal LM says of the words that stand for each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.classifiers.model import ClassReader, Columns
from kdcli.config.sections import DataConfig
from kdcli.data.batching import Batch
from kdcli.data.choices import encode_choices
from kdcli.data.tokenize import Example, TokenDataset, decode, encode, prompt_prefix
from kdcli.errors import UsageError
from kdcli.events import Event, Report, silent
from kdcli.generation.scoring import LogProbScorer
from kdcli.loading.info import ModelInfo
from kdcli.loading.session import Session, load_class_reader
from kdcli.models.devices import Device
from kdcli.models.head import Head
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Packing, Projection
from kdcli.teachers.base import Teacher
from kdcli.text import one_line

_TEXT = "{text}"
_AT_ONCE = 256
"""Texts between two reports of progress."""


@dataclass(frozen=True)
class CausalClasses:
    """A class view of a causal LM: ``p_c`` is proportional to the exponential of the log-probability of c's words.

    Args:
        model: the language model.
        labels: the classes.
        words: what stands for each class, behind the prompt and a space.
        prompt: text around ``{text}``.
        mean: whether log-probabilities are divided by the number of tokens.
        device: where it computes.
    """

    model: LanguageModel
    labels: tuple[str, ...]
    words: tuple[str, ...]
    prompt: str
    mean: bool
    device: Device

    @property
    def parameters(self) -> int:
        """All of them, shared ones once."""
        return sum(one.numel() for one in self.model.model.parameters())

    def class_logits(self, texts: Sequence[str], where: Sequence[str], longest: int) -> NDArray[np.float64]:
        """Return the log-probability of each class's words, ``[texts, classes]``; a text is cut to fit the context.

        Args:
            texts: the texts.
            where: of each, its file and line.
            longest: tokens of a text that are read, in this model's own tokens.
        """
        rows = encode_choices(self.model.tokenizer, self._rows(texts, where, longest))
        for row in rows:
            self.model.check_length(len(row.context) + max(map(len, row.ids)))
        reader = LogProbScorer(self.model, self.device)
        found = np.array([reader.logp(row.context, row.ids) for row in rows], dtype=np.float64)
        return found / [[len(ids) for ids in row.ids] for row in rows] if self.mean else found

    def _rows(self, texts: Sequence[str], where: Sequence[str], longest: int) -> TokenDataset:
        tokenizer, continuations = self.model.tokenizer, [f" {one}" for one in self.words]
        prefix = prompt_prefix(tokenizer) or (self.model.ends.default,)
        around = encode(tokenizer, [self._asked(""), *continuations], ["data.class_prompt"] * (1 + len(self.words)))
        taken = len(prefix) + len(around[0]) + max(map(len, around[1:])) + 2
        room = longest if self.model.positions is None else min(longest, self.model.positions - taken)
        if room < 1:
            what = f"the prompt and a class's words take {taken} of {self.model.positions} positions"
            raise UsageError("CLS-03", what, where="data.class_prompt", fix="make it shorter")
        cut = []
        for text, ids in zip(texts, encode(tokenizer, texts, where, guarded=True), strict=True):
            cut.append(text if len(ids) <= room else decode(tokenizer, ids[:room]))
        asked = [self._asked(text) for text in cut]
        examples = tuple(
            Example((*prefix, *ids), len(prefix) + len(ids), prompt, (continuations[0],), place, continuations)
            for ids, prompt, place in zip(encode(tokenizer, asked, where, guarded=True), asked, where, strict=True)
        )
        return TokenDataset(examples)

    def _asked(self, text: str) -> str:
        return self.prompt.replace(_TEXT, text)


def check_class_view(data: DataConfig, labels: Sequence[str]) -> None:
    """Refuse settings of a class view that cannot be meant.

    Raises:
        UsageError: CLS-03, a prompt without the text, or words for what is no class.
    """
    if _TEXT not in data.class_prompt:
        what = f"the prompt has no {_TEXT}"
        raise UsageError("CLS-03", what, where="data.class_prompt", fix="put {text} where the row's text belongs")
    odd = next((label for label in data.class_names if label not in labels), None)
    if odd is not None:
        what = f'"{one_line(odd, 40)}" is no class'
        raise UsageError("CLS-03", what, where="data.class_names", fix=f"name some of {', '.join(labels)}")


def class_reader(
    facts: ModelInfo, labels: Sequence[str], data: DataConfig, device: Device, session: Session
) -> ClassReader:
    """Return what says how likely a model finds each class.

    Args:
        facts: the model, a classifier or a causal LM.
        labels: the classes.
        data: prompt, words and score of a causal LM's class view.
        device: where it computes.
        session: what is loaded already.

    Raises:
        KDError: it cannot be loaded.
    """
    if facts.labels is not None:
        return Columns(load_class_reader(facts, device.device), tuple(labels))
    check_class_view(data, labels)
    words = tuple(data.class_names.get(label, label) for label in labels)
    model = session.load_teacher(facts.path, device.device, facts.quantization)
    return CausalClasses(model, tuple(labels), words, data.class_prompt, data.class_score == "mean", device)


class ClassTeacher(Teacher):
    """What a teacher says of the classes of a data set's rows, read once before the first step.

    Args:
        logits: ``[rows, classes]``; they need not be normalised.
        device: where the student computes.
    """

    def __init__(self, logits: NDArray[np.float64], device: torch.device) -> None:
        self.logits = torch.from_numpy(logits).float().to(device)
        self.head = Head(torch.eye(logits.shape[1], device=device))

    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Return the rows of the micro-batch, under a head that changes nothing."""
        rows: Tensor = batch.example.to(packing.sequence.device)[packing.sequence]
        return Projection(self.logits[rows.to(self.logits.device)], self.head)

    def rehearse(self, batch: Batch, packing: Packing) -> None:
        """Do nothing: no model runs."""


def class_teacher(
    facts: ModelInfo,
    dataset: TokenDataset,
    data: DataConfig,
    device: Device,
    session: Session,
    report: Report = silent,
) -> ClassTeacher:
    """Return a teacher of the classes of some rows; it reads them once in a process.

    Args:
        facts: the model.
        dataset: the rows.
        data: as for :func:`class_reader`.
        device: where it computes.
        session: what was read before.
        report: called with events.
    """
    view = (data.class_prompt, repr(sorted(data.class_names.items())), data.class_score, str(data.max_length))
    key = (facts.digest, dataset.digest, *dataset.labels, *view, str(device.device), str(device.compute))
    if key not in session.class_tables:
        reader = class_reader(facts, dataset.labels, data, device, session)
        session.class_tables[key] = logits_of(reader, dataset, data.max_length, report, "the teacher reads texts")
    return ClassTeacher(session.class_tables[key], device.device)


def logits_of(
    reader: ClassReader,
    dataset: TokenDataset,
    longest: int,
    report: Report = silent,
    what: str = "reading texts",
) -> NDArray[np.float64]:
    """Return a reader's logits of the classes of rows, ``[rows, classes]``.

    Args:
        reader: a classifier of the rows' classes.
        dataset: the rows.
        longest: tokens of a row at most, the class included.
        report: called with events.
        what: the work, as the events name it.
    """
    texts, where = [one.prompt for one in dataset.examples], [one.where for one in dataset.examples]
    found = []
    report(Event("stage", what, total=len(texts)))
    for first in range(0, len(texts), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        found.append(reader.class_logits(texts[part], where[part], longest - 1))
        report(Event("progress", what, done=min(part.stop, len(texts)), total=len(texts)))
    return np.concatenate(found)
