"""Loads teachers and students from untrusted folders."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.data.images import ImageInputs
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, raise_machine_fault
from kdcli.models.adapters import NONE, merged, quantize
from kdcli.models.checks import is_vision_folder, model_digest, open_folder, open_settings
from kdcli.models.head import Head, split_head, trunk_of, trunk_output, verify_split
from kdcli.models.internals import CacheInterface, cache_interface_of
from kdcli.models.kernels import fuse_activations, use_onednn
from kdcli.models.processor import Processor, processor_of
from kdcli.models.skipping import leave_out, whole_state
from kdcli.models.tokenizer import end_tokens, folder_end_tokens, load_tokenizer, pad_id, real_ids
from kdcli.models.weights import CAUSAL, VISION, build_config, load_weights, silence_transformers
from kdcli.storage import atomic
from kdcli.text import one_line

__all__ = ["LanguageModel", "Role", "assemble", "load_model", "load_tokenizer"]


Role: TypeAlias = Literal["teacher", "student"]


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with everything the rest needs to know about it.

    Args:
        model: the transformers model; a teacher's parameters take no gradient.
        tokenizer: its tokenizer.
        head: its head, proven equal to the model's own.
        path: where it came from, as typed.
        digest: sha256 over weight files and config.json.
        ends: the tokens that end its texts.
        pad_id: id to fill padding with; always masked.
        vocab: ids that have a token; they come first among the head's rows, and no other row has a probability.
        notes: what was ignored while loading, one sentence each.
        adapter: peft's model around this one, if an adapter is trained in place of the weights.
        reading: how its decoder is handed a cache of keys and values.
        processor: what prepares its images; None for a model of text alone.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    path: str
    digest: str
    ends: EndTokens
    pad_id: int
    vocab: int
    notes: tuple[str, ...] = ()
    adapter: Any = None
    reading: CacheInterface = field(default_factory=CacheInterface)
    processor: Processor | None = None

    @property
    def has_trunk(self) -> bool:
        """Whether what its head reads comes from a trunk below it."""
        return True

    @property
    def positions(self) -> int | None:
        """Longest sequence the model can take; None where its config states no bound."""
        return positions_of(self.model)

    def logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Return the logits of hidden states over the ids that have a token, ``[.., vocab]``."""
        return self.head.logits(hidden, self.vocab)

    def current_head(self) -> Head:
        """Return the head around the parameters that the model holds now; sharding exchanges them."""
        return split_head(self.model)

    def hidden(
        self,
        input_ids: Int[Tensor, "b s"],
        attention_mask: Int[Tensor, "b s"],
        extra: Sequence[ImageInputs | None] = (),
    ) -> Float[Tensor, "b s d"]:
        """Return the trunk's output, which the head reads.

        Args:
            input_ids: token ids ``[b s]``, padded on the right.
            attention_mask: 1 for tokens, 0 for padding, ``[b s]``.
            extra: the images of each row; none for rows of text alone.

        Returns:
            hidden states ``[b s d]``.
        """
        return trunk_output(trunk_of(self.model), input_ids, attention_mask, extra)

    def save(self, folder: Path, *, weights: bool) -> None:
        """Write config, generation config, tokenizer and weights into a folder; an adapter is added to the weights.

        Args:
            folder: existing or new folder; the caller makes it durable.
            weights: whether the weights are written, too.
        """
        if weights:
            _save(self.model if self.adapter is None else merged(self.adapter), self, folder)
        else:
            _save(self.model, self, folder, state_dict={})
        if self.processor is not None:
            self.processor.save(folder)

    def check_length(self, length: int) -> None:
        """Refuse sequences longer than the model's positions.

        Args:
            length: tokens of prompt and response together.

        Raises:
            InputError: MOD-22.
        """
        check_length(length, self.positions, self.path)


def check_length(length: int, positions: int | None, path: str) -> None:
    """Refuse a sequence longer than a model's positions.

    Raises:
        InputError: MOD-22.
    """
    if positions is not None and length > positions:
        what, fix = f"max_length {length} > {positions} positions", f"set data.max_length to at most {positions}"
        raise InputError("MOD-22", what, where=path, fix=fix)


def positions_of(model: PreTrainedModel) -> int | None:
    """Return the longest sequence a model allows, None where its config states none."""
    return positions_in(model.config)


def positions_stated(path: str) -> int | None:
    """Return the longest sequence that a model folder's config allows, None where it states none; nothing is loaded.

    Args:
        path: folder or hub id as typed.

    Raises:
        InputError: the folder cannot be used.
    """
    settings, folder, _ = open_settings(path, images=True)
    kind = VISION if is_vision_folder(settings, folder) else CAUSAL
    return positions_in(build_config(settings, str(folder), kind))


