"""Makes a random student of a teacher's family from three numbers and a seed."""

import copy
import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from kdcli.errors import KDError, UsageError, raise_machine_fault
from kdcli.models.checks import open_folder, open_settings
from kdcli.models.internals import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from kdcli.models.load import LanguageModel, assemble
from kdcli.models.tokenizer import folder_end_tokens, load_tokenizer
from kdcli.models.weights import build_config, read_generation_config, silence_transformers
from kdcli.registry.spec import student_options
from kdcli.text import one_line

# Rewrites a family's settings for another number of layers, another width, other heads.


_FFN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_FROM_TEACHER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
_NOT_COPIED = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "quantization_config",
    "attention_types",
)
_GLU_RATIO = 8 / 3


def resized_settings(teacher: PreTrainedConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a student.

    Args:
        teacher: the teacher's text config.
        options: layers, width, heads; kv_heads (default: heads), ffn (default: in the teacher's
            ratio to its width, or another family's usual one), family (default: the teacher's).

    Returns:
        keyword arguments of the student's config class, with ``model_type``.
    """
    family = options.get("family", teacher.model_type)
    same = family == teacher.model_type
    blank = teacher if same else CONFIG_MAPPING[family]()
    settings = {key: value for key, value in blank.to_dict().items() if key not in _NOT_COPIED}
    if not same:
        _adopt(settings, blank, teacher)
    _set(settings, blank, "num_hidden_layers", options["layers"])
    _set(settings, blank, "hidden_size", options["width"])
    _set(settings, blank, "num_attention_heads", options["heads"])
    _resize_inside(settings, options, _ratio(blank))
    _resize_lists(settings, options["layers"])
    settings["model_type"] = family
    return settings


def _adopt(settings: dict[str, Any], blank: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Give another family's settings the teacher's vocabulary, positions and tying."""
    for key in _FROM_TEACHER:
        settings[key] = getattr(teacher, key, None)
    positions = next((value for name in _POSITIONS if isinstance(value := getattr(teacher, name, None), int)), None)
    if positions is not None:
        _set(settings, blank, "max_position_embeddings", positions)


def _ratio(config: PreTrainedConfig) -> float | None:
    """Return feed-forward width over width; None where the family derives one from the other."""
    ffn = next((value for name in _FFN if isinstance(value := getattr(config, name, None), int)), None)
    return ffn / getattr(config, "hidden_size", ffn) if ffn else None


def _resize_inside(settings: dict[str, Any], options: Mapping[str, Any], ratio: float | None) -> None:
    width, heads = options["width"], options["heads"]
    size = width // heads
    ffn = options.get("ffn") or (4 * round(width * ratio / 4) or 4 if ratio else None)
    for name in _FFN:
        if name in settings:
            settings[name] = ffn
    for name in _KV_HEADS:
        if settings.get(name) is not None or (name in settings and "kv_heads" in options):
            settings[name] = options.get("kv_heads", heads)
    for name in ("head_dim", "query_pre_attn_scalar"):
        if settings.get(name) is not None:
            settings[name] = size
    if isinstance(settings.get("rotary_dim"), int):
        settings["rotary_dim"] = min(settings["rotary_dim"], size)
    if "word_embed_proj_dim" in settings:
        settings["word_embed_proj_dim"] = width
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict) and any(isinstance(value, list) for value in rope.values()):
        # Tables with one entry per dimension of a head do not fit another head.
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)}


def _resize_lists(settings: dict[str, Any], layers: int) -> None:
    """Cut or repeat settings that hold one value for each layer."""
    for key, value in settings.items():
        if key.endswith(("layer_types", "layers_types", "no_rope_layers")) and isinstance(value, list) and value:
            settings[key] = [value[index % len(value)] for index in range(layers)]
    if "max_window_layers" in settings:
        settings["max_window_layers"] = min(settings["max_window_layers"], layers)


def _set(settings: dict[str, Any], config: PreTrainedConfig, name: str, value: int) -> None:
    """Set a size under the family's own name for it."""
    settings[config.attribute_map.get(name, name)] = value


PREFIX = "random:"
_NUMBERS = ("layers", "width", "heads", "kv_heads", "ffn")
_KEYS = (*_NUMBERS, "family")
_EXAMPLE = "random:layers=3,width=64,heads=4"
_LARGEST = 1_000_000


def is_random(student: str) -> bool:
    """Whether a student is a ``random:`` spec rather than a folder or hub id."""
    return student.startswith(PREFIX)


def parse_random(spec: str) -> dict[str, Any]:
    """Read a ``random:`` spec.

    Args:
        spec: as typed.

    Returns:
        layers, width, heads and what else was given; sizes as int, family as str.

    Raises:
        UsageError: SPEC-02 naming the option or value that cannot be used.

    >>> parse_random("random:layers=3,width=64,heads=4,family=llama")
    {'layers': 3, 'width': 64, 'heads': 4, 'family': 'llama'}
    """
    values = student_options(spec, _KEYS, "SPEC-02", _EXAMPLE)
    options = {key: value if key == "family" else _number(key, value, spec) for key, value in values.items()}
    _check_together(options, spec)
    return options


