"""A run from nothing to a saved student: its folder, going on, refusing to become another run."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packaging.version import Version

import study
import tiny
from kdcli.config.resolve import resolve
from kdcli.config.schema import DistillConfig, HardwareConfig
from kdcli.distill.plan import plan_distill
from kdcli.distill.run import distill, read_run
from kdcli.errors import BusyError, ExperimentChangedError, InputError, InterruptedRunError, KDError, UsageError
from kdcli.events import Event, silent
from kdcli.models.load import load_model
from kdcli.storage import atomic
from kdcli.storage.run_dir import _Status
from models.folders import edit


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("distill"))


@pytest.fixture(scope="module")
def done(parts):
    heard = study.Heard()
    return distill(parts.run("whole"), heard), heard


class Stopping:
    """A report that raises after some steps, as a bug or a full disk would."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def __call__(self, event: Event) -> None:
        if event.kind == "progress" and event.message == "training" and event.done == self.step:
            raise self.error


def weights(record):
    return dict(load(record).state_dict())


def load(record):
    return load_model(str(record.model), device=torch.device("cpu"), role="student").model


def same_weights(first, second):
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_folder_holds_what_it_promises(done):
    record, _ = done
    names = {path.name for path in record.folder.iterdir()}
    assert {"config.yaml", "manifest.json", "status.json", "metrics.jsonl", "timing.jsonl", "model", "eval"} <= names
    assert {path.name for path in (record.folder / "eval" / "test").iterdir()} == {
        "answers.jsonl",
        "manifest.json",
        "results.json",
        "samples.parquet",
    }
    atomic.verify_folder(record.model)
    status = json.loads((record.folder / "status.json").read_text())
    assert status["state"] == "done"
    assert (status["steps"], status["tokens"]) == (8, record.tokens)
    assert status.keys() <= _Status.model_fields.keys()  # nothing is written whose shape is not checked when read
    manifest = json.loads((record.folder / "manifest.json").read_text())
    assert manifest["identity"] == record.identity
    recorded = Version(manifest["environment"]["libraries"]["torch"])
    assert recorded.public == Version(torch.__version__).public  # a build's own suffix is not in every index


def test_the_record_counts_steps_and_response_tokens(done, parts):
    record, _ = done
    lines = [json.loads(line) for line in (record.folder / "metrics.jsonl").read_text().splitlines()]
    assert record.steps == len(lines) == 8
    assert record.tokens == sum(line["tokens"] for line in lines)
    assert record.evaluation.examples == 10
    assert next(iter(record.evaluation.estimates)) == "rougeL"


def test_the_student_learns(done):
    record, _ = done
    losses = [json.loads(line)["loss"] for line in (record.folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-2:]) < sum(losses[:2])


def test_overlapping_test_rows_are_told(done):
    _, heard = done
    assert any("held-out prompts occur in the training rows" in line for line in heard.messages("warning"))


def test_the_resolved_config_can_be_fed_back(done, parts):
    record, _ = done
    assert resolve(DistillConfig, file=record.folder / "config.yaml") == parts.run("whole")


def test_a_finished_run_is_left_alone(done, parts):
    record, _ = done
    before = study.tree(record.folder)
    again = distill(parts.run("whole"), silent)
    assert again.already_done
    assert replace(again, already_done=False) == record
    assert study.tree(record.folder) == before


def test_a_renamed_data_file_is_the_same_experiment(done, parts, tmp_path):
    assert done
    moved = tmp_path / "renamed.jsonl"
    moved.write_bytes(parts.train.read_bytes())
    config = parts.run("whole")
    again = distill(config.model_copy(update={"data": config.data.model_copy(update={"train": str(moved)})}), silent)
    assert again.already_done


@pytest.mark.parametrize("step", [2, 5])
def test_a_broken_run_goes_on_to_the_same_bits(done, parts, step):
    record, _ = done
    config = parts.run(f"broken-{step}")
    with pytest.raises(RuntimeError, match="the power went"):
        distill(config, Stopping(step, RuntimeError("the power went")))
    folder = parts.root / f"broken-{step}"
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert "the power went" in (folder / "error.log").read_text()
    again = distill(config, silent)
    assert same_weights(again, record)
    assert (folder / "metrics.jsonl").read_bytes() == (record.folder / "metrics.jsonl").read_bytes()
    assert again.evaluation.estimates == record.evaluation.estimates


