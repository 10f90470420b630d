"""Resets generation settings of model folders: sampling uses temperature and top-p alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

if TYPE_CHECKING:
    from kdcli.models.load import LanguageModel


SETTING = "processors:none"
"""How a score's settings string says so."""

_STATED = frozenset({
    "do_sample", "temperature", "top_p", "num_beams", "max_length", "max_new_tokens", "use_cache",
    "transformers_version",
})  # fmt: skip
"""What a settings string says itself, or changes no answer."""


def ignored_generation_settings(config: GenerationConfig | None) -> tuple[str, ...]:
    """Return the settings of a generation config that change what is written and are applied in no way of writing.

    >>> ignored_generation_settings(GenerationConfig(repetition_penalty=1.3, top_k=20, temperature=0.6, eos_token_id=2))
    ('repetition_penalty', 'top_k')
    """
    if config is None:
        return ()
    return tuple(
        name
        for name, value in sorted(config.to_diff_dict().items())
        if not _changes_nothing(value) and name not in _STATED
        if not name.startswith(("_", "output_")) and not name.endswith("token_id")
    )


def _changes_nothing(value: Any) -> bool:
    """Whether a value stands for a setting that is off: nothing, 0, or a factor of 1."""
    return value is None or value == 0 or (isinstance(value, float) and value == 1.0)


@contextmanager
def plain_generation(model: "LanguageModel") -> Iterator[None]:
    """Let transformers' own ``generate`` read nothing of the model's generation config but its end and padding tokens.

    Args:
        model: a loaded language model; its config is put back.
    """
    inner, before = model.model, model.model.generation_config
    inner.generation_config = GenerationConfig(
        bos_token_id=before.bos_token_id, eos_token_id=list(model.ends.ids) or None, pad_token_id=model.pad_id
    )
    try:
        yield
    finally:
        inner.generation_config = before
