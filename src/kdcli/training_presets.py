"""Published training systems as files of settings: what ``--config gkd`` stands for."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from kdcli.config_file import read_config
from kdcli.errors import UsageError
from kdcli.text import one_line

_FOLDER = Path(__file__).parent / "recipes"
_ENDINGS = (".yaml", ".yml")


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
    ['akl', 'atkd', 'distillm', 'f-distill', 'gkd', 'imitkd', 'minillm', 'seqkd']
    """
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


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
        return _FOLDER / f"{known[folded]}.yaml"
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
