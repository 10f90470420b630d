"""Checks a model folder before anything in it is loaded: no code, no pickles, no surprises in size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.errors import InputError
from kdcli.models.header import TensorInfo, read_header
from kdcli.models.jsonfile import read_table
from kdcli.models.locate import locate
from kdcli.models.settings import check_settings, scrub
from kdcli.text import one_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose files have been looked at, but not loaded.

    Args:
        path: what the user typed.
        folder: where the files are.
        settings: config.json without the keys that could load code or change how loading works.
        files: the weight files.
        tensors: name -> type and shape, over all weight files.
        notes: what was ignored, one sentence each.
    """

    path: str
    folder: Path
    settings: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...] = ()


def open_folder(path: str) -> ModelFolder:
    """Find a model folder and check its config and weight files without loading a tensor.

    Args:
        path: folder or hub id as typed.

    Raises:
        InputError: with the identifier of the first check that fails.
    """
    settings, folder, notes = open_settings(path)
    files = weight_files(folder)
    tensors = _merge_headers(files)
    _check_index(folder, files, tensors)
    _check_layers(settings, tensors, folder)
    return ModelFolder(path, folder, settings, files, tensors, notes)


def open_form(path: str) -> ModelFolder:
    """Find a model folder that holds no weights, and check its config.json: enough to plan, not to train.

    Args:
        path: folder or hub id as typed.
    """
    settings, folder, notes = open_settings(path)
    note = f"{one_line(path)} holds no weights: planned from its config.json alone"
    return ModelFolder(path, folder, settings, (), {}, (*notes, note))


def has_weights(path: str) -> bool:
    """Whether a model folder holds files of weights, of whatever kind."""
    kinds = (*_PICKLES, ".safetensors")
    return any(item.suffix in kinds or item.name == INDEX for item in locate(path).iterdir())


def open_settings(path: str) -> tuple[dict[str, Any], Path, tuple[str, ...]]:
    """Find a model folder and check its config.json alone; return settings, folder and notes."""
    folder = locate(path)
    _refuse_adapter(folder)
    config = folder / "config.json"
    if not config.is_file():
        inner = folder / "model" / "config.json"
        fix = f"use {folder / 'model'}" if inner.is_file() else "give the folder that holds config.json and the weights"
        raise InputError("MOD-01", f"no model at {one_line(path)} (looked for {one_line(str(config))})", fix=fix)
    raw = read_table(config, "MOD-02")
    check_settings(raw, config)
    settings, ignored = scrub(raw)
    notes = (f"{one_line(path)}: config.json's {', '.join(ignored)} ignored",) if ignored else ()
    return settings, folder, notes


def _refuse_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    kind = one_line(str(read_table(path, "MOD-02").get("peft_type", "unknown")), 40)
    virtual = "PROMPT" in kind or "PREFIX" in kind
    raise InputError(
        "MOD-23",
        f"the folder holds an adapter ({kind}), not a whole model",
        where=str(path),
        fix="adapters of virtual tokens cannot be merged; give a whole model"
        if virtual
        else "merge it: peft's AutoPeftModelForCausalLM.from_pretrained(..).merge_and_unload(), or use a run's model/",
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return a folder's safetensors files in order.

    Raises:
        InputError: MOD-07 where there are none, MOD-15 where the index leaves the folder.
    """
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / INDEX).is_file():
        return tuple(folder / name for name in sorted(set(_weight_map(folder).values())))
    pickles = sorted(item.name for item in folder.iterdir() if item.suffix in _PICKLES)
    if pickles:
        what = f"only pickled weights ({one_line(pickles[0])}), which can run code and are never read"
        raise InputError(
            "MOD-07", what, where=str(folder), fix="convert them to model.safetensors on a machine you trust"
        )
    raise InputError("MOD-07", f"no weights (looked for {WEIGHTS} and {INDEX})", where=str(folder), fix="add them")


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    table = read_table(path, "MOD-15").get("weight_map")
    if not isinstance(table, dict) or not table:
        raise InputError("MOD-15", "weight_map is missing or empty", where=str(path), fix="save the weights again")
    for name in table.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise InputError(
                "MOD-15",
                f'shard "{one_line(str(name))}" is not the plain name of a safetensors file in this folder',
                where=str(path),
                fix="use shards that lie beside the index",
            )
        if not (folder / name).is_file():
            raise InputError("MOD-15", f"shard {one_line(name)} is missing", where=str(path), fix="copy it here")
    return table


def _merge_headers(files: tuple[Path, ...]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path in files:
        for name, info in read_header(path).items():
            if name in tensors:
                what = f'tensor "{one_line(name)}" is in another shard too'
                raise InputError("MOD-21", what, where=str(path), fix="save the weights again")
            tensors[name] = info
    return tensors


def _check_index(folder: Path, files: tuple[Path, ...], tensors: dict[str, TensorInfo]) -> None:
    if files[0].name == WEIGHTS:
        return
    absent = [name for name in _weight_map(folder) if name not in tensors]
    if absent:
        what = f'{len(absent)} tensors of the index are in no shard, first "{one_line(absent[0])}"'
        raise InputError("MOD-10", what, where=str(folder / INDEX), fix="copy or download the shards again")


def _check_layers(settings: dict[str, Any], tensors: dict[str, TensorInfo], folder: Path) -> None:
    """Compare the number of layers asked for with the numbers in the tensors' names."""
    text = settings.get("text_config") if isinstance(settings.get("text_config"), dict) else settings
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    asked = next((value for name in names if type(value := (text or settings).get(name)) is int), None)
    held = 1 + max((_layer_of(name) for name in tensors), default=-1)
    if asked is not None and asked > max(held, 1):
        raise InputError(
            "MOD-13",
            f"config.json asks for {asked:,} layers, the weights hold {held:,}",
            where=str(folder),
            fix="use the config.json these weights were saved with",
        )


def _layer_of(name: str) -> int:
    """Return the first number in a tensor's name, which counts its layer; -1 where there is none."""
    return next((int(part) for part in name.split(".") if part.isdecimal() and len(part) < 9), -1)
