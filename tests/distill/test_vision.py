"""Models of images and text learn from one another: three families, against plain forward passes of transformers."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vision
from kdcli.config.schema import CacheConfig, DistillConfig, EvalConfig
from kdcli.config.sections import DataConfig, GenerationConfig
from kdcli.data.batching import collate
from kdcli.data.images import join_images
from kdcli.distill.run import distill
from kdcli.errors import KDError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import silent
from kdcli.generation import GenerationRequest, answers
from kdcli.loading.session import Session
from kdcli.losses.base import Layers
from kdcli.losses.build import build_objective
from kdcli.models.layers import capture_layers
from kdcli.models.load import load_model
from kdcli.storage.locate import model_of
from kdcli.teachers.base import LiveTeacher
from kdcli.teachers.load import cache
from kdcli.training.step import DistillStep

CPU = torch.device("cpu")
TOLERANCE = 1e-6
"""Of a loss in float64, beside families that compute their norms in fp32 whatever the weights are."""

TERMS = {
    "fkl": lambda q, p, labels: (p.exp() * (p - q)).sum(-1),
    "rkl": lambda q, p, labels: (q.exp() * (q - p)).sum(-1),
    "ce": lambda q, p, labels: -q.gather(1, labels[:, None])[:, 0],
}
"""Objectives by their formulas, of log q and log p ``[n, v]`` and the labels ``[n]``."""


def dear(ordinary: str):
    """One family in every run of the tests, and all of them in the full one."""
    marks = [pytest.param(one, marks=[] if one == ordinary else [pytest.mark.full]) for one in vision.FAMILIES]
    return pytest.mark.parametrize("place", marks, indirect=True)


@pytest.fixture(scope="module", params=vision.FAMILIES)
def place(request, tmp_path_factory):
    """A teacher, a smaller student and rows of one family."""
    found = tmp_path_factory.mktemp(request.param)
    vision.folder(found / "T", request.param, seed=1, width=24)
    vision.folder(found / "S", request.param, seed=2)
    vision.rows(found / "train.jsonl")
    vision.rows(found / "test.jsonl", 4, seed=1)
    return found


def settings(place: Path, output: str, **more) -> DistillConfig:
    data = {"train": str(place / "train.jsonl")} | more.pop("data", {})
    train = {"max_steps": 4, "batch_size": 4, "lr": 0.01} | more.pop("train", {})
    return DistillConfig(
        **{"student": str(place / "S"), "teacher": str(place / "T"), "loss": "fkl", "output": str(place / output)}
        | more, data=data, train=train,
    )  # fmt: skip


def dataset(place: Path, name: str = "train.jsonl"):
    session = Session()
    return session.data(str(place / name), session.inspect(str(place / "S")), DataConfig(), role="train", images=True)


def plain(folder: Path, lines: list[dict], beside: Path):
    """Logits of each row's response by transformers alone, in float64, and the tokens that follow."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found = []
    for line in lines:
        turns, names = line["messages"], line.get("images", [])
        pictures = [Image.open(beside / name).convert("RGB") for name in names] or None
        asked = processor.apply_chat_template(turns[:1], add_generation_prompt=True)
        whole = processor.apply_chat_template(turns)
        before, after = (
            processor(text=[text], images=[pictures] if pictures else None, return_tensors="pt",
                      add_special_tokens=False)
            for text in (asked, whole)
        )  # fmt: skip
        given = {key: value.double() if value.is_floating_point() else value for key, value in after.items()}
        start = before["input_ids"].shape[1]
        with torch.no_grad():
            logits = model(**given).logits[0, start - 1 : -1]
        found.append((logits, after["input_ids"][0, start:]))
    return found


def read(place: Path, name: str = "train.jsonl") -> list[dict]:
    return [json.loads(line) for line in (place / name).read_text().splitlines()]


def doubled(folder: Path, role):
    return load_model(str(folder), device=CPU, role=role, dtype=torch.float64)


def step_of(place: Path, loss: str) -> DistillStep:
    student, teacher = doubled(place / "S", "student"), doubled(place / "T", "teacher")
    return DistillStep(student, LiveTeacher(teacher), build_objective(loss), vocab=student.vocab)


