"""Server optimizers: against numpy in five lines, against one step on all rows, and in any order of the clients."""

import itertools

import numpy as np
import pytest
import torch

from kdcli.errors import UsageError
from kdcli.federated.server import SERVERS, build_server, server_step, weighted_mean


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_mean_is_that_of_numpy_and_no_order_of_the_clients_changes_a_bit():
    values, weights = [draw(7, 3, seed=seed) * 10.0**seed for seed in range(5)], [3, 1, 41, 5, 9]
    expected = np.average(np.stack([value.double().numpy() for value in values]), axis=0, weights=weights)
    found = weighted_mean(values, weights)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        assert torch.equal(weighted_mean([values[at] for at in order], [weights[at] for at in order]), found)


def test_the_mean_of_one_client_and_of_equal_clients_is_itself_bit_for_bit():
    value = torch.cat([draw(100), torch.tensor([-0.0, 1e-30, 1e30])])
    for several, weights in (([value], [7]), ([value] * 3, [1, 2, 7])):
        assert weighted_mean(several, weights).float().numpy().tobytes() == value.numpy().tobytes()


def test_blocks_do_not_change_the_mean(monkeypatch):
    values = [draw(1000, seed=seed) for seed in range(3)]
    whole = weighted_mean(values, [1, 2, 3])
    monkeypatch.setattr("kdcli.federated.server._BLOCK", 17)
    assert torch.equal(weighted_mean(values, [1, 2, 3]), whole)


def numpy_steps(name, x, means):
    m, v = np.zeros_like(x), np.zeros_like(x)
    for mean in means:
        delta, before = mean - x, x
        if name == "fedavg":
            x = x + 0.3 * delta
        elif name == "fedavgm":
            m = 0.9 * m + delta
            x = x + 0.3 * m
        else:
            m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
            x = x + 0.3 * m / (np.sqrt(v) + 1e-3)
        if name == "fedadamw":
            x = x - 0.3 * 0.05 * before
    return x


@pytest.mark.parametrize("name", list(SERVERS))
def test_a_sequence_of_rounds_is_that_of_numpy(name):
    optimizer = build_server(f"{name}:eta=0.3{',wd=0.05' if name == 'fedadamw' else ''}")
    start, means = draw(6, dtype=torch.float64), [draw(6, seed=seed, dtype=torch.float64) for seed in range(1, 8)]
    x, state = {"a.b": start}, {}
    for number, mean in enumerate(means):
        x, state = server_step(optimizer, x, {"a.b": mean}, state, number)
    np.testing.assert_allclose(
        x["a.b"].numpy(), numpy_steps(name, start.numpy(), [one.numpy() for one in means]), rtol=1e-13
    )


def test_the_correction_of_the_moments_is_that_of_adam():
    optimizer = build_server("fedadam:eta=0.3,correct=true,tau=1e-9")
    x, _ = optimizer.step(torch.zeros(3).double(), torch.tensor([0.5, -2.0, 0.1]).double(), {}, 0)
    torch.testing.assert_close(x, torch.tensor([0.3, -0.3, 0.3]).double(), rtol=1e-6, atol=0)


def test_moments_of_names_that_begin_alike_stay_apart():
    optimizer = build_server("fedavgm")
    x = {"w": torch.zeros(1), "w/m": torch.zeros(1)}
    means = {"w": torch.ones(1).double(), "w/m": 3 * torch.ones(1).double()}
    _, state = server_step(optimizer, x, means, {}, 0)
    found, _ = server_step(optimizer, x, means, state, 1)
    assert [one.item() for one in found.values()] == [1.9, 5.7]


@pytest.mark.parametrize("by", ["tokens", "rows"])
def test_one_step_of_every_client_is_one_step_on_all_rows(by):
    """Gradient descent without momentum, full participation: the mean by what the loss is a mean over is exact."""
    sizes = [5, 1, 9] if by == "tokens" else [4, 4, 4]
    table = [(draw(size, 6, seed=at, dtype=torch.float64), draw(size, seed=50 + at, dtype=torch.float64))
             for at, size in enumerate(sizes)]  # fmt: skip
    start, rate = draw(6, seed=99, dtype=torch.float64), 0.05

    def after_a_step(inputs, targets):
        weight = start.clone().requires_grad_()
        loss = torch.tanh(inputs @ weight).sub(targets).square().mean()
        return start - rate * torch.autograd.grad(loss, weight)[0]

    clients = [after_a_step(*rows) for rows in table]
    union = after_a_step(*(torch.cat(parts) for parts in zip(*table, strict=True)))
    found, _ = server_step(build_server("fedavg"), {"w": start}, {"w": weighted_mean(clients, sizes)}, {}, 0)
    torch.testing.assert_close(found["w"], union, rtol=0, atol=1e-15)


def test_rounds_that_change_nothing_leave_every_optimizer_where_it_is():
    x = draw(5, dtype=torch.float64)
    for name in SERVERS:
        found, _ = build_server(name + (":wd=0" if name == "fedadamw" else "")).step(x, x, {}, 0)
        assert torch.equal(found, x)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sgd", '"sgd" is no server optimizer'),
        ("fedavg+fedadam", "is no server optimizer"),
        ("fedavg:eta=0", "eta must lie in (0, 1e+06], got 0"),
        ("fedadam:b2=1", "b2 must lie in [0, 1), got 1"),
        ("fedavg:beta=0.9", 'fedavg has no option "beta"'),
    ],
)
def test_what_is_no_optimizer_is_refused(text, said):
    with pytest.raises(UsageError) as caught:
        build_server(text)
    assert said in str(caught.value)
    assert caught.value.fix