def positions_in(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence a config allows, None where it states none."""
    value = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def load_model(
    path: str, *, device: torch.device, role: Role, dtype: torch.dtype = torch.float32, quantization: str = NONE
) -> LanguageModel:
    """Load a model folder or hub id in eval mode, after checking it.

    Args:
        path: folder or hub id as typed.
        device: where the parameters go.
        role: a teacher's parameters take no gradient.
        dtype: type of the parameters.
        quantization: what a teacher's linear layers below the head are rounded to: none, int8 or nf4.

    Raises:
        InputError: what is wrong with the folder, by identifier.
        IntegrityError: a file is not what the folder's manifest says.
    """
    checked = open_folder(path, images=True)
    tokenizer = load_tokenizer(path)
    kind = VISION if checked.images else CAUSAL
    processor = processor_of(checked.folder) if checked.images else None
    model = load_weights(checked, build_config(checked.settings, str(checked.folder), kind), dtype, kind)
    leave_out(model)  # before rounding: rounded weights do not say whether they are 0
    quantize(model, quantization, device)
    digest = model_digest(checked)
    ends, _ = folder_end_tokens(checked, tokenizer, split_head(model).rows, path)
    whole = assemble(model, tokenizer, path, digest, device=device, role=role, notes=checked.notes, ends=ends)
    return replace(whole, processor=processor)


def assemble(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    digest: str,
    *,
    device: torch.device,
    role: Role,
    notes: tuple[str, ...] = (),
    ends: EndTokens | None = None,
) -> LanguageModel:
    """Move a model to its device, split it, and prove the split.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        path: what to call it in messages.
        digest: what identifies its weights.
        device: where the parameters go.
        role: a teacher's parameters take no gradient.
        notes: what was ignored while loading.
        ends: the tokens that end its texts; None for those that its generation config and tokenizer name.

    Raises:
        InputError: the family cannot be split, or model and tokenizer do not fit.
    """
    skipped = leave_out(model)
    notes = (*notes, f"{one_line(path)}: {skipped} is left out, and not counted or timed") if skipped else notes
    torch.nn.Module.to(model, device).eval()
    model.requires_grad_(role == "student")
    fuse_activations(model)
    use_onednn(model)
    head = split_head(model)
    vocab = real_ids(tokenizer, head.rows, role, where=path)
    verify_split(model, head)
    if ends is None:
        ends, _ = end_tokens(getattr(model.generation_config, "eos_token_id", None), tokenizer, head.rows, path)
    padding, reading = pad_id(tokenizer, ends, head.rows), cache_interface_of(trunk_of(model), model.config)
    return LanguageModel(model, tokenizer, head, path, digest, ends, padding, vocab, notes, reading=reading)


# Writes a student as a model folder that transformers loads as it stands.


def save_student(model: LanguageModel, folder: Path) -> None:
    """Write weights (safetensors), config, generation config and tokenizer into a folder.

    Reloading the folder gives bit-equal logits; an adapter is added to the weights, which is equal to rounding.

    Args:
        model: the student.
        folder: existing or new folder; the caller makes it durable.
    """
    model.save(folder, weights=True)


def save_settings(model: LanguageModel, folder: Path) -> None:
    """Write config, generation config and tokenizer, as ``save_student`` does, and no weights.

    Args:
        model: the model.
        folder: existing or new folder; the caller makes it durable.
    """
    config = copy.deepcopy(model.model.config)
    config.architectures = [type(model.model).__name__]
    with silence_transformers():
        config.save_pretrained(str(folder))
        generation = _with_ends(model.model.generation_config, model.ends)
        try:
            generation.validate(strict=True)
        except ValueError:
            generation = _ids_only(generation)
        generation.save_pretrained(str(folder))
        model.tokenizer.save_pretrained(str(folder))


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
        model.save(folder, weights=False)
    except Exception as error:
        # transformers, its config classes and tokenizers each refuse in their own way.
        raise_machine_fault(error, str(folder))
        refusal = atomic.system_error(error)
        if refusal is not None and refusal.errno in atomic.MACHINE:
            raise atomic.disk_error(refusal, folder) from error
        what = f"the student could not be saved after training: {one_line(str(error), 200)}"
        fix = "correct config.json, generation_config.json or the tokenizer's files"
        raise InputError("MOD-25", what, where=one_line(model.path), fix=fix) from error


def _save(inner: PreTrainedModel, model: LanguageModel, folder: Path, **given: Any) -> None:
    with silence_transformers(), torch.no_grad():
        generation = inner.generation_config
        inner.generation_config = _with_ends(generation, model.ends)
        if not given and (whole := whole_state(inner)) is not None:
            given = {"state_dict": whole}
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


# A copy of a model in another precision.


def cast_copy(model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """Return the model with parameters of another type; autocast would convert them anew at each token."""
    copied = copy.deepcopy(model.model)
    torch.nn.Module.to(copied, dtype)
    return replace(model, model=copied, head=split_head(copied))
