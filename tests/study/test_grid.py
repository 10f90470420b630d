"""The grid on executors that are made up: order, retries, failures, stops."""

import signal
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import pytest

import study
from kdcli.distill.records import RunRecord
from kdcli.errors import BusyError, InterruptedRunError, MachineError
from kdcli.evaluation.records import EvalRecord
from kdcli.events import silent
from kdcli.loading.session import Session
from kdcli.study import scheduler as running
from kdcli.study.cells import make_cells
from kdcli.study.executors.base import Executor, JobResult
from kdcli.study.scheduler import Scheduler

RECORDS = (
    RunRecord(Path("run"), "fkl", 0, 8, 100, 1.0, 2**20, {}),
    EvalRecord("test", "run", None, 10, {}, (), {}, "digest"),
)


class Scripted(Executor):
    """Ends every job by the next exit code of its script; after a code of 0 there are records."""

    finished: ClassVar[set[str]] = set()

    def __init__(self, codes, capacity=2):
        super().__init__(capacity)
        self.codes, self.held, self.order, self.stopped = codes, [], [], 0
        self.most = 0

    def submit(self, job, report):
        self.held.append(job)
        self.order.append(job.cell.name)
        self.most = max(self.most, len(self.held))
        return ""

    def poll(self):
        if not self.held:
            return []
        job = self.held.pop()
        code = self.codes.get(job.cell.name, [0]).pop(0)
        if code == "signal":
            signal.raise_signal(signal.SIGTERM)
            code = 0
        if code:
            job.log.write_text("kd: error[NUM-01]: it burst. Fix: lower --lr\n")
        else:
            self.finished.add(job.cell.name)
        return [JobResult(job, code)]

    def _start(self, job, report):
        raise AssertionError("submit is overridden")

    def stop(self, signal_number):
        self.stopped = signal_number


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    parts = study.Parts(tmp_path_factory.mktemp("grid"))
    return make_cells(parts.study("fkl", "rkl", "jsd"), Session())


@pytest.fixture(autouse=True)
def no_folders(monkeypatch):
    monkeypatch.setattr(Scripted, "finished", set())
    monkeypatch.setattr(running.time, "sleep", lambda seconds: None)


def collect(cell, session):
    return RECORDS if cell.name in Scripted.finished else None


def run(cells, executor, tmp_path, report=silent):
    return Scheduler(executor, tmp_path, report, Session(), "kd compare -o study", collect).run(cells)


def test_one_failure_stops_no_other_and_says_where(cells, tmp_path):
    heard = study.Heard()
    found = run(cells, Scripted({"rkl · seed 0": [7]}), tmp_path, heard)
    assert sorted(found.finished) == [0, 2]
    failure = found.failed[1]
    assert (failure.loss, failure.exit_code) == ("rkl", 7)
    assert failure.message == "error[NUM-01]: it burst. Fix: lower --lr"
    assert failure.log.read_text().startswith("kd: error[NUM-01]")
    states = [(event.message, event.values["state"]) for event in heard.events if event.kind == "cell"]
    assert states[:3] == [(cell.name, "waiting") for cell in cells]
    assert ("rkl · seed 0", "failed") in states
    assert ("jsd · seed 0", "done") in states


def test_no_more_at_once_than_asked_for(cells, tmp_path):
    executor = Scripted({}, capacity=2)
    assert len(run(cells, executor, tmp_path).finished) == 3
    assert executor.most == 2


def test_a_job_stopped_from_outside_is_started_again_a_few_times(cells, tmp_path):
    found = run(cells, Scripted({"fkl · seed 0": [143, -15, 0], "rkl · seed 0": [143] * 9}), tmp_path)
    assert sorted(found.finished) == [0, 2]
    assert found.failed[1].exit_code == 143


def test_a_cell_another_process_works_in_is_waited_for(cells, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now.__setitem__(0, now[0] + 1.0) or now[0])
    found = run(cells, Scripted({"fkl · seed 0": [BusyError.exit_code] * 3 + [0], "rkl · seed 0": [5] * 99}), tmp_path)
    assert sorted(found.finished) == [0, 2]
    assert found.failed[1].exit_code == BusyError.exit_code


def test_a_signal_stops_all_and_names_the_command(cells, tmp_path):
    executor = Scripted({"rkl · seed 0": ["signal"]})
    with pytest.raises(InterruptedRunError) as caught:
        run(cells, executor, tmp_path)
    assert (caught.value.exit_code, caught.value.fix) == (143, "go on with: kd compare -o study")
    assert executor.stopped == signal.SIGTERM
    assert executor.order == ["fkl · seed 0", "rkl · seed 0"], "nothing starts after the signal"


def test_a_killed_process_is_explained(cells, tmp_path):
    found = run(cells, Scripted({"fkl · seed 0": [-9]}), tmp_path)
    assert found.failed[0].message == "the process was ended by signal 9; is the machine out of memory?"
    assert found.failed[0].exit_code == MachineError.exit_code


class Fails(Executor):
    """An executor whose job never gives a result."""

    def _start(self, job, report):
        future = Future()
        future.set_exception(RuntimeError("x\nthe node is gone"))
        return future, "job 7"

    def stop(self, signal_number):
        pass


def test_a_job_without_a_result_is_the_machines_fault_and_names_its_log(cells, tmp_path):
    failure = run(cells[:1], Fails(1), tmp_path).failed[0]
    assert failure.exit_code == MachineError.exit_code
    assert "error[EXEC-03]" in failure.message
    assert "the node is gone" in failure.message
    assert f"{tmp_path}/logs/" in failure.message
