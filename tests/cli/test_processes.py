"""Which process this is, and what is said when several have ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcli import distributed
from kdcli.cli import errors, launch
from kdcli.cli import launch as ranks
from kdcli.errors import InputError, InterruptedRunError, KDError, UsageError, raise_all


def left(folder, *lines):
    for rank, code, text, exit_code, when in lines:
        line = {"rank": rank, "code": code, "text": text, "exit_code": exit_code, "time": when}
        (folder / f"{rank}.json").write_text(json.dumps(line))
    return folder


def said(folder, codes, signal_number=0, saved=7):
    with pytest.raises(KDError) as caught:
        ranks.conclude(folder, ranks.Ended(codes, signal_number), 2, saved, "kd distill -o x")
    return str(caught.value), caught.value.exit_code


LOST = (0, "PROC-01", "error[PROC-01]: another process of the run ended", 4, 5.0)


def test_nothing_is_said_when_all_went_well(tmp_path):
    ranks.conclude(tmp_path, ranks.Ended({}), 2, None, "")


def test_an_error_of_ones_own_comes_before_what_the_others_made_of_it(tmp_path):
    left(tmp_path, LOST, (1, "ENV-02", "error[ENV-02]: out of memory", 4, 6.0))
    assert said(tmp_path, {0: 4}) == ("process 1: error[ENV-02]: out of memory", 4)


def test_the_same_error_of_all_is_said_once_and_by_the_first(tmp_path):
    left(tmp_path, (1, "DATA-05", "error[DATA-05]: x", 3, 1.0), (0, "DATA-05", "error[DATA-05]: x", 3, 2.0))
    assert said(tmp_path, {1: 3}) == ("error[DATA-05]: x", 3)


def test_a_killed_process_is_named_with_what_was_saved(tmp_path):
    text, code = said(left(tmp_path, LOST), {1: -signal.SIGKILL})
    assert code == 4
    assert "process 1 of 2 was ended by SIGKILL, as a system out of memory does; saved at step 7" in text
    assert text.endswith("Fix: go on with: kd distill -o x")
    assert "nothing was saved yet" in said(tmp_path, {1: -signal.SIGSEGV}, saved=None)[0]


def test_a_signal_to_all_ends_with_what_the_first_saved(tmp_path):
    left(tmp_path, (1, "STOP", "stopped at step 3 of 9, saved", 130, 1.0), (0, "STOP", "stopped at step 3", 130, 2.0))
    assert said(tmp_path, {}, signal.SIGINT) == ("stopped at step 3", 130)
    (tmp_path / "0.json").unlink()
    (tmp_path / "1.json").unlink()
    assert said(tmp_path, {}, signal.SIGTERM)[1] == 143


def test_a_process_that_says_nothing_is_not_passed_over(tmp_path):
    assert "process 1 of 2 ended with exit code 9 and without a message" in said(tmp_path, {1: 9})[0]


def test_processes_that_kd_started_leave_their_line_and_say_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(ranks.RECORDS, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    def work():
        raise InputError("DATA-05", "x is missing")

    assert errors.run_guarded(work, debug=False) == 3
    assert capsys.readouterr().err == ""
    line = json.loads((tmp_path / "1.json").read_text())
    assert (line["code"], line["text"], line["exit_code"]) == ("DATA-05", "error[DATA-05]: x is missing", 3)


def test_several_mistakes_of_a_process_are_all_told_by_the_one_that_started_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(ranks.RECORDS, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    faults = [UsageError("PAIR-03", "one"), InputError("TOK-03", "two\nlines")]
    assert errors.run_guarded(lambda: raise_all(faults) or 0, debug=False) == UsageError.exit_code
    for name in (ranks.RECORDS, "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name)
    ended = ranks.Ended({0: 2})
    assert errors.run_guarded(lambda: ranks.conclude(tmp_path, ended, 2, None, "") or 0, debug=False) == 2
    assert capsys.readouterr().err == "kd: error[PAIR-03]: one\nkd: error[TOK-03]: two\\nlines\n"


def test_under_another_launcher_each_says_which_one_it_is(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    def work():
        raise InputError("DATA-05", "x is missing")

    def stopped():
        raise InterruptedRunError(2, "stopped at step 3 of 9, saved", fix="go on")

    assert errors.run_guarded(work, debug=False) == 3
    assert errors.run_guarded(stopped, debug=False) == 130
    assert capsys.readouterr().err == "kd: process 1: error[DATA-05]: x is missing\n"


def test_a_launcher_of_another_number_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="a launcher started 3 processes"):
        launch.already_launched(2)
    assert launch.already_launched(3)
    assert launch.already_launched(1)
    monkeypatch.delenv("WORLD_SIZE")
    assert launch.already_launched(1)
    assert not launch.already_launched(2)


@pytest.mark.parametrize(
    "given",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "WORLD_SIZE": "2", "RANK": "0"},
    ],
    ids=["batch script", "one task", "a launcher inside a task"],
)
def test_slurm_is_not_taken_for_what_it_is_not(given):
    found = dict(given)
    distributed.adopt_slurm(found)
    assert found == given


def test_steps_of_one_job_meet_at_different_ports():
    ports = set()
    for step in ("0", "1", "2"):
        found = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": step, "SLURM_JOB_ID": "4000000"}
        distributed.adopt_slurm(found)
        ports.add(int(found["MASTER_PORT"]))
    assert len(ports) == 3
    assert all(20_000 <= port < 40_000 for port in ports)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_process_ends_with_the_one_that_started_it():
    child = (
        "import os, time; from kdcli import distributed; distributed.end_with(os.getppid()); print('on', flush=True)"
    )
    parent = (
        "import subprocess, sys;"
        f"child = subprocess.Popen([sys.executable, '-c', {child + '; time.sleep(60)'!r}], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid, flush=True); import time; time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(200):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")
