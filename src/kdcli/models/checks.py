"""Checks a model folder before anything in it is loaded: no code, no pickles, no surprises in size."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from kdcli.errors import InputError, IntegrityError
from kdcli.models.headers import TensorInfo, read_header, read_table
from kdcli.models.internals import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from kdcli.models.internals import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VISION
from kdcli.storage import atomic, stored
from kdcli.storage.locate import locate
from kdcli.text import one_line

# What config.json may say: sizes in bounds, a known family, nothing that loads code.


_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES = frozenset({
    *_LAYERS, "vocab_size", "hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "head_dim",
    "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "num_attention_heads", "n_head", "n_heads",
    "num_key_value_heads", "num_kv_heads", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len",
})  # fmt: skip
_SIZE_LIMIT = 10**9
_COUNT = re.compile(r"(n|num)_\w*(heads?|experts|blocks|groups)$")
_COUNT_LIMIT = 100_000
# Keys that name code, kernels or other files, that steer how transformers loads, or that no LM needs.
_DANGEROUS = frozenset({
    "auto_map", "attn_implementation", "experts_implementation", "transformers_weights", "fusion_config",
    "distributed_config", "kernel_config", "use_kernels", "custom_generate", "custom_pipelines",
    "configuration_files", "name_or_path", "trust_remote_code", "code_revision", "tp_plan", "base_model_tp_plan",
    "num_labels", "output_attentions", "output_hidden_states", "return_dict",
    "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan",
})  # fmt: skip
_HARMLESS = frozenset({"_name_or_path", "_commit_hash", "name_or_path", "_attn_implementation_autoset"})
_INTERNAL = ("_attn_implementation", "_experts_implementation", "_name_or_path", "_commit_hash", "_auto_class", "__")
_SPECIAL_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


CLASSIFIES = "ForSequenceClassification"
"""How the architecture of a classifier is called at the end, in its config.json."""


def is_classifier(path: str) -> bool:
    """Whether a folder or hub id holds a classifier of texts."""
    try:
        config = locate(path) / "config.json"
        return config.is_file() and _architecture(read_table(config, "MOD-02")).endswith(CLASSIFIES)
    except InputError:
        return False


def _architecture(raw: dict[str, Any]) -> str:
    named = raw.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""Files that say how a model of images prepares them."""


def is_vision_folder(settings: dict[str, Any], folder: Path) -> bool:
    """Whether a folder holds a model of images and text, and what prepares its images.

    Args:
        settings: of config.json.
        folder: where it lies.
    """
    return _is_vision(settings) and any((folder / name).is_file() for name in _PROCESSORS)


def _is_vision(settings: dict[str, Any]) -> bool:
    """Whether the architecture that a config names is its family's model of images and text."""
    known = VISION.get(str(settings.get("model_type")))
    return known is not None and _architecture(settings) in ((known,) if isinstance(known, str) else known)


def check_settings(raw: dict[str, Any], path: Path, *, classifier: bool = False, images: bool = False) -> None:
    """Check the raw contents of config.json.

    Args:
        raw: the JSON object.
        path: the file, for messages.
        classifier: whether it must be one of a classifier, rather than of a causal LM.
        images: whether it may be one of a causal model of images and text.

    Raises:
        InputError: MOD-04, MOD-14, MOD-16 or MOD-17.
    """
    _check_family(raw, path, classifier=classifier, images=images)
    _check_quantization(raw, path)
    for table in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        _check_sizes(table, path)


