"""Presets and evaluation protocols as files."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdcli.config.yaml_file import Node, read_config
from kdcli.errors import InputError, UsageError
from kdcli.text import one_line

PROTOCOL = "evaluation.protocol"
"""The setting that names one."""

_FOLDER = Path(__file__).parent / "protocols"
_ENDINGS = (".yaml", ".yml")
_DATA = ("data.template", "data.max_length", "data.max_prompt_length")
_CHANGES_NO_NUMBER = (PROTOCOL, "evaluation.metrics", "evaluation.split", "evaluation.generation.batch_tokens")


def protocol_names() -> list[str]:
    """Return the protocols that come with the package.

    >>> protocol_names()
    ['greedy', 'minillm']
    """
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def of_protocol(settings: Iterable[str]) -> list[str]:
    """Return which settings make up a protocol: all that answers and scores depend on, except model and rows.

    >>> of_protocol(["train.lr", "data.template", "evaluation.metrics", "evaluation.generation.top_p"])
    ['data.template', 'evaluation.generation.top_p']
    """
    return [
        path
        for path in settings
        if path in _DATA or (path.startswith("evaluation.") and path not in _CHANGES_NO_NUMBER)
    ]


def is_file(protocol: str) -> bool:
    """Whether a protocol is a file of the user's and not a name."""
    return protocol.endswith(_ENDINGS) or "/" in protocol


def label_of(protocol: str) -> str:
    """Return what tables call a protocol.

    >>> label_of("minillm"), label_of("lab/long answers.yaml")
    ('minillm', 'long answers')
    """
    return one_line(Path(protocol).stem if is_file(protocol) else protocol, 40)


def read_protocol(protocol: str) -> tuple[str, dict[str, Node]]:
    """Read what a protocol sets.

    Args:
        protocol: a name of ``protocol_names``, or the path of a YAML file of settings.

    Returns:
        the file's name for messages, and its top level.

    Raises:
        UsageError: an unknown name; offers the nearest.
        InputError: a file that cannot be read as settings, or holds none.
    """
    path = Path(protocol).expanduser() if is_file(protocol) else _FOLDER / f"{protocol}.yaml"
    if not is_file(protocol) and protocol not in protocol_names():
        near = difflib.get_close_matches(protocol.lower(), protocol_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        what = f'unknown protocol "{one_line(protocol, 60)}"'
        fix = f"{hint}use {' or '.join(protocol_names())}, or a .yaml file"
        raise UsageError("CLI-23", what, where="--protocol", fix=fix)
    name = one_line(str(path))
    nodes = read_config(path)
    if not nodes:
        fix = "set something, such as evaluation.generation.temperature"
        raise InputError("CFG-17", "the protocol sets nothing", where=name, fix=fix)
    return name, nodes


# Published training systems as files of settings: what ``--config gkd`` stands for.


_RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class PresetCard:
    """What there is to know about one preset.

    Args:
        name: what ``--config`` takes.
        summary: the system in one sentence.
        objective: its loss and source.
        text: the file: header and settings.
    """

    name: str
    summary: str
    objective: str
    text: str


def preset_names() -> list[str]:
    """Return the presets that come with the package.

    >>> preset_names()
    ['akl', 'atkd', 'distillm', 'f-distill', 'gkd', 'imitkd', 'minillm', 'rationale-seqkd', 'seqkd', 'sparse-llama']
    """
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def config_path(text: str) -> Path:
    """Return the file that ``--config`` means: a file of the user's, else a preset of that name.

    Args:
        text: as typed.

    Raises:
        UsageError: a plain word that is neither; offers the nearest preset.

    >>> config_path("gkd").name, config_path("runs/akl/config.yaml").name
    ('gkd.yaml', 'config.yaml')
    """
    path = Path(text)
    if path.exists() or text.endswith(_ENDINGS) or "/" in text:
        return path
    return preset_path(text, where="-c")


def preset_path(name: str, where: str = "") -> Path:
    """Return the file of a preset.

    Args:
        name: one of ``preset_names``; case and underscores do not count.
        where: what the name was given to.

    Raises:
        UsageError: no such preset.
    """
    folded = name.lower().replace("_", "-")
    known = {known.replace("-", ""): known for known in preset_names()} | {known: known for known in preset_names()}
    if folded in known:
        return _RECIPES / f"{known[folded]}.yaml"
    near = difflib.get_close_matches(folded, known, n=1)
    hint = f"did you mean {known[near[0]]}? " if near else ""
    fix = f"{hint}presets: {', '.join(preset_names())}; a file needs its ending .yaml"
    raise UsageError("CLI-24", f'"{one_line(name, 60)}" is neither a file nor a preset', where=where, fix=fix)


def describe(name: str) -> PresetCard:
    """Return the card of a preset.

    Raises:
        UsageError: no such preset.

    >>> describe("gkd").objective
    'jsd:beta=0.5@student:rate=0.5'
    """
    path = preset_path(name)
    text = path.read_text(encoding="utf-8")
    summary = text.splitlines()[0].lstrip("# ")
    return PresetCard(path.stem, summary, str(read_config(path)["loss"].plain()), text)


def cards() -> list[PresetCard]:
    """Return the card of every preset."""
    return [describe(name) for name in preset_names()]
