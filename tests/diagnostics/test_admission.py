"""The batch that an edge node admits: against every set tried by itself, a solver of integer programmes, and rules."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from kdcli.diagnostics.admission import (
    RULES,
    Epoch,
    Lengths,
    Link,
    Node,
    Quantised,
    Request,
    Work,
    _walk,
    decide,
    poisson,
    search,
    serve,
    static,
)
from kdcli.models.cache_form import CacheForm
from kdcli.models.sizes import Footprint

SIZES = Footprint(
    parameters=1000, head=100, tied=False, linear=0, rows=0, weights=0, matrix=0, width=10, layers=2, blocks=800,
    block=400, activations=0, inner=0,
)  # fmt: skip
FORM = CacheForm(numbers=20, windows=(None, 6), heads=2, head=5)
WORK = Work(SIZES, FORM)
KIND = Quantised("bf16", 2.0)
NODE = Node(12_000.0, 1e6, 1.0, Link(0.25, 2e3), Link(0.25, 2e3), (KIND,))


def drawn(seed, count):
    draw = np.random.default_rng(seed)
    return [
        Request(
            int(draw.integers(1, 20)), int(draw.integers(1, 12)), float(draw.uniform(0.5, 1.2)),
            accuracy=float(draw.choice([0.0, 0.0, 0.0, 2.0])), snr_db=float(draw.uniform(0, 30)),
        )
        for _ in range(count)
    ]  # fmt: skip


def of(requests, node=NODE, kind=KIND):
    return Epoch(requests, 0.0, node, WORK, kind)


def largest_by_trying(requests, node=NODE, kind=KIND):
    """The largest set among all, by the constraints on whole sets."""
    count = len(requests)
    sets = ((np.arange(2**count)[:, None] >> np.arange(count)) & 1).astype(float)
    epoch = of(requests, node, kind)
    prompts = np.array([one.prompt for one in requests])
    longest = (sets * prompts).max(1)
    tightest = np.where(sets > 0, epoch.slack, np.inf).min(1)
    fits = (sets @ epoch.up <= 1) & (sets @ epoch.down <= 1)
    fits &= sets @ np.array([one.accuracy > kind.quality for one in requests], dtype=float) == 0
    for padded in np.unique(prompts):
        here = longest == padded
        fits[here] &= sets[here] @ [epoch.memory(at, int(padded)) for at in range(count)] <= epoch.room
        fits[here] &= sets[here] @ [epoch.seconds(at, int(padded)) for at in range(count)] <= tightest[here]
    return int(sets[fits].sum(1).max())


def test_operations_and_cache_are_those_of_the_formulas():
    read = 2 * (SIZES.parameters - SIZES.head)
    assert WORK.answer(3, 4) == pytest.approx(sum(read + 4 * 10 * (n + min(n, 6)) for n in (4, 5, 6)))
    assert WORK.answer(3, 1) == 0.0
    pairs = (8 * 9 / 2) + sum(min(n, 6) for n in range(1, 9))
    assert WORK.prompt(8) == pytest.approx(2 * (800 * 8 + 100) + 4 * 10 * pairs)
    assert WORK.cache(8) == 20 * (8 + 6)


def test_it_is_the_optimum_of_every_set_in_a_thousand_instances():
    visited, sets = 0, 0
    for seed in range(1000):
        count = 1 + seed % 12
        requests = drawn(seed, count)
        found = search(of(requests))
        assert len(found.chosen) == largest_by_trying(requests), seed
        assert of(requests).allows(found.chosen)
        visited, sets = visited + found.nodes, sets + 2**count
    assert visited < 0.55 * sets


@pytest.mark.parametrize("seed", range(20))
def test_with_one_padding_and_one_deadline_it_is_the_solver_of_integer_programmes(seed):
    draw = np.random.default_rng(seed)
    demands = draw.uniform(0.02, 0.4, (40, 4))
    found, _ = _walk(demands, 0)
    solved = milp(-np.ones(40), constraints=LinearConstraint(demands.T, ub=1.0), bounds=Bounds(0, 1), integrality=1)
    assert found is not None
    assert len(found) == round(-solved.fun)
    assert (demands[found].sum(0) <= 1.0 + 1e-9).all()


@pytest.mark.parametrize("seed", range(30))
def test_no_rule_does_better_and_all_are_allowed(seed):
    requests = drawn(seed, 14)
    best = len(search(of(requests)).chosen)
    for rule in (*RULES.values(), static(3), static(8)):
        found = rule(of(requests))
        assert of(requests).allows(found.chosen)
        assert len(found.chosen) <= best
    assert len(RULES["none"](of(requests)).chosen) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_more_of_anything_never_admits_fewer(seed):
    requests = drawn(seed, 10)
    before = len(search(of(requests)).chosen)
    richer = [
        replace(NODE, memory=2 * NODE.memory), replace(NODE, flops=2 * NODE.flops),
        replace(NODE, uplink=Link(0.25, 4e3)), replace(NODE, downlink=Link(0.25, 4e3)),
    ]  # fmt: skip
    assert min(len(search(of(requests, node)).chosen) for node in richer) >= before
    later = [replace(one, deadline=one.deadline + 0.3) for one in requests]
    assert len(search(of(later)).chosen) >= before


def test_who_asks_for_more_quality_waits_for_a_better_form():
    fine = Quantised("bf16", 2.0, slowdown=4.0, quality=1.0)
    coarse = Quantised("int4", 0.5, quality=0.8)
    node = replace(NODE, kinds=(coarse, fine))
    easy = [Request(4, 4, 5.0) for _ in range(3)]
    assert decide(easy, 0.0, node, WORK, search).kind == fine  # both admit all: the better one
    strict = [replace(one, accuracy=0.9) for one in easy]
    assert decide(strict, 0.0, node, WORK, search).kind == fine
    assert len(search(of(strict, node, coarse)).chosen) == 0


def test_nobody_is_admitted_past_a_deadline_or_without_room():
    assert search(of([Request(4, 4, 0.4)])).chosen == ()  # the transfers alone take half a second
    assert search(of([Request(4, 4, 5.0)], replace(NODE, memory=2000.0))).chosen == ()
    assert search(of([])).chosen == ()


def test_requests_that_wait_too_long_are_lost_and_all_are_counted():
    requests = [Request(4, 4, 0.9, arrival=0.1), Request(4, 4, 3.0, arrival=0.1), Request(4, 4, 3.0, arrival=5.5)]
    found = serve(requests, NODE, WORK, "dftsp", search)
    assert (found.requests, found.served) == (3, 2)  # the first is 0.9 old at the next epoch
    assert found.share == pytest.approx(2 / 3)
    assert serve([], NODE, WORK, "dftsp", search).share == 0.0


def test_a_busy_node_takes_no_decision():
    slow = replace(NODE, flops=4e3)
    requests = [Request(1, 1, 50.0, arrival=0.0), Request(1, 1, 50.0, arrival=0.5)]
    found = serve(requests, slow, WORK, "none", RULES["none"])
    assert (found.served, found.epochs) == (2, 2)
    assert found.seconds == pytest.approx((WORK.prompt(1)) / 4e3)


def test_a_request_far_away_takes_no_time():
    assert serve([Request(4, 4, 3.0, arrival=1e8)], NODE, WORK, "edf", RULES["edf"]).served == 1


def test_draws_have_their_rate_and_ranges():
    lengths = Lengths(prompt=(5, 9), answer=(2, 3), deadline=(1.0, 2.0))
    found = poisson(50.0, 40.0, lengths, 3)
    assert found == poisson(50.0, 40.0, lengths, 3)
    assert abs(len(found) - 2000) < 4 * 2000**0.5
    assert {one.prompt for one in found} == {5, 6, 7, 8, 9}
    assert {one.answer for one in found} == {2, 3}
    assert all(1.0 <= one.deadline <= 2.0 and 0 <= one.arrival <= 40 for one in found)
