import pytest
import torch

from kdcli.config.schema import TrainConfig
from kdcli.errors import InputError
from kdcli.training.optimizer import learning_rate, make_optimizer, set_learning_rate


def test_cosine_starts_at_peak_after_warmup_and_ends_near_zero():
    config = TrainConfig(lr=2.0, schedule="cosine", warmup=10)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert 0 < rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_constant_stays():
    config = TrainConfig(lr=3.0, schedule="constant", warmup=0)
    assert {learning_rate(config, step, 50) for step in range(50)} == {3.0}


def test_vectors_do_not_decay():
    model = torch.nn.Linear(2, 2)
    config = TrainConfig(weight_decay=0.5)
    optimizer = make_optimizer(model, config)
    decay = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert decay[0.5][0] is model.weight
    assert decay[0.0][0] is model.bias


def test_one_step_is_adamw():
    mine, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(mine.state_dict())
    config = TrainConfig(lr=0.1, weight_decay=0.0)
    first = make_optimizer(mine, config)
    set_learning_rate(first, 0.05)
    second = torch.optim.AdamW(theirs.parameters(), lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    for model, optimizer in ((mine, first), (theirs, second)):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(mine.weight, theirs.weight)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="500 warm-up steps > 300"):
        learning_rate(TrainConfig(warmup=500), 0, 300)
