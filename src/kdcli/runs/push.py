"""Uploads a finished student; the last thing a run does, and never its undoing."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from kdcli.durable import MANIFEST
from kdcli.engine.events import Event, Report
from kdcli.errors import UsageError
from kdcli.text import one_line


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


def push(model: Path, name: str, report: Report) -> bool:
    """Upload a model folder; a failure is a warning.

    Args:
        model: the student's folder, card included.
        name: the repository; made if it does not exist.
        report: told where it went, or why it did not.

    Returns:
        whether it was uploaded.
    """
    report(Event("stage", f"pushing to {name}"))
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        where = api.upload_folder(repo_id=name, folder_path=str(model), ignore_patterns=[MANIFEST])
    except Exception as error:  # whatever the hub or the network answers, the run itself is done
        said = one_line(f"{type(error).__name__}: {error}", 300)
        report(Event("warning", f"not pushed to {name}: {said}. The run is complete; later: hf upload {name} {model}"))
        return False
    report(Event("note", f"pushed to {one_line(str(where), 300)}"))
    return True
