"""Records of an evaluation: scores with intervals, counts, and the cost on a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.metrics.curve import Curve
from kdcli.metrics.titles import title, unit
from kdcli.statistics import Estimate


@dataclass(frozen=True)
class ScoreInfo:
    """What a reader must know to read a score.

    Args:
        name: as in tables.
        better: "higher", "lower" or "neither".
        metric: the metric that computed it.
        settings: its signature: everything that changes the number.
        eats: its input kind, under the name it has in records.
    """

    name: str
    better: str
    metric: str
    settings: str
    eats: str = "tokens"

    @property
    def input_kind(self) -> str:
        """What it is computed from: "texts", "tokens", "own" for sampled answers, "choices" or "tasks"."""
        return self.eats

    @property
    def title(self) -> str:
        """What people read instead of the name."""
        return title(self.name)

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return f"{self.title} ({unit(self.name)})" if unit(self.name) else self.title


_FEW_ZEROS = 0.01


def is_sparse(zeros: float | None) -> bool:
    """Whether a share of zeros is more than chance; None stands for one that is not known.

    >>> is_sparse(0.5), is_sparse(1e-6), is_sparse(None)
    (True, False, False)
    """
    return zeros is not None and zeros >= _FEW_ZEROS


@dataclass(frozen=True)
class Edge:
    """What a model costs on one machine, one request at a time.

    Args:
        parameters: all of them, shared ones once.
        disk_bytes: size of the weight files.
        bytes_by_dtype: bytes of the tensors by the type they are stored in.
        int8_bytes: bytes after storing every matrix in 8 bits, with one scale per row.
        peak_bytes: peak memory in use while it answers, beyond what the process held before.
        first_token_seconds: median time from prompt to first token.
        first_token_range: least and greatest of the repeats.
        tokens_per_second: median speed after the first token.
        tokens_per_second_range: least and greatest of the repeats.
        joules_per_token: energy per token generated; None where the platform does not report it.
        energy_source: what reported it; empty where nothing does.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens generated.
        repeats: measurements behind the medians.
        hardware: device, dtype and threads.
        zeros: share of the weights of the linear layers that are 0; None for an exported model.
        compressed_bytes: size of the weight files after zlib, of a model with zeros.
    """

    parameters: int
    disk_bytes: int
    bytes_by_dtype: Mapping[str, int]
    int8_bytes: int
    peak_bytes: int
    first_token_seconds: float
    first_token_range: tuple[float, float]
    tokens_per_second: float
    tokens_per_second_range: tuple[float, float]
    joules_per_token: float | None
    energy_source: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    hardware: str
    zeros: float | None = None
    compressed_bytes: int | None = None


@dataclass(frozen=True)
class AnswerCounts:
    """How many answers a model gave, and how many of them are not whole, or nothing.

    Args:
        answers: how many.
        empty: those without a letter, digit or sign.
        cut: those that no end token ended; None where that is not known.
        most: tokens they were cut at; None where that is not known.
    """

    answers: int
    empty: int
    cut: int | None = None
    most: int | None = None

    @property
    def sentences(self) -> list[str]:
        """What a reader of scores of these answers must know.

        >>> AnswerCounts(100, 0, 98, 128).sentences
        ['98 of 100 answers were cut at 128 tokens, before an end token']
        """
        found = []
        if self.cut:
            found.append(f"{self.cut:,} of {self.answers:,} answers were cut{self.place}, before an end token")
        if self.empty == self.answers:
            found.append(f"all {self.answers:,} answers are empty: scores of their text mean nothing")
        elif self.empty:
            found.append(f"{self.empty:,} of {self.answers:,} answers are empty")
        return found

    @property
    def place(self) -> str:
        """Where answers were cut, in words that follow the verb."""
        return "" if self.most is None else f" at {self.most:,} tokens"


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation.

    Args:
        name: name of the test set, as in ``eval/<name>/``.
        model: what was measured.
        folder: where results.json and samples.parquet are; None if they were not written.
        examples: rows measured.
        estimates: score -> value with its interval over examples.
        infos: one entry per score, in the same order.
        protocol: everything that must be equal for two evaluations to be compared.
        model_digest: sha256 that identifies what was measured.
        notes: sentences a reader of the numbers needs.
        curves: what is worth a picture, as data.
        edge: what the model costs on this machine; None where that was not measured.
        documents: benchmark score -> what each document adds to it, where it is their mean.
        answers: how many answers there were, cut and empty ones; None without any, or of an older evaluation.
    """

    name: str
    model: str
    folder: Path | None
    examples: int
    estimates: dict[str, Estimate]
    infos: tuple[ScoreInfo, ...]
    protocol: dict[str, Any]
    model_digest: str
    notes: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = field(default=(), repr=False)
    edge: Edge | None = None
    documents: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    answers: AnswerCounts | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and what is to be known of the answers."""
        return (*self.notes, *(self.answers.sentences if self.answers is not None else ()))
