"""Writes a student as a model folder that transformers loads as it stands."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from kdcli import durable
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, raise_machine_fault
from kdcli.models.adapter import merged
from kdcli.models.load import LanguageModel
from kdcli.models.quiet import quiet
from kdcli.text import one_line


def save_student(model: LanguageModel, folder: Path) -> None:
    """Write weights (safetensors), config, generation config and tokenizer into a folder.

    Reloading the folder gives bit-equal logits; an adapter is added to the weights, which is equal to rounding.

    Args:
        model: the student.
        folder: existing or new folder; the caller makes it durable.
    """
    _save(model.model if model.adapter is None else merged(model.adapter), model, folder)


def rehearse_saving(model: LanguageModel, folder: Path) -> None:
    """Write all that ``save_student`` writes but the weights, so that what cannot be saved is known before training.

    Args:
        model: the student, or what is to become it.
        folder: existing or new folder.

    Raises:
        InputError: MOD-25, a config or the tokenizer cannot be saved.
        MachineError: the disk refuses.
    """
    try:
        _save(model.model, model, folder, state_dict={})
    except Exception as error:
        # transformers, its config classes and tokenizers each refuse in their own way.
        raise_machine_fault(error, str(folder))
        refusal = durable.system_error(error)
        if refusal is not None and refusal.errno in durable.MACHINE:
            raise durable.refused(refusal, folder) from error
        what = f"the student could not be saved after training: {one_line(str(error), 200)}"
        fix = "correct config.json, generation_config.json or the tokenizer's files"
        raise InputError("MOD-25", what, where=one_line(model.path), fix=fix) from error


def _save(inner: PreTrainedModel, model: LanguageModel, folder: Path, **given: Any) -> None:
    with quiet(), torch.no_grad():
        generation = inner.generation_config
        inner.generation_config = _with_ends(generation, model.ends)
        try:
            inner.generation_config.validate(strict=True)
        except ValueError:
            # A published config that contradicts itself would refuse to be saved.
            inner.generation_config = _ids_only(inner.generation_config)
        try:
            inner.save_pretrained(str(folder), **given)
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
    """Return a config of the special ids alone; a negative one stands for none."""
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(**{name: None if type(one) is int and one < 0 else one for name, one in ids.items()})
