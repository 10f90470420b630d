"""Every tracker that is installed is told the steps of each run and the table of the study; none needs a network."""

import importlib.util
import sqlite3
import time

import pytest

from kdcli.config.schema import EvalSettings
from kdcli.config.trackers import TRACKERS
from kdcli.events import silent
from kdcli.study.compare import compare
from kdcli.study.tracking import columns, numbers
from study import Parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("tracked"))


def _study(parts, tracker):
    config = parts.study("fkl", "ce", name=tracker, max_steps=2, report_to=(tracker,))
    return config.model_copy(update={"evaluation": EvalSettings(metrics=("perplexity",))})


def _tensorboard(folder, here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = {str(path.parent.relative_to(folder)): path for path in sorted(folder.rglob("events.out*"))}
    found = {name: EventAccumulator(str(path)).Reload() for name, path in runs.items()}
    steps = [len(one.Scalars("loss")) for one in found.values() if "loss" in one.Tags()["scalars"]]
    names = {tag for one in found.values() for tag in one.Tags()["scalars"]}
    texts = [one for one in found.values() if "table/text_summary" in one.Tags()["tensors"]]
    return steps, names, bool(texts)


def _trackio(folder, here):
    (store,) = here.rglob("kd*.db")
    with sqlite3.connect(store) as base:
        found = base.execute("select run_name, metrics from metrics").fetchall()
    rows = [(name, text.decode() if isinstance(text, bytes) else text) for name, text in found]
    steps = [sum('"loss"' in text for name, text in rows if name == run) for run in {name for name, _ in rows}]
    names = {name for name in ("fkl/perplexity", "ce/perplexity") for _, text in rows if name in text}
    return [one for one in steps if one], names, any('"table"' in text for _, text in rows)


def _wandb(folder, here):
    until = time.monotonic() + 60
    while True:  # wandb writes in a process of its own, which may still be busy
        bytes_of = [path.read_bytes() for path in sorted(folder.rglob("*.wandb"))]
        if any(b"ce/perplexity" in data for data in bytes_of) or time.monotonic() > until:
            break
        time.sleep(0.2)
    steps = [2 for data in bytes_of if b"loss" in data]
    names = {name for name in ("fkl/perplexity", "ce/perplexity") for data in bytes_of if name.encode() in data}
    return steps, names, any(folder.rglob("table*.table.json"))


def _mlflow(folder, here):
    import mlflow

    found = mlflow.search_runs(experiment_names=["kd"], output_format="list")
    client = mlflow.tracking.MlflowClient()
    steps = [len(client.get_metric_history(one.info.run_id, "loss")) for one in found]
    names = {name for one in found for name in one.data.metrics}
    return [one for one in steps if one], names, any(client.list_artifacts(one.info.run_id) for one in found)


SEEN = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}


@pytest.mark.parametrize("tracker", SEEN)
def test_a_tracker_is_told_the_steps_and_the_table(tracker, parts, tmp_path, monkeypatch):
    if not any(importlib.util.find_spec(module) for module in TRACKERS[tracker]):
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = compare(_study(parts, tracker), silent)
    steps, names, table = SEEN[tracker](found.folder, tmp_path)
    assert steps == [2, 2]
    assert {"fkl/perplexity", "ce/perplexity"} <= names
    assert table


def test_what_is_told_is_the_table(parts):
    found = compare(_study(parts, "tensorboard"), silent)
    told = numbers(found)
    assert "student_ before/perplexity" in told
    assert told["fkl/perplexity"] == found.rows[0].scores["perplexity"].mean
    assert told["fkl/perplexity/low"] < told["fkl/perplexity"] < told["fkl/perplexity/high"]
    heads, lines = columns(found)
    assert heads[:2] == ["objective", "perplexity"]
    assert [line[0] for line in lines] == ["student, before", "teacher", "fkl", "ce"]
