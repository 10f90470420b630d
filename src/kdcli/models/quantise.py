"""A teacher's linear layers in eight or four bits; embedding, norms and head stay as they are."""

import importlib.util

import torch
from torch import nn
from transformers import PreTrainedModel

from kdcli.errors import MachineError, raise_machine_fault
from kdcli.models.internals import Conv1D
from kdcli.models.split import trunk_of
from kdcli.text import one_line

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


def quantise(model: PreTrainedModel, kind: str, device: torch.device) -> int:
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
