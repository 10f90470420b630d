"""Losses whose options or weight run over training."""

import json
import math
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import running
from kdcli.errors import InterruptedRunError, UsageError
from kdcli.losses.build import build_objective
from kdcli.losses.samples import sample, tokens_of, values, values_and_grad, with_facts
from kdcli.losses.wrappers.schedules import interpolate, share_of_way
from kdcli.training.trainer import train

COURSES = ("linear", "cosine", "exponential", "step")


def lines(folder):
    return [json.loads(line) for line in running.metrics(folder).decode().splitlines()]


@given(st.sampled_from(COURSES), st.floats(0.01, 100), st.floats(0.01, 100))
def test_courses_start_and_end_exactly_and_stay_between(course, start, end):
    assert interpolate(course, start, end, 0.0) == start
    assert interpolate(course, start, end, 1.0) == end
    way = [interpolate(course, start, end, share / 16) for share in range(17)]
    low, high = min(start, end), max(start, end)
    assert all(low * (1 - 1e-12) <= value <= high * (1 + 1e-12) for value in way)
    assert way == pytest.approx(sorted(way, reverse=start > end))


def test_halfway_values_follow_the_formulas():
    assert interpolate("linear", 4.0, 1.0, 0.25) == 3.25
    assert interpolate("cosine", 4.0, 1.0, 0.25) == pytest.approx(4 - 3 * (1 - math.cos(math.pi / 4)) / 2)
    assert interpolate("exponential", 4.0, 1.0, 0.25) == pytest.approx(4**0.75)
    assert [share_of_way(at, 0.2, 0.6) for at in (0.1, 0.4, 0.7)] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("inner", ["fkl", "rkl", "jsd", "atkd", "mse_logits"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_an_annealed_loss_is_the_loss_at_the_temperature_of_the_moment(inner, progress):
    if inner == "mse_logits":
        with pytest.raises(UsageError, match="no number temperature"):
            build_objective(f"annealed:loss={inner}")
        return
    loss = build_objective(f"annealed:loss={inner},start=1,end=5")
    data = sample(loss).to(torch.float64)
    data = replace(data, progress=progress)
    bare = build_objective(f"{inner}:temperature={1 + 4 * progress}")
    for one, two in zip(
        values_and_grad(loss, with_facts(loss, data)), values_and_grad(bare, with_facts(bare, data)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_with_tau_squared_the_gradient_keeps_its_size_for_small_logits():
    data = sample(build_objective("fkl"), scale=1e-3).to(torch.float64)
    sizes = []
    for progress in (0.0, 0.5, 1.0):
        data = replace(data, progress=progress)
        _, grad = values_and_grad(build_objective("annealed:start=8,end=1"), data)
        sizes.append(grad.norm().item())
    assert max(sizes) / min(sizes) < 1.002


@pytest.mark.parametrize("course", COURSES)
def test_first_and_last_step_of_a_run_have_start_and_end(course, tmp_path):
    spec = f"ramp:loss=ce,start=1,end=0.25,course={course}+annealed:loss=rkl,start=4,end=0.5,course={course}"
    train(running.training(tmp_path, spec))
    found = lines(tmp_path)
    assert [found[at]["ramp.weight"] for at in (0, -1)] == pytest.approx([1.0, 0.25], rel=1e-6)
    assert [found[at]["annealed.temperature"] for at in (0, -1)] == pytest.approx([4.0, 0.5], rel=1e-6)
    assert len({line["ramp.weight"] for line in found}) >= (2 if course == "step" else 12)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    spec = "ramp:loss=ce,start=1,end=0,until=0.7+annealed:loss=atkd,course=cosine"
    whole = running.training(tmp_path / "whole", spec)
    train(whole)

    def stop(event):
        if event.kind == "progress" and event.done == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError):
        train(running.training(tmp_path / "cut", spec, report=stop))
    again = running.training(tmp_path / "cut", spec)
    train(again)
    assert running.same(running.weights(whole), running.weights(again))
    assert running.metrics(tmp_path / "whole") == running.metrics(tmp_path / "cut")


def test_nothing_is_computed_at_weight_zero():
    loss = build_objective("ramp:loss=rkl,start=0,end=1,since=0.6")
    data = with_facts(loss, sample(loss))
    data.teacher[:, :] = torch.nan
    answer = loss.parts_and_grad(tokens_of(loss, data))
    assert answer is not None
    parts, grad = answer
    assert not grad.any()
    assert not parts["ramp"].any()
    assert not values(loss, data).any()


@pytest.mark.parametrize("inner", ["rkl", "ce"])
def test_value_and_gradient_stand_at_the_weight_of_the_moment(inner):
    """A quarter of the way from 0 to 2 is one half, in closed form and by autograd."""
    loss, bare = build_objective(f"ramp:loss={inner},start=0,end=2"), build_objective(inner)
    data = replace(sample(loss).to(torch.float64), progress=0.25)
    ramped, plain = (one.parts_and_grad(tokens_of(one, with_facts(one, data))) for one in (loss, bare))
    torch.testing.assert_close(ramped[0]["ramp"], plain[0][inner] / 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(ramped[1], plain[1] / 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(values(loss, data), values(bare, data) / 2, rtol=1e-14, atol=0)


def test_stages_switch_from_one_term_to_the_other():
    loss = build_objective("ramp:loss=ce,start=1,end=0,course=step,until=0.4+ramp:loss=fkl,course=step,until=0.4")
    ce, fkl = build_objective("ce"), build_objective("fkl")
    data = sample(loss)
    for progress, stage in ((0.0, ce), (0.39, ce), (0.4, fkl), (1.0, fkl)):
        data = replace(data, progress=progress)
        torch.testing.assert_close(values(loss, data), values(stage, data))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("annealed:start=0", "temperature of fkl cannot be 0"),
        ("annealed:loss=ce", "ce has no number temperature"),
        ("annealed:loss=(0.5*ce+0.5*fkl)", "sum has no number temperature"),
        ("annealed:loss=fkl,loss.temperature=2", "would be ignored"),
        ("annealed:loss=skl,option=scale_tau2", "no number scale_tau2"),
        ("annealed:loss=atkd,option=lam,start=0,end=1", "cannot change"),
        ("annealed:since=0.5,until=0.5", "since must lie before until"),
        ("ramp:course=exponential", "never leaves or reaches 0"),
        ("ramp:start=0,end=0", "nothing is left"),
        ("ramp:until=1.5", "until must lie in (0, 1]"),
    ],
)
def test_what_makes_no_sense_is_refused(spec, words):
    with pytest.raises(UsageError) as caught:
        build_objective(spec)
    assert words in str(caught.value)


def test_temperatures_other_than_one_need_the_whole_teacher():
    assert "temperature" in build_objective("annealed:start=2,end=1").needs().full_distribution
    assert build_objective("annealed:loss=skl,option=alpha,start=0.1,end=0.5").needs().full_distribution == ""
