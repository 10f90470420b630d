"""LoRA adapters, and quantized teachers."""

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdcli.config.sections import LoraConfig
from kdcli.errors import InputError, MachineError, UsageError, raise_machine_fault
from kdcli.models.head import trunk_of
from kdcli.models.internals import Conv1D
from kdcli.models.kernels import use_onednn
from kdcli.models.weights import silence_transformers
from kdcli.text import one_line

ALL_LINEAR = "all-linear"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_FIX = "name linear layers below the head, such as q_proj,v_proj, or leave lora.targets out"


def check_adapter(settings: LoraConfig, *, student_is_random: bool) -> None:
    """Refuse an adapter that cannot be had, before a weight is read.

    Args:
        settings: the adapter's.
        student_is_random: whether the student's weights are random.

    Raises:
        UsageError: LORA-01, an adapter on random weights that would stay random, or options without a rank.
        MachineError: LORA-02, peft is not installed.
        InputError: LORA-04, there is no adapter to begin with.
    """
    if settings.rank is None:
        if settings != LoraConfig():
            raise UsageError("LORA-01", "has no effect without a rank", where="lora", fix="give --lora 16")
        return
    if student_is_random:
        what = "an adapter on random weights would leave them random"
        raise UsageError("LORA-01", what, where="--lora", fix="leave it out, or start from a trained student")
    if importlib.util.find_spec("peft") is None:
        raise MachineError("LORA-02", "peft is not installed", where="--lora", fix="pip install 'kdcli[lora]'")
    if settings.start is not None and not (Path(settings.start) / ADAPTER_WEIGHTS).is_file():
        what = f"there is no {ADAPTER_WEIGHTS} in {one_line(settings.start, 200)}"
        raise InputError("LORA-04", what, where="lora.start", fix="give the folder of an adapter, or leave it out")


def attach(model: PreTrainedModel, settings: LoraConfig, *, seed: int, name: str) -> nn.Module:
    """Put an adapter into a model: ``y = W x + (alpha / rank) B A x``, of which only A and B take gradient.

    A is drawn from the seed and B is zero, so that the model's numbers do not change yet; or both are those of the
    adapter in ``settings.start``.

    Args:
        model: changed in place; its weights are frozen.
        settings: rank, alpha, dropout, targets, what to begin with and whether A trains.
        seed: of A.
        name: the model as typed, for messages and the adapter's own record of its base.

    Returns:
        peft's model around it, which knows how to merge and to save.

    Raises:
        InputError: LORA-03, targets that name no linear layer below the head; LORA-04, an adapter of another form.
    """
    import peft

    targets = ALL_LINEAR if settings.targets == (ALL_LINEAR,) else list(settings.targets)
    wanted: dict[str, Any] = {
        "r": settings.rank or 1,
        "lora_alpha": alpha_of(settings),
        "lora_dropout": settings.dropout,
    }
    config = peft.LoraConfig(**wanted, target_modules=targets, task_type="CAUSAL_LM")
    try:
        with silence_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, TypeError) as error:
        raise InputError("LORA-03", one_line(str(error), 160), where="lora.targets", fix=_FIX) from error
    wrapped.peft_config["default"].base_model_name_or_path = name
    _check_places(model)
    if settings.start is not None:
        _begin_with(wrapped, Path(settings.start))
    if settings.freeze_a:
        for layer in _adapted(model):
            layer.lora_A.requires_grad_(False)
    use_onednn(model)
    return wrapped


def _adapted(model: nn.Module) -> list[Any]:
    """Return the layers that have an adapter."""
    from peft.tuners.lora.layer import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _begin_with(wrapped: Any, folder: Path) -> None:
    """Give an adapter the numbers of one that was saved.

    Raises:
        InputError: LORA-04, it has other layers or another rank.
    """
    import peft

    path = folder / ADAPTER_WEIGHTS
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise_machine_fault(error, str(path))
        raise InputError("LORA-04", one_line(str(error), 160), where=str(path), fix="restore it") from error
    wanted = {name: value.shape for name, value in peft.get_peft_model_state_dict(wrapped).items()}
    odd = sorted(name for name in {*wanted, *found} if name not in found or found[name].shape != wanted.get(name))
    if odd:
        what = f"{one_line(odd[0], 120)} is not as this adapter needs it"
        raise InputError("LORA-04", what, where=str(path), fix="give the rank and targets that it was made with")
    with silence_transformers():
        peft.set_peft_model_state_dict(wrapped, found)