def _number(key: str, value: str, spec: str) -> int:
    if not value.isascii() or not value.isdecimal() or not 1 <= int(value[:9]) <= _LARGEST:
        raise _bad(spec, f'{key} must be a whole number >= 1, got "{one_line(value, 40)}"', f"write {_EXAMPLE}")
    return int(value)


def _check_together(options: Mapping[str, Any], spec: str) -> None:
    for key in ("layers", "width", "heads"):
        if key not in options:
            raise _bad(spec, f"{key} is missing", f"write {_EXAMPLE}")
    width, heads = options["width"], options["heads"]
    if width % heads:
        raise _bad(spec, f"width {width} is not divisible by {heads} heads", "choose heads that divide width")
    if heads % options.get("kv_heads", 1):
        what = f"heads {heads} is not divisible by {options['kv_heads']} kv_heads"
        raise _bad(spec, what, "choose kv_heads that divide heads")
    if options.get("family", "llama") not in CAUSAL or options.get("family", "llama") not in CONFIG_MAPPING:
        near = get_close_matches(options["family"], [*CAUSAL], 1)
        fix = f"did you mean {near[0]}?" if near else "use a family that transformers knows, such as llama"
        raise _bad(spec, f'unknown family "{one_line(options["family"], 60)}"', fix)


def random_student(spec: str, teacher_folder: str, *, seed: int, device: torch.device) -> LanguageModel:
    """Make a randomly initialised student with the teacher's vocabulary.

    Family, vocabulary rows, positions, special ids and tying come from the teacher; tokenizer
    and generation config are the teacher's own. The weights depend on the seed alone.

    Args:
        spec: ``random:layers=..,width=..,heads=..[,kv_heads=..][,ffn=..][,family=..]``.
        teacher_folder: folder or hub id of the teacher.
        seed: seed of the initialisation.
        device: where the parameters go.

    Raises:
        UsageError: the spec cannot be used, or the family cannot be built at these sizes.
        InputError: the teacher's folder cannot be used.
    """
    options = parse_random(spec)
    checked = open_folder(teacher_folder)
    teacher = build_config(checked.settings, str(checked.folder))
    settings = _resized(teacher.get_text_config(decoder=True), options, spec)
    tokenizer = load_tokenizer(teacher_folder)
    model = _build(settings, spec, seed)
    model.generation_config = copy.deepcopy(read_generation_config(checked.folder) or model.generation_config)
    rows = teacher.get_text_config(decoder=True).vocab_size
    ends, _ = folder_end_tokens(checked, tokenizer, rows, teacher_folder)
    notes, digest = checked.notes, weights_digest(model)
    try:
        return assemble(model, tokenizer, spec, digest, device=device, role="student", notes=notes, ends=ends)
    except KDError as error:
        if error.code in ("MOD-14", "MOD-17", "MOD-20"):
            raise _unbuildable(spec, settings, error.what) from error
        raise


def random_config(spec: str, teacher_folder: str) -> PreTrainedConfig:
    """Return the config of a random student; nothing is built.

    Args:
        spec: as for ``random_student``.
        teacher_folder: folder or hub id of the teacher.

    Raises:
        UsageError: the spec cannot be used.
        InputError: the teacher's folder cannot be used.
    """
    settings, folder, _ = open_settings(teacher_folder)
    teacher = build_config(settings, str(folder))
    settings = _resized(teacher.get_text_config(decoder=True), parse_random(spec), spec)
    return CONFIG_MAPPING[settings["model_type"]](**settings)


def _resized(teacher: PreTrainedConfig, options: Mapping[str, Any], spec: str) -> dict[str, Any]:
    family = options.get("family", teacher.model_type)
    blank = CONFIG_MAPPING[family]()
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        if not hasattr(blank, name):
            raise _bad(spec, f"the family {family} has no {name}", "add family=llama")
    return resized_settings(teacher, options)


def _build(settings: dict[str, Any], spec: str, seed: int) -> PreTrainedModel:
    try:
        with silence_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config: PreTrainedConfig = CONFIG_MAPPING[settings["model_type"]](**settings)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        # A family's constructor fails in its own ways on sizes it cannot take.
        raise_machine_fault(error, f'student "{one_line(spec)}"')
        raise _unbuildable(spec, settings, str(error).strip() or type(error).__name__) from error


def _unbuildable(spec: str, settings: Mapping[str, Any], reason: str) -> UsageError:
    what = f"the family {settings['model_type']} cannot be built at these sizes: {one_line(reason, 160).rstrip('.')}"
    return _bad(spec, what, "add family=llama")


def weights_digest(model: PreTrainedModel) -> str:
    """Return sha256 over config and parameters, in the order of their names."""
    total = hashlib.sha256(model.config.to_json_string().encode())
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + str(tuple(value.shape)).encode())
        total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else b"")
    return total.hexdigest()


def _bad(spec: str, what: str, fix: str) -> UsageError:
    return UsageError("SPEC-02", what, where=f'student "{one_line(spec)}"', fix=fix)
