"""Loads checked weights into a model, and checks that every one arrived."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    logging,
)

from kdcli.errors import InputError, raise_machine_fault
from kdcli.models.checks import ModelFolder
from kdcli.models.headers import TensorInfo, read_table
from kdcli.models.internals import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from kdcli.text import one_line

# Keeps transformers' progress bars, log lines and warnings off the user's terminal.


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers inside the block and restore its settings after it."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class ModelKind:
    """What a model is built as.

    Args:
        auto: transformers' class that builds one of a config.
        classes: config class -> model class.
        generates: whether it writes text, so that a generation config belongs to it.
    """

    auto: Any
    classes: Any
    generates: bool = True


CAUSAL = ModelKind(AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)
VISION = ModelKind(AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
CLASSIFIER = ModelKind(AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, generates=False)

_FREE_ELEMENTS = 1_000_000
_FREE_BYTES = 2**30


def build_config(settings: dict[str, Any], where: str, kind: ModelKind = CAUSAL) -> PreTrainedConfig:
    """Return the config object of checked settings.

    Args:
        settings: of config.json.
        where: the folder, for messages.
        kind: what the model is built as.

    Raises:
        InputError: MOD-14 where the family refuses a value.
    """
    try:
        with silence_transformers():
            config = CONFIG_MAPPING[settings["model_type"]](**settings)
            model_class = kind.classes[type(config)]
    except Exception as error:
        # Each family checks its values in its own way, with its own kinds of error.
        raise_machine_fault(error, where)
        raise InputError("MOD-14", f"config.json: {_reason(error)}", where=where, fix="restore config.json") from error
    own = getattr(model_class, "config_class", None)
    return config.get_text_config() if own is type(config.get_text_config()) else config


def model_class_of(config: PreTrainedConfig, kind: ModelKind = CAUSAL) -> type[PreTrainedModel]:
    """Return the model class of a config."""
    found: Any = kind.classes[type(config)]
    return found


def load_weights(
    checked: ModelFolder, config: PreTrainedConfig, dtype: torch.dtype, kind: ModelKind = CAUSAL
) -> PreTrainedModel:
    """Load a checked folder's weights into a model on the CPU, in eval mode.

    Args:
        checked: the folder.
        config: its config object.
        dtype: type of the parameters.
        kind: what the model is built as.

    Raises:
        InputError: MOD-09 to MOD-12, naming tensors.
    """
    check_shapes(config, checked.tensors, str(checked.folder), kind)
    return fill_model(checked.folder, config, _read(checked.files), dtype, kind)


def fill_model(
    folder: Path,
    config: PreTrainedConfig,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    kind: ModelKind = CAUSAL,
) -> PreTrainedModel:
    """Make a model of weights that were read, on the CPU, in eval mode.

    Args:
        folder: where they and generation_config.json lie.
        config: the model's.
        tensors: the weights, by transformers' names.
        dtype: type of the parameters.
        kind: what the model is built as.

    Raises:
        InputError: MOD-09 to MOD-12, naming tensors.
    """
    where = str(folder)
    try:
        with silence_transformers():
            loaded: Any = model_class_of(config, kind).from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        model, info = loaded
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise_machine_fault(error, where)
        raise _refuse("MOD-12", f"the weights do not fit config.json: {_reason(error)}", where) from error
    _check_info(info, tensors, where)
    _check_arrived(model, tensors, where)
    _check_finite(model, where)
    if kind.generates:
        model.generation_config = read_generation_config(folder) or model.generation_config
    return model.eval()


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """Return a folder's generation_config.json, None where there is none.

    Raises:
        InputError: MOD-02 where it is broken.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    read_table(path, "MOD-02")
    try:
        with silence_transformers():
            return GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise_machine_fault(error, str(path))
        raise InputError(
            "MOD-02", f"unusable: {_reason(error)}", where=str(path), fix="correct or remove it"
        ) from error


