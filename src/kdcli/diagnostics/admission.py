r"""``kd schedule``: which waiting requests an edge node answers in its next batch, and how many it answers in time.

A node works in epochs: prompts come in over a shared uplink, one batch is computed, answers leave over a shared
downlink. Of the waiting requests, with prompts of :math:`s_i` and answers of :math:`n_i` tokens, it admits the most
that satisfy, with every prompt padded to the longest admitted one, :math:`s'`:

* memory: weights and the caches of :math:`s' + n_i` tokens each fit
* uplink: :math:`\sum_i s_i b / (T_U W_U \log_2(1 + snr_i)) \le 1` for b bits per token; downlink likewise with
  :math:`n_i`
* time: for each of them, what it has waited, both transfers, and the batch's computation
  :math:`\beta (z F(s') + \sum_i \sum_{j=1}^{n_i - 1} f(s' + j)) / C` of z requests end before its deadline
* accuracy: the quality of the weights' quantisation is at least what it asks for

F and f are the operations of reading a prompt and of adding a token, as ``kd estimate`` counts them.

Source: Zhang et al. 2024, Edge Intelligence Optimization for Large Language Model Inference with Batching and
Quantization, arXiv:2405.07140. Their constants are not published; all of them are settings here.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kdcli.models.cache_form import CacheForm
from kdcli.models.sizes import Footprint

_HAIR = 1e-9
"""By how much, relative to a capacity, a sum may exceed it: rounding."""


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        prompt: its tokens.
        answer: tokens of the answer.
        deadline: seconds from its arrival until its answer must be there.
        arrival: seconds from the start.
        accuracy: least quality of the model that it accepts.
        snr_db: signal-to-noise ratio of its link, in decibels.
    """

    prompt: int
    answer: int
    deadline: float
    arrival: float = 0.0
    accuracy: float = 0.0
    snr_db: float = 20.0


@dataclass(frozen=True)
class Link:
    """A shared radio link.

    Args:
        seconds: its part of an epoch.
        bandwidth: hertz that the requests share.
    """

    seconds: float
    bandwidth: float


@dataclass(frozen=True)
class Quantised:
    """The model with weights of one kind.

    Args:
        name: of the kind.
        bytes: per weight.
        slowdown: factor of its computation's time.
        quality: of its answers, on the scale of the requests' demands.
    """

    name: str
    bytes: float
    slowdown: float = 1.0
    quality: float = 1.0


@dataclass(frozen=True)
class Node:
    """What a node offers.

    Args:
        memory: bytes.
        flops: operations per second.
        epoch: seconds between two decisions.
        uplink: for prompts.
        downlink: for answers.
        kinds: the forms of the model to choose from.
        bits: sent per token.
        cache_bytes: per cached number.
    """

    memory: float
    flops: float
    epoch: float
    uplink: Link
    downlink: Link
    kinds: tuple[Quantised, ...]
    bits: float = 16.0
    cache_bytes: float = 2.0


class Work:
    """Operations and cache of one model.

    Args:
        sizes: of the model.
        form: of its cache.
    """

    def __init__(self, sizes: Footprint, form: CacheForm) -> None:
        self.sizes, self.form = sizes, form
        self._steps: NDArray[np.float64] = np.zeros(1)
        self._prompts: dict[int, float] = {}

    def prompt(self, tokens: int) -> float:
        """Return the operations of reading a prompt: 2 P_t N + 2 P_h + 4 h d pairs."""
        if tokens not in self._prompts:
            form, linear = self.form, 2.0 * (self.sizes.trunk * tokens + self.sizes.head)
            self._prompts[tokens] = linear + 4.0 * form.heads * form.head * form.pairs(tokens)
        return self._prompts[tokens]

    def answer(self, before: int, tokens: int) -> float:
        """Return the operations of all tokens of an answer but the first, which reading the prompt gives."""
        last = before + max(tokens - 1, 0)
        if last >= len(self._steps):
            read = self.sizes.parameters - (0 if self.sizes.tied else self.sizes.head)
            reach = 4.0 * self.form.heads * self.form.head
            contexts = range(1, 2 * last + 1)
            self._steps = np.cumsum([0.0, *(2.0 * read + reach * self.form.remembered(one) for one in contexts)])
        return float(self._steps[last] - self._steps[before])

    def cache(self, tokens: int) -> int:
        """Return the numbers that one request keeps of so many tokens."""
        return self.form.elements(tokens)


