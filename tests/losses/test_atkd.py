import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.errors import UsageError
from kdcli.losses.atkd import AdaptiveTeachingKD, group_weights, hardest
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.divergences.decoupled import DecoupledKD, DiversityKD, TargetKD
from kdcli.losses.samples import Sample, sample, tokens_of, values, values_and_grad, with_facts

BATCH = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())["batch"]


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def golden():
    return Sample(
        double(BATCH["student"]),
        double(BATCH["teacher"]),
        torch.tensor(BATCH["labels"]),
        {"seq": torch.zeros(5, dtype=torch.int64)},
    )


def run(loss, data):
    """Values and gradients, by autograd and in closed form; the two must agree."""
    data = with_facts(loss, data)
    value, grad = values_and_grad(loss, data)
    closed = loss.parts_and_grad(tokens_of(loss, data))
    if closed is not None:
        torch.testing.assert_close(sum(closed[0].values()), value, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(closed[1], grad, rtol=1e-10, atol=1e-13)
    return value, grad


def each(loss, data):
    """A loss's values on every token, as if alone."""
    return values(loss, data)


def test_golden_batch():
    value, grad = run(AdaptiveTeachingKD(), golden())
    assert value.mean().item() == pytest.approx(BATCH["value"], abs=1e-12)
    torch.testing.assert_close(grad / 5, double(BATCH["gradient"]), rtol=0, atol=1e-12)


def test_golden_split():
    loss = AdaptiveTeachingKD()
    facts = with_facts(loss, golden()).facts
    torch.testing.assert_close(facts["split/log_unc"].exp(), double(BATCH["uncertainty"]), rtol=0, atol=1e-12)
    assert torch.nonzero(~facts["split/hard"]).squeeze(1).tolist() == BATCH["easy"]
    parts = loss.parts(tokens_of(loss, with_facts(loss, golden())))
    assert parts["easy"].mean().item() == pytest.approx(0.2 * BATCH["easy_mean"], abs=1e-12)
    assert parts["hard"].mean().item() == pytest.approx(0.8 * BATCH["hard_mean"], abs=1e-12)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
@settings(max_examples=100, derandomize=True)
def test_at_one_half_easy_is_strictly_below_the_lower_median(numbers):
    unc = double(numbers)
    assert torch.equal(hardest(unc, 0.5), ~(unc < unc.median()))


@given(st.lists(st.floats(-9, 0), min_size=1, max_size=12, unique=True), st.floats(0.0, 1.0))
@settings(max_examples=100, derandomize=True)
def test_the_hard_tokens_are_the_highest(numbers, k):
    hard = hardest(double(numbers), k)
    count = int(hard.sum())
    assert math.ceil(k * len(numbers) - 1e-6) <= count <= (math.floor(k * len(numbers) + 1e-6) + 1 if k else 0)
    if 0 < count < len(numbers):
        assert double(numbers)[hard].min() > double(numbers)[~hard].max()


@pytest.mark.parametrize(
    "k, count", [(0.0, 0), (0.1, 2), (0.29, 3), (0.3, 4), (0.5, 6), (0.7, 8), (0.95, 10), (1.0, 10)]
)
def test_share_of_hard_tokens_among_ten(k, count):
    assert int(hardest(torch.arange(10).double(), k).sum()) == count


def test_ties_go_to_the_hard_tokens():
    assert hardest(double([1, 2, 2, 2, 2]), 0.2).tolist() == [False, True, True, True, True]
    assert hardest(double([3, 3, 3]), 0.5).all()


@pytest.mark.parametrize("hard", [[0, 1, 1, 0, 1], [1, 0, 0, 0, 0]])
@pytest.mark.parametrize("lam", [0.0, 0.2, 0.9, 1.0])
def test_weights_make_group_means(hard, lam):
    hard = torch.tensor(hard, dtype=torch.bool)
    weights, number = group_weights(hard, lam), torch.arange(5).double()
    expected = lam * number[~hard].mean() + (1 - lam) * number[hard].mean()
    assert (weights * number).mean().item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("hard", [[True] * 3, [False] * 3])
def test_the_weight_of_an_empty_group_goes_to_the_other(hard):
    assert group_weights(torch.tensor(hard), 0.2).tolist() == [1.0, 1.0, 1.0]


def test_all_hard_with_the_uncertainty_kept_is_forward_kl():
    loss = AdaptiveTeachingKD(k=1, lam=0, keep_unc=True)
    value, grad = run(loss, golden())
    assert value.mean().item() == pytest.approx(BATCH["forward_kl_mean"], abs=1e-12)
    data = golden()
    torch.testing.assert_close(grad, data.student.softmax(1) - data.teacher.softmax(1), rtol=0, atol=1e-12)


def test_all_hard_with_the_uncertainty_kept_is_reverse_kl_at_base_rkl():
    value, _ = run(AdaptiveTeachingKD(k=1, lam=0, keep_unc=True, base="rkl"), golden())
    data = golden()
    q, p = data.student.log_softmax(1), data.teacher.log_softmax(1)
    torch.testing.assert_close(value, (q.exp() * (q - p)).sum(1))


def test_all_easy_is_the_mean_of_the_diversity_part():
    value, _ = run(AdaptiveTeachingKD(k=0, lam=1), golden())
    assert value.mean().item() == pytest.approx(sum(BATCH["dkd"]) / 5, abs=1e-12)


@pytest.mark.parametrize("base", ["fkl", "rkl"])
def test_the_split_follows_the_teacher_alone(base):
    loss, data, other = AdaptiveTeachingKD(base=base), golden(), golden()
    other.student.copy_(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    one, two = with_facts(loss, data).facts, with_facts(loss, other).facts
    assert torch.equal(one["split/hard"], two["split/hard"])
    other.teacher.copy_(other.teacher.roll(1, 0))
    assert not torch.equal(one["split/log_unc"], with_facts(loss, other).facts["split/log_unc"])


@pytest.mark.parametrize("base", ["fkl", "rkl"])
@pytest.mark.parametrize("keep_unc", [False, True])
def test_presets_are_the_two_losses_they_stand_for(base, keep_unc):
    options = {"reverse": base == "rkl", "keep_unc": keep_unc, "temperature": 2.0}
    preset = AdaptiveTeachingKD(base=base, keep_unc=keep_unc, temperature=2.0)
    spelt = AdaptiveTeachingKD(easy=DiversityKD(**options), hard=DecoupledKD(**options))
    data = sample(preset, tokens=11).to(torch.float64)
    for one, two in zip(run(preset, data), run(spelt, data), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)


def test_each_group_gets_its_own_objective_and_mean():
    loss = build_objective("atkd:easy=(tkd:reverse=true),hard=dkd_div,hard.temperature=2,k=0.3,lam=0.4")
    data = sample(loss, tokens=10).to(torch.float64)
    hard = with_facts(loss, data).facts["split/hard"]
    assert int(hard.sum()) == 4
    easy_mean = each(TargetKD(reverse=True), data)[~hard].mean()
    hard_mean = each(DiversityKD(temperature=2), data)[hard].mean()
    value, _ = run(loss, data)
    torch.testing.assert_close(value.mean(), 0.4 * easy_mean + 0.6 * hard_mean)


def test_one_objective_given_leaves_the_preset_for_the_other():
    loss = build_objective("atkd:hard=tkd,base=rkl")
    data = sample(loss, tokens=10).to(torch.float64)
    hard = with_facts(loss, data).facts["split/hard"]
    value, _ = run(loss, data)
    expected = 0.2 * each(DiversityKD(reverse=True), data)[~hard].mean() + 0.8 * each(TargetKD(), data)[hard].mean()
    torch.testing.assert_close(value.mean(), expected)


def test_an_objective_with_a_survey_of_its_own_fits_inside():
    inner, outer = "(atkd:k=0.3,scope=sequence)", AdaptiveTeachingKD(k=0.3, scope="sequence")
    loss = build_objective(f"atkd:hard={inner}")
    data = sample(loss, tokens=12).to(torch.float64)
    hard = with_facts(loss, data).facts["split/hard"]
    expected = values(outer, with_facts(outer, data))
    value, _ = run(loss, data)
    weights = group_weights(hard, 0.2)
    torch.testing.assert_close(value[hard], (weights * expected)[hard])


def test_sequence_scope_is_the_token_weighted_mean_of_sequences():
    loss, whole = AdaptiveTeachingKD(scope="sequence"), AdaptiveTeachingKD()
    data = sample(loss, tokens=10).to(torch.float64)
    apart = [data.rows(torch.nonzero(data.facts["seq"] == i).squeeze(1)) for i in range(3)]
    assert [len(part.labels) for part in apart] == [4, 3, 3]
    expected = torch.cat([run(whole, part)[0] for part in apart])
    torch.testing.assert_close(run(loss, data)[0], expected)
    assert not torch.allclose(run(whole, data)[0], expected)


@pytest.mark.parametrize("chunk", [1, 3, 9])
@pytest.mark.parametrize("spec", ["atkd", "atkd:scope=sequence,base=rkl", "atkd:hard=tkd"])
def test_chunks_see_the_whole_split(spec, chunk):
    loss = build_objective(spec)
    data = sample(loss).to(torch.float64)
    one = values_and_grad(loss, with_facts(loss, data))
    two = values_and_grad(loss, with_facts(loss, data, chunk), chunk)
    for whole, parts in zip(one, two, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-11, atol=1e-14)


def test_certain_teachers_are_still_told_apart():
    """At float32, 1 - p_g of the first two is 0 either way; their logarithms differ."""
    loss = AdaptiveTeachingKD()
    teacher = torch.tensor([[60.0, 0.0, 0.0], [40.0, 0.0, 0.0], [50.0, 0.0, 0.0]])
    data = Sample(torch.zeros(3, 3), teacher, torch.zeros(3, dtype=torch.int64), {"seq": torch.zeros(3).long()})
    assert with_facts(loss, data).facts["split/hard"].tolist() == [False, True, True]


def test_one_token_counts_fully():
    loss = AdaptiveTeachingKD()
    data = golden().rows(torch.tensor([0]))
    value, _ = run(loss, data)
    assert value.item() == pytest.approx(BATCH["tkd"][0] + BATCH["dkd"][0], abs=1e-12)


@pytest.mark.parametrize("given", ["base=rkl", "keep_unc=true", "temperature=2", "scale_tau2=false"])
def test_options_that_would_be_ignored_are_refused(given):
    with pytest.raises(UsageError, match="would be ignored"):
        build_objective(f"atkd:easy=tkd,hard=tkd,{given}")


def test_the_closed_form_leaves_it_to_autograd_when_an_objective_has_none():
    class Plain(TargetKD):
        def parts_and_grad(self, tok):
            return None

    loss = AdaptiveTeachingKD(hard=Plain())
    data = with_facts(loss, sample(loss))
    assert loss.parts_and_grad(tokens_of(loss, data)) is None
    assert isinstance(tokens_of(loss, data), Tokens)