def test_ids_are_those_of_the_processor_and_no_image_is_a_label(place):
    """The rows' tokens are what transformers' processor makes of the whole conversation."""
    rows, lines = dataset(place), read(place)
    processor = AutoProcessor.from_pretrained(place / "S")
    held = load_model(str(place / "S"), device=CPU, role="student").processor
    assert held is not None
    assert held.image_token_ids
    assert rows.with_images == 6
    for example, line in zip(rows.examples, lines, strict=True):
        names = line.get("images", [])
        pictures = [[Image.open(place / name) for name in names]] if names else None
        whole = processor(text=[processor.apply_chat_template(line["messages"])], images=pictures,
                          add_special_tokens=False)  # fmt: skip
        assert list(example.ids) == list(whole["input_ids"][0])
        assert held.image_token_ids.isdisjoint(example.ids[example.prompt_length :])
        assert held.image_token_ids.isdisjoint(example.ids) == (not names)


def test_losses_are_those_of_plain_forward_passes(place):
    """KL(p||q), KL(q||p) and -log q(y) of transformers' own logits, meant over the response's tokens."""
    rows = dataset(place)
    batch = collate(rows.examples, range(len(rows)), 0)
    student, teacher = doubled(place / "S", "student"), LiveTeacher(doubled(place / "T", "teacher"))
    lines = read(place)
    both = [*zip(plain(place / "S", lines, place), plain(place / "T", lines, place), strict=True)]
    share = torch.tensor(1.0 / batch.targets, dtype=torch.float32).double()  # the step's weights are fp32
    for loss, term in TERMS.items():
        step = DistillStep(student, teacher, build_objective(loss), vocab=student.vocab)
        total, _ = step(batch, batch.targets)
        terms = [term(own.log_softmax(-1), theirs.log_softmax(-1), labels) for (own, labels), (theirs, _) in both]
        assert total.item() == pytest.approx((torch.cat(terms).sum() * share).item(), rel=TOLERANCE)


def test_layers_compared_are_those_of_the_text_decoder(place):
    """Hidden states after each layer equal what transformers returns for it, images read; one equals oneself."""
    model, rows = load_model(str(place / "T"), device=CPU, role="teacher"), dataset(place)
    batch = collate(rows.examples, [0, 1, 3], 0)
    asked = Layers(hidden=frozenset({0, 1}))
    with torch.no_grad():
        found = capture_layers(model.model, batch.input_ids, batch.attention_mask, asked, batch.extra).hidden
        told = model.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True,
            **join_images(batch.extra, batch.input_ids.shape[1]),
        ).hidden_states  # fmt: skip
    assert found.keys() == {0, 1}
    for layer, value in found.items():
        torch.testing.assert_close(value, told[layer])


def test_a_batch_is_the_sum_of_its_micro_batches(place):
    """Four rows at once and two and two give one loss and one gradient, whatever images the rows have."""
    rows = dataset(place)
    whole = collate(rows.examples, [0, 1, 2, 3], 0)
    gradients = []
    for cuts in ([[0, 1, 2, 3]], [[0, 2], [3, 1]], [[1], [2], [0], [3]]):
        step = step_of(place, "fkl")
        sums = [step(collate(rows.examples, cut, 0), whole.targets)[0] for cut in cuts]
        sum(sums).backward()
        found = {name: value.grad for name, value in step.model.named_parameters() if value.grad is not None}
        gradients.append((sum(sums).item(), found))
    first_loss, first = gradients[0]
    assert any("vision" in name for name in first)
    for loss, found in gradients[1:]:
        assert loss == pytest.approx(first_loss, rel=1e-12)
        assert found.keys() == first.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, first[name], rtol=1e-9, atol=1e-9)


@dear("idefics3")
def test_a_run_lowers_the_loss_and_its_folder_loads_with_transformers_alone(place):
    record = distill(settings(place, "run", train={"max_steps": 12}, data={"eval": str(place / "train.jsonl")},
                              evaluation={"metrics": ["perplexity"]}), silent)  # fmt: skip
    metrics = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    trained = Path(model_of(str(place / "run")))
    model = AutoModelForImageTextToText.from_pretrained(trained)
    assert type(AutoProcessor.from_pretrained(trained)) is type(AutoProcessor.from_pretrained(place / "S"))
    assert type(model).__name__ == json.loads((place / "S" / "config.json").read_text())["architectures"][0]
    logp = torch.cat([
        own.log_softmax(-1).gather(1, labels[:, None])[:, 0] for own, labels in plain(trained, read(place), place)
    ])  # fmt: skip
    assert "AutoModelForImageTextToText" in (trained / "README.md").read_text()
    assert record.evaluation is not None
    found = record.evaluation.estimates["perplexity"].mean
    assert found == pytest.approx((-logp.mean()).exp().item(), rel=1e-4)