@torch.no_grad()
def change_frozen(wrapped: Any, changes: Mapping[str, Tensor], scale: float) -> None:
    """Add to the frozen weights below an adapter, in float64.

    Args:
        wrapped: what :func:`attach` returned; changed in place.
        changes: a layer, as the names in its file begin -> what is added, ``[out, in]``.
        scale: what it is multiplied by.
    """
    for name, change in changes.items():
        base = wrapped.get_submodule(name).get_base_layer()
        moved = (change.T if isinstance(base, Conv1D) else change) * scale
        base.weight.copy_((base.weight.double() + moved.to(base.weight.device)).to(base.weight.dtype))


def without_adapter(wrapped: Any) -> PreTrainedModel:
    """Return the model that an adapter was put into, with its weights as they are now and no adapter; not a copy."""
    return wrapped.unload()


def alpha_of(settings: LoraConfig) -> float:
    """Return the adapter's alpha: twice the rank where none is set.

    >>> alpha_of(LoraConfig(rank=8)), alpha_of(LoraConfig(rank=8, alpha=4.0))
    (16.0, 4.0)
    """
    return settings.alpha if settings.alpha is not None else 2.0 * (settings.rank or 1)


def merged(wrapped: Any) -> PreTrainedModel:
    """Return a copy of a model with its adapter added to the weights: ``W + (alpha / rank) B A``.

    Args:
        wrapped: what :func:`attach` returned; left as it is.
    """
    with silence_transformers(), torch.no_grad():
        return copy.deepcopy(wrapped).merge_and_unload()


def save_adapter(wrapped: Any, folder: Path) -> None:
    """Write the adapter alone, as peft reads it: ``adapter_config.json`` and ``adapter_model.safetensors``."""
    with silence_transformers():
        wrapped.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)


def _check_places(model: PreTrainedModel) -> None:
    """Refuse an adapter on the head, which the engine reads as one matrix, or on an embedding."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    below = set(trunk_of(model).modules())
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            inner = module.get_base_layer()
            if module not in below or not isinstance(inner, nn.Linear | Conv1D):
                what = f"{one_line(name, 80)} ({type(inner).__name__}) takes no adapter here"
                raise InputError("LORA-03", what, where="lora.targets", fix=_FIX)


# A teacher's linear layers in eight or four bits; embedding, norms and head stay as they are.


NONE = "none"
_LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}


def check_quantization(kind: str) -> None:
    """Refuse a type whose library is not installed, before a weight is read.

    Args:
        kind: none, int8 or nf4.

    Raises:
        MachineError: QUANT-01.
    """
    library = _LIBRARIES.get(kind)
    if library is not None and importlib.util.find_spec(library) is None:
        raise MachineError(
            "QUANT-01", f"{library} is not installed", where=f"teacher_quantization={kind}",
            fix="pip install 'kdcli[quant]'",
        )  # fmt: skip


def quantize(model: PreTrainedModel, kind: str, device: torch.device) -> int:
    """Round the linear layers below the head; the head stays one dense matrix.

    int8: one scale per output row, weights only. nf4: the sixteen levels of a normal distribution's
    quantiles, one scale per 64 numbers (Dettmers et al. 2023, QLoRA, section 3).

    Args:
        model: changed in place; its weights can be trained no more.
        kind: none, int8 or nf4.
        device: where it will compute.

    Returns:
        how many layers were rounded.

    Raises:
        MachineError: QUANT-02, the library cannot do this here.
    """
    if kind == NONE:
        return 0
    trunk = trunk_of(model)
    places = [
        (parent, name, child)
        for parent in trunk.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear | Conv1D)
    ]
    try:
        for parent, name, child in places:
            setattr(parent, name, _ROUND[kind](_plain(child)).to(device))
    except (RuntimeError, ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise_machine_fault(error, f"teacher_quantization={kind}")
        what = f"{_LIBRARIES[kind]} cannot round to {kind} on {device.type}: {one_line(str(error), 120)}"
        raise MachineError("QUANT-02", what, where=f"teacher_quantization={kind}", fix="use another type") from error
    return len(places)


def _plain(layer: nn.Module) -> nn.Linear:
    """Return a linear layer as ``nn.Linear``; GPT-2's holds its weight the other way round."""
    if isinstance(layer, nn.Linear):
        return layer
    assert isinstance(layer, Conv1D)
    out = nn.Linear(*layer.weight.shape, bias=True)
    out.weight, out.bias = nn.Parameter(layer.weight.T.contiguous()), nn.Parameter(layer.bias)
    return out


def _int8(layer: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    holder = nn.Sequential(layer)
    quantize_(holder, Int8WeightOnlyConfig())
    return holder[0]


def _nf4(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn.modules import Linear4bit

    dtype = layer.weight.dtype
    out = Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, quant_type="nf4", compute_dtype=dtype
    )
    out.load_state_dict(layer.state_dict())
    return out


_ROUND = {"int8": _int8, "nf4": _nf4}