def _check_family(raw: dict[str, Any], path: Path, *, classifier: bool, images: bool) -> None:
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        shown = one_line(str(family), 60)
        if raw.get("auto_map"):
            raise InputError(
                "MOD-04",
                f'model type "{shown}" needs code from the folder, which is never run',
                where=str(path),
                fix="use a family that transformers knows",
            )
        near = get_close_matches(str(family), [*CAUSAL], 1)
        fix = f"did you mean {near[0]}?" if near else "use a family that transformers knows"
        what = f'unknown model type "{shown}"' if family is not None else "model_type is missing"
        raise InputError("MOD-17", what, where=str(path), fix=fix)
    name = _architecture(raw) or family
    if classifier:
        if not name.endswith(CLASSIFIES):
            what = f"needs a classifier of texts, got {one_line(name, 60)}"
            raise InputError("MOD-17", what, where=str(path), fix=f"give a folder of a model ...{CLASSIFIES}")
        return
    if family not in CAUSAL and _is_vision(raw) and raw.get("is_encoder_decoder") is not True:
        if not images:
            what = f"{one_line(name, 60)} reads images, and this works with models of text alone"
            raise InputError("MOD-17", what, where=str(path), fix="give a decoder-only language model")
        if not is_vision_folder(raw, path.parent):
            what = f"no processor for the images of {one_line(name, 60)} (looked for {' and '.join(_PROCESSORS)})"
            raise InputError("MOD-17", what, where=str(path), fix="save it there: AutoProcessor's save_pretrained")
        return
    other = name.endswith(CLASSIFIES) or "MaskedLM" in name
    if family not in CAUSAL or raw.get("is_encoder_decoder") is True or other:
        raise InputError(
            "MOD-17", f"needs a causal LM, got {one_line(name, 60)}", where=str(path), fix="give a decoder-only model"
        )


def _check_quantization(raw: dict[str, Any], path: Path) -> None:
    for table in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            found = table.get(key)
            if found:
                method = found.get("quant_method") if isinstance(found, dict) else found
                what = f'quantised folders are not supported: "{one_line(str(method), 60)}"'
                raise InputError("MOD-16", what, where=str(path), fix="use the full-precision weights")


def _check_sizes(table: dict[str, Any], path: Path) -> None:
    for key, value in table.items():
        limit = _COUNT_LIMIT if _COUNT.match(key) else _SIZE_LIMIT
        if key in _SIZES and value is not None and (type(value) is not int or value < 1):
            what = f"{key} must be a whole number >= 1, got {one_line(repr(value), 40)}"
        elif type(value) is int and value > limit and key not in _LAYERS:
            what = f"{one_line(key, 60)} = {value:,} is larger than {limit:,}"
        else:
            continue
        raise InputError("MOD-14", what, where=str(path), fix="restore the config.json of these weights")


def drop_unsafe_keys(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings without keys that could load code, and the names of those worth a note.

    >>> drop_unsafe_keys({"model_type": "llama", "auto_map": {}, "_name_or_path": "x"})
    ({'model_type': 'llama'}, ['auto_map'])
    """
    kept: dict[str, Any] = {}
    ignored: list[str] = []
    for key, value in raw.items():
        if _steers_loading(key):
            ignored += [] if key in _HARMLESS else [one_line(key, 40)]
        elif isinstance(value, dict) and "__float__" not in value:
            kept[key], inner = drop_unsafe_keys(value)
            ignored += inner
        else:
            kept[key] = value
    return {key: _special_floats(value) for key, value in kept.items()}, ignored


def _steers_loading(key: str) -> bool:
    """Whether a key names code or files, or would replace a method of the config object."""
    return key in _DANGEROUS or key.startswith(_INTERNAL) or callable(getattr(PreTrainedConfig, key, None))


def _special_floats(value: Any) -> Any:
    """Return a value with transformers' spelling of infinities and NaN read.

    >>> _special_floats([0.0, {"__float__": "Infinity"}])
    [0.0, inf]
    """
    if isinstance(value, list):
        return [_special_floats(item) for item in value]
    if isinstance(value, dict) and [*value] == ["__float__"]:
        return _SPECIAL_FLOATS.get(str(value["__float__"]), value)
    return value


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
        images: whether it is opened as a model of images and text.
    """

    path: str
    folder: Path
    settings: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...] = ()
    images: bool = False


