"""Streams that are closed, full or unread, a working directory that is gone, signals while Python loads."""

import os
import signal
import subprocess
import sys

import pytest

from kdcli.signals import StopRequest

KD = f"{sys.executable} -m kdcli"
GONE = "mkdir gone; cd gone; rmdir ../gone; "
LINES = {
    f"{KD} presets list >&-": (4, "standard output: is closed"),
    f"{KD} presets list --json >/dev/full": (4, "the disk is full"),
    f"{KD} distil 2>&-": (2, ""),
    f"{KD} distil 2>/dev/full": (2, ""),
    f"{KD} presets list 2>/dev/full >/dev/null": (0, ""),
    f"{KD} presets list <&- >&- 2>&-": (4, ""),
    f"set -o pipefail; {KD} presets list | true": (141, ""),
    f"set -o pipefail; {KD} distill --help | true": (141, ""),
    f"set -o pipefail; {KD} --help | true": (141, ""),
    f"{GONE}{KD} presets list": (4, "the working directory was removed"),
    f"{GONE}{KD} --version >/dev/null": (0, ""),
    f"WORLD_SIZE=x {KD} distill": (2, "variable WORLD_SIZE: must be a whole number"),
    f"RANK=x {KD} distil": (2, "unknown command"),
    f"WORLD_SIZE=2 RANK=2 {KD} distill": (2, "process 2 of 2, counted from 0"),
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.replace(sys.executable, "python"))
def test_the_exit_code_is_right_and_at_most_one_line_is_said(line, tmp_path):
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    code, words = LINES[line]
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == bool(words), done.stderr


INTERRUPTED = """
import os, signal, sys
import kdcli.__main__ as entry

class Signals:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Signals())
sys.argv = ["kd", "losses", "check", "fkl"]
entry.main()
"""


@pytest.mark.parametrize("module", ["kdcli.cli.app", "typer", "torch"])
def test_ctrl_c_while_modules_load_ends_in_one_line(module, tmp_path):
    line = [sys.executable, "-c", INTERRUPTED.format(module=module)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("kd: stopped at once")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(second):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)
    assert signal.getsignal(signal.SIGTERM) == before
