"""Uploads a finished student; the last thing a run does, and never its undoing."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from kdcli.durable import MANIFEST
from kdcli.engine.events import Event, Report
from kdcli.errors import MachineError, UsageError
from kdcli.text import one_line, typed


def check_repository(name: str) -> str:
    """Return the name of a repository that could exist.

    Raises:
        UsageError: it could not.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        what = f'"{one_line(name, 60)}" is not the name of a repository'
        raise UsageError("CLI-06", what, where="--push-to-hub", fix="write owner/name") from error
    return name


def push(model: Path, name: str, report: Report) -> None:
    """Upload a model folder.

    Args:
        model: the student's folder, card included.
        name: the repository; made if it does not exist.
        report: told where it went.

    Raises:
        MachineError: PUSH-01, the hub or the network refuses; the run itself is complete.
    """
    report(Event("stage", f"pushing to {name}"))
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        where = api.upload_folder(repo_id=name, folder_path=str(model), ignore_patterns=[MANIFEST])
    except Exception as error:  # whatever the hub or the network answers, the run itself is done
        what = f"not pushed to {name}, the run is complete: {one_line(f'{type(error).__name__}: {error}', 300)}"
        fix = f"later: hf upload {typed(name)} {typed(model)}"
        raise MachineError("PUSH-01", what, where="--push-to-hub", fix=fix) from error
    report(Event("note", f"pushed to {one_line(str(where), 300)}"))
