"""ONNX graphs of a decoder with its cache: one graph reads a prompt, or further tokens behind it."""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from kdcli.errors import InputError, IntegrityError, raise_machine_fault
from kdcli.models.head import split_head, trunk_of
from kdcli.models.internals import DynamicLayer, cache_in, prompt_cache
from kdcli.models.weights import silence_transformers
from kdcli.text import one_line

FILE = "model.onnx"
BITS = {"int8": 8, "int4": 4}
BLOCK = 32
"""Numbers of a matrix that share a step."""
_LOGITS, _HIDDEN = "logits", "last_hidden_state"
_OPSET = 18
_IN_ONE_FILE = int(1.5 * 2**30)
"""Bytes of weights above which they lie beside the graph, in model.onnx.data: a graph holds at most 2 GiB."""


class _Step(nn.Module):
    """A model as one function of tokens, mask, positions, and the keys and values before.

    Args:
        model: the model.
        cache: the argument of its decoder that takes a cache.
    """

    def __init__(self, model: PreTrainedModel, cache: str) -> None:
        super().__init__()
        self.model, self.cache, self.head = model, cache, split_head(model)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return logits, hidden states, and keys and values of each layer, those before included."""
        cache: Any = prompt_cache(self.model.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        hidden = trunk_of(self.model)(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=True,
            **{self.cache: cache},
        ).last_hidden_state  # fmt: skip
        kept = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return (nn.functional.linear(hidden, self.head.weight), hidden, *kept)


def write_onnx(path: Path, model: PreTrainedModel, quantizer: str) -> dict[str, int]:
    """Write a model; the batch, the tokens and those in the cache may be of any number.

    Inputs are input_ids and position_ids ``[batch sequence]``, attention_mask ``[batch past+sequence]`` and
    past.N.key and past.N.value ``[batch heads past d]``; outputs are logits, last_hidden_state, present.N.key and
    present.N.value.

    Args:
        path: the file.
        model: a causal LM on the CPU, in 32 bits.
        quantizer: int8 or int4 rounds the matrices below the head; empty keeps 32 bits.

    Returns:
        type -> bytes of the file's tensors.

    Raises:
        InputError: EXPORT-03, the model cannot be traced.
    """
    with silence_transformers(), _quiet(), torch.no_grad():
        try:
            program = _traced(model)
            _head_of(program.model)
            for node in program.model.graph.all_nodes():  # traces of the code, with folders of this machine
                node.metadata_props.clear()
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
            raise_machine_fault(error, model.config.model_type)
            what = f"{one_line(type(model).__name__, 60)} cannot be traced: {one_line(str(error), 120)}"
            raise InputError("EXPORT-03", what, where="--to onnx", fix="give --to safetensors:int8") from error
        size = sum(one.numel() * one.element_size() for one in model.parameters())
        if not quantizer:
            program.save(str(path), external_data=size > _IN_ONE_FILE)
        else:
            _round(program, path, BITS[quantizer], large=size > _IN_ONE_FILE)
    return _bytes_by_type(path)


def _traced(model: PreTrainedModel) -> Any:
    token = torch.zeros(1, 1, dtype=torch.int64)
    head = split_head(model)
    if head.bias is not None or head.scale != 1.0 or head.softcap is not None:
        raise ValueError("its head is more than one product of matrices")
    handed = cache_in(trunk_of(model)(input_ids=token, use_cache=True))
    layers = [] if handed is None else [one for one in handed[1].layers if type(one) is DynamicLayer]
    if handed is None or len(layers) != len(handed[1].layers):
        raise ValueError("its cache holds something else than the keys and values of all tokens")
    keys: Any = layers[0].keys
    shape = tuple(keys.shape)
    past = [torch.zeros(2, shape[1], 5, shape[3]) for _ in range(2 * len(layers))]
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 0] = 0  # without padding the mask would not be traced
    given = (torch.zeros(2, 3, dtype=torch.int64), mask, torch.arange(5, 8)[None].repeat(2, 1), past)
    batch, sequence, before = (torch.export.Dim(name) for name in ("batch", "sequence", "past"))
    shapes = (
        {0: batch, 1: sequence}, {0: batch, 1: torch.export.Dim.AUTO}, {0: batch, 1: sequence},
        [{0: batch, 2: before}] * len(past),
    )  # fmt: skip
    return torch.onnx.export(
        _Step(model, handed[0]).eval(), given, dynamo=True, dynamic_shapes=shapes, opset_version=_OPSET,
        input_names=["input_ids", "attention_mask", "position_ids", *_pairs("past", len(layers))],
        output_names=[_LOGITS, _HIDDEN, *_pairs("present", len(layers))],
    )  # fmt: skip


def _pairs(name: str, layers: int) -> list[str]:
    return [f"{name}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _round(program: Any, path: Path, bits: int, *, large: bool) -> None:
    """Write a graph whose matrices below the head are of few bits, one step for 32 numbers; what they read stays whole.

    Rounding what they read, as ONNX Runtime's dynamic type does, takes one step for all tokens of a batch: then the
    logits of a token depend on later ones.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    whole = path.with_name("whole.onnx")
    program.save(str(whole), external_data=large)
    head, _ = _head_of(program.model)
    rounding: Any = MatMulNBitsQuantizer(
        onnx.load(str(whole)), bits=bits, block_size=BLOCK, is_symmetric=True, nodes_to_exclude=[head.name]
    )
    rounding.process()
    rounding.model.save_model_to_file(str(path), large)
    for one in whole.parent.glob("whole.onnx*"):
        one.unlink()


