"""Whose fault an error is: the machine's is not blamed on the user's files, nor taken for a bug."""

import errno
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from kdcli.comparison.records import Comparison, Failure
from kdcli.config.schema import CompareConfig
from kdcli.errors import BusyError, InputError, MachineError, UsageError, explained, raise_machine_fault
from kdcli.study.compare import _conclude
from kdcli.study.executors.base import Job, JobResult
from kdcli.study.references import Measured
from kdcli.study.scheduler import Outcome, failure_of


def out_of_memory_in_torch():
    try:
        torch.empty(2**50, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("a pebibyte was given")


LACKING = {
    "memory": MemoryError(),
    "mmap": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "torch": out_of_memory_in_torch(),
    "mmap in a library": RuntimeError(
        "unable to mmap 8 bytes from file <model.safetensors>: Cannot allocate memory (12)"
    ),
    "thread": RuntimeError("can't start new thread"),
    "library": ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
}


def raised(cause, kind=InputError):
    try:
        raise kind("MOD-01", "cannot be loaded", where="student", fix="copy it again") from cause
    except kind as error:
        return error


@pytest.mark.parametrize("name", LACKING)
def test_what_the_machine_lacks_is_no_fault_of_a_file(name, tmp_path):
    for error in (LACKING[name], raised(LACKING[name]), raised(LACKING[name], UsageError)):
        known = explained(error)
        assert isinstance(known, MachineError)
        assert known.code in ("ENV-01", "ENV-02")
    with pytest.raises(MachineError):
        raise_machine_fault(LACKING[name], "student")
    failed = failure_of(JobResult(job(tmp_path / "none"), 3, raised(LACKING[name])))
    assert failed.exit_code == 4
    assert "copy it again" not in failed.message


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EFBIG])
def test_a_path_that_the_system_refuses_is_the_machines(number):
    assert explained(OSError(number, "no", "x")).exit_code == 4


def test_other_errors_stay_what_they_are():
    for error in (raised(ValueError("no")), raised(FileNotFoundError("no")), BusyError("RUN-05", "held")):
        assert explained(error) is error
    held = raised(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), BusyError)
    assert explained(held) is held
    for error in (ValueError("no"), KeyError("x"), ImportError("no module"), FileNotFoundError("x")):
        assert explained(error) is None


def job(folder):
    made = Mock(spec=Job)
    made.cell = SimpleNamespace(label="fkl", seed=0, folder=SimpleNamespace(path=folder))
    return made


def test_a_comparison_ends_with_4_where_a_cell_failed_by_the_machines_fault(tmp_path):
    def failure(code):
        return Failure("fkl", 0, "error[X]: no", tmp_path / "error.log", code)

    def ends(*codes):
        return Comparison("fkl", (), (), (), None, tuple(map(failure, codes))).exit_code

    assert (ends(), ends(3), ends(3, 7), ends(7, 3, 4)) == (0, 3, 3, 4)
    for codes, kind in (((3, 4), MachineError), ((7, 3), UsageError)):
        with pytest.raises(kind, match="every run failed"):
            _conclude(CompareConfig(), tmp_path, [], Outcome(), list(map(failure, codes)), None, "", Measured())