@dataclass(frozen=True)
class Admission:
    """One epoch's decision.

    Args:
        chosen: places of the admitted requests, in ascending order.
        kind: the form of the model that answers them; None where nobody is admitted.
        seconds: of the batch's computation.
        nodes: of the search tree that were visited; 0 for a rule that searches nothing.
    """

    chosen: tuple[int, ...] = ()
    kind: Quantised | None = None
    seconds: float = 0.0
    nodes: int = 0


class Epoch:
    """The requests waiting at one moment, before one form of the model.

    Args:
        requests: those that wait.
        now: seconds from the start.
        node: what computes.
        work: the model's operations.
        kind: the form of the model.
    """

    def __init__(self, requests: Sequence[Request], now: float, node: Node, work: Work, kind: Quantised) -> None:
        self.requests, self.node, self.work, self.kind = requests, node, work, kind
        self.room = node.memory - kind.bytes * work.sizes.parameters
        transfers = node.uplink.seconds + node.downlink.seconds
        self.slack = [one.deadline - (now - one.arrival) - transfers for one in requests]
        self.up = [self._share(one.prompt, one.snr_db, node.uplink) for one in requests]
        self.down = [self._share(one.answer, one.snr_db, node.downlink) for one in requests]

    def _share(self, tokens: int, snr_db: float, link: Link) -> float:
        return tokens * self.node.bits / (link.seconds * link.bandwidth * math.log2(1.0 + 10.0 ** (snr_db / 10.0)))

    def seconds(self, place: int, padded: int) -> float:
        """Return what one request adds to the batch's computation, its prompt padded."""
        done = self.work.prompt(padded) + self.work.answer(padded, self.requests[place].answer)
        return self.kind.slowdown * done / self.node.flops

    def memory(self, place: int, padded: int) -> float:
        """Return the bytes of one request's cache, its prompt padded."""
        return self.node.cache_bytes * self.work.cache(padded + self.requests[place].answer)

    def allows(self, chosen: Sequence[int]) -> bool:
        """Whether these requests can be answered together, by the constraints as they are written above."""
        if not chosen:
            return True
        padded = max(self.requests[place].prompt for place in chosen)
        return (
            all(self.requests[place].accuracy <= self.kind.quality for place in chosen)
            and _within(sum(self.memory(place, padded) for place in chosen), self.room)
            and _within(sum(self.up[place] for place in chosen), 1.0)
            and _within(sum(self.down[place] for place in chosen), 1.0)
            and _within(self.batch_seconds(chosen), min(self.slack[place] for place in chosen))
        )

    def batch_seconds(self, chosen: Sequence[int]) -> float:
        """Return the seconds of a batch's computation."""
        padded = max((self.requests[place].prompt for place in chosen), default=0)
        return sum(self.seconds(place, padded) for place in chosen)

    @cached_property
    def possible(self) -> list[int]:
        """Those that could be answered alone."""
        return [place for place in range(len(self.requests)) if self.allows([place])]


def _within(sum_: float, capacity: float) -> bool:
    return sum_ <= capacity + _HAIR * abs(capacity)


# Depth-first tree search: the exact optimum.


def search(epoch: Epoch) -> Admission:
    """Return the largest set of requests that can be answered together, and the nodes that were visited.

    The constraints are additive once the least slack and the padded length are fixed; for each pair of them a tree of
    inclusions is walked depth first, requests of the smallest computation first. A branch is left where even the
    smallest remaining demands, taken in each dimension by itself, cannot bring more than the best set found, or where
    another branch has reached the same place with as many requests for no more of anything. The search begins with the
    better of two greedy sets. The root of every pair counts as a node.
    """
    best = max((shortest_first(epoch), earliest_deadline(epoch)), key=lambda one: len(one.chosen)).chosen
    nodes = 0
    places = epoch.possible
    slacks = sorted({epoch.slack[place] for place in places}, reverse=True)
    for padded in sorted({epoch.requests[place].prompt for place in places}):
        shorter = [place for place in places if epoch.requests[place].prompt <= padded]
        shares = _shares(epoch, shorter, padded)
        slack_of = np.array([epoch.slack[place] for place in shorter])
        for slack in slacks:
            later = np.flatnonzero(slack_of >= slack)
            demands = shares[later] / [slack, 1.0, 1.0, 1.0]
            nodes += 1
            if _bound(demands) > len(best):
                found, visited = _walk(demands, len(best))
                nodes += visited - 1
                best = best if found is None else tuple(sorted(shorter[later[at]] for at in found))
    return Admission(best, epoch.kind if best else None, epoch.batch_seconds(best), nodes)


