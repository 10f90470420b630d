"""The evaluation protocol: its name, and a hash of every setting the numbers depend on."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kdcli.config.presets import label_of, of_protocol
from kdcli.config.resolve import Setting, iter_settings, preset
from kdcli.config.schema import EvalConfig

CUSTOM = "custom"
"""What an evaluation without a named protocol is called."""


@dataclass(frozen=True)
class Protocol:
    """Every setting that answers and scores follow from, but model and rows.

    Args:
        name: what it is called; with a star where a setting differs from what the name stands for.
        settings: dotted path -> value, as JSON knows it.

    >>> Protocol("greedy", {"evaluation.generation.temperature": 0.0}).hash
    '85c4907d'
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Eight hex digits; another value of any setting gives others.

        Settings at their defaults do not enter, so that a setting new in kd leaves older hashes as they are.
        """
        usual = _defaults()
        chosen = {path: value for path, value in self.settings.items() if path not in usual or usual[path] != value}
        text = json.dumps(chosen, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """Name and hash, as a score's settings string holds them."""
        return f"{self.name}-{self.hash}"

    def record(self) -> dict[str, Any]:
        """Return it as ``results.json`` keeps it."""
        return {"name": self.name, "hash": self.hash, "settings": dict(self.settings)}


def protocol_of(config: EvalConfig) -> Protocol:
    """Return the protocol that settings amount to.

    Args:
        config: all settings of an evaluation, the protocol's own among them.

    Raises:
        UsageError: it names an unknown protocol.
        InputError: it names a file that cannot be read.

    >>> protocol_of(EvalConfig()).name
    'custom'
    """
    known = iter_settings(EvalConfig)
    whole = config.model_dump(mode="json")
    settings = {path: _at(whole, path) for path in of_protocol(known)}
    named = config.evaluation.protocol
    if named is None:
        return Protocol(CUSTOM, settings)
    kept = all(settings[path] == value for path, value in _preset_values(named, known))
    return Protocol(label_of(named) + ("" if kept else "*"), settings)


def samples_note(config: EvalConfig, answers: int) -> tuple[str, ...]:
    """Return a sentence where answers made elsewhere are not as many as the protocol named samples.

    Args:
        config: all settings of an evaluation.
        answers: answers to each example.

    >>> from kdcli.config.resolve import resolve
    >>> samples_note(resolve(EvalConfig, flags={"protocol": "minillm"}), 1)
    ('protocol minillm takes 5 answers to each prompt; the file holds 1',)
    """
    generation = config.evaluation.generation
    wanted = len(generation.seeds) if generation.temperature > 0 else 1
    if config.evaluation.protocol is None or answers == wanted:
        return ()
    name = protocol_of(config).name
    return (f"protocol {name} takes {wanted} answers to each prompt; the file holds {answers}",)


def differing_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield setting and both values wherever two recorded protocols differ.

    Args:
        ours: as ``record`` gives it, or of an older evaluation without settings; a setting it does not know yet
            had its default.
        theirs: the other.

    >>> one, other = {"settings": {"data.max_length": 512}}, {"settings": {"data.max_length": 256}}
    >>> list(differing_settings(one, other)), list(differing_settings(one, {}))
    ([('data.max_length', 512, 256)], [])
    """
    here, there = ours.get("settings"), theirs.get("settings")
    if here is None or there is None:
        return
    usual = _defaults()
    for path in dict.fromkeys([*here, *there]):
        one, other = here.get(path, usual.get(path)), there.get(path, usual.get(path))
        if one != other:
            yield path, one, other


@cache
def _defaults() -> Mapping[str, Any]:
    """Return every setting of a protocol with its default, as JSON knows it."""
    whole = EvalConfig().model_dump(mode="json")
    return {path: _at(whole, path) for path in of_protocol(iter_settings(EvalConfig))}


def _preset_values(named: str, known: Mapping[str, Setting]) -> Iterator[tuple[str, Any]]:
    for path, raw, source in preset(named, known):
        adapter = known[path].adapter
        yield path, adapter.dump_python(known[path].from_file(raw, source.fault), mode="json")


def _at(tree: Mapping[str, Any], path: str) -> Any:
    value: Any = tree
    for step in path.split("."):
        value = value[step]
    return value
