"""The one error type users meet: what is wrong, where, and what to type instead."""

import errno

_REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE})


class KDError(Exception):
    """Anything a user can get wrong; printed as one line and turned into an exit code.

    Args:
        code: stable identifier such as ``DATA-05``, printed in brackets.
        what: the mistake, as *expected X, got Y*.
        where: file and line, flag, or key that holds it.
        fix: what to type instead.

    >>> print(InputError("DATA-05", 'field "response" is missing', where="train.jsonl line 12", fix="add it"))
    error[DATA-05]: train.jsonl line 12: field "response" is missing. Fix: add it
    """

    exit_code: int = 1

    def __init__(self, code: str, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        fix = f". Fix: {self.fix}" if self.fix else ""
        return f"error[{self.code}]: {place}{self.what}{fix}"


class UsageError(KDError):
    """A flag, argument or objective that cannot be understood."""

    exit_code = 2


class InputError(KDError):
    """A config, data set, tokenizer, model or plug-in that cannot be used."""

    exit_code = 3


class MachineError(KDError):
    """The machine refuses: disk, permission, memory, missing device."""

    exit_code = 4


class BusyError(KDError):
    """Another process holds the run folder."""

    exit_code = 5


class IntegrityError(KDError):
    """A file is not what its manifest says."""

    exit_code = 6


class NumericsError(KDError):
    """A loss or gradient that is not finite."""

    exit_code = 7


class ExperimentChangedError(KDError):
    """Resuming would change the experiment."""

    exit_code = 8


class InterruptedRunError(KDError):
    """Stopped by a signal after saving; carries the command that goes on.

    Args:
        signal_number: the signal received (2 or 15).
        what: what was saved.
        fix: the command that resumes.
    """

    def __init__(self, signal_number: int, what: str, *, fix: str) -> None:
        super().__init__("STOP", what, fix=fix)
        self.exit_code = 128 + signal_number


def raise_machine_fault(error: BaseException, where: str = "") -> None:
    """Raise what no file of the user is to blame for: a missing package, lack of memory, a disk that refuses.

    To be called before a library's error is passed on as the fault of the file it was reading.

    Args:
        error: what a library raised; so are the errors that it was raised from.
        where: what was being read.

    Raises:
        MachineError: ENV-05, a package is not installed, by name; ENV-03, the disk or the permissions refuse.
        MemoryError: as it came.

    >>> raise_machine_fault(ModuleNotFoundError("No module named 'x'", name="x"))
    Traceback (most recent call last):
    ...
    kdcli.errors.MachineError: error[ENV-05]: the Python package x is not installed. Fix: pip install x
    >>> raise_machine_fault(ValueError("no"))
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError):
            raise seen
        if isinstance(seen, ImportError):
            name = (seen.name or "").partition(".")[0]
            said = " ".join(str(seen).split())[:160]
            what = f"the Python package {name} is not installed" if name else f"a Python package is missing: {said}"
            fix = f"pip install {name}" if name else "install the package that this names, with pip install NAME"
            raise MachineError("ENV-05", what, where=where, fix=fix) from error
        if isinstance(seen, OSError) and seen.errno in _REFUSALS:
            what, fix = f"cannot be read: {seen.strerror}", "check owner, mode, disk and mount of the path"
            raise MachineError("ENV-03", what, where=where or str(seen.filename or ""), fix=fix) from error
        seen = seen.__cause__