def _shares(epoch: Epoch, places: Sequence[int], padded: int) -> NDArray[np.float64]:
    """Return the seconds of computation and the shares of memory and links that requests take, ``[requests, 4]``."""
    rows = [
        (epoch.seconds(at, padded), epoch.memory(at, padded) / epoch.room, epoch.up[at], epoch.down[at])
        for at in places
    ]
    return np.array(rows, dtype=np.float64)


def _bound(demands: NDArray[np.float64]) -> int:
    """Return how many requests fit at most: the smallest demands of each dimension by itself."""
    sums = np.cumsum(np.sort(demands, axis=0), axis=0)
    return int((sums <= 1.0 + _HAIR).sum(0).min()) if len(sums) else 0


def _walk(demands: NDArray[np.float64], least: int) -> tuple[list[int] | None, int]:
    """Return the largest set of rows whose sum is at most 1 everywhere, and the nodes visited.

    Args:
        demands: shares of the capacities, ``[requests, dimensions]``.
        least: only sets larger than this count; None is returned where there is none.
    """
    order = np.argsort(demands[:, 0], kind="stable").tolist()
    rows = demands[order].tolist()
    dimensions = range(demands.shape[1])
    # The sums of the m smallest demands among the rows from each level on, by dimension.
    cheapest = [np.cumsum(np.sort(demands[order[level:]], axis=0), axis=0).T.tolist() for level in range(len(rows))]
    seen: dict[tuple[int, int], list[list[float]]] = {}
    best: list[int] | None = None
    nodes = 0

    def visit(level: int, taken: list[int], used: list[float]) -> None:
        nonlocal best, least, nodes
        nodes += 1
        if len(taken) > least:
            best, least = list(taken), len(taken)
        if level == len(rows):
            return
        more = min(bisect.bisect_right(cheapest[level][at], 1.0 + _HAIR - used[at]) for at in dimensions)
        if len(taken) + more <= least:
            return
        reached = seen.setdefault((level, len(taken)), [])
        if any(all(one[at] <= used[at] for at in dimensions) for one in reached):
            return
        reached.append(used)
        after = [used[at] + rows[level][at] for at in dimensions]
        if all(value <= 1.0 + _HAIR for value in after):
            visit(level + 1, [*taken, level], after)
        visit(level + 1, taken, used)

    visit(0, [], [0.0] * len(dimensions))
    return (None if best is None else [order[level] for level in best]), nodes


# Rules without a search.


Rule = Callable[[Epoch], Admission]


def _greedy(epoch: Epoch, order: Sequence[int], most: int | None = None) -> Admission:
    """Admit requests in an order, each if it can still be answered beside those before it."""
    chosen: list[int] = []
    for place in order:
        if (most is None or len(chosen) < most) and epoch.allows([*chosen, place]):
            chosen.append(place)
    found = tuple(sorted(chosen))
    return Admission(found, epoch.kind if found else None, epoch.batch_seconds(found))


def static(size: int) -> Rule:
    """Return the rule of batches of a fixed size: the oldest requests, as many of them as fit together."""

    def rule(epoch: Epoch) -> Admission:
        oldest = sorted(epoch.possible, key=lambda place: (epoch.requests[place].arrival, place))
        return _greedy(epoch, oldest[:size])

    return rule


def earliest_deadline(epoch: Epoch) -> Admission:
    """Admit by deadline, the nearest first."""
    return _greedy(epoch, sorted(epoch.possible, key=lambda place: (epoch.slack[place], place)))


def shortest_first(epoch: Epoch) -> Admission:
    """Admit by computation, the shortest first."""
    own = {place: epoch.seconds(place, epoch.requests[place].prompt) for place in epoch.possible}
    return _greedy(epoch, sorted(own, key=lambda place: (own[place], place)))


def no_batching(epoch: Epoch) -> Admission:
    """Admit one request, that of the nearest deadline."""
    return _greedy(epoch, sorted(epoch.possible, key=lambda place: (epoch.slack[place], place)), most=1)