def test_a_signal_saves_and_names_the_way_on(parts):
    import signal

    class Signalling:
        def __call__(self, event: Event) -> None:
            if event.kind == "progress" and event.done == 2:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError) as caught:
        distill(parts.run("stopped"), Signalling(), command="kd distill -o stopped")
    assert caught.value.exit_code == 143
    assert "kd distill -o stopped" in caught.value.fix
    status = json.loads((parts.root / "stopped" / "status.json").read_text())
    assert (status["state"], status["steps"]) == ("interrupted", 2)


def test_a_run_stopped_before_its_first_step_says_so_in_its_folder(parts):
    def stopping(event: Event) -> None:
        if event.kind == "stage" and event.message == "training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(parts.run("early"), stopping)
    assert json.loads((parts.root / "early" / "status.json").read_text())["state"] == "interrupted"
    distill(parts.run("early"), silent)
    assert json.loads((parts.root / "early" / "status.json").read_text())["state"] == "done"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"loss": "rkl"}, "loss"),
        ({"train": {"lr": 1e-3}}, "train.lr"),
        ({"train": {"seed": 1}}, "train.seed"),
        ({"train": {"batch_size": 2}}, "train.batch_size"),
        ({"train": {"max_steps": 9}}, "steps"),
        ({"train": {"schedule": "linear"}}, "train.schedule"),
        ({"data": {"max_length": 12}}, "data"),
        ({"data": {"limit": 20}}, "data"),
        ({"hardware": {"dtype": "bf16"}}, "precision"),
        ({"teacher": "student"}, "teacher"),
        ({"student": "random:layers=1,width=8,heads=2"}, "student"),
    ],
)
def test_another_experiment_is_refused(done, parts, change, key):
    config = parts.run("whole")
    before = study.tree(parts.root / "whole")
    changes = {}
    for name, value in change.items():
        if isinstance(value, dict):
            changes[name] = getattr(config, name).model_copy(update=value)
        else:
            changes[name] = str(parts.root / value) if name == "teacher" else value
    if key == "teacher":
        changes["student"] = "random:layers=1,width=8,heads=2"
    with pytest.raises(ExperimentChangedError) as caught:
        distill(config.model_copy(update=changes), silent)
    assert caught.value.exit_code == 8
    assert caught.value.what.startswith((f"{key} was", "student was") if key == "teacher" else f"{key} was")
    assert study.tree(parts.root / "whole") == before


@pytest.mark.parametrize("change", [{"save_every": 5}, {"keep": 1}, {"log_every": 1}])
def test_how_often_it_saves_does_not_matter(done, parts, change):
    config = parts.run("whole")
    assert distill(config.model_copy(update={"train": config.train.model_copy(update=change)}), silent).already_done


def test_resume_never_refuses_a_folder_with_a_run(done, parts):
    with pytest.raises(UsageError, match="holds a run"):
        distill(parts.run("whole"), silent, resume=False)


def test_a_folder_of_something_else_is_refused(parts):
    folder = parts.root / "other"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        distill(parts.run("other"), silent)
    assert caught.value.code == "RUN-03"
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_bad_objective_is_found_before_anything_is_read(parts):
    config = parts.run("nothing", loss="akll").model_copy(update={"teacher": "/nowhere", "student": "/nowhere"})
    with pytest.raises(UsageError, match="akll"):
        distill(config, silent)
    assert not (parts.root / "nothing").exists()


def test_a_missing_data_file_is_found_before_models_are_opened(parts):
    config = parts.run("nothing").model_copy(update={"teacher": "/nowhere"})
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": "/nowhere.jsonl"})})
    with pytest.raises(KDError, match="nowhere") as caught:
        distill(config, silent)
    assert caught.value.code.startswith("DATA")


