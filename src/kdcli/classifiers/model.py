"""Classifiers as the training engine sees them: one position a text, whose logits are over the classes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.classifiers.tiny import PAD, HashedWords, TinyConfig, is_tiny, make_tiny, tiny_config
from kdcli.data.class_rows import check_label, class_tokens
from kdcli.data.images import ImageInputs
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError
from kdcli.models.checks import ModelFolder, model_digest, open_folder, open_settings
from kdcli.models.head import Head
from kdcli.models.internals import eval_mode
from kdcli.models.load import LanguageModel, Role, load_tokenizer
from kdcli.models.random_init import weights_digest
from kdcli.models.sizes import Footprint, sizes_of
from kdcli.models.weights import CLASSIFIER, build_config, load_weights, silence_transformers
from kdcli.text import one_line

_AT_ONCE = 4096
"""Padded tokens that are read at once."""


@runtime_checkable
class ClassReader(Protocol):
    """Gives the logits of a text's classes, whatever it is."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        ...

    @property
    def parameters(self) -> int:
        """How many numbers it was fitted with."""
        ...

    def class_logits(self, texts: Sequence[str], where: Sequence[str], longest: int) -> NDArray[np.float64]:
        """Return logits, ``[texts, classes]``; they need not be normalised.

        Args:
            texts: the texts.
            where: of each, its file and line.
            longest: tokens of a text that are read.

        Raises:
            InputError: a text that cannot be read.
        """
        ...


