"""No option is dropped in silence: one that changes nothing is refused, before anything is loaded."""

import importlib.util
import json

import pytest

from kdcli.config.trackers import TRACKERS
from shell import kd
from tiny import folder, rows

MODELS = "--teacher t --student s --data d.jsonl"
UNUSED = {
    f"distill {MODELS} -o x --metric perplexity": "--metric: has no effect without held-out rows",
    f"distill {MODELS} -o x --sampling-seeds 1,2": "--sampling-seeds: has no effect without held-out rows",
    f"distill {MODELS} -o x --max-new-tokens 4": "--max-new-tokens: has no effect without held-out rows",
    f"distill {MODELS} -o x --eval-limit 4": "--eval-limit: has no effect without held-out rows",
    f"plan {MODELS} --metric perplexity": "--metric: has no effect without held-out rows",
    f"distill {MODELS} -o x --shard fsdp2": "--shard: has no effect in one process",
    "cache --teacher t --data d.jsonl -o x --top-k 4": "--top-k: has no effect on an exact cache",
    "cache --teacher t --data d.jsonl -o x --eval-limit 4": "--eval-limit: has no effect without held-out rows",
    "judge a.jsonl --scores b.jsonl --server-model m": "--server-model: has no effect on scores given elsewhere",
    "eval --predictions p.jsonl --teacher t": "--teacher: has no effect on answers made elsewhere",
    "eval --predictions p.jsonl --limit 3": "--limit: has no effect on answers made elsewhere",
    "eval --predictions p.jsonl --template plain": "--template: has no effect on answers made elsewhere",
    "eval --predictions p.jsonl --sampling-seeds 1": "--sampling-seeds: has no effect on answers made elsewhere",
    "eval --predictions p.jsonl --device cpu": "--device: has no effect on answers made elsewhere",
    "eval --server-url http://localhost:1/v1 --data d.jsonl --teacher t": "--teacher: has no effect without a model",
    "eval m --data d.jsonl --server-model x": "--server-model: has no effect without a server",
    "eval m --edge --metric perplexity": "--metric: has no effect without rows",
    "eval m --edge --limit 3": "--limit: has no effect without rows",
    "compare study --to t.csv --metric perplexity": "--metric: has no effect on a study that exists",
    "compare study --to t.csv --seeds 0,1": "--seeds: has no effect on a study that exists",
    "compare study --to t.csv --set train.lr=1": "--set: has no effect on a study that exists",
    "compare study --to t.csv --dry-run": "--dry-run: has no effect on a study that exists",
    "compare fkl rkl -o study --to t.csv": "--to shows a study that exists, and objectives are given",
    "compare study --status --lr 1e-4": "--lr: has no effect on a study that exists",
    "compare study --status --to t.csv": "--to: has no effect on a study that exists",
    "compare study -o other": "-o other: the study study is named, too",
}


@pytest.mark.parametrize("line", UNUSED)
def test_an_option_that_changes_nothing_is_refused(line, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    answer = kd(*line.split(), folder=tmp_path)
    assert answer.code == 2, answer.err
    (said,) = answer.err.splitlines()
    assert f": {UNUSED[line]}" in said
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["study", "study.json"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("trackers")
    folder(made / "t", seed=1)
    folder(made / "s", seed=2)
    rows(made / "d.jsonl", 8)
    return made


@pytest.mark.parametrize(
    "name, code, fix", [("wandb", 4, "pip install wandb"), ("comet_ml", 4, "pip install comet-ml"),
                        ("tensorbord", 2, "did you mean tensorboard?"), ("xyzzy", 2, "there are ")]
)  # fmt: skip
def test_a_tracker_that_cannot_track_is_refused_before_training(name, code, fix, home, monkeypatch):
    there, find = {one for modules in TRACKERS.values() for one in modules}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module in there else find(module))
    line = [*f"distill {MODELS} --device cpu --max-steps 1 -o run --set".split(), f"train.report_to={name}"]
    answer = kd(*line, folder=home)
    assert answer.code == code
    (said,) = answer.error_lines
    assert fix in said
    assert not (home / "run").exists()


def test_a_tracker_that_does_not_start_is_not_a_bug(home, monkeypatch):
    def start(self, *names, **more):
        raise RuntimeError("no login")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", start)
    line = f"distill {MODELS} --device cpu --max-steps 1 -o run --set train.report_to=tensorboard"
    answer = kd(*line.split(), folder=home)
    assert answer.code == 4
    assert "tensorboard cannot be started: RuntimeError: no login" in answer.err
    assert json.loads((home / "run" / "status.json").read_text())["state"] == "failed"
