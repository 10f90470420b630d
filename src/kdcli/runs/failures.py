"""Why a cell failed, in one line, and where the whole story is."""

import traceback
from pathlib import Path

from kdcli import durable, plugins
from kdcli.errors import explained
from kdcli.runs.executors.base import Ended
from kdcli.runs.records import Failure


def failure_of(ended: Ended) -> Failure:
    """Say in one line why a cell failed, and where the whole story is."""
    cell, error = ended.job.cell, ended.error
    log = cell.folder.path / "error.log"
    code = ended.exit_code if ended.exit_code >= 0 else 4
    if error is not None:
        known = explained(error) or plugins.blamed(error)
        code = known.exit_code if known is not None else 1
        if cell.folder.path.is_dir() and not log.is_file():
            durable.write_file(log, "".join(traceback.format_exception(error)))
        message = str(known) if known is not None else f"{type(error).__name__}: {error}"
        return Failure(cell.label, cell.seed, message, log, code)
    if ended.exit_code < 0:
        message = f"the process was ended by signal {-ended.exit_code}; is the machine out of memory?"
    else:
        message = _last_word(ended.job.log) or f"ended with exit code {ended.exit_code}"
    return Failure(cell.label, cell.seed, message, log if log.is_file() else ended.job.log, code)


def _last_word(log: Path) -> str:
    """Return the last line that ``kd`` said about itself, without its name."""
    try:
        lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("kd: ") for line in reversed(lines) if line.startswith("kd: ")), "")