def _head_of(graph: Any) -> tuple[Any, Tensor]:
    """Return the product of a graph that gives the logits, and its matrix, ``[v d]``.

    Raises:
        ValueError: they are the result of something else.
    """
    node = next(one for one in graph.graph.outputs if one.name == _LOGITS).producer()
    right = node.inputs[1] if node is not None and node.op_type == "MatMul" else None
    turned = right.producer() if right is not None else None
    if right is not None and right.const_value is not None:
        return node, torch.from_numpy(right.const_value.numpy().T.copy())
    if turned is not None and turned.op_type == "Transpose" and turned.inputs[0].const_value is not None:
        return node, torch.from_numpy(turned.inputs[0].const_value.numpy().copy())
    raise ValueError("its head is no single product of matrices")


def _bytes_by_type(path: Path) -> dict[str, int]:
    import onnx_ir

    found: dict[str, int] = {}
    for value in onnx_ir.load(str(path)).graph.initializers.values():
        if value.const_value is not None:
            kind = value.const_value.dtype.name
            found[kind] = found.get(kind, 0) + value.const_value.nbytes
    return dict(sorted(found.items()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print and log off the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


# Runs a graph as the decoder of a model.


class Seen(dict[str, Any]):
    """What a model or its decoder hands back: ``logits``, or ``last_hidden_state`` and the ``cache``."""

    def __getattr__(self, name: str) -> Any:
        """Return an entry."""
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class OnnxTrunk(nn.Module):
    """A decoder that ONNX Runtime runs, on the CPU.

    Args:
        session: of a graph that ``write_onnx`` wrote.
        config: the model's.
    """

    def __init__(self, session: Any, config: PreTrainedConfig) -> None:
        super().__init__()
        self.session, self.config = session, config
        self.empty = nn.Parameter(torch.empty(0), requires_grad=False)
        """What says where this decoder is: it holds no other parameter."""
        sizes = {one.name: one.shape for one in session.get_inputs()}
        self.layers = sum(name.endswith(".key") for name in sizes)
        self.heads, self.size = (int(sizes["past.0.key"][axis]) for axis in (1, 3))
        self.asked = set(sizes)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = True,
        **_: Any,
    ) -> Seen:
        """Return the hidden states; a cache that is given is read and added to."""
        kept = prompt_cache(self.config) if cache is None else cache
        found = self.run(_HIDDEN, input_ids, attention_mask, position_ids, kept)
        return Seen(last_hidden_state=found, cache=kept if use_cache else None)

    def run(self, output: str, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache) -> Tensor:
        """Return one output of the graph, and put the new keys and values into a cache."""
        rows, new = ids.shape
        none = torch.zeros(rows, self.heads, 0, self.size)
        past = [part for layer in range(self.layers) for part in cache.update(none, none, layer)]
        seen = past[0].shape[2]
        mask = torch.ones(rows, seen + new, dtype=torch.int64) if mask is None else mask.long()
        if positions is None:
            positions = torch.arange(seen, seen + new)[None]
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions.expand(rows, new)}
        given |= dict(zip(_pairs("past", self.layers), past, strict=True))
        feeds = {name: value.contiguous().numpy() for name, value in given.items() if name in self.asked}
        found, *present = self.session.run([output, *_pairs("present", self.layers)], feeds)
        for layer in range(self.layers):
            keys, values = (torch.from_numpy(part)[:, :, seen:] for part in present[2 * layer : 2 * layer + 2])
            cache.update(keys, values, layer)
        return torch.from_numpy(found)


class OnnxModel(PreTrainedModel):
    """A causal LM whose decoder is a graph; its head is the graph's own matrix.

    Args:
        config: the model's.
        trunk: the decoder.
        weight: of the head, ``[v d]``.
    """

    base_model_prefix = "trunk"

    def __init__(self, config: PreTrainedConfig, trunk: OnnxTrunk, weight: Tensor) -> None:
        super().__init__(config)
        self.trunk = trunk
        self.lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.lm_head.weight = nn.Parameter(weight, requires_grad=False)

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.lm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Seen:
        """Return the logits that the graph gives by itself."""
        cache = prompt_cache(self.config)
        return Seen(logits=self.trunk.run(_LOGITS, input_ids, attention_mask, None, cache))


def read_onnx(path: Path, config: PreTrainedConfig) -> OnnxModel:
    """Return a model that ONNX Runtime runs, with as many threads as torch has.

    Args:
        path: what ``write_onnx`` wrote.
        config: the model's.

    Raises:
        IntegrityError: EXPORT-05, it is no such file.
    """
    import onnx_ir
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting must not take the processor
    onnxruntime.disable_telemetry_events()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        _, weight = _head_of(onnx_ir.load(str(path)))
        trunk = OnnxTrunk(session, config)
    except Exception as error:  # the runtime's own errors share no base class
        raise_machine_fault(error, str(path))
        what = f"cannot be read as ONNX: {one_line(str(error), 120)}"
        raise IntegrityError("EXPORT-05", what, where=str(path), fix="export the model again") from error
    return OnnxModel(config, trunk, weight).eval()
