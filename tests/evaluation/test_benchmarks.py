"""Benchmarks: scores of lm-evaluation-harness on task files that lie here."""

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from kdcli.config.schema import BenchmarkConfig, DataConfig, EvalConfig, EvalSettings, HardwareConfig
from kdcli.errors import InputError, MachineError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.lm_eval.run import benchmark, load_tasks, read_results
from kdcli.evaluation.lm_eval.tasks import LmEval, Tasks
from kdcli.evaluation.results import read_results as read_folder
from kdcli.evaluation.results import read_scores
from kdcli.events import Event, silent
from kdcli.models.load import load_model
from shell import kd
from study import Heard

QUESTIONS = [
    {"question": "the sky is", "choices": ["blue", "green"], "answer": 0},
    {"question": "grass is", "choices": ["blue", "green"], "answer": 1},
    {"question": "a leaf is", "choices": ["red", "green"], "answer": 1},
    {"question": "blood is", "choices": ["red", "black"], "answer": 0},
    {"question": "snow is", "choices": ["black", "white"], "answer": 1},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks")
    tiny.folder(root / "model", seed=3)
    tiny.rows(root / "test.jsonl", 4)
    task_folder(root / "tasks")
    return root


def task_folder(folder: Path, rows=QUESTIONS, names=("colours",)) -> Path:
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in names:
        (folder / f"{name}.yaml").write_text(TASK.format(name=name))
    (folder / "shared.yaml").write_text("# defaults that others include\noutput_type: multiple_choice\n")
    return folder


def loaded(home):
    return load_model(str(home / "model"), device=torch.device("cpu"), role="teacher")


def run(home, *tasks, report=silent, **settings):
    return benchmark(loaded(home), BenchmarkConfig(tasks=tasks, **settings), report)


def evaluation(home, **changes):
    fields = {"hardware": HardwareConfig(device="cpu"), "benchmarks": BenchmarkConfig(tasks=(str(home / "tasks"),))}
    return EvalConfig(**{**fields, "model": str(home / "model"), **changes})


@pytest.fixture(scope="module")
def found(home):
    return run(home, str(home / "tasks" / "colours.yaml"))


def likelihood(model, text, choice):
    """Log-likelihood of a choice, token by token."""
    before, after = (model.tokenizer.encode(part, add_special_tokens=False) for part in (text, f" {choice}"))
    with torch.no_grad():
        logp = model.model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logp[len(before) + place - 1, token]) for place, token in enumerate(after))


def test_accuracy_is_that_of_likelihoods_worked_out_by_hand(home, found):
    model = loaded(home)
    right = []
    for row in QUESTIONS:
        scores = [likelihood(model, row["question"], choice) for choice in row["choices"]]
        right.append(float(np.argmax(scores) == row["answer"]))
    estimate = found.estimates["colours_acc"]
    assert estimate.mean == pytest.approx(np.mean(right))
    assert estimate.error == pytest.approx(np.std(right, ddof=1) / np.sqrt(len(right)))
    assert (estimate.count, found.documents) == (5, 5)


def test_every_score_says_how_it_was_taken(found):
    (info,) = found.infos
    assert (info.better, info.metric, info.input_kind) == ("higher", "colours", "tasks")
    parts = info.settings.split("|")
    assert parts[0] == "colours_acc"
    assert {"version:1.0", "shots:0", "n:5"} <= set(parts)
    assert any(part.startswith("lib:lm_eval-") for part in parts)


def data_of(benchmarked):
    return next(part for part in benchmarked.protocol["colours"].split("|") if part.startswith("data:"))


def test_other_documents_or_shots_have_another_hash(home, found, tmp_path):
    assert data_of(run(home, str(home / "tasks"))) == data_of(found)
    others = task_folder(tmp_path / "other", [{**QUESTIONS[0], "question": "the sea is"}, *QUESTIONS[1:]])
    assert data_of(run(home, str(others))) != data_of(found)
    shown = run(home, str(home / "tasks"), shots=2)
    assert "shots:2" in shown.protocol["colours"]
    assert data_of(shown) != data_of(found)


def test_a_limit_takes_the_first_documents(home):
    assert run(home, str(home / "tasks"), limit=2).documents == 2


def test_a_group_adds_up_its_tasks(home, tmp_path):
    folder = task_folder(tmp_path / "group", names=("one", "two"))
    group = "group: both\ntask: [one, two]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (folder / "group.yaml").write_text(group)
    both = run(home, str(folder / "group.yaml"))
    assert set(both.estimates) == {"one_acc", "two_acc", "both_acc"}
    assert both.estimates["both_acc"].mean == pytest.approx(both.estimates["one_acc"].mean)
    assert both.estimates["both_acc"].count == 10
    assert next(info for info in both.infos if info.name == "both_acc").better == "higher"


def test_the_global_generators_are_left_alone(home):
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # beartype draws from Python's own
    run(home, str(home / "tasks"))
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_tasks_that_shuffle_do_so_alike(home, tmp_path):
    folder = task_folder(tmp_path / "shuffled", QUESTIONS * 4)
    task = (folder / "colours.yaml").read_text() + "process_docs: !function own.shuffled\n"
    (folder / "colours.yaml").write_text(task)
    own = "import random\n\ndef shuffled(docs):\n    return docs.select(random.sample(range(len(docs)), 10))\n"
    (folder / "own.py").write_text(own)
    first = data_of(run(home, str(folder)))
    random.seed(5)
    assert data_of(run(home, str(folder))) == first


