"""Names of export targets, and the libraries that each needs."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from kdcli.errors import MachineError, UsageError
from kdcli.text import one_line


@dataclass(frozen=True)
class Target:
    """What a model is exported to.

    Args:
        format: gguf, onnx or safetensors.
        quantizer: what the weights are rounded to; empty where they stay as they are.

    >>> str(parse_target("gguf:q8_0")), str(parse_target("gguf"))
    ('gguf:q8_0', 'gguf')
    """

    format: str
    quantizer: str = ""

    def __str__(self) -> str:
        return f"{self.format}:{self.quantizer}" if self.quantizer else self.format


@dataclass(frozen=True)
class Needs:
    """What a format takes.

    Args:
        quantizers: what its weights may be rounded to; the empty one leaves them as they are.
        modules: module -> pip extra of kdcli that brings it.
    """

    quantizers: tuple[str, ...]
    modules: Mapping[str, str]


FORMATS: Mapping[str, Needs] = {
    "gguf": Needs(("", "q8_0", "q4_0"), {"gguf": "gguf"}),
    "onnx": Needs(("", "int8", "int4"), {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"}),
    "safetensors": Needs(("int8",), {"torchao": "quant"}),
}
TARGETS = tuple(str(Target(name, one)) for name, needs in FORMATS.items() for one in needs.quantizers)


def parse_target(text: str) -> Target:
    """Read a target.

    Args:
        text: as typed behind ``--to``.

    Raises:
        UsageError: EXPORT-01, a format or a quantizer that there is not.
    """
    name, _, quantizer = text.partition(":")
    needs, shown = FORMATS.get(name), one_line(text, 60)
    if needs is None:
        what = f'"{shown}" is no format that is written'
        raise UsageError("EXPORT-01", what, where="--to", fix=f"give one of {', '.join(TARGETS)}")
    if str(Target(name, quantizer)) not in TARGETS or (":" in text and not quantizer):
        has = ", ".join(one for one in TARGETS if one.partition(":")[0] == name)
        what = f"{name} has no quantizer {one_line(quantizer, 40)}" if quantizer else f"{shown} names no quantizer"
        raise UsageError("EXPORT-01", what, where="--to", fix=f"give {has}")
    return Target(name, quantizer)


def check_libraries(target: Target) -> None:
    """Refuse a target whose library is not installed, before anything is loaded.

    Raises:
        MachineError: EXPORT-02.
    """
    for module, extra in FORMATS[target.format].modules.items():
        if importlib.util.find_spec(module) is None:
            raise MachineError(
                "EXPORT-02", f"{module} is not installed", where=f"--to {target}", fix=f"pip install 'kdcli[{extra}]'"
            )
