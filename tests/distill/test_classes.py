"""Training a classifier as any student is trained: rows, labels, resume, record, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import classes
import tiny
from kdcli.classifiers.model import load_classifier, tiny_student
from kdcli.config.schema import EvalConfig
from kdcli.data.class_rows import class_tokens
from kdcli.distill.plan import plan_distill
from kdcli.distill.run import distill
from kdcli.errors import InputError, KDError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import silent


@pytest.fixture
def place(tmp_path):
    classes.rows(tmp_path / "train.jsonl")
    classes.rows(tmp_path / "test.jsonl", 30, seed=1)
    return tmp_path


def scores(record):
    return {name: found.mean for name, found in record.estimates.items()}


def test_a_bag_of_words_recovers_a_planted_linear_teacher(place):
    """The teacher is a bag of words of the same ids, so its logits can be met exactly."""
    spec = "tiny:kind=bow,width=4,vocab=64"
    teacher = tiny_student(spec, ("animal", "food", "tool"), seed=9, device=torch.device("cpu"))
    with torch.no_grad():
        teacher.model.embedding.weight.mul_(3.0)
    teacher.save(place / "T", weights=True)
    data = {"eval": str(place / "test.jsonl")}
    train = {"max_steps": 150, "batch_size": 48, "lr": 0.1, "weight_decay": 0.0}
    record = distill(
        classes.config(place, student="tiny:kind=bow,width=8,vocab=64", teacher=str(place / "T"), loss="fkl",
                       data=data, train=train), silent,
    )  # fmt: skip
    found = scores(record.evaluation)
    assert found["kl_from_teacher"] < 0.02
    assert found["agreement"] > 90


def test_a_killed_run_goes_on_bit_for_bit_and_the_folder_is_what_the_run_says(place):
    settings = {"train": {"max_steps": 6, "save_every": 2}, "teacher": str(tiny.folder(place / "T")), "loss": "ce+akl"}
    whole = distill(classes.config(place, output=str(place / "whole"), **settings), silent)

    def stop(event):
        if event.kind == "saved" and event.done == 4:
            raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError, match="stopped here"):
        distill(classes.config(place, output=str(place / "cut"), **settings), stop)
    cut = distill(classes.config(place, output=str(place / "cut"), **settings), silent)
    assert cut.steps == whole.steps == 6
    weights = [Path(run.model, "model.safetensors").read_bytes() for run in (whole, cut)]
    assert weights[0] == weights[1]
    about = json.loads((whole.model / "config.json").read_text())
    assert about["id2label"] == {"0": "animal", "1": "food", "2": "tool"}
    assert "text-classification" in (whole.model / "README.md").read_text()
    assert whole.identity["classes"] == ["animal", "food", "tool"]
    assert whole.identity["class_score"] == "sum"


def test_evaluation_equals_the_plain_numbers_and_is_the_same_again(place):
    data = {"eval": str(place / "test.jsonl")}
    record = distill(classes.config(place, data=data, train={"max_steps": 40}), silent)
    found = scores(record.evaluation)
    model = load_classifier(str(record.model), device=torch.device("cpu"), role="teacher")
    rows = [json.loads(line) for line in (place / "test.jsonl").read_text().splitlines()]
    said = model.class_logits([row["text"] for row in rows], [""] * len(rows), 511).argmax(1)
    right = [model.labels[place] == row["label"] for place, row in zip(said, rows, strict=True)]
    assert found["accuracy"] == pytest.approx(100 * sum(right) / len(rows))
    assert record.evaluation.estimates["accuracy"].low is not None
    assert set(found) >= {"accuracy", "macro_f1", "kappa", "answer_ece"}
    assert any("parameters" in note for note in record.evaluation.notes)
    again = evaluate_run(
        EvalConfig.model_validate({"model": str(record.folder), "data": data, "hardware": {"device": "cpu"},
                                   "output": str(place / "again"), "edge": {"measure": True, "repeats": 1}}), silent,
    )  # fmt: skip
    assert scores(again) == found
    assert any("ms a text" in note for note in again.notes)


@pytest.mark.parametrize("family", ["distilbert", "llama"])
def test_a_classifier_of_transformers_learns_and_loads_there(place, family):
    student = classes.folder(place / "S", family)
    teacher = classes.folder(place / "T", "bert", labels=("tool", "animal", "food"))
    record = distill(classes.config(place, student=str(student), teacher=str(teacher), loss="ce+jsd"), silent)
    loaded = AutoModelForSequenceClassification.from_pretrained(record.model)
    assert loaded.config.id2label == {0: "animal", 1: "food", 2: "tool"}
    before = AutoModelForSequenceClassification.from_pretrained(student)
    changed = [name for name, value in loaded.state_dict().items() if not torch.equal(value, before.state_dict()[name])]
    assert changed


def test_labels_may_be_numbers_and_columns_have_other_names(place):
    path = place / "train.jsonl"
    lines = [{"sentence": f"a b {number}", "grade": number % 11} for number in range(33)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"columns": {"text": "sentence", "label": "grade"}}
    record = distill(classes.config(place, data=columns, train={"max_steps": 1}), silent)
    assert record.identity["classes"] == [str(number) for number in range(11)]


def test_a_long_text_is_cut_and_counted():
    found = class_tokens(tiny.tokenizer(), ["abcdef", "abc"], ["", ""], 4)
    assert [len(ids) for ids in found.ids] == [4, 3]
    assert found.cut == 1


def test_a_plan_shows_classes_and_what_is_learnt(place):
    plan = plan_distill(classes.config(place, output=None))
    assert plan.facts["classes"].text == "3: animal, food, tool"
    assert plan.examples[0].segments[1] == ("animal", True)


REFUSED = {
    "one class": ({}, "CLS-01", 'every row has the label "animal"'),
    "an unknown label": ({"data": {"eval": "{place}/odd.jsonl"}}, "CLS-02", 'the label "plant" is no class'),
    "a teacher without it": ({"teacher": "{place}/T", "loss": "fkl"}, "CLS-02", 'the label "tool" is no class'),
    "a student without it": ({"student": "{place}/T"}, "CLS-02", 'the label "tool" is no class'),
    "no label": ({"data": {"train": "{place}/bare.jsonl"}}, "DATA-05", 'field "label" is missing'),
    "another spec": ({"student": "tiny:kind=mlp"}, "SPEC-02", 'unknown kind "mlp"'),
    "an adapter": ({"lora": {"rank": 4}}, "CLS-03", "an adapter is trained in a causal LM alone"),
    "a cache": ({"teacher_cache": "{place}"}, "CLS-03", "a cache holds what a teacher says of tokens"),
    "words": ({"loss": "ce@student", "teacher": "{place}/L"}, "CLS-03", "@student writes or mixes texts"),
    "a server": ({"teacher": "http://localhost:1/v1"}, "CLS-03", "a server shows no probability of a class"),
    "two teachers": ({"teacher": "A+B", "loss": "fkl"}, "CLI-22", "classes are learnt from one teacher"),
    "layers": ({"loss": "ce+hidden", "teacher": "{place}/L"}, "CLS-03", "compares layers inside the models"),
    "texts": ({"evaluation": {"metrics": ["rougeL"]}, "data": {"eval": "{place}/train.jsonl"}}, "CLS-03", "rougeL"),
    "a monitor": ({"monitor": {"every": 2}, "data": {"eval": "{place}/train.jsonl"}}, "CLS-03", "measured after"),
    "zeros": ({"train": {"keep_zeros": True}}, "CLS-03", "zeros are kept in a causal LM alone"),
    "a prompt without text": (
        {"teacher": "{place}/L", "loss": "fkl", "data": {"class_prompt": "x"}}, "CLS-03", "the prompt has no {text}",
    ),
    "no teacher": ({"loss": "fkl"}, "CLI-20", "learns from a teacher"),
    "a task of text": ({"data": {"task": "text"}}, "CLS-04", "is a classifier, and text is learnt by a language model"),
    "a task of classes": (
        {"student": "{place}/L", "data": {"task": "class"}}, "CLS-04", "is a language model, and classes are learnt by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_ends_in_one_line_before_training(place, case):
    changes, code, said = REFUSED[case]
    if case == "one class":
        classes.rows(place / "train.jsonl", 6, labels=("animal",))
    classes.rows(place / "bare.jsonl", 6, label="kind")
    (place / "odd.jsonl").write_text('{"text": "a rose", "label": "plant"}\n')
    if "{place}/T" in str(changes):
        classes.folder(place / "T", labels=("animal", "food", "other"))
    if "{place}/L" in str(changes):
        tiny.folder(place / "L")
    changes = json.loads(json.dumps(changes).replace("{place}", str(place)))
    with pytest.raises(KDError) as caught:
        distill(classes.config(place, **changes), silent)
    every = [caught.value, *caught.value.also]
    assert any(one.code == code and said in one.what for one in every), every
    assert caught.value.fix
    assert isinstance(caught.value, UsageError | InputError)
    assert not (place / "run").exists()


def test_a_classifier_is_no_language_model(place):
    teacher = str(classes.folder(place / "T", "bert"))
    student = str(tiny.folder(place / "S"))
    path = tiny.rows(place / "lm.jsonl")
    with pytest.raises(InputError, match=r"MOD-17.*needs a causal LM, got BertForSequenceClassification"):
        distill(classes.config(place, student=student, teacher=teacher, loss="fkl", data={"train": str(path)}), silent)


def test_a_language_model_learns_the_texts_and_a_note_says_that_labels_are_not_read(place):
    student = str(tiny.folder(place / "S"))

    def notes(**data):
        return " ".join(plan_distill(classes.config(place, student=student, output=None, data=data)).notes)

    assert (
        "train.jsonl: the labels are not read, the student learns the texts; a student that is a classifier" in notes()
    )
    assert "labels are not read" not in notes(task="text")


def test_the_task_may_be_said(place):
    assert distill(classes.config(place, data={"task": "class"}), silent).steps > 0
