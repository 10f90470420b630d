"""Turns what a user typed for a model into a folder on this machine."""

import os
import re
from pathlib import Path

from kdcli.errors import InputError, raise_machine_fault
from kdcli.storage.run_dir import MANIFEST, MODEL
from kdcli.text import one_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def locate(path: str, *, looked_for: str = "config.json", code: str = "MOD-01") -> Path:
    """Return the folder of a model: the path itself, or the hub's files in the local cache.

    The hub is asked only for a name that is no local path, and not if ``HF_HUB_OFFLINE`` is set.
    Files of code are never fetched.

    Args:
        path: folder or hub id as typed.
        looked_for: the file whose absence is reported.
        code: identifier of the error.

    Raises:
        InputError: nothing is there; says where was looked.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(code, f"{one_line(path)} is a file; a model is a folder", fix="give the folder that holds it")
    if not _HUB_ID.match(path):
        raise _nothing(path, folder / looked_for, code, "")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import OfflineModeIsEnabled

    try:
        return Path(snapshot_download(path, allow_patterns=_HUB_FILES, local_files_only=constants.is_offline_mode()))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _nothing(path, folder / looked_for, code, _silence()) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise_machine_fault(error, one_line(path))
        lines = [*str(error).strip().splitlines(), type(error).__name__]
        raise _nothing(path, folder / looked_for, code, f"; the hub answered: {one_line(lines[0])}") from error


def _silence() -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        name = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
        return f"; the hub was not asked because {name} is set"
    return "; the hub could not be reached"


def _nothing(path: str, looked: Path, code: str, reason: str) -> InputError:
    return InputError(
        code,
        f"no model at {one_line(path)} (looked for {one_line(str(looked))}{reason})",
        fix="give a model folder or a hub id",
    )


def model_of(path: str) -> str:
    """Return the model folder that a path means: a run folder's student, else the path itself."""
    inner = Path(path).expanduser() / MODEL
    here = Path(path).expanduser()
    whole = any((here / name).is_file() for name in ("config.json", "adapter_config.json"))
    return str(inner) if (here / MANIFEST).is_file() and not whole else path
