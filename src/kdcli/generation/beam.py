"""Beam search of one prompt, by transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from kdcli.end_tokens import EndTokens
from kdcli.generation.batch import Completion
from kdcli.models.load import LanguageModel
from kdcli.models.plain import plain_generation


class _RealIds(LogitsProcessor):
    """Forbids ids that only pad the vocabulary."""

    def __init__(self, ids: int) -> None:
        self.ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return log-probabilities among the real ids, minus infinity for padding rows."""
        scores[:, self.ids :] = -torch.inf
        return torch.log_softmax(scores, -1)


@torch.no_grad()
def beam_answers(
    model: LanguageModel, prompt: Sequence[int], *, width: int, best: int, most: int, ids: int
) -> list[Completion]:
    """Return the best answers that beam search finds, the likeliest per token first.

    Args:
        model: a loaded language model.
        prompt: token ids, at least one; it is searched by itself, so that nothing depends on others.
        width: beams.
        best: how many answers, at most ``width``.
        most: tokens per answer at most, end token included.
        ids: real ids; no other is written.
    """
    device = model.model.device
    tokens = torch.tensor([list(prompt)], device=device)
    setting = GenerationConfig(
        num_beams=width, num_return_sequences=best, do_sample=False, max_new_tokens=most, early_stopping=True,
        length_penalty=1.0, eos_token_id=list(model.ends.ids), pad_token_id=model.pad_id, use_cache=True,
    )  # fmt: skip
    training = model.model.training
    model.model.eval()
    try:
        search: Any = model.model.generate
        with plain_generation(model):
            found = search(
                tokens, attention_mask=torch.ones_like(tokens), generation_config=setting,
                logits_processor=LogitsProcessorList([_RealIds(ids)]),
            )  # fmt: skip
    finally:
        model.model.train(training)
    assert isinstance(found, Tensor), "no dictionary was asked for"
    return [_answer(row[len(prompt) :].tolist(), model.ends) for row in found]


def _answer(ids: list[int], ends: EndTokens) -> Completion:
    place = next((at for at, token in enumerate(ids) if token in ends), None)
    return Completion(tuple(ids[:place]), None if place is None else ids[place])
