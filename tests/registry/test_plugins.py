"""What a folder's records name is never run as code unless the user's own line names it, too."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from kdcli.errors import UsageError
from kdcli.registry import plugins
from kdcli.registry.registry import LOSSES
from kdcli.study.executors import child
from shell import kd
from tiny import folder, rows

LOSS = '''
from pathlib import Path
from typing import ClassVar

from kdcli.losses.divergences.base import Divergence


class Mine(Divergence):
    """Half the square."""

    name: ClassVar[str] = "mine"
    formula: ClassVar[str] = "(log p - log q)^2 / 2"
    reference: ClassVar[str] = "none"
    cost: ClassVar[str] = "little"

    def divergence(self, log_q, log_p):
        return (log_p.exp() * (log_p - log_q).square()).sum(-1) / 2
'''
METRIC = '''
from typing import ClassVar

import numpy as np

from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import over_answers


class Letters(TextMetric):
    """Letters per answer."""

    name: ClassVar[str] = "letters"
    description: ClassVar[str] = "letters per answer"
    scores: ClassVar[dict] = {"letters": "higher"}

    def measure(self, predictions, references, **also):
        return [over_answers("letters", np.array([[float(len(a)) for a in row] for row in predictions]), "higher")]
'''
COMMON = shlex.split(
    "--teacher teacher --student student --data train.jsonl --eval-data test.jsonl --max-steps 2 --device cpu "
    "--max-new-tokens 4 --sampling-seeds 1 --quiet"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A study of two runs whose loss and metric are plug-ins, which were harmless while these were made."""
    home = tmp_path_factory.mktemp("stranger")
    folder(home / "teacher", seed=1)
    folder(home / "student", seed=2)
    rows(home / "train.jsonl", 16)
    rows(home / "test.jsonl", 4)
    (home / "evil.py").write_text(LOSS)
    (home / "score.py").write_text(METRIC)
    metrics = ["--metric", "./score.py:Letters,perplexity"]
    answer = kd("compare", *COMMON, *metrics, "fkl", "./evil.py:Mine", "-o", "study", folder=home)
    assert answer.code == 0, answer.err
    cells = json.loads((home / "study" / "study.json").read_text())["cells"]
    for name, cell in zip(("run1", "run0"), cells, strict=True):
        (home / name).symlink_to(home / "study" / cell["folder"])
    for name in [name for name in sys.modules if name.startswith("kd_guest_")]:
        del sys.modules[name]
    for name in ("evil.py", "score.py"):
        text = (home / name).read_text()
        (home / name).write_text(f"from pathlib import Path\nPath({str(home / 'marker')!r}).touch()\n{text}")
    return home


READING = {
    "compare run0 run1": 0,
    "compare study": 0,
    "compare -o study": 0,
    "compare study --status": 0,
    "compare study --to table.csv": 0,
    "report run0 -o page.html": 0,
    "report study -o page.html": 0,
    "verify run0": 0,
    "verify study": 0,
    "eval run0 --data test.jsonl --metric perplexity -o measured --device cpu": 0,
    "distill --dry-run --teacher run0 --student student --data train.jsonl --device cpu": 0,
    "rerun run0 -o again": 2,
    "distill -c run0/config.yaml -o again": 2,
    "distill -c run0/config.yaml --loss fkl -o again": 2,
    "compare -c study/study.yaml -o again": 2,
    "compare study --seeds 0,1": 2,
    "eval -c run0/eval.yaml": 3,
    "inspect batch -c run0/config.yaml fkl": 2,
}


@pytest.mark.parametrize("line", READING)
def test_no_command_that_reads_a_folder_runs_its_code(made, line):
    answer = kd(*shlex.split(line), folder=made)
    assert not (made / "marker").exists(), f"kd {line} ran the code of a folder"
    assert answer.code == READING[line], answer.err
    if answer.code == 2:
        (said,) = answer.error_lines
        assert "--plugin" in said


def test_a_table_without_the_code_is_the_table_with_it(made):
    table = (made / "study" / "table.csv").read_text()
    assert "letters" in table
    assert kd("compare", "study", "--to", "now.csv", folder=made).code == 0
    assert (made / "now.csv").read_text() == table
    rows = json.loads(kd("compare", "study", "--json", folder=made).out)["rows"]
    assert [row["label"] for row in rows] == ["fkl", f"{made / 'evil.py'}:Mine"]
    assert rows[1]["teacher_tokens"] == rows[0]["teacher_tokens"] > 0


def test_code_that_the_line_names_is_run(made, tmp_path):
    (tmp_path / "mine.py").write_text(LOSS)
    (tmp_path / "settings.yaml").write_text("loss: ./mine.py:Mine\n")
    line = ["distill", *COMMON[:6], "--dry-run", "--device", "cpu", "-c", "settings.yaml"]
    line = [str(made / word) if word in ("teacher", "student", "train.jsonl") else word for word in line]
    refused = kd(*line, folder=tmp_path)
    assert refused.code == 2
    (said,) = refused.error_lines
    assert said.endswith("add --plugin ./mine.py")
    assert kd(*line, *shlex.split(said.rpartition("add ")[2]), folder=tmp_path).code == 0
    assert kd(*line, "--loss", "0.5*ce+0.5*./mine.py:Mine", folder=tmp_path).code == 0


@pytest.mark.parametrize(
    "text", ["--loss=./mine.py:Mine", "0.5*ce+./mine.py:Mine", "route:student=(./mine.py:Mine)", "mine.py:Other"]
)
def test_a_line_names_a_file(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with plugins.only_named_in(["distill", text]):
        assert plugins.may_run(f"{tmp_path}/mine.py:Mine")
        assert not plugins.may_run("other.py:Mine")
        assert not plugins.may_run("mine:Mine")
        with pytest.raises(plugins.WithheldError):
            LOSSES.resolve("antigravity:Mine")
    with plugins.only_named_in(["compare", "mine.py", "mine"]):
        assert not plugins.may_run("mine.py:Mine")
        assert not plugins.may_run("mine:Mine")
        plugins.permit(["os.path"])
        assert plugins.may_run("os.path:join")
        with pytest.raises(UsageError, match="neither a file"):
            plugins.permit(["./gone.py"])


def test_code_in_a_file_with_an_odd_name_can_be_named():
    with plugins.only_named_in(["--loss", "0.5*/a b+c/mine.py:Mine:mu=1"]):
        assert plugins.may_run("/a b+c/mine.py:Mine")
        assert not plugins.may_run("/x/a b+c/mine.py:Mine")


def test_a_cluster_that_only_a_file_names_is_not_joined(tmp_path):
    (tmp_path / "study.yaml").write_text("execution:\n  executor: ray\n  ray_address: ray://elsewhere:10001\n")
    line = ["compare", "fkl", "rkl", *COMMON, "-o", "study", "-c", "study.yaml"]
    refused = kd(*line, folder=tmp_path)
    assert refused.code == 2
    (said,) = refused.error_lines
    assert "PLUG-09" in said
    named = kd(*line, *shlex.split(said.rpartition("add ")[2]), folder=tmp_path)
    assert "PLUG-09" not in named.err


def test_children_import_nothing_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, flags in (([], ["-P"]), ([""], []), ([str(tmp_path)], [])):
        monkeypatch.setattr(sys, "path", [*path, *(one for one in sys.path if one not in ("", str(tmp_path)))])
        assert child.python() == [sys.executable, *flags]
