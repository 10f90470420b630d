"""What is written, read and checked for each format; one class a format."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from kdcli.errors import InputError
from kdcli.exports.gguf_file import FILE, Rounding, check_family, read_gguf, special_tokens, write_gguf
from kdcli.exports.onnx_graph import FILE as GRAPH
from kdcli.exports.onnx_graph import read_onnx, write_onnx
from kdcli.exports.vocabulary import vocabulary_of
from kdcli.models.adapters import quantize
from kdcli.models.checks import WEIGHTS, ModelFolder
from kdcli.models.head import trunk_of
from kdcli.models.load import LanguageModel
from kdcli.models.skipping import FIELD, leave_out, whole_state
from kdcli.models.weights import build_config, fill_model, load_weights, model_class_of, silence_transformers
from kdcli.text import one_line


@dataclass(frozen=True)
class Written:
    """What a format wrote.

    Args:
        files: names of the files that hold weights.
        weights: type -> how far its weights moved.
        bytes_by_type: type -> bytes of its tensors.
    """

    files: tuple[str, ...]
    weights: Mapping[str, Rounding] = field(default_factory=dict)
    bytes_by_type: Mapping[str, int] = field(default_factory=dict)


class Format(ABC):
    """A format."""

    runs_as: ClassVar[str]
    """What runs an exported model here."""

    @abstractmethod
    def check(self, checked: ModelFolder, tokenizer: Any, rows: int) -> tuple[str, ...]:
        """Refuse a model that the format cannot hold, before weights are read; return what it cannot say of it."""

    @abstractmethod
    def write(self, model: LanguageModel, checked: ModelFolder, quantizer: str, folder: Path) -> Written:
        """Write weights, rounded, into a folder."""

    @abstractmethod
    def load(self, folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the model in a folder, on the CPU."""

    def same_tokens(self, folder: Path, tokenizer: Any, texts: Sequence[str]) -> int | None:
        """Return how many texts the format's own tokenizer reads as the model's does; None where it has none."""
        return None


