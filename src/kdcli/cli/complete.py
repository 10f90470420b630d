"""Values that the shell completes: objectives, metrics, sources, presets, settings, devices, and options of these."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

_SEPARATORS = re.compile(r"[+*(=@]")


def objectives(incomplete: str) -> list[str]:
    """Complete an objective: its name, its options, and a source behind ``@``.

    >>> objectives("0.5*ce+ak")
    ['0.5*ce+akl']
    >>> objectives("akl:m"), objectives("jsd@stu")
    (['akl:mu='], ['jsd@student'])
    """
    from kdcli.registry.outline import options_of
    from kdcli.registry.registry import LOSSES, SOURCES

    cut = max((found.end() for found in _SEPARATORS.finditer(incomplete)), default=0)
    head, part = incomplete[:cut], incomplete[cut:]
    registry = SOURCES if "@" in head else LOSSES
    name, colon, tail = part.partition(":")
    if not colon:
        return [head + one for one in registry.names() if one.startswith(part)]
    given, comma, last = tail.rpartition(",")
    return [f"{head}{name}:{given}{comma}{one}=" for one in options_of(registry, name) if one.startswith(last)]


def sources(incomplete: str) -> list[str]:
    """Complete a source: its name and its options.

    >>> sources("teacher:answ")
    ['teacher:answers=']
    """
    return [one.removeprefix("@") for one in objectives(f"@{incomplete}")]


def metrics(incomplete: str) -> list[str]:
    """Complete a list of metrics.

    >>> metrics("ece,rougeL_")
    ['ece,rougeL_by_length']
    """
    from kdcli.registry.registry import METRICS

    head, comma, part = incomplete.rpartition(",")
    return [f"{head}{comma}{name}" for name in METRICS.names() if name.startswith(part)]


def contenders(incomplete: str) -> list[str]:
    """Complete an objective, or the folder of a run or study."""
    return [*objectives(incomplete), *(one for one in files(incomplete) if one.endswith("/"))]


def named(catalogue: str, incomplete: str) -> list[str]:
    """Complete a name of a catalogue: losses, metrics, sources, scores or presets.

    >>> named("sources", "rep"), named("presets", "g")
    (['replay'], ['gkd'])
    """
    if catalogue == "presets":
        from kdcli.config.presets import cards

        return _starting((card.name for card in cards()), incomplete)
    from kdcli.registry import registry

    return _starting(getattr(registry, catalogue.upper()).names(), incomplete)


def configs(incomplete: str) -> list[str]:
    """Complete a preset or a YAML file."""
    return [*named("presets", incomplete), *files(incomplete, (".yaml", ".yml"))]


def settings(incomplete: str) -> list[str]:
    """Complete the dotted name of a setting, part by part, and its value where there are a few.

    >>> settings("train.gradient_ch")
    ['train.gradient_checkpointing=']
    >>> settings("hardware.shard=f")
    ['hardware.shard=fsdp2']
    """
    from kdcli.config.resolve import iter_settings
    from kdcli.config.schema import KINDS

    known = {path: setting for kind in KINDS for path, setting in iter_settings(kind).items()}
    name, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{path}=" for path in known if path.startswith(incomplete)]
    if name not in known:
        return []
    schema = known[name].schema
    words = ["true", "false"] if schema.get("type") == "boolean" else [str(one) for one in schema.get("enum", ())]
    return [f"{name}={word}" for word in _starting(words, value)]


def choices(setting: str) -> Callable[[str], list[str]]:
    """Return what completes the value of a setting that is one of a few words.

    >>> choices("hardware.device")("c")
    ['cpu', 'cuda']
    """

    def complete(incomplete: str) -> list[str]:
        return [one.partition("=")[2] for one in settings(f"{setting}={incomplete}")]

    return complete


def trackers(incomplete: str) -> list[str]:
    """Complete a list of trackers."""
    from kdcli.config.trackers import TRACKERS

    head, comma, part = incomplete.rpartition(",")
    return [f"{head}{comma}{name}" for name in TRACKERS if name.startswith(part)]


def files(incomplete: str, endings: tuple[str, ...] = ()) -> list[str]:
    """Complete the path of a file or folder; of files, those with one of the endings."""
    folder, slash, part = incomplete.rpartition("/")
    try:
        found = sorted(Path((folder + slash) or ".").expanduser().iterdir())
    except OSError:
        return []
    shown = [one for one in found if part.startswith(".") or not one.name.startswith(".")]
    kept = [one for one in shown if one.name.startswith(part)]
    return [
        f"{folder}{slash}{one.name}{'/' if one.is_dir() else ''}"
        for one in kept
        if one.is_dir() or not endings or one.name.endswith(endings)
    ]


COMPLETERS: dict[str, Callable[[str], list[str]]] = {
    "--loss": objectives,
    "OBJECTIVE": objectives,
    "OBJECTIVE|RUN|STUDY": contenders,
    "--baseline": objectives,
    "--metric": metrics,
    "--source": sources,
    "--config": configs,
    "--set": settings,
    "--report-to": trackers,
    "--device": choices("hardware.device"),
    "--dtype": choices("hardware.dtype"),
    "--shard": choices("hardware.shard"),
    "--executor": choices("execution.executor"),
    "--kind": choices("kind"),
    "--store-dtype": choices("store_dtype"),
}
"""Flag, or what stands for an argument -> what completes its value."""


def _starting(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
