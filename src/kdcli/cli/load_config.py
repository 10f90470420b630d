"""Turns flags into a checked config, and checks the files, models and objectives it names; imports nothing heavy."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli.cli.errors import ARGUMENTS, RUN_FOLDER
from kdcli.config.presets import config_path
from kdcli.config.resolve import Config, resolve
from kdcli.config.trackers import check_trackers
from kdcli.data.files import inspect_path
from kdcli.errors import MachineError, UsageError
from kdcli.interface import checked
from kdcli.models.presence import check_present
from kdcli.registry import plugins
from kdcli.registry.catalog import TEACHERLESS
from kdcli.registry.outline import check_objective
from kdcli.registry.spec import parse_objective
from kdcli.remote.address import is_url
from kdcli.storage.locate import locate
from kdcli.text import one_line
from kdcli.text import typed as quoted


def load_config(
    kind: type[Config], config: Sequence[str] | None, sets: Sequence[str] | None, typed: Mapping[str, Any]
) -> Config:
    """Merge flags, variables and file into a config and check every name in it.

    Args:
        kind: the config to fill.
        config: what ``-c`` was given.
        sets: what ``--set`` was given.
        typed: the settings as typed: flag in snake case -> what was typed, None where nothing was.

    Raises:
        UsageError: two files, or a name that does not exist.
    """
    if config and len(config) > 1:
        raise UsageError("CLI-14", f"{len(config)} files are given", where="-c", fix="give one; use --set key=value")
    given = {name: value for name, value in typed.items() if value not in (None, [], (), False)}
    flags = {name: "true" if value is True else value for name, value in given.items()}
    if "metric" in flags:
        flags["metric"] = ",".join(flags["metric"])
    named = config_path if kind.has_presets else Path
    file = named(config[0]) if config else None
    line: dict[str, Any] = {"sets": sets or (), "flags": flags, "environ": os.environ}
    own = resolve(kind, **line)
    benchmarks = getattr(own, "benchmarks", None)
    if benchmarks is not None:  # task files may hold code; those of a settings file are not meant here
        plugins.permit(task for task in benchmarks.tasks if Path(task).expanduser().exists())
    found = resolve(kind, file=file, **line)
    _check_cluster(found.cluster, own.cluster)
    return checked(found)


def _check_cluster(found: str | None, own: str | None) -> None:
    """Refuse a cluster that only a file names: whoever runs it runs code here."""
    if found not in (None, own):
        what = f"a settings file names the cluster {one_line(found, 100)}, your command line does not"
        fix = f"if you trust it add --ray-address {quoted(found)}"
        raise plugins.WithheldError("PLUG-09", what, where="execution.ray_address", fix=fix)


def resuming(text: str | None) -> bool:
    """Read ``--resume``.

    Raises:
        UsageError: it is neither auto nor never.
    """
    if text not in (None, "auto", "never"):
        raise UsageError(
            "CLI-06", f'must be auto or never, got "{one_line(text, 40)}"', where="--resume", fix="leave it out"
        )
    return text != "never"


def looks_like_folder(name: str) -> bool:
    """Whether an argument names a folder and not an objective."""
    return Path(name).is_dir() or ("/" in name.partition(":")[0] and ".py" not in name)


def needs_teacher(text: str) -> bool:
    """Whether an objective is known to need a teacher; a plug-in is not asked here.

    >>> needs_teacher("ce"), needs_teacher("0.5*ce+fkl")
    (False, True)
    """
    return any(term.name not in TEACHERLESS and ":" not in term.name for term in parse_objective(text).terms)


def require(**values: str | None) -> None:
    """Refuse a setting left out.

    Args:
        values: flag in snake case -> its value.

    Raises:
        UsageError: names the first that is missing.
    """
    for name, value in values.items():
        if value is None:
            flag = "--" + name.replace("_", "-")
            raise UsageError("CLI-20", f"{flag} is missing", fix=f"give {flag}, or set it in a file read with -c")


def refuse_unused(typed: Mapping[str, Any], names: Sequence[str], what: str, fix: str) -> None:
    """Refuse flags that were typed and would change nothing.

    Args:
        typed: a command's parameters in snake case -> what was typed.
        names: the parameters that mean nothing here.
        what: why.
        fix: what to do instead.

    Raises:
        UsageError: names the first one typed.
    """
    for name in names:
        if typed.get(name) not in (None, False, [], ()):
            raise UsageError("CLI-09", what, where="--" + name.replace("_", "-"), fix=fix)


def output_folder(output: str | None, *, needed: bool) -> None:
    """Check the folder to write into, and make it the place of the error log.

    Args:
        output: as given.
        needed: refuse to go on without one.

    Raises:
        UsageError: it is missing, or the path runs through a file.
        MachineError: the nearest existing folder may not be written.
    """
    if output is None:
        if needed:
            require(output=None)
        return
    folder = Path(output)
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        what, where = (error.strerror or str(error)).lower(), f"-o {one_line(output, 200)}"
        raise MachineError("CLI-10", what, where=where, fix="give another path") from error
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    where = f"-o {one_line(str(Path.cwd() / folder))}"
    if not existing.is_dir():
        raise UsageError("CLI-10", f"{one_line(str(existing))} is not a folder", where=where, fix="give another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise MachineError(
            "CLI-10", f"{one_line(str(existing))} may not be written", where=where, fix="give another path"
        )
    RUN_FOLDER.set(folder)


def command_line() -> str:
    """Return the command line that resumes the command at hand, quoted for a shell."""
    words, kept = list(ARGUMENTS.get()), []
    while words:
        word = words.pop(0)
        if word == "--resume":
            del words[:1]
        elif not word.startswith("--resume="):
            kept.append(word)
    return shlex.join(["kd", *kept])


# Files, models and objectives that the settings name.


_MADE = ("random:", "cut:", "supernet:", "tiny:")
_SEVERAL = ("+", "*")
"""What stands in the text of a teacher that is a sum of teachers."""


def check_inputs(settings: Any, *, computes: bool = True) -> None:
    """Refuse rows, models and devices that are not there, trackers that are not installed, and options out of bounds.

    What remains, such as the contents of a file, is checked where it is read.

    Args:
        settings: of any command.
        computes: whether it computes on this machine.

    Raises:
        KDError: the first thing that is wrong, in the words of the part that would meet it later.
    """
    data = getattr(settings, "data", None)
    for path in (data.train, data.eval, data.dev, data.corpus) if data is not None else ():
        if path is not None and not path.startswith("@"):
            inspect_path(path)
    for path in (getattr(settings, "answers", None), getattr(settings, "scores", None)):
        if path is not None and not Path(path).expanduser().is_dir():
            inspect_path(path)
    for spec in _objectives(settings):
        check_objective(spec)
    hardware = getattr(settings, "hardware", None)
    if computes and hardware is not None:
        check_present(hardware.device)
    train = getattr(settings, "train", None)
    if train is not None:
        check_trackers(train.report_to)
    for name in ("teacher", "student", "model"):
        model = getattr(settings, name, None)
        if model is not None and not (
            model.startswith(_MADE) or is_url(model) or any(sign in model for sign in _SEVERAL)
        ):
            locate(model)


def _objectives(settings: Any) -> Iterable[str]:
    yield from getattr(settings, "losses", ())
    if getattr(settings, "loss", None) is not None:
        yield settings.loss