def test_a_random_student_starts_the_same_from_a_seed(parts):
    config = parts.run("random-a").model_copy(update={"student": "random:layers=1,width=8,heads=2"})
    first = distill(config, silent)
    second = distill(config.model_copy(update={"output": str(parts.root / "random-b")}), silent)
    assert same_weights(first, second)


def test_plain_training_needs_no_teacher(parts):
    config = parts.run("plain", loss="ce").model_copy(update={"teacher": None})
    evaluation = config.evaluation.model_copy(update={"metrics": ("perplexity",)})
    record = distill(config.model_copy(update={"evaluation": evaluation}), silent)
    assert record.identity["teacher"] is None


def test_a_plan_writes_nothing(parts):
    plan = plan_distill(parts.run("planned"))
    assert not (parts.root / "planned").exists()
    assert plan.facts["run folder"].text.endswith("planned (to run)")
    assert "8 of 4 sequences" in plan.facts["steps"].text
    first = plan.examples[0]
    assert [text for text, learnt in first.segments if learnt] == [" a.</s>"]


def test_the_plan_of_a_finished_run_says_so(done, parts):
    assert plan_distill(parts.run("whole")).facts["run folder"].values["state"] == "done"


def test_an_unfinished_run_has_no_record(parts):
    with pytest.raises(RuntimeError):
        distill(parts.run("half"), Stopping(4, RuntimeError("no")))
    with pytest.raises(UsageError, match="not finished"):
        read_run(parts.root / "half")


HOLDER = """
import sys, time
from pathlib import Path
from kdcli.storage import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_that_is_held_is_busy(parts):
    folder = parts.root / "busy"
    folder.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        started = time.monotonic()
        with pytest.raises(BusyError, match=f"process {holder.pid}") as caught:
            distill(parts.run("busy"), silent)
        assert time.monotonic() - started < 20
        assert caught.value.exit_code == 5
        assert [path.name for path in folder.iterdir()] == [".lock"]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert distill(parts.run("busy", max_steps=1), silent).steps == 1


def test_hardware_settings_that_change_bits_belong_to_the_run(parts, done):
    config = parts.run("whole").model_copy(update={"hardware": HardwareConfig(device="cpu", threads=1)})
    with pytest.raises(ExperimentChangedError, match="threads was None and is now 1"):
        distill(config, silent)


@pytest.mark.parametrize("place", ["config.json", "generation_config.json"])
def test_a_negative_padding_id_of_an_old_conversion_is_trained_and_saved(parts, tmp_path, place):
    student = tiny.folder(tmp_path / "old", seed=2)
    edit(student / place, pad_token_id=-1)
    config = parts.run("old", "ce", max_steps=1)
    record = distill(config.model_copy(update={"student": str(student), "output": str(tmp_path / "run")}), silent)
    assert load(record).generation_config.eos_token_id == 2


def test_what_cannot_be_saved_is_found_before_the_first_step(parts, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no such token")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", refuse)
    heard, config = study.Heard(), parts.run("unsaved", "ce", max_steps=2)
    with pytest.raises(InputError, match=r"MOD-25.*could not be saved after training: no such token"):
        distill(config, heard)
    assert not any(event.kind == "progress" and event.message == "training" for event in heard.events)
    assert not [path for path in Path(config.output).iterdir() if path.name.startswith(".tmp")]


@pytest.mark.parametrize("rows,code", [("long", "MOD-22"), ("recurrent", "GEN-04")])
def test_rows_that_cannot_be_measured_are_refused_before_the_first_step(parts, tmp_path, rows, code):
    config, changes = parts.run(f"unmeasured-{rows}", "ce", max_steps=2), {}
    if rows == "long":
        (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "a" * 40, "completion": "b" * 100}) + "\n")
        changes["data"] = config.data.model_copy(update={"eval": str(tmp_path / "long.jsonl"), "max_length": 256})
    else:
        sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "conv_kernel": 3}
        changes["student"] = str(tiny.folder(tmp_path / "mamba", "mamba", **sizes))
    heard = study.Heard()
    with pytest.raises(InputError, match=code):
        distill(config.model_copy(update=changes), heard)
    assert not any(event.kind == "progress" and event.message == "training" for event in heard.events)