def open_folder(path: str, *, classifier: bool = False, images: bool = False) -> ModelFolder:
    """Find a model folder and check its config and weight files without loading a tensor.

    Args:
        path: folder or hub id as typed.
        classifier: whether it must hold a classifier, rather than a causal LM.
        images: whether it may hold a causal model of images and text.

    Raises:
        InputError: with the identifier of the first check that fails.
    """
    settings, folder, notes = open_settings(path, classifier=classifier, images=images)
    files = weight_files(folder)
    tensors = _merge_headers(files)
    _check_index(folder, files, tensors)
    _check_layers(settings, tensors, folder)
    reads = images and not classifier and is_vision_folder(settings, folder)
    return ModelFolder(path, folder, settings, files, tensors, notes, images=reads)


def open_config_only(path: str) -> ModelFolder:
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


def open_settings(
    path: str, *, classifier: bool = False, images: bool = False
) -> tuple[dict[str, Any], Path, tuple[str, ...]]:
    """Find a model folder and check its config.json alone; return settings, folder and notes."""
    folder = locate(path)
    _refuse_adapter(folder)
    config = folder / "config.json"
    if not config.is_file():
        inner = folder / "model" / "config.json"
        fix = f"use {folder / 'model'}" if inner.is_file() else "give the folder that holds config.json and the weights"
        raise InputError("MOD-01", f"no model at {one_line(path)} (looked for {one_line(str(config))})", fix=fix)
    raw = read_table(config, "MOD-02")
    check_settings(raw, config, classifier=classifier, images=images)
    settings, ignored = drop_unsafe_keys(raw)
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
                fix="use shards in the folder of the index",
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


# Digests of a model folder's files, compared with its manifest where this package wrote one.


_UNREAD = ".md"
"""Ending of the files that change no number: a model card may be edited."""


@dataclass(frozen=True)
class _File:
    size: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """The shape of a folder's manifest; files of that name by other programs have another."""

    schema: int
    kind: str
    files: dict[str, _File]


def model_digest(checked: ModelFolder) -> str:
    """Return the sha256 over weight files and config.json, the same whether or not the folder has a manifest.

    Raises:
        IntegrityError: a file that is read is not what the folder's manifest says.
    """
    digests = {path.name: atomic.digest_file(path) for path in (*checked.files, checked.folder / "config.json")}
    _compare(checked.folder, digests)
    return atomic.joint_digest(digests)


def check_manifest(folder: Path) -> None:
    """Refuse a student of a run whose manifest is gone: nothing says any more what its files must be.

    Raises:
        IntegrityError: there is none.
    """
    if not (folder / atomic.MANIFEST).is_file():
        raise _differs(folder / atomic.MANIFEST, "is missing")


def _compare(folder: Path, known: dict[str, str]) -> None:
    path = folder / atomic.MANIFEST
    if not path.is_file():
        return
    found = stored.read_record(path, dict[str, object])
    if not _is_ours(found):
        return
    listed = stored.fit(found, _Manifest, path).files
    if found.get("digest") not in (None, atomic.digest_record(found)):
        raise _differs(path, "digest differs from the one it carries")
    for name in known:
        if name not in listed:
            raise _differs(folder / name, "is not in the folder's manifest.json")
    for name, entry in listed.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise _differs(path, "names a file outside its folder")
        if name.endswith(_UNREAD):
            continue
        if not (folder / name).is_file():
            raise _differs(folder / name, "is missing; the folder's manifest.json lists it")
        if (known.get(name) or atomic.digest_file(folder / name)) != entry.sha256:
            raise _differs(folder / name, "digest differs from the folder's manifest.json")


def _is_ours(found: dict[str, object]) -> bool:
    return found.get("kind") == "model" or ("schema" in found and isinstance(found.get("files"), dict))


def _differs(path: Path, what: str) -> IntegrityError:
    fix = "restore the file, or train again; where it was changed on purpose, remove manifest.json from a copy"
    return IntegrityError("RUN-01", what, where=str(path), fix=fix)
