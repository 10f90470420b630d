"""``kd rerun``: trains a finished run again from its own settings and compares the students."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.config import resolve
from kdcli.config.schema import DistillConfig
from kdcli.distill.fingerprint import changes
from kdcli.distill.prepare import prepare_run
from kdcli.distill.run import distill, read_run
from kdcli.errors import ExperimentChangedError, UsageError
from kdcli.events import Report
from kdcli.loading.session import Session
from kdcli.storage.atomic import verify_folder
from kdcli.storage.run_dir import CONFIG, RunFolder
from kdcli.text import typed

_WEIGHTS = ".safetensors"
_ALSO = ("platform", "device", "python", "revision")


@dataclass(frozen=True)
class Rerun:
    """A run and its repetition.

    Args:
        run: the folder repeated.
        again: the new folder.
        loss: the objective.
        seed: training seed.
        identical: whether every weight file has the same digest.
        weights: weight file -> sha256 in the first run.
        weights_again: the same of the repetition.
        environment: what differs in versions, threads, machine; one sentence each.
    """

    run: Path
    again: Path
    loss: str
    seed: int
    identical: bool
    weights: dict[str, str]
    weights_again: dict[str, str]
    environment: tuple[str, ...]


def rerun(run: Path, output: Path, report: Report, *, command: str = "") -> Rerun:
    """Train a run again in a new folder and compare the weights; goes on where it was stopped.

    Args:
        run: a finished run.
        output: the new run folder.
        report: called with events.
        command: what to type to go on after an interruption.

    Raises:
        UsageError: the run is not finished or was trained by several processes, or the new folder is the old one.
        ExperimentChangedError: a model, data or code has changed since; names it.
        IntegrityError: the student of the run is not what its manifest says.
    """
    if run.resolve() == output.resolve():
        raise UsageError("CLI-10", "this is the run itself", where=f"-o {output}", fix="give a new folder")
    first = read_run(run)
    weights = _weights(run)
    config = _settings(run, output)
    if config.hardware.gpus > 1:
        what = f"the run was trained by {config.hardware.gpus} processes"
        raise UsageError(
            "CLI-21",
            what,
            where=str(run),
            fix=f"repeat it with: kd distill -c {typed(run / CONFIG)} -o {typed(output)}",
        )
    session = Session()
    prepared = prepare_run(config, session)
    _refuse_changes(first.identity, prepared.identity, run)
    again = distill(config, report, command=command, session=session)
    found = _weights(again.folder)
    same = weights == found
    return Rerun(run, again.folder, first.loss, first.seed, same, weights, found, _environment(run, again.folder))


def _settings(run: Path, output: Path) -> DistillConfig:
    """Return the run's settings for another folder; a cache that is gone gives way to the teacher itself."""
    config = resolve.resolve(DistillConfig, file=run / CONFIG)
    gone = config.teacher_cache is not None and not Path(config.teacher_cache).exists()
    return config.model_copy(update={"output": str(output)} | ({"teacher_cache": None} if gone else {}))


def _refuse_changes(saved: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """Refuse to train something else under the name of a repetition."""
    for key in sorted({*saved, *now}):
        if saved.get(key) != now.get(key):
            raise ExperimentChangedError(
                "RUN-08",
                f"{key} was {saved.get(key)!r} and is now {now.get(key)!r}",
                where=str(run),
                fix="restore its inputs; to compare two different runs use kd compare",
            )


def _weights(run: Path) -> dict[str, str]:
    files = verify_folder(RunFolder(run).model)["files"]
    return {name: entry["sha256"] for name, entry in sorted(files.items()) if name.endswith(_WEIGHTS)}


def _environment(run: Path, again: Path) -> tuple[str, ...]:
    """Say what differs between the two runs' surroundings."""
    before, now = (RunFolder(folder).manifest()["environment"] for folder in (run, again))
    others = [
        f"{name} was {before.get(name)} and is now {now.get(name)}"
        for name in _ALSO
        if before.get(name) != now.get(name)
    ]
    return (*changes(before, now), *others)
