"""``kill -9`` at random progress: the table's bytes are those of a comparison that nobody touched."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import study
from kdcli.events import silent
from kdcli.study import results
from kdcli.study.compare import compare

TABLES = ("table.md", "table.json", "table.csv", "table.tex", "results.parquet", "samples.parquet")
HERE = Path(study.__file__).parent


@pytest.fixture
def parts(tmp_path):
    return study.Parts(tmp_path)


def killed(root, kills, seed):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "killing.py"), str(root), str(kills), str(seed)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("kills", "seed"), [(3, 1), pytest.param(20, 2, marks=pytest.mark.full)])
def test_kills_change_no_byte(parts, monkeypatch, kills, seed):
    monkeypatch.setattr(results, "publish", lambda folder, *rest: None)
    whole = compare(parts.study("fkl", "akl", seeds=(0, 1), name="whole"), silent, repeat="kd compare")
    seen = killed(parts.root, kills, seed)
    assert (seen["kills"], seen["status"], seen["touched"]) == (kills, 0, [])
    for name in TABLES:
        assert (parts.root / "killed" / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.slow
def test_children_end_with_their_killed_parent(parts, monkeypatch):
    monkeypatch.chdir(parts.root)
    options = ["--teacher", "teacher", "--student", "student", "--data", "train.jsonl", "--eval-data", "test.jsonl"]
    options += ["--max-steps", "400", "--batch-size", "4", "--metric", "perplexity", "--threads", "1"]
    options += ["--set", "train.save_every=20", "--jobs", "2", "-o", "study"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdcli", "compare", "fkl", "rkl", *options], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: list(Path("study").glob("cells/*/checkpoint-*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    from kdcli.storage import lock

    wait_for(lambda: not any(lock.is_held(cell) for cell in Path("study/cells").iterdir()))
    cells = [path.parent for path in Path("study").glob("cells/*/status.json")]
    saved = [cell for cell in cells if list(cell.glob("checkpoint-*"))]
    assert saved
    for cell in saved:  # one that was still loading its models had nothing to save
        assert json.loads((cell / "status.json").read_text())["state"] in ("interrupted", "done")


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
