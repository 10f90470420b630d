"""The shell completes values, by the command itself, without importing what loads a model."""

import os
import subprocess
import sys

import pytest

from kdcli.cli.complete import COMPLETERS, files
from kdcli.cli.switches import COMPLETED

LINES = [
    ("kd distill --loss ak", ["akl"]),
    ("kd distill --loss 0.5*ce+jsd:b", ["0.5*ce+jsd:beta="]),
    ("kd distill --loss jsd@stud", ["jsd@student"]),
    ("kd compare fkl srk", ["srkl"]),
    ("kd eval --metric ece,exact", ["ece,exact_match"]),
    ("kd distill --set train.gradient", ["train.gradient_checkpointing="]),
    ("kd distill --set train.schedule=c", ["train.schedule=cosine", "train.schedule=constant"]),
    ("kd distill --device c", ["cpu", "cuda"]),
    ("kd distill --dtype b", ["bf16"]),
    ("kd distill --report-to tensor", ["tensorboard"]),
    ("kd distill --config minil", ["minillm"]),
    ("kd losses show atk", ["atkd"]),
    ("kd metrics show rouge1", ["rouge1"]),
    ("kd sources show rep", ["replay"]),
    ("kd presets show seq", ["seqkd"]),
]


@pytest.mark.parametrize("line, offered", LINES, ids=[line for line, _ in LINES])
def test_a_value_is_completed(line, offered, tmp_path):
    script = (
        "import sys; from kdcli.cli.app import run; sys.argv[0] = 'kd'\n"
        "try: run([])\n"
        "finally: print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    words = {"_KD_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **words}, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == offered, done.stderr
    assert done.stderr.strip().endswith("[]")


def test_every_completer_is_asked():
    assert set(COMPLETED) == set(COMPLETERS)


def test_paths_are_completed(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    for name in ("a.yaml", "b.txt", ".hidden.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert files("", (".yaml",)) == ["a.yaml", "study/"]
    assert files(".h") == [".hidden.yaml"]
    assert files("nowhere/x") == []
