from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import running
from kdcli.errors import UsageError
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.groups import Groups
from kdcli.losses.samples import sample, tokens_of, values_and_grad, with_facts
from kdcli.losses.wrappers.token_weights import MEASURES, Measured, Weighted, measure, places, selected
from kdcli.registry.build import spec_of
from kdcli.training.trainer import train

COMPUTED: list[Measured] = [name for name in MEASURES if name != "position"]


def weights_of(loss, data):
    return with_facts(loss, data).facts["weighing/weight"]


@pytest.mark.parametrize("inner", ["fkl", "akl", "atkd", "(0.5*ce+0.5*rkl)"])
@pytest.mark.parametrize("by", MEASURES)
def test_uniform_weights_give_the_bare_loss_bit_for_bit(inner, by):
    loss, bare = build_objective(f"weighted:loss={inner},by={by},keep=1"), build_objective(inner.strip("()"))
    data = sample(loss)
    for one, two in zip(
        values_and_grad(loss, with_facts(loss, data)), values_and_grad(bare, with_facts(bare, data)), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("by", COMPUTED)
@pytest.mark.parametrize("options", ["keep=0.4", "keep=1,sharpness=2", "keep=0.7,favour=low,sharpness=1"])
def test_permuted_tokens_get_their_weights_and_the_mean_is_one(by, options):
    loss = build_objective(f"weighted:by={by},{options}")
    data = sample(loss, tokens=11).to(torch.float64)
    turned = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    one, two = weights_of(loss, data), weights_of(loss, data.rows(turned))
    torch.testing.assert_close(one[turned], two, rtol=1e-12, atol=1e-12)
    assert one.mean().item() == pytest.approx(1.0, abs=1e-12)


@given(
    st.lists(st.floats(0, 20, width=32), min_size=1, max_size=40),
    st.floats(0.01, 1),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([0.0, 0.7, 900.0]),
    st.sampled_from(["high", "low"]),
)
def test_weights_are_finite_at_least_zero_and_have_mean_one(measured, keep, power, sharpness, favour):
    loss = Weighted(keep=keep, power=power if favour == "high" else 0.0, sharpness=sharpness, favour=favour)
    weight = loss.weights(torch.tensor(measured, dtype=torch.float64))
    assert torch.isfinite(weight).all()
    assert (weight >= 0).all()
    assert weight.mean().item() == pytest.approx(1.0)
    raised = [w for _, w in sorted(zip(measured, weight.tolist(), strict=True), reverse=favour == "low")]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(raised))


def test_selection_equals_a_brute_force_one():
    entropies = torch.tensor([0.1, 2.0, 0.4, 1.0, 0.4])
    assert selected(entropies, 0.2).tolist() == [False, True, False, False, False]
    assert selected(entropies, 0.6).tolist() == [False, True, True, True, True]  # the tie comes along
    assert int(selected(torch.arange(100.0), 0.07).sum()) == 7  # though 0.07 * 100 is above 7 in floating point
    loss = Weighted(keep=0.6)
    assert loss.weights(entropies).tolist() == pytest.approx([0, 1.25, 1.25, 1.25, 1.25])
    assert Weighted(keep=0.2, favour="low").weights(entropies).tolist() == [5.0, 0, 0, 0, 0]


def test_power_and_sharpness_are_what_they_say():
    measured = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    squares = Weighted(keep=1, power=2).weights(measured)
    assert squares.tolist() == pytest.approx([3 / 21, 12 / 21, 48 / 21])
    falling = Weighted(keep=1, sharpness=0.5, favour="low").weights(measured)
    raw = torch.exp(-0.5 * measured)
    torch.testing.assert_close(falling, raw / raw.mean())


