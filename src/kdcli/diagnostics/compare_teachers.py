"""Compares two teachers that should agree, token by token on a few sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcli.data.batching import Batch, collate
from kdcli.data.tokenize import TokenDataset
from kdcli.losses.topk import bins_of
from kdcli.models.devices import Device
from kdcli.models.load import LanguageModel
from kdcli.models.packing import find_valid
from kdcli.teachers.base import LiveTeacher
from kdcli.teachers.remote import RemoteTeacher

_SEQUENCES = 8


@dataclass(frozen=True)
class Difference:
    """How far two teachers are apart.

    Args:
        tokens: on how many tokens.
        top: share of tokens whose likeliest next token is the same.
        kl: mean KL divergence from the first to the second, in nats a token.
        largest: largest difference of a log-probability that both state.
    """

    tokens: int
    top: float
    kl: float
    largest: float

    def __str__(self) -> str:
        return (
            f"top-1 agreement {self.top:.2%}, KL {self.kl:.2g} nats a token, largest gap {self.largest:.2g}, "
            f"over {self.tokens:,} tokens"
        )


def first_batches(rows: TokenDataset, device: Device) -> list[Batch]:
    """Return the first sequences of the rows, each by itself."""
    return [collate(rows.examples, [at], 0).to(device.device) for at in range(min(_SEQUENCES, len(rows)))]


@torch.no_grad()
def between_models(first: LanguageModel, second: LanguageModel, batches: Sequence[Batch]) -> Difference:
    """Compare whole distributions, those of the first as the reference."""
    tops, kls, gaps = [], [], []
    for batch in batches:
        one, two = (_log_probs(model, batch) for model in (first, second))
        tops.append((one.argmax(1) == two.argmax(1)).double())
        kls.append((one.exp() * (one - two)).sum(1))
        gaps.append((one - two).abs().amax(1))
    return _difference(tops, kls, gaps)


@torch.no_grad()
def with_server(local: LanguageModel, served: RemoteTeacher, batches: Sequence[Batch]) -> Difference:
    """Compare what a server says with the same teacher here, on the tokens that the server names and the rest."""
    tops, kls, gaps = [], [], []
    for batch in batches:
        said = served.side(batch, find_valid(batch.labels))
        logs = _log_probs(local, batch)
        here, there = bins_of(logs, said.ids).double(), said.log_probs.double()
        tops.append((logs.argmax(1) == said.ids[:, 0]).double())
        kls.append((here.exp() * (here - there)).sum(1))
        gaps.append((here - there)[:, :-1].abs().amax(1))
    return _difference(tops, kls, gaps)


def with_itself(served: RemoteTeacher, batch: Batch) -> int:
    """Ask a server about one sequence; return at how many places it gave probabilities."""
    return len(served.side(batch, find_valid(batch.labels)).ids)


def _log_probs(model: LanguageModel, batch: Batch) -> Tensor:
    side = LiveTeacher(model).side(batch, find_valid(batch.labels))
    return torch.log_softmax(model.logits(side.hidden).double(), dim=1)


def _difference(tops: list[Tensor], kls: list[Tensor], gaps: list[Tensor]) -> Difference:
    top, kl, gap = (torch.cat(parts) for parts in (tops, kls, gaps))
    return Difference(len(top), top.mean().item(), max(kl.mean().item(), 0.0), gap.max().item())
