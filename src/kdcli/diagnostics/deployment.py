r"""``kd estimate``: memory and speed of a model on a device, from its config alone.

With P parameters, :math:`P_r` of them read in every step (all but an input embedding of its own), N tokens
of context, B requests, b bytes per weight, c bytes per cached number, bandwidth W and arithmetic F:

* weights: :math:`P b`
* cache of one request: :math:`K = c \sum_{layers} \min(N, window) \cdot 2 h_{kv} d_{head}`
* requests that fit memory M: :math:`\lfloor (M - P b) / (K + 4 V) \rfloor`, with a row of V fp32 logits each
* a step that adds a token to each of B requests reads the weights once and every cache:
  :math:`\max((P_r b + B K) / W, B (2 P_r + 4 h d_{head} \sum_{layers} \min(N, window)) / F)`
* reading a prompt of N tokens, with :math:`P_t` the parameters without embedding and head :math:`P_h`:
  :math:`\max(P_r b / W, (2 P_t N + 2 P_h + 4 h d_{head} \cdot pairs) / F)`, where pairs counts, over all layers,
  the tokens that each token looks back at, itself included: N (N + 1) / 2 without a window

Sources: the roofline model (Williams, Waterman and Patterson 2009), and Pope et al., Efficiently Scaling
Transformer Inference (2022), section 2. Scales of quantised weights are not counted (4 bits in groups of 128
with an fp16 scale: 3 % more).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.errors import InputError
from kdcli.models.cache_form import CacheForm, cache_form
from kdcli.models.headers import read_table
from kdcli.models.known_sizes import Counts, known_sizes
from kdcli.storage.locate import locate, model_of
from kdcli.text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
_LOGIT = 4


@dataclass(frozen=True)
class Device:
    """What a device offers.

    Args:
        memory: bytes; None if unknown.
        bandwidth: bytes per second between memory and arithmetic; None if unknown.
        flops: floating-point operations per second; None if unknown.
    """

    memory: int | None = None
    bandwidth: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Needs:
    """What a model needs with weights of one kind.

    Args:
        weights: kind of the weights: fp32, bf16, int8 or int4.
        weight_bytes: bytes of all weights.
        cache_bytes: bytes of one request's keys and values.
        total_bytes: weights, and cache and logits of the batch.
        largest_batch: requests that fit the device's memory; 0 if not even one does, None if it is unknown.
        step_seconds: time of a step that adds one token to each request; None if the bandwidth is unknown.
        tokens_per_second: tokens of all requests together.
        prompt_seconds: time to read one prompt that fills the context; None if the arithmetic is unknown.
        bound: what limits a step, "memory" or "arithmetic".
    """

    weights: str
    weight_bytes: int
    cache_bytes: int
    total_bytes: int
    largest_batch: int | None
    step_seconds: float | None
    tokens_per_second: float | None
    prompt_seconds: float | None
    bound: str | None


@dataclass(frozen=True)
class DeploymentEstimate:
    """What a model takes on a device.

    Args:
        model: folder or config, as typed.
        parameters: all of them, shared ones once.
        context: tokens of prompt and answer.
        batch: requests at once.
        device: what was assumed of the device.
        needs: one entry per kind of weights.
        notes: what the formulas leave out for this model.
    """

    model: str
    parameters: int
    context: int
    batch: int
    device: Device
    needs: tuple[Needs, ...]
    notes: tuple[str, ...] = ()


def estimate_deployment(model: str, device: Device, *, context: int, batch: int = 1) -> DeploymentEstimate:
    """Estimate memory and speed of a model on a device; no weight is read.

    Args:
        model: run or model folder, hub id, or a config.json.
        device: memory, bandwidth and arithmetic.
        context: tokens of prompt and answer, at least 1.
        batch: requests at once, at least 1.

    Raises:
        InputError: the config cannot be used.
    """
    known = known_sizes(_settings(model))
    if known is None:
        from kdcli.models.sizes import sizes_of

        built = config_of(model)
        known = built, sizes_of(built)
    config, sizes = known
    form = cache_form(config, model)
    needs = tuple(_needs(kind, sizes, form, config.vocab_size, device, context, batch) for kind in BYTES)
    return DeploymentEstimate(model, sizes.parameters, context, batch, device, needs, _notes(config, form, context))


def config_of(model: str) -> "PreTrainedConfig":
    """Return the config of a folder, a hub id or a JSON file, checked as before loading.

    Raises:
        InputError: it is not there or cannot be used.
    """
    from kdcli.models.checks import check_settings, drop_unsafe_keys, open_settings
    from kdcli.models.weights import build_config

    path = Path(model).expanduser()
    if path.suffix != ".json":
        settings, folder, _ = open_settings(model_of(model))
        return build_config(settings, str(folder))
    raw = _settings(model)
    check_settings(raw, path)
    return build_config(drop_unsafe_keys(raw)[0], one_line(model))


def _settings(model: str) -> dict[str, Any]:
    """Return what the config.json of a folder, a hub id or a JSON file holds; nothing where the folder has none.

    Raises:
        InputError: neither is there, or it is not JSON.
    """
    path = Path(model).expanduser()
    if path.suffix != ".json":
        folder = locate(model_of(model))
        whole = (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()
        return read_table(folder / "config.json", "MOD-02") if whole else {}
    if not path.is_file():
        what = f"not found; looked in {one_line(str(Path.cwd()))}"
        raise InputError("MOD-01", what, where=one_line(model), fix="check the path")
    return read_table(path, "MOD-02")


def _needs(kind: str, sizes: Counts, form: CacheForm, vocab: int, device: Device, context: int, batch: int) -> Needs:
    """Work out one kind of weights; the formulas stand at the top of this file."""
    weights = math.ceil(sizes.parameters * BYTES[kind])
    cache = form.elements(context) * (4 if kind == "fp32" else 2)
    request = cache + _LOGIT * vocab
    read = sizes.parameters if sizes.tied else sizes.parameters - sizes.head
    fits = None if device.memory is None else max((device.memory - weights) // request, 0)
    moved = read * BYTES[kind] + batch * cache
    done = batch * (2.0 * read + 4.0 * form.heads * form.head * form.remembered(context))
    step = _roofline(moved, done, device) if device.bandwidth is not None else None
    seen = 2.0 * (sizes.trunk * context + sizes.head) + 4.0 * form.heads * form.head * form.pairs(context)
    prompt = _roofline(read * BYTES[kind], seen, device) if device.flops is not None else None
    return Needs(
        kind, weights, cache, weights + batch * request, fits,
        max(step) if step else None, batch / max(step) if step else None, max(prompt) if prompt else None,
        None if step is None else "arithmetic" if step[1] > step[0] else "memory",
    )  # fmt: skip


def _roofline(moved: float, done: float, device: Device) -> tuple[float, float]:
    """Return the seconds to move bytes and the seconds to compute; 0 for what is not known."""
    moving = moved / device.bandwidth if device.bandwidth is not None else 0.0
    return moving, done / device.flops if device.flops is not None else 0.0


def _notes(config: Any, form: CacheForm, context: int) -> tuple[str, ...]:
    notes = []
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and context > limit:
        notes.append(f"the model's positions end at {limit:,} tokens")
    if form.fixed:
        notes.append(f"{form.fixed} layers keep a state of fixed size, which is not counted")
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        notes.append("a mixture of experts: a step is counted as if it read every expert")
    if getattr(config, "kv_lora_rank", None):
        notes.append("the cache is counted as the compressed vector that servers keep; transformers keeps it unpacked")
    return tuple(notes)