def test_measures_against_definitions():
    q, p = torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.tensor([[0.1, 0.2, 0.7]]).double()
    tok = Tokens(torch.tensor([2]), q.log() + 3, p.log() - 1)
    found = {name: measure(name, tok).item() for name in COMPUTED}
    assert found == pytest.approx(
        {
            "teacher_entropy": -(p * p.log()).sum().item(),
            "student_entropy": -(q * q.log()).sum().item(),
            "teacher_confidence": 0.7,
            "student_confidence": 0.5,
            "teacher_nll": -p[0, 2].log().item(),
            "student_nll": -q[0, 2].log().item(),
            "teacher_right": 1.0,
            "disagreement": 0.5,
        }
    )
    assert places(Groups.by(torch.tensor([4, 4, 7, 7, 7]))).tolist() == [0.0, 1.0, 0.0, 0.5, 1.0]


def test_no_gradient_goes_through_the_weights():
    loss = build_objective("weighted:by=disagreement,keep=1,power=1")
    data = with_facts(loss, sample(loss).to(torch.float64))
    _, grad = values_and_grad(loss, data)
    bare = build_objective("fkl")
    _, slope = values_and_grad(bare, data)
    torch.testing.assert_close(grad, data.facts["weighing/weight"][:, None] * slope)


def test_within_sequences_every_sequence_has_mean_one():
    loss = build_objective("weighted:by=student_nll,keep=0.5,scope=sequence")
    data = sample(loss, tokens=12)
    weight = weights_of(loss, data)
    for index in range(3):
        assert weight[data.facts["seq"] == index].mean().item() == pytest.approx(1.0)


def test_unselected_tokens_do_no_harm_though_their_loss_is_infinite():
    loss = build_objective("weighted:loss=rkl,by=teacher_entropy,keep=0.5")
    data = sample(loss)
    data.teacher[0] = -torch.inf
    data.teacher[0, 1] = 0.0  # certain, entropy 0, and excludes what the student allows
    ready = with_facts(loss, data)
    closed = loss.parts_and_grad(tokens_of(loss, ready))
    assert closed is not None
    parts, grad = closed
    value, slope = values_and_grad(loss, ready)
    assert torch.isfinite(value).all()
    assert not grad[0].any()
    torch.testing.assert_close(parts["weighted"], value)
    torch.testing.assert_close(grad, slope, rtol=1e-4, atol=1e-5)


def test_chunks_of_the_engine_change_nothing(tmp_path):
    losses = []
    for chunk in (1, 64):
        student, teacher = running.exact_pair()
        at = tmp_path / str(chunk)
        spec = "weighted:loss=akl,by=disagreement,keep=0.5,sharpness=1"
        job = running.training(at, spec, student=student, teacher=teacher, chunk_tokens=chunk, max_steps=3)
        train(job)
        losses.append(running.weights(job))
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], rtol=1e-9, atol=1e-12)


def test_what_is_selected_and_measured_is_watched():
    loss = build_objective("0.5*ce+weighted:loss=akl,by=teacher_entropy,keep=0.3")
    data = with_facts(loss, sample(loss))
    tok = tokens_of(loss, data)
    loss.parts_and_grad(tok)
    assert set(tok.logged) == {"weighted.selected", "weighted.teacher_entropy", "weighted.akl.head_weight"}
    assert tok.logged["weighted.selected"].sum().item() == 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("weighted:keep=0", "keep must lie in (0, 1]"),
        ("weighted:by=entropy", "by must be one of teacher_entropy"),
        ("weighted:favour=low,power=1", "use sharpness"),
    ],
)
def test_what_makes_no_sense_is_refused(spec, words):
    with pytest.raises(UsageError) as caught:
        build_objective(spec)
    assert words in str(caught.value)


def test_a_compact_teacher_does_where_no_teacher_is_measured():
    assert build_objective("weighted:by=position").needs().full_distribution == ""
    assert build_objective("weighted:by=student_entropy").needs().full_distribution == ""
    assert "teacher_entropy is measured" in build_objective("weighted").needs().full_distribution
    assert not build_objective("weighted:loss=ce,by=student_entropy").needs().teacher
    assert spec_of(build_objective("weighted:loss=kl,keep=0.5")) == "weighted"
