"""How far an exported model's answers are from those of the model it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdcli.data.tokenize import Example
from kdcli.models.load import LanguageModel

ROWS = 32


@dataclass(frozen=True)
class Difference:
    """Differences on the response tokens of some rows.

    Args:
        rows: how many rows.
        tokens: of their responses.
        largest_logit_gap: greatest difference of two logits.
        kl: mean over tokens of KL(source || exported), in nats.
        agreement: share of tokens at which both give the same token the highest probability.
    """

    rows: int
    tokens: int
    largest_logit_gap: float
    kl: float
    agreement: float


def difference(before: LanguageModel, after: LanguageModel, rows: Sequence[Example]) -> Difference:
    """Measure two models of one tokenizer against each other, a row at a time, sums in 64 bits.

    Args:
        before: the source.
        after: the exported model.
        rows: the first 32 of them are read.
    """
    gap, divergence, same, tokens = 0.0, 0.0, 0, 0
    limits = [one.positions for one in (before, after) if one.positions is not None]
    read = rows[:ROWS]
    for row in read:
        ids = torch.tensor([row.ids[: min(limits)] if limits else row.ids])
        start = max(row.prompt_length - 1, 0)
        first, second = (_logits(model, ids)[start:-1].double() for model in (before, after))
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        gap = max(gap, (first - second).abs().max().item() if first.numel() else 0.0)
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        tokens += len(first)
    return Difference(len(read), tokens, gap, divergence / max(tokens, 1), same / max(tokens, 1))


def _logits(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        ids = ids.to(model.model.device)
        return model.logits(model.hidden(ids, torch.ones_like(ids))[0]).cpu()