RULES: dict[str, Rule] = {
    "dftsp": search,
    "edf": earliest_deadline,
    "sjf": shortest_first,
    "none": no_batching,
}
"""Rules by name; ``static:N`` is one more."""


def decide(requests: Sequence[Request], now: float, node: Node, work: Work, rule: Rule) -> Admission:
    """Return the decision of a rule with the form of the model that lets it admit the most, the better one in a tie."""
    found = [rule(Epoch(requests, now, node, work, kind)) for kind in node.kinds]
    most = max(found, key=lambda one: (len(one.chosen), one.kind.quality if one.kind else 0.0))
    return replace(most, nodes=sum(one.nodes for one in found))


# A stretch of epochs.


@dataclass(frozen=True)
class Served:
    """What became of the requests of a stretch of time.

    Args:
        rule: how they were chosen.
        requests: how many arrived.
        served: how many were answered in time.
        epochs: decisions that were taken.
        batch: mean size of the batches.
        seconds: mean computation of a batch.
        nodes: of the search tree, over all epochs.
        largest: most requests that waited at one decision.
    """

    rule: str
    requests: int
    served: int
    epochs: int
    batch: float
    seconds: float
    nodes: int
    largest: int

    @property
    def share(self) -> float:
        """Share of the requests that was answered in time."""
        return self.served / self.requests if self.requests else 0.0


def serve(requests: Sequence[Request], node: Node, work: Work, name: str, rule: Rule) -> Served:
    """Run epochs until no request is left that could be answered in time.

    A decision is taken at the start of each epoch in which the node is not busy with the batch before.

    Args:
        requests: in any order.
        node: what computes.
        work: the model's operations.
        name: of the rule.
        rule: takes the decisions.
    """
    left = sorted(requests, key=lambda one: one.arrival)
    batches: list[Admission] = []
    nodes = decisions = largest = epoch = 0
    busy_until = 0.0
    while left:
        epoch = max(epoch, math.floor(max(left[0].arrival, busy_until) / node.epoch))
        now = epoch * node.epoch
        epoch += 1
        left = [one for one in left if now - one.arrival < one.deadline]
        waiting = [one for one in left if one.arrival <= now]
        if not waiting or now < busy_until:
            continue
        decision = decide(waiting, now, node, work, rule)
        decisions, nodes, largest = decisions + 1, nodes + decision.nodes, max(largest, len(waiting))
        if decision.chosen:
            batches.append(decision)
            busy_until = now + decision.seconds
            gone = {id(waiting[place]) for place in decision.chosen}
            left = [one for one in left if id(one) not in gone]
    served = sum(len(one.chosen) for one in batches)
    many = max(len(batches), 1)
    seconds = math.fsum(one.seconds for one in batches)
    return Served(name, len(requests), served, decisions, served / many, seconds / many, nodes, largest)


@dataclass(frozen=True)
class Lengths:
    """Ranges from which drawn requests are taken, uniformly.

    Args:
        prompt: tokens, least and greatest.
        answer: tokens.
        deadline: seconds.
        accuracy: demanded quality.
        snr_db: decibels.
    """

    prompt: tuple[int, int] = (32, 256)
    answer: tuple[int, int] = (16, 128)
    deadline: tuple[float, float] = (2.0, 10.0)
    accuracy: tuple[float, float] = (0.0, 0.0)
    snr_db: tuple[float, float] = (10.0, 30.0)


def poisson(rate: float, seconds: float, lengths: Lengths, seed: int) -> list[Request]:
    """Draw requests that arrive independently of each other.

    Args:
        rate: mean requests per second.
        seconds: stretch of time.
        lengths: ranges of what they ask for.
        seed: of the draws.
    """
    draw = np.random.default_rng(np.random.SeedSequence((seed, 0x73636865)))
    count = int(draw.poisson(rate * seconds))
    arrivals = np.sort(draw.uniform(0.0, seconds, count)).tolist()
    whole = [draw.integers(low, high + 1, count).tolist() for low, high in (lengths.prompt, lengths.answer)]
    real = [
        draw.uniform(low, high, count).tolist() for low, high in (lengths.deadline, lengths.accuracy, lengths.snr_db)
    ]
    return [
        Request(prompt, answer, deadline, arrival, accuracy, snr)
        for arrival, prompt, answer, deadline, accuracy, snr in zip(arrivals, *whole, *real, strict=True)
    ]