def test_progress_is_told_and_nothing_is_printed(home, capfd):
    heard = Heard()
    run(home, str(home / "tasks"), report=heard)
    assert heard.messages("stage") == ["benchmarks"]
    assert heard.events[-1] == Event("progress", "benchmarks", done=10, total=10)
    assert capfd.readouterr() == ("", "")


def test_tasks_stand_in_one_table_with_the_rest(home, tmp_path):
    settings = EvalSettings(metrics=("perplexity",))
    data = DataConfig(eval=str(home / "test.jsonl"))
    both = evaluate_run(evaluation(home, data=data, evaluation=settings, output=str(tmp_path / "out")), silent)
    assert [info.name for info in both.infos] == ["perplexity", "nll", "colours_acc"]
    assert both.examples == 4
    assert read_folder(tmp_path / "out") == both
    assert set(read_scores(tmp_path / "out")) == {"perplexity", "nll", "colours_acc"}
    assert both.protocol["tasks"]["colours"].split("|")[1:3] == ["version:1.0", "shots:0"]


def test_tasks_alone_need_no_rows(home):
    alone = evaluate_run(evaluation(home), silent)
    assert [info.name for info in alone.infos] == ["colours_acc"]
    assert (alone.name, alone.examples) == ("tasks", 5)


def test_the_command(home):
    said = kd("eval", "model", "--tasks", "tasks/colours.yaml", "--set", "hardware.device=cpu", folder=home)
    assert said.code == 0, said.err
    assert "colours_acc ↑" in said.out


@pytest.mark.parametrize(
    "spec, content, what",
    [
        ("nowhere.yaml", None, "nowhere.yaml: not found; looked in "),
        ("empty", "", "empty: no task file (YAML with a task name)"),
        ("no_such_task", None, "no_such_task: cannot be loaded: "),
        ("odd.yaml", "just words", "odd.yaml: cannot be loaded: "),
        ("lost.yaml", TASK.format(name="lost").replace("rows.jsonl", "gone.jsonl"), "lost.yaml: "),
    ],
)
def test_tasks_that_cannot_be_used_are_one_line_before_the_model_is_read(home, tmp_path, spec, content, what):
    if content == "":
        (tmp_path / spec).mkdir()
    elif content:
        (tmp_path / spec).write_text(content)
    said = kd("eval", str(home / "model"), "--tasks", spec, folder=tmp_path)
    assert said.code in (3, 4)
    assert said.err.count("\n") == 1
    assert what in said.err


def test_without_the_library_the_way_to_it_is_named(home, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'not installed. Fix: install it: pip install "kdcli\[bench\]"') as caught:
        evaluate_run(evaluation(home), silent)
    assert caught.value.code == "BENCH-01"


class Failing:
    """A harness whose tasks fail."""

    version = "0"

    def __init__(self, loading=None, running=None):
        self.loading, self.running = loading, running

    def load(self, spec, folder):
        if self.loading is not None:
            raise self.loading
        return Tasks({"t": object()})

    def run(self, model, tasks, config, report):
        raise self.running


@pytest.mark.parametrize(
    "harness, kind, code",
    [
        (Failing(loading=ConnectionError("no way\nout")), MachineError, "BENCH-04"),
        (Failing(loading=KeyError("t")), InputError, "BENCH-02"),
        (Failing(running=ZeroDivisionError("by nought")), InputError, "BENCH-03"),
        (Failing(running=MemoryError()), MemoryError, None),
    ],
)
def test_what_a_task_raises_is_one_line(home, harness, kind, code):
    with pytest.raises(kind) as caught:
        benchmark(loaded(home), BenchmarkConfig(tasks=("t",)), silent, harness)
    if code is not None:
        assert caught.value.code == code
        assert "\n" not in str(caught.value)


def test_numbers_without_an_error_have_no_interval_and_texts_are_no_numbers():
    numbers = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A", "f1,strict": 0.25, "said,none": "x"}
    better = {"t": {"acc": True, "f1": None}}
    found = read_results({"results": {"t": {**numbers, "sample_len": 4}}, "higher_is_better": better}, "1")
    assert {name: one.mean for name, one in found.estimates.items()} == {"t_acc": 0.5, "t_f1_strict": 0.25}
    assert found.estimates["t_acc"].low is None
    assert [info.better for info in found.infos] == ["higher", "neither"]


def test_no_number_at_all_is_one_line():
    with pytest.raises(InputError, match="the tasks give no number"):
        read_results({"results": {"t": {"alias": "t", "sample_len": 3}}}, "1")


GENERATED = """\
task: spoken
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["#"], do_sample: false, max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def test_a_task_passes_over_the_penalties_of_a_generation_config(home, tmp_path):
    folder = task_folder(tmp_path / "tasks", rows=QUESTIONS[:2], names=())
    (folder / "spoken.yaml").write_text(GENERATED)
    config, harness = BenchmarkConfig(tasks=(str(folder / "spoken.yaml"),)), LmEval()
    said = []
    for settings in ({}, {"repetition_penalty": 9.0, "min_new_tokens": 6}):
        model = load_model(str(home / "model"), device=torch.device("cpu"), role="student")
        for name, value in settings.items():
            setattr(model.model.generation_config, name, value)
        found = harness.run(model, load_tasks(harness, config), config, silent)
        said.append([sample["resps"] for sample in found["samples"]["spoken"]])
    assert said[0] == said[1]
    assert any(text.strip() for rows in said[0] for text in rows[0])