def check_shapes(
    config: PreTrainedConfig, tensors: dict[str, TensorInfo], where: str, kind: ModelKind = CAUSAL
) -> None:
    """Compare the shapes a config asks for with those in the files, before memory is taken for them.

    Raises:
        InputError: MOD-12 naming a tensor, MOD-10 where most are absent, MOD-14 for huge buffers.
    """
    try:
        with silence_transformers(), torch.device("meta"):
            empty = kind.auto.from_config(config)
    except Exception as error:
        # A family's constructor fails in its own ways on values that contradict each other.
        raise_machine_fault(error, where)
        raise _refuse("MOD-14", f"config.json: {_reason(error)}", where) from error
    prefix = f"{empty.base_model_prefix}."
    for name, value in empty.state_dict().items():
        found = tensors.get(name) or tensors.get(name.removeprefix(prefix)) or tensors.get(prefix + name)
        if found is not None and found.shape != tuple(value.shape):
            asked = f"config.json asks for {_shape(tuple(value.shape))}"
            raise _refuse("MOD-12", f"tensor {one_line(name)} is {_shape(found.shape)} in the weights, {asked}", where)
    held = sum(info.numel for info in tensors.values())
    asked = sum(parameter.numel() for parameter in empty.parameters())
    if asked > 4 * held + _FREE_ELEMENTS:
        raise _refuse("MOD-10", f"config.json asks for {asked:,} parameters, the weights hold {held:,}", where)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in empty.buffers())
    if buffers > 16 * held + _FREE_BYTES:
        raise _refuse("MOD-14", f"config.json asks for {buffers / 2**30:,.0f} GiB of tables", where)


def _read(files: tuple[Path, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors.update(load_file(path))
    return tensors


def _check_info(info: dict[str, Any], tensors: dict[str, Tensor], where: str) -> None:
    missing = sorted(info["missing_keys"])
    extra = sorted(name for name in info["unexpected_keys"] if name not in tensors or not _is_mask(name, tensors[name]))
    if missing:
        raise _refuse("MOD-10", f"{_count(missing, 'tensor')} missing from the weights: {_some(missing)}", where)
    if extra:
        raise _refuse("MOD-11", f"{_count(extra, 'tensor')} in the weights that the model lacks: {_some(extra)}", where)
    if info["mismatched_keys"] or info["error_msgs"]:
        raise _refuse("MOD-12", f"weights do not fit: {one_line(str(info))}", where)


def _is_mask(name: str, value: Tensor) -> bool:
    """Whether a tensor is no weight, but a constant of the code that GPT-2 and its kin once saved with the weights.

    That is the causal mask, 1 where a token may look and 0 elsewhere, ``[1, 1, n, n]``, and the one number that
    stands for a masked logit.

    >>> _is_mask("h.0.attn.bias", torch.ones(1, 1, 3, 3).tril()), _is_mask("h.0.attn.bias", torch.ones(3))
    (True, False)
    """
    if name.endswith(".masked_bias"):
        return value.numel() == 1
    if value.dim() != 4 or value.shape[:2] != (1, 1) or value.shape[2] != value.shape[3]:
        return False
    looks = value != 0
    return torch.equal(value, looks.to(value.dtype)) and torch.equal(looks, looks.tril()) and bool(looks[0, 0, 0, 0])


def _check_arrived(model: PreTrainedModel, tensors: dict[str, Tensor], where: str) -> None:
    """Compare loaded tensors with the file's, where the name is the same on both sides."""
    own = model.state_dict()
    for name, value in tensors.items():
        there = own.get(name)
        if there is None or there.shape != value.shape or not value.is_floating_point():
            continue
        if not torch.equal(there.flatten()[:4096], value.flatten()[:4096].to(there.dtype)) and not value.isnan().any():
            raise _refuse("MOD-10", f"tensor {one_line(name)} holds other values than the file after loading", where)


def _check_finite(model: PreTrainedModel, where: str) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
            found = " and ".join(f"{number:,} {kind}" for number, kind in ((nan, "NaN"), (inf, "Inf")) if number)
            raise _refuse("MOD-09", f"tensor {one_line(name)} has {found}", where)


def _refuse(code: str, what: str, where: str) -> InputError:
    return InputError(code, what, where=where, fix="use weights and config.json that were saved together")


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def _some(names: list[str]) -> str:
    return one_line(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""), 200)


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(f"{size}" for size in sizes) or "one number"


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__, 160).rstrip(".")
