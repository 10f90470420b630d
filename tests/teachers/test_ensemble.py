import json

import pytest
import torch

import running
from kdcli.losses.topk import top_k_with_tail
from kdcli.models.head import Head
from kdcli.models.packing import AppliedHead, Projection, Workspace, find_valid
from kdcli.teachers.base import AppliedMixture, LiveTeacher, Mixture, Teacher, live_models
from kdcli.teachers.ensemble import EnsembleTeacher
from kdcli.training.trainer import train


def projection(seed, width, dtype=torch.float64, rows=11):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(7, width, generator=generator, dtype=dtype)
    return Projection(hidden, Head(torch.randn(rows, width, generator=generator, dtype=dtype)))


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("space", ["probability", "log"])
def test_the_mixture_is_that_of_the_definition(space, chunk):
    members, weights = (projection(1, 4), projection(2, 6, rows=13), projection(3, 5)), (0.5, 0.3, 0.2)
    mixed = AppliedMixture("teacher", Mixture(members, weights, space), 10, torch.float64, Workspace())
    found = torch.cat([mixed.logits(slice(at, min(at + chunk, 7))).clone() for at in range(0, 7, chunk)])
    log_p = [one.head.logits(one.hidden, 10).log_softmax(-1) for one in members]
    if space == "probability":
        expected = sum(w * one.exp() for w, one in zip(weights, log_p, strict=True)).log()
    else:
        expected = sum(w * one for w, one in zip(weights, log_p, strict=True)).log_softmax(-1)
    torch.testing.assert_close(found.log_softmax(-1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("space", ["probability", "log"])
def test_two_equal_teachers_are_one(space):
    one = projection(1, 4, torch.float32)
    span = slice(0, 7)
    alone = AppliedHead("a", one, 11, torch.float32, Workspace()).logits(span)
    both = Mixture((one, one), (0.5, 0.5), space).apply("b", 11, torch.float32, Workspace()).logits(span)
    torch.testing.assert_close(both.log_softmax(-1), alone.log_softmax(-1), rtol=1e-6, atol=1e-6)
    if space == "log":
        assert torch.equal(both, alone)


def test_no_more_than_two_chunks_of_logits_exist_at_once():
    workspace = Workspace(chunk_tokens=2)
    members = tuple(projection(seed, 4) for seed in range(5))
    mixed = AppliedMixture("teacher", Mixture(members, (0.2,) * 5, "probability"), 11, torch.float64, workspace)
    for at in range(0, 6, 2):
        mixed.logits(slice(at, at + 2))
    assert sum(buffer.numel() for buffer in workspace._buffers.values()) == 2 * 2 * 11


def ensemble(space="probability"):
    models = running.model("teacher", seed=2), running.model("teacher", seed=3, hidden_size=24)
    return EnsembleTeacher(models, (0.6, 0.4), space)


@pytest.mark.parametrize("spec", ["fkl", "rkl", "akl", "atkd"])
def test_the_gradient_is_that_of_a_float64_reference(spec, tmp_path):
    from kdcli.losses.build import build_objective
    from kdcli.losses.samples import Sample, values_and_grad, with_facts
    from kdcli.training.step import DistillStep

    student, _ = running.exact_pair()
    teacher = ensemble()
    for model in teacher.models:
        model.model.double()
    loss = build_objective(spec)
    step = DistillStep(student, teacher, loss, vocab=running.VOCAB, chunk_tokens=3)
    batch = running.training(tmp_path).windows.window(0)[0]
    packing = find_valid(batch.labels)
    total, _ = step(batch, 64)
    total.backward()
    found = [parameter.grad.clone() for parameter in student.model.parameters()]
    student.model.zero_grad()
    seen = [packing.pack(m.model(batch.input_ids, attention_mask=batch.attention_mask).logits) for m in teacher.models]
    mixed = sum(w * one.softmax(-1) for w, one in zip(teacher.weights, seen, strict=True)).log().detach()
    own = packing.pack(student.model(batch.input_ids, attention_mask=batch.attention_mask).logits)
    data = Sample(own.detach(), mixed, packing.labels, {"seq": packing.sequence})
    value, slope = values_and_grad(loss, with_facts(loss, data))
    own.backward(slope / 64)
    assert total.item() == pytest.approx(value.sum().item() / 64, rel=1e-9)
    for one, parameter in zip(found, student.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-8, atol=1e-11)


def test_a_run_learns_from_all_of_them(tmp_path):
    job = running.training(tmp_path, "fkl", max_steps=30, lr=2e-2)
    object.__setattr__(job, "teacher", ensemble())
    train(job)
    losses = [json.loads(line)["loss"] for line in running.metrics(tmp_path).decode().splitlines()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_who_is_alive():
    one = running.model("teacher", seed=2)
    assert live_models(LiveTeacher(one)) == (one,)
    assert len(live_models(ensemble())) == 2
    assert live_models(None) == ()


def test_what_a_teacher_gives_says_whether_every_logit_is_known():
    one, other = projection(1, 4), projection(2, 6)
    both, bins = Mixture((one, other), (0.6, 0.4)), top_k_with_tail(torch.zeros(2, 5), 2)
    assert one.whole is one
    assert one.single is one
    assert both.whole is both
    assert both.single is None
    assert bins.whole is None
    assert bins.bins is bins
    assert one.bins is both.bins is None


def test_places_without_a_token_have_no_hidden_state():
    members = projection(1, 4), projection(2, 6)
    found = Mixture(members, (0.6, 0.4)).rows(torch.tensor([3, -1, 0])).members
    for one, given in zip(found, members, strict=True):
        nothing = torch.zeros_like(given.hidden[0])
        assert torch.equal(one.hidden, torch.stack([given.hidden[3], nothing, given.hidden[0]]))
        assert one.head is given.head


def test_a_teacher_that_gives_nothing_cannot_be_made():
    with pytest.raises(TypeError, match="side"):
        Teacher()
