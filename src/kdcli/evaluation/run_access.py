"""The exclusive use of a run folder, its leftovers, and the record of how a run failed."""

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kdcli import distributed
from kdcli.errors import BusyError, InterruptedRunError, KDError, MachineError
from kdcli.evaluation.answers import superseded_answers
from kdcli.storage import atomic, lock
from kdcli.storage.run_dir import EVAL, MADE, RunFolder
from kdcli.teachers.remote import ASKED
from kdcli.training.checkpoint import checkpoints


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Make the folder and hold its lock, on rank 0 only."""
    with ExitStack() as stack:
        if distributed.rank() == 0:
            atomic.make_folder(folder.path)
            stack.enter_context(exclusive(folder.path))
        yield


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a run folder's lock, and remove what killed writers left in it; within itself it does nothing.

    Raises:
        BusyError: another process holds it.
        IntegrityError: the lock is a link.
        MachineError: the folder may not be written.
    """
    if lock.holds(folder):
        yield
        return
    with lock.hold(folder):
        for one in (folder, folder / EVAL, folder / MADE):
            atomic.remove_temporaries(one)
        yield


def superseded_files(folder: Path, *, keep_checkpoints: bool) -> list[Path]:
    """Return what a finished run does not need: checkpoints, leftovers of killed writers, answers kept twice.

    Args:
        folder: of a run that is done.
        keep_checkpoints: whether its checkpoints stay.
    """
    found = [*atomic.leftovers(folder), *atomic.leftovers(folder / EVAL), *superseded_answers(folder / EVAL)]
    found += [] if keep_checkpoints else checkpoints(folder)
    return found + [path for path in (folder / ASKED,) if path.is_dir()]


def remove_superseded(folder: Path, *, keep_checkpoints: bool) -> None:
    """Remove what a finished run does not need, if no other process works in it and the disk is writable.

    Args:
        folder: of a run that is done.
        keep_checkpoints: whether its checkpoints stay.

    Raises:
        IntegrityError: its lock is a link.
    """
    if not superseded_files(folder, keep_checkpoints=keep_checkpoints):
        return
    with suppress(BusyError, MachineError), exclusive(folder):
        for path in superseded_files(folder, keep_checkpoints=keep_checkpoints):
            if path.is_dir() and not path.is_symlink():
                atomic.remove_folder(path)
            else:
                atomic.remove_file(path)


@contextmanager
def record_failure(folder: RunFolder) -> Iterator[None]:
    """Record in the folder how a run failed."""
    try:
        yield
    except (KeyboardInterrupt, InterruptedRunError):
        _note_end(folder, "interrupted", None)
        raise
    except Exception as error:
        _note_end(folder, "failed", error)
        raise


def _note_end(folder: RunFolder, state: str, error: Exception | None) -> None:
    """Write status and error.log; a disk that refuses these too must not hide the first error."""
    if distributed.rank() != 0:
        return
    try:
        if error is not None:
            atomic.write_file(folder.path / "error.log", "".join(traceback.format_exception(error)))
        if folder.is_run and not folder.is_done:
            folder.set_status(state, **_progress(folder))
    except KDError:
        return


def _progress(folder: RunFolder) -> dict[str, int]:
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.path.glob("checkpoint-????????"))
    return {"steps": steps[-1]} if steps else {}
