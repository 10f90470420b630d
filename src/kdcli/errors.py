"""The error type of the package: code, what is wrong, where, and how to fix it."""

import errno
import os
from collections.abc import Iterable, Iterator

_OF_PATHS = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EFBIG})
_REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE})


ERROR_LINE = "kd: "
"""How the one line begins that a failed command writes to stderr."""


class KDError(Exception):
    """Anything a user can get wrong; printed as one line and turned into an exit code.

    Args:
        code: stable identifier such as ``DATA-05``, printed in brackets.
        what: the mistake, as *expected X, got Y*.
        where: file and line, flag, or key that holds it.
        fix: what to type instead.

    ``also`` holds further mistakes that were found at the same time, see :func:`raise_all`.

    >>> print(InputError("DATA-05", 'field "response" is missing', where="train.jsonl line 12", fix="add it"))
    error[DATA-05]: train.jsonl line 12: field "response" is missing. Fix: add it
    """

    exit_code: int = 1
    also: "tuple[KDError, ...]" = ()

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


class NoMemoryError(MachineError):
    """There is no memory left."""


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


def raise_all(faults: Iterable[KDError]) -> None:
    """Raise the first of several mistakes, with the others in ``also``, each once; return if there are none.

    >>> try:
    ...     raise_all([UsageError("A-1", "one"), InputError("B-2", "other"), UsageError("A-1", "one")])
    ... except UsageError as first:
    ...     print(first, "|", *first.also)
    error[A-1]: one | error[B-2]: other
    """
    each = list({str(fault): fault for fault in faults}.values())
    if each:
        each[0].also = tuple(each[1:])
        raise each[0]


def raise_machine_fault(error: BaseException, where: str = "") -> None:
    """Raise what no file of the user is to blame for: a missing package, lack of memory, a disk that refuses.

    To be called before a library's error is passed on as the fault of the file it was reading.

    Args:
        error: what a library raised; so are the errors that it was raised from.
        where: what was being read.

    Raises:
        MachineError: ENV-05, a package is not installed, by name; ENV-03, the disk or the permissions refuse; ENV-02,
            there is no memory left, or no further thread.

    >>> raise_machine_fault(ModuleNotFoundError("No module named 'x'", name="x"))
    Traceback (most recent call last):
    ...
    kdcli.errors.MachineError: error[ENV-05]: the Python package x is not installed. Fix: pip install x
    >>> raise_machine_fault(ValueError("no"))
    """
    if (lacking := _what_is_lacking(error)) is not None:
        raise lacking from error
    seen: BaseException | None = error
    while seen is not None:
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


def explained(error: BaseException) -> KDError | None:
    """Return what a user can do about an error, None if it is a bug: our own errors as they are, else the machine's.

    An error of ours that blames an input, raised from a lack of memory or a full disk, is the machine's, too.

    Args:
        error: anything that was raised.

    >>> explained(MemoryError()).exit_code, explained(ValueError("x")) is None
    (4, True)
    """
    lacking = _what_is_lacking(error)
    if isinstance(error, KDError):
        return lacking if lacking is not None and isinstance(error, InputError | UsageError) else error
    if lacking is not None:
        return lacking
    for seen in _chain(error):
        if isinstance(seen, KDError):
            return None
        if isinstance(seen, FileNotFoundError) and _is_gone():
            fix = "change to a folder that is there, then run it again"
            return MachineError("ENV-06", "the working directory was removed", fix=fix)
        if isinstance(seen, OSError) and seen.errno in _REFUSALS | _OF_PATHS:
            reason = (seen.strerror or str(seen)).lower()
            return MachineError("ENV-03", reason, where=_file(seen), fix="check owner, mode and mount of the path")
    return None


_LACKING = "ENV-02"
"""The code of the error where memory or threads are lacking."""

_NO_MEMORY = (os.strerror(errno.ENOMEM), "can't allocate memory", "std::bad_alloc", "failed to map segment")
_NO_THREAD = ("can't start new thread", "pthread_create failed")
"""Messages of libraries that raise no type of their own for it."""


def _what_is_lacking(error: BaseException) -> MachineError | None:
    """Return what the machine has no more of, if an error or one that it was raised from says so."""
    for seen in _chain(error):
        text, number = str(seen), seen.errno if isinstance(seen, OSError) else None
        if isinstance(seen, MachineError):
            return None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
            return MachineError(
                "ENV-01", "the disk is full", where=_file(seen), fix="free some space, then run it again"
            )
        memory = isinstance(seen, MemoryError) or number == errno.ENOMEM or type(seen).__name__ == "OutOfMemoryError"
        foreign = not isinstance(seen, KDError)
        if memory or (foreign and any(words.lower() in text.lower() for words in _NO_MEMORY)):
            return NoMemoryError(_LACKING, "out of memory", fix="free some, or use a machine with more")
        if foreign and any(words in text for words in _NO_THREAD):
            fix = "end other programs, or raise the limits that ulimit -u and ulimit -v show"
            return MachineError(_LACKING, "no further thread can be started", fix=fix)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and id(seen) not in known:
        known.add(id(seen))
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _is_gone() -> bool:
    """Whether the working directory was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _file(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, str | bytes) else ""