class Gguf(Format):
    """GGUF, the format of llama.cpp."""

    runs_as = "weights widened to float32 in torch"

    def check(self, checked: ModelFolder, tokenizer: Any, rows: int) -> tuple[str, ...]:
        """Refuse another family, a setting that readers take for granted, or a tokenizer without a name."""
        check_family(build_config(checked.settings, str(checked.folder)), str(checked.folder))
        return vocabulary_of(tokenizer, rows, str(checked.folder)).notes

    def write(self, model: LanguageModel, checked: ModelFolder, quantizer: str, folder: Path) -> Written:
        """Write model.gguf."""
        import gguf

        state = whole_state(model.model) or model.model.state_dict()
        moved = write_gguf(
            folder / FILE, state, model.model.config, vocabulary_of(model.tokenizer, model.head.rows, model.path),
            special_tokens(model.tokenizer, model.ends), name=Path(model.path).name, quantizer=quantizer,
            chat_template=model.tokenizer.chat_template if isinstance(model.tokenizer.chat_template, str) else None,
        )  # fmt: skip
        found: dict[str, int] = {}
        for one in gguf.GGUFReader(str(folder / FILE)).tensors:
            found[one.tensor_type.name] = found.get(one.tensor_type.name, 0) + int(one.n_bytes)
        return Written((FILE,), moved, dict(sorted(found.items())))

    def load(self, folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the model with the file's weights in 32 bits."""
        return fill_model(folder, config, read_gguf(folder / FILE, config), torch.float32)

    def same_tokens(self, folder: Path, tokenizer: Any, texts: Sequence[str]) -> int | None:
        """Read texts with the tokenizer that transformers makes of the file."""
        with silence_transformers():
            there = AutoTokenizer.from_pretrained(
                str(folder), gguf_file=FILE, local_files_only=True, trust_remote_code=False
            )
            return sum(there(text)["input_ids"] == tokenizer(text)["input_ids"] for text in texts)


_NUMBERS, _STEP = "_weight_qdata", "_weight_scale"
"""Endings of the tensors that torchao makes of a weight in 8 bits: whole numbers, and what one of them stands for."""
_ZERO = "_weight_zero_point"


class Int8(Format):
    """Safetensors of 8 bits, one step a row, as torchao's weight-only type; embedding, norms and head stay."""

    runs_as = "layers of torchao's int8"

    def check(self, checked: ModelFolder, tokenizer: Any, rows: int) -> tuple[str, ...]:
        """Refuse a family without linear layers, of which nothing would be rounded."""
        config = build_config(checked.settings, str(checked.folder))
        with silence_transformers(), torch.device("meta"):
            layers = trunk_of(AutoModelForCausalLM.from_config(config)).modules()
        if not any(type(layer) is nn.Linear for layer in layers):
            what = f"{one_line(str(config.model_type), 40)} has no linear layers that torchao rounds"
            raise InputError("EXPORT-03", what, where=str(checked.folder), fix="give --to onnx:int8")
        return ()

    def write(self, model: LanguageModel, checked: ModelFolder, quantizer: str, folder: Path) -> Written:
        """Write model.safetensors and its config.json, which plain transformers loads where torchao is installed."""
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        config = build_config(checked.settings, str(checked.folder))
        with silence_transformers(), torch.no_grad():
            rounded: Any = model_class_of(config).from_pretrained(
                str(checked.folder), config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                trust_remote_code=False, quantization_config=TorchAoConfig(Int8WeightOnlyConfig(version=2)),
            )  # fmt: skip
            rounded.generation_config = model.model.generation_config
            rounded.save_pretrained(str(folder))
        tensors, own = load_file(folder / WEIGHTS), model.model.state_dict()
        largest, count, sizes = 0.0, 0, dict[str, int]()
        for name, value in tensors.items():
            kind = str(value.dtype).removeprefix("torch.").upper()
            sizes[kind] = sizes.get(kind, 0) + value.numel() * value.element_size()
            if name.endswith(_NUMBERS):
                place, step = name.removesuffix(_NUMBERS), tensors[name.removesuffix(_NUMBERS) + _STEP].double()
                if f"{place}weight" in own:
                    error = (own[f"{place}weight"].double() - value.double() * step).abs() / step
                    largest, count = max(largest, error.max().item()), count + 1
        files = tuple(sorted(path.name for path in folder.glob("*.safetensors")))
        return Written(files, {"INT8": Rounding(count, largest, 0.5 + 2.0**-16)}, dict(sorted(sizes.items())))

    def load(self, folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
        """Return the model with its weights as written, its linear layers in torchao's int8."""
        tensors: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        places = [name.removesuffix(_NUMBERS) for name in tensors if name.endswith(_NUMBERS)]
        weights = {name: value for name, value in tensors.items() if not name.endswith((_NUMBERS, _STEP, _ZERO))}
        weights |= {f"{place}weight": tensors[place + _NUMBERS].float() * tensors[place + _STEP] for place in places}
        model = fill_model(folder, config, weights, torch.float32)
        leave_out(model)
        quantize(model, "int8", torch.device("cpu"))
        layers = dict(model.named_modules())
        for place in places:
            layer: Any = layers.get(place.removesuffix("."))
            if layer is not None and hasattr(layer, "weight"):  # a half that is left out has none
                layer.weight.qdata.copy_(tensors[place + _NUMBERS])
                layer.weight.scale.copy_(tensors[place + _STEP])
        return model


class Onnx(Format):
    """ONNX, one graph with the cache among its inputs and outputs."""

    runs_as = "ONNX Runtime on the CPU"

    def check(self, checked: ModelFolder, tokenizer: Any, rows: int) -> tuple[str, ...]:
        """Let every family pass; what cannot be traced is told when it is tried."""
        return ()

    def write(self, model: LanguageModel, checked: ModelFolder, quantizer: str, folder: Path) -> Written:
        """Write model.onnx; halves of layers that are left out are in it, as zeros."""
        config = _whole(build_config(checked.settings, str(checked.folder)))
        sizes = write_onnx(folder / GRAPH, load_weights(checked, config, torch.float32), quantizer)
        return Written(tuple(sorted(path.name for path in folder.glob(f"{GRAPH}*"))), {}, sizes)

    def load(self, folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
        """Return a model that the runtime runs."""
        return read_onnx(folder / GRAPH, _whole(config))


def _whole(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config that leaves no half of a layer out."""
    if getattr(config, FIELD, None) is not None:
        delattr(config, FIELD)
    return config


FORMATS: Mapping[str, Format] = {"gguf": Gguf(), "onnx": Onnx(), "safetensors": Int8()}
