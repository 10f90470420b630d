"""Tiny classifiers over hashed words: their spec, tokenizer, config and net."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizer,
)

from kdcli.errors import UsageError
from kdcli.models.internals import SequenceClassifierOutput
from kdcli.registry.spec import student_options
from kdcli.text import one_line

PREFIX = "tiny:"
KINDS = ("bow", "cnn", "lstm")
_NUMBERS = {"width": 32, "vocab": 2000}
_SMALLEST = {"width": 1, "vocab": 2}
_LARGEST = 1_000_000
_EXAMPLE = "tiny:kind=bow,width=32,vocab=2000"
_WORD = re.compile(r"\w+|[^\w\s]")
_SPREAD = 0.1
"""Standard deviation of word vectors at the start: a word that is hardly seen stays near 0 and says little."""
PAD = 0
"""The id of padding, which no word has."""


def is_tiny(student: str) -> bool:
    """Whether a student is a ``tiny:`` spec rather than a folder or hub id."""
    return student.startswith(PREFIX)


def parse_tiny(spec: str) -> dict[str, Any]:
    """Read a ``tiny:`` spec.

    Args:
        spec: as typed.

    Returns:
        kind, width and vocab; what is left out has its default.

    Raises:
        UsageError: SPEC-02, naming the option or value that cannot be used.

    >>> parse_tiny("tiny:kind=lstm,width=16")
    {'kind': 'lstm', 'width': 16, 'vocab': 2000}
    """
    values = student_options(spec, ("kind", *_NUMBERS), "SPEC-02", _EXAMPLE)
    found = {key: _kind(value, spec) if key == "kind" else _number(key, value, spec) for key, value in values.items()}
    return {"kind": "bow", **_NUMBERS, **found}


def _kind(value: str, spec: str) -> str:
    if value not in KINDS:
        raise _refused(spec, f'unknown kind "{one_line(value, 40)}"', f"use one of {', '.join(KINDS)}")
    return value


def _number(key: str, value: str, spec: str) -> int:
    least = _SMALLEST[key]
    if not value.isascii() or not value.isdecimal() or not least <= int(value[:9]) <= _LARGEST:
        what = f'{key} must be a whole number from {least} to {_LARGEST:,}, got "{one_line(value, 40)}"'
        raise _refused(spec, what, f"write {_EXAMPLE}")
    return int(value)


def _refused(spec: str, what: str, fix: str) -> UsageError:
    return UsageError("SPEC-02", what, where=f'student "{one_line(spec)}"', fix=fix)


def words_of(text: str) -> list[str]:
    """Return a text's words and signs, without case.

    >>> words_of("Don't stop, GO!")
    ['don', "'", 't', 'stop', ',', 'go', '!']
    """
    return _WORD.findall(text.casefold())


class HashedWords(PreTrainedTokenizer):
    """A tokenizer without a vocabulary file: a word's id is its CRC-32, modulo the number of ids.

    Two words may share an id. The ids are the same on every machine and in every version.

    Args:
        vocab: ids in all, that of padding included.

    >>> HashedWords(100)("Go, GO", add_special_tokens=False)["input_ids"]
    [64, 99, 64]
    """

    def __init__(self, vocab: int, **options: Any) -> None:
        self.size = vocab
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.size

    def get_vocab(self) -> dict[str, int]:
        """Return a made-up name for each id."""
        return {f"#{number}": number for number in range(self.size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return words_of(text)

    def _convert_token_to_id(self, token: str) -> int:
        return zlib.crc32(token.encode("utf-8", "surrogatepass")) % (self.size - 1) + 1

    def _convert_id_to_token(self, index: int) -> str:
        return f"#{index}"

    def save_pretrained(self, save_directory: Any, *_: Any, **__: Any) -> tuple[str, ...]:
        """Write nothing: the model's config says all of it."""
        return ()

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write nothing, likewise."""
        return ()


class TinyConfig(PreTrainedConfig):
    """What a tiny classifier is made of.

    Args:
        kind: bow, cnn or lstm.
        width: numbers of a word's vector, and of what the last layer reads.
        vocab_size: ids of words.
        options: those of every config, ``id2label`` among them.
    """

    model_type = "kd_tiny_classifier"

    def __init__(self, kind: str = "bow", width: int = 32, vocab_size: int = 2000, **options: Any) -> None:
        super().__init__(**options)
        self.kind, self.width, self.vocab_size = kind, width, vocab_size


class TinyForSequenceClassification(PreTrainedModel):
    """Word vectors, put together in one of three ways, and one linear layer.

    ``bow``: their mean. ``cnn``: the largest value of each of ``width`` filters over three words, behind a ReLU.
    ``lstm``: the state of an LSTM behind the last word. Padding on the right changes nothing.

    Args:
        config: kind, width, ids and classes.
    """

    config_class = TinyConfig
    base_model_prefix = ""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        width = config.width
        self.embedding = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=_SPREAD)
        self.filters = nn.Conv1d(width, width, 3, padding=1) if config.kind == "cnn" else None
        self.lstm = nn.LSTM(width, width, batch_first=True) if config.kind == "lstm" else None
        self.classifier = nn.Linear(width, len(config.id2label or ()))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the vectors of words."""
        return self.embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as the layers draw them."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
        """Return logits ``[b, classes]`` of ids ``[b, s]``, padded on the right."""
        mask = attention_mask[..., None].to(self.embedding.weight.dtype)
        vectors = self.embedding(input_ids) * mask
        logits: Any = self.classifier(self._together(vectors, mask))  # the output is annotated as fp32 alone
        return SequenceClassifierOutput(logits=logits)

    def _together(self, vectors: Tensor, mask: Tensor) -> Tensor:
        if self.filters is not None:
            found = self.filters(vectors.transpose(1, 2)).transpose(1, 2).relu()
            return (found * mask).amax(dim=1)
        if self.lstm is not None:
            states, _ = self.lstm(vectors)
            last = mask[..., 0].sum(dim=1).long() - 1
            return states[torch.arange(len(states), device=states.device), last]
        return vectors.sum(dim=1) / mask.sum(dim=1)


AutoConfig.register(TinyConfig.model_type, TinyConfig)
AutoModelForSequenceClassification.register(TinyConfig, TinyForSequenceClassification)


def tiny_config(spec: str, labels: Sequence[str]) -> TinyConfig:
    """Return the config of a spec for some classes.

    Args:
        spec: ``tiny:kind=..,width=..,vocab=..``.
        labels: names of the classes.
    """
    found = parse_tiny(spec)
    names = dict(enumerate(labels))
    places = {label: place for place, label in names.items()}
    return TinyConfig(found["kind"], found["width"], found["vocab"], id2label=names, label2id=places, pad_token_id=PAD)


def tiny_parameters(spec: str, classes: int) -> int:
    """Return how many parameters a tiny classifier has.

    >>> tiny_parameters("tiny:kind=bow,width=32,vocab=1000", 8)
    32264
    """
    found = parse_tiny(spec)
    width = found["width"]
    inside = {"bow": 0, "cnn": 3 * width * width + width, "lstm": 8 * width * width + 8 * width}[found["kind"]]
    return found["vocab"] * width + inside + (width + 1) * classes


def make_tiny(spec: str, labels: Sequence[str], seed: int) -> TinyForSequenceClassification:
    """Return a tiny classifier whose weights follow from the seed alone.

    Args:
        spec: as for :func:`tiny_config`.
        labels: names of the classes.
        seed: of the weights.
    """
    config = tiny_config(spec, labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyForSequenceClassification(config).eval()