@dataclass(frozen=True)
class ClassModel(LanguageModel):
    """A classifier of texts. Its logits stand for hidden states, and its head is the identity.

    So every objective on logits works on it as on a language model whose vocabulary is the classes, whatever the layers
    before are called.

    Args:
        labels: the classes, in the order of the logits.
    """

    labels: tuple[str, ...] = ()

    @property
    def has_trunk(self) -> bool:
        """No: its logits stand for what a head reads."""
        return False

    @property
    def parameters(self) -> int:
        """All of them, shared ones once."""
        return sum(one.numel() for one in self.model.parameters())

    def current_head(self) -> Head:
        """Return the identity."""
        return self.head

    def hidden(
        self,
        input_ids: Int[Tensor, "b s"],
        attention_mask: Int[Tensor, "b s"],
        extra: Sequence[ImageInputs | None] = (),
    ) -> Float[Tensor, "b s d"]:
        """Return each text's logits at each of its positions, ``[b s classes]``.

        Args:
            input_ids: token ids ``[b s]``, padded on the right.
            attention_mask: 1 for tokens, 0 for padding, ``[b s]``.
            extra: empty: texts alone are classified.
        """
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits[:, None].expand(-1, input_ids.shape[1], -1)

    @torch.no_grad()
    def class_logits(self, texts: Sequence[str], where: Sequence[str], longest: int) -> NDArray[np.float64]:
        """Return the logits of texts, read without dropout, ``[texts, classes]``; see :class:`ClassReader`."""
        bound = longest if self.positions is None else min(longest, self.positions)
        ids = class_tokens(self.tokenizer, texts, where, bound).ids
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        found = np.zeros((len(ids), len(self.labels)))
        with eval_mode(self.model):
            while order:
                step = max(1, _AT_ONCE // len(ids[order[-1]]))
                places, order = order[-step:], order[:-step]
                found[places] = self._logits([ids[place] for place in places]).double().cpu().numpy()
        return found

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        width, device = max(map(len, rows)), self.model.device
        ids = torch.tensor([[*row, *[self.pad_id] * (width - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        return self.model(input_ids=ids, attention_mask=mask).logits.float()

    def save(self, folder: Path, *, weights: bool) -> None:
        """Write config, tokenizer and weights into a folder, as transformers loads them.

        Args:
            folder: existing or new folder; the caller makes it durable.
            weights: whether the weights are written, too.
        """
        with silence_transformers(), torch.no_grad():
            state = self.model.state_dict() if weights else {}
            self.model.save_pretrained(str(folder), state_dict=state)
            self.tokenizer.save_pretrained(str(folder))


def classifier_config(path: str) -> PreTrainedConfig:
    """Return the config of a classifier's folder; no weight is read."""
    settings, folder, _ = open_settings(path, classifier=True)
    return build_config(settings, str(folder), CLASSIFIER)


def classifier_footprint(
    path: str, labels: Sequence[str], *, rows: int, length: int, autocast: torch.dtype | None = None
) -> Footprint:
    """Return a classifier's sizes; no weight is read.

    Args:
        path: folder, hub id or ``tiny:`` spec.
        labels: its classes.
        rows: texts of the largest micro-batch.
        length: its padded tokens per text.
        autocast: dtype of the forward pass; None computes in fp32.
    """
    config = tiny_config(path, labels) if is_tiny(path) else classifier_config(path)
    return sizes_of(config, rows=rows, length=length, keep=True, autocast=autocast, kind=CLASSIFIER)


def labels_of(checked: ModelFolder) -> tuple[str, ...]:
    """Return the classes that a folder's config names, in the order of the logits."""
    config = build_config(checked.settings, str(checked.folder), CLASSIFIER)
    names = {int(place): str(name) for place, name in (config.id2label or {}).items()}
    return tuple(names[place] for place in sorted(names))


def settled(own: Sequence[str], given: Sequence[str], path: str) -> tuple[str, ...]:
    """Return the classes of a folder's classifier that learns from rows with some labels.

    A config that gives its classes no names but LABEL_0, LABEL_1 and so on takes those of the rows, in their order.

    Args:
        own: the classes by the folder's config.
        given: the labels of the rows.
        path: the folder.

    Raises:
        InputError: CLS-02, a label that the folder has no class for.

    >>> settled(("LABEL_0", "LABEL_1"), ("no", "yes"), "bert"), settled(("yes", "no", "?"), ("no", "yes"), "bert")
    (('no', 'yes'), ('yes', 'no', '?'))
    """
    unnamed = [f"LABEL_{place}" for place in range(len(given))]
    if list(own) == unnamed and not set(given) <= set(own):
        return tuple(given)
    for label in given:
        check_label(label, own, one_line(path), "its classes are")
    return tuple(own)


def load_classifier(
    path: str, *, device: torch.device, role: Role, labels: Sequence[str] | None = None, where: str | None = None
) -> ClassModel:
    """Load a classifier's folder in eval mode, after checking it.

    Args:
        path: folder or hub id.
        device: where the parameters go.
        role: a teacher's parameters take no gradient.
        labels: names of its classes, where they are not those of its config.
        where: what to call it in messages; default its path.

    Raises:
        InputError: what is wrong with the folder.
        IntegrityError: a file is not what the folder's manifest says.
    """
    checked = open_folder(path, classifier=True)
    config = build_config(checked.settings, str(checked.folder), CLASSIFIER)
    model = load_weights(checked, config, torch.float32, CLASSIFIER)
    found = tuple(labels or labels_of(checked))
    model.config.id2label = dict(enumerate(found))
    model.config.label2id = {label: place for place, label in enumerate(found)}
    return _assembled(model, tokenizer_of(checked), where or path, model_digest(checked), found, device, role,
                      checked.notes)  # fmt: skip


def tiny_student(spec: str, labels: Sequence[str], *, seed: int, device: torch.device) -> ClassModel:
    """Return a tiny classifier with weights of a seed.

    Args:
        spec: ``tiny:kind=..,width=..,vocab=..``.
        labels: the classes.
        seed: of the weights.
        device: where the parameters go.
    """
    model = make_tiny(spec, labels, seed)
    words = HashedWords(model.config.vocab_size)
    return _assembled(model, words, spec, weights_digest(model), tuple(labels), device, "student", ())


def tokenizer_of(checked: ModelFolder) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a classifier's folder."""
    if checked.settings["model_type"] == TinyConfig.model_type:
        return HashedWords(checked.settings["vocab_size"])
    return load_tokenizer(str(checked.folder))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what identifies the tokenizer of a tiny classifier."""
    return hashlib.sha256(f"hashed words {tokenizer.vocab_size}".encode()).hexdigest()


def _assembled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    digest: str,
    labels: tuple[str, ...],
    device: torch.device,
    role: Role,
    notes: tuple[str, ...],
) -> ClassModel:
    torch.nn.Module.to(model, device).eval()
    model.requires_grad_(role == "student")
    pad = next((one for one in (tokenizer.pad_token_id, model.config.pad_token_id) if isinstance(one, int)), PAD)
    if model.config.pad_token_id is None:  # some families look for the last token that is no padding
        model.config.pad_token_id = pad
    found = ClassModel(
        model, tokenizer, Head(torch.eye(len(labels), device=device)), path, digest, EndTokens(), pad, len(labels),
        notes, labels=labels,
    )  # fmt: skip
    _check_outputs(found)
    return found


@torch.no_grad()
def _check_outputs(model: ClassModel) -> None:
    """Refuse a model that does not give one number per class."""
    ids = torch.zeros((1, 2), dtype=torch.int64, device=model.model.device)
    try:
        got = tuple(model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        what = f"{type(model.model).__name__} cannot be run: {one_line(str(error), 160)}"
        raise InputError(
            "MOD-14", what, where=one_line(model.path), fix="check config.json against the weights"
        ) from error
    if got != (1, len(model.labels)):
        what = f"expected logits of {len(model.labels)} classes, got shape {list(got)}"
        raise InputError("MOD-20", what, where=one_line(model.path), fix="use a model with one logit a class")


@dataclass(frozen=True)
class Columns:
    """Some of a reader's classes, in an order of their own.

    Args:
        inner: the reader.
        labels: the classes, each one of the reader's.
    """

    inner: ClassReader
    labels: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Those of the reader."""
        return self.inner.parameters

    def class_logits(self, texts: Sequence[str], where: Sequence[str], longest: int) -> NDArray[np.float64]:
        """Return the reader's logits of these classes."""
        places = [self.inner.labels.index(label) for label in self.labels]
        return self.inner.class_logits(texts, where, longest)[:, places]
