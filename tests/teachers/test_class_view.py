"""What a teacher says of classes: a classifier by the names of its classes, a causal LM by the words for each."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import classes
import tiny
from kdcli.config.schema import DataConfig
from kdcli.config.sections import HardwareConfig
from kdcli.data.batching import collate
from kdcli.errors import UsageError
from kdcli.loading.session import Session
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.models.devices import prepare
from kdcli.models.packing import find_valid
from kdcli.registry.registry import LOSSES
from kdcli.sources.sequences import ORIGIN, ORIGIN_SHARE, TRUST
from kdcli.teachers import class_view
from kdcli.teachers.class_view import class_reader, class_teacher
from kdcli.training.step import DistillStep

DEVICE = prepare(HardwareConfig(device="cpu"))


@pytest.fixture
def rows(tmp_path):
    return str(classes.rows(tmp_path / "train.jsonl", 12))


def opened(rows, teacher, **data):
    session, config = Session(), DataConfig(train=rows, **data)
    pair = session.pair("tiny:width=8,vocab=64", str(teacher), data=config)
    return session, config, pair, session.data(rows, pair.reader, config, role="train")


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_a_causal_teacher_equals_a_plain_loop_over_the_words(tmp_path, rows, score):
    names = {"animal": "beast", "tool": "x"}
    session, config, pair, data = opened(
        rows, tiny.folder(tmp_path / "T"), class_prompt="say {text}:", class_names=names, class_score=score
    )
    reader = class_reader(pair.teacher, data.labels, config, DEVICE, session)
    texts = [one.prompt for one in data.examples[:4]]
    found = reader.class_logits(texts, [""] * 4, 511)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "T"), tiny.tokenizer()
    for text, got in zip(texts, found, strict=True):
        before = tokenizer(f"say {text}:", add_special_tokens=False)["input_ids"]
        for label, value in zip(("animal", "food", "tool"), got, strict=True):
            words = tokenizer(" " + names.get(label, label), add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[tokenizer.eos_token_id, *before, *words]])
            logp = model(ids).logits[0, -len(words) - 1 : -1].log_softmax(-1)
            plain = logp[torch.arange(len(words)), words].sum().item()
            assert value == pytest.approx(plain / (len(words) if score == "mean" else 1), abs=1e-4)


def test_a_text_that_fills_the_teachers_context_is_cut(tmp_path, rows):
    session, config, pair, data = opened(rows, tiny.folder(tmp_path / "T", max_position_embeddings=32))
    reader = class_reader(pair.teacher, data.labels, config, DEVICE, session)
    found = reader.class_logits(["a" * 90, "a" * 80], ["", ""], 511)
    assert found[0] == pytest.approx(found[1])
    assert np.isfinite(found).all()


def test_a_classifiers_columns_are_those_of_the_same_name(tmp_path, rows):
    teacher = classes.folder(tmp_path / "T", labels=("tool", "other", "animal", "food"))
    session, config, pair, data = opened(rows, teacher)
    reader = class_reader(pair.teacher, data.labels, config, DEVICE, session)
    own = Session().inspect(str(teacher), classifiers=True)
    assert own.labels == ("tool", "other", "animal", "food")
    assert data.labels == ("animal", "food", "tool")
    texts = [one.prompt for one in data.examples]
    whole = reader.inner.class_logits(texts, [""] * 12, 511)
    assert reader.class_logits(texts, [""] * 12, 511).tolist() == whole[:, [2, 3, 0]].tolist()


def test_progress_is_told_while_the_teacher_reads_and_parts_change_nothing(tmp_path, rows, monkeypatch):
    session, config, pair, data = opened(rows, classes.folder(tmp_path / "T", labels=("animal", "food", "tool")))
    whole = class_teacher(pair.teacher, data, config, DEVICE, session).logits
    monkeypatch.setattr(class_view, "_AT_ONCE", 5)
    told = []
    session.class_tables.clear()
    parts = class_teacher(pair.teacher, data, config, DEVICE, session, told.append).logits
    assert [(one.kind, one.done, one.total) for one in told] == [
        ("stage", 0, 12), ("progress", 5, 12), ("progress", 10, 12), ("progress", 12, 12),
    ]  # fmt: skip
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("data", [{"class_prompt": "no place"}, {"class_names": {"anmal": "beast"}}])
def test_settings_that_cannot_be_meant_are_refused(tmp_path, rows, data):
    session, config, pair, rows_read = opened(rows, tiny.folder(tmp_path / "T"), **data)
    with pytest.raises(UsageError, match="CLS-03"):
        class_reader(pair.teacher, rows_read.labels, config, DEVICE, session)


def stepped(tmp_path, rows, objective):
    """One step of an objective on a classifier; logits of both, the classes, and what the step gave."""
    session, config, pair, data = opened(rows, classes.folder(tmp_path / "T", labels=("animal", "food", "tool")))
    student = session.load_student(pair, seed=1, device=torch.device("cpu"))
    teacher = class_teacher(pair.teacher, data, config, DEVICE, session)
    batch = collate(data.examples, range(len(data)), student.pad_id)
    valid = batch.labels >= 0
    facts = {ORIGIN: torch.zeros_like(batch.labels), ORIGIN_SHARE: valid.float(), TRUST: valid.float()}
    batch = type(batch)(batch.input_ids, batch.attention_mask, batch.labels, batch.example, facts)
    step = DistillStep(student, teacher, build_objective(objective), vocab=3)
    total, _ = step(batch, len(data), progress=0.5)
    total.backward()
    labels = torch.tensor([one.ids[-1] for one in data.examples])
    z = student.model(batch.input_ids, batch.attention_mask).logits.detach().double()
    assert find_valid(batch.labels).count == len(data)
    return total.item(), z.log_softmax(-1), teacher.logits.double().log_softmax(-1), labels, student


def test_the_loss_is_that_of_the_formulas(tmp_path, rows):
    """L = CE(y, q) + lambda CE(p, q); soft_ce less fkl is the teacher's entropy."""
    found, q, p, y, _ = stepped(tmp_path, rows, "ce+0.7*soft_ce")
    hard, soft = -q[torch.arange(12), y].mean(), -(p.exp() * q).sum(1).mean()
    assert found == pytest.approx((hard + 0.7 * soft).item(), abs=1e-6)
    entropy = -(p.exp() * p).sum(1).mean().item()
    (tmp_path / "b").mkdir()
    assert soft.item() - stepped(tmp_path / "b", rows, "fkl")[0] == pytest.approx(entropy, abs=1e-6)


def test_a_teacher_that_is_sure_gives_cross_entropy():
    """C = 2 and p one-hot."""
    labels, student = torch.tensor([0, 1, 1, 0]), torch.randn((4, 2), generator=torch.Generator().manual_seed(0))
    sure = torch.nn.functional.one_hot(labels).double().mul(200).sub(100)
    tokens = Tokens(labels, student.double(), sure)
    soft, hard = (build_objective(name).token_loss(tokens) for name in ("soft_ce", "ce"))
    assert soft.tolist() == pytest.approx(hard.tolist(), abs=1e-9)


def usable(name):
    needs = build_objective(name).needs()
    return needs.logits and not needs.features and not needs.drawn


@pytest.mark.parametrize("name", [name for name in LOSSES.names() if usable(name)])
def test_every_objective_on_logits_trains_a_classifier(tmp_path, rows, name):
    found, *_, student = stepped(tmp_path, rows, {"route": "route:data=fkl"}.get(name, name))
    moved = sum(one.grad.abs().sum().item() for one in student.model.parameters() if one.grad is not None)
    assert np.isfinite([found, moved]).all()
    assert moved > 0