def test_answers_are_those_of_transformers_and_images_are_read_once(place, monkeypatch):
    """Greedy answers equal generate's, and pictures are handed to the model with the prompt alone."""
    model, rows = load_model(str(place / "T"), device=CPU, role="teacher"), dataset(place)
    seen = []
    plain_trunk = type(model.model.model).forward

    def trunk(self, *args, **given):
        seen.append((given["input_ids"].shape, "pixel_values" in given))
        return plain_trunk(self, *args, **given)

    asked = [
        GenerationRequest(one.question, number, (0,), images=one.images) for number, one in enumerate(rows.examples)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(type(model.model.model), "forward", trunk)
        found = {
            at: answer for at, _, answer in answers(model, asked, GenerationConfig(max_new_tokens=12, temperature=0.0))
        }
    with_pixels = [shape for shape, pixels in seen if pixels]
    assert len(with_pixels) == rows.with_images
    assert sum(shape[1] == 1 for shape, _ in seen) >= 11
    processor = AutoProcessor.from_pretrained(place / "T")
    for number, line in enumerate(read(place)):
        names = line.get("images", [])
        pictures = [[Image.open(place / name) for name in names]] if names else None
        text = processor.apply_chat_template(line["messages"][:1], add_generation_prompt=True)
        given = processor(text=[text], images=pictures, return_tensors="pt", add_special_tokens=False)
        whole = model.model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert [*found[number].tokens] == whole.tolist()


@dear("llava")
def test_rouge_reads_answers_to_images_and_other_images_get_other_answers(place):
    """An answer is kept under its images: the same questions about other pictures are asked anew."""
    options = {"metrics": ["rougeL"], "generation": {"max_new_tokens": 6, "temperature": 0.0}}
    asked = {"model": str(place / "T"), "data": {"eval": str(place / "test.jsonl")}, "evaluation": options}
    first = evaluate_run(EvalConfig(**asked, output=str(place / "first")), silent)
    for number, path in enumerate(sorted((place / "pictures").glob("1-*.png"))):
        vision.picture(path, 77 + number)
    second = evaluate_run(EvalConfig(**asked, output=str(place / "second")), silent)
    vision.rows(place / "test.jsonl", 4, seed=1)
    assert {"rougeL"} == {*first.estimates}
    assert first.protocol["data"] != second.protocol["data"]
    one, other = (
        {json.loads(line)["key"] for line in (place / name / "answers.jsonl").read_text().splitlines()}
        for name in ("first", "second")
    )
    assert len(one) == len(other) == 4
    assert len(one & other) == 1, "the row without images is the same question"


@dear("llava")
def test_a_cache_gives_the_run_of_the_live_teacher_bit_for_bit_and_knows_its_images(place):
    data = {"train": str(place / "train.jsonl")}
    record = cache(CacheConfig(teacher=str(place / "T"), data=data, output=str(place / "kept")), silent)
    assert record.sequences == 8
    for name, more in (("live", {}), ("cached", {"teacher_cache": str(place / "kept")})):
        distill(settings(place, name, **more), silent)
    weights = [(Path(model_of(str(place / name))) / "model.safetensors").read_bytes() for name in ("live", "cached")]
    assert weights[0] == weights[1]
    before = (place / "pictures/0-0-0.png").read_bytes()
    vision.picture(place / "pictures/0-0-0.png", 4711)
    with pytest.raises(KDError, match=r"CACHE-04.*1 of 8 rows are not in the cache"):
        distill(settings(place, "other", teacher_cache=str(place / "kept")), silent)
    (place / "pictures/0-0-0.png").write_bytes(before)


@dear("llava")
def test_a_stopped_run_goes_on_bit_for_bit(place):
    more = {"train": {"max_steps": 6, "save_every": 2}}
    distill(settings(place, "whole", **more), silent)

    def stop(event):
        if event.kind == "saved" and event.done == 4:
            raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError, match="stopped here"):
        distill(settings(place, "cut", **more), stop)
    distill(settings(place, "cut", **more), silent)
    whole, cut = ((Path(model_of(str(place / name))) / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
