"""Writes a student as a model folder that transformers loads as it stands."""

import copy
from pathlib import Path

import torch
from transformers import GenerationConfig

from kdcli.end_tokens import EndTokens
from kdcli.models.adapter import merged
from kdcli.models.load import LanguageModel
from kdcli.models.quiet import quiet


def save_student(model: LanguageModel, folder: Path) -> None:
    """Write weights (safetensors), config, generation config and tokenizer into a folder.

    Reloading the folder gives bit-equal logits; an adapter is added to the weights, which is equal to rounding.

    Args:
        model: the student.
        folder: existing or new folder; the caller makes it durable.
    """
    inner = model.model if model.adapter is None else merged(model.adapter)
    with quiet(), torch.no_grad():
        generation = inner.generation_config
        inner.generation_config = _with_ends(generation, model.ends)
        try:
            generation.validate(strict=True)
        except ValueError:
            # A published config that contradicts itself would refuse to be saved.
            inner.generation_config = _ids_only(inner.generation_config)
        try:
            inner.save_pretrained(str(folder))
        finally:
            inner.generation_config = generation
        model.tokenizer.save_pretrained(str(folder))


def _with_ends(config: GenerationConfig, ends: EndTokens) -> GenerationConfig:
    """Return a config that names every token that ends the model's texts, so that whoever loads it stops there too."""
    named = config.eos_token_id
    if not ends.ids or set(named if isinstance(named, list) else [named]) == set(ends.ids):
        return config
    changed = copy.deepcopy(config)
    changed.eos_token_id = list(ends.ids) if len(ends.ids) > 1 else ends.default
    return changed


def _ids_only(config: GenerationConfig) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
