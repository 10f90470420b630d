import pytest
import torch

from kdcli.config.schema import TrainConfig
from kdcli.data.batching import Batch
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.registry.registry import SOURCES
from kdcli.sources.base import Source, SourceContext
from kdcli.sources.dataset import DatasetSource, DatasetWindows


def dataset(count: int = 21) -> TokenDataset:
    lengths = [3 + (7 * i) % 11 for i in range(count)]
    return TokenDataset(tuple(Example((*range(3, 3 + n), 2), 2, "", (), f"line {i}") for i, n in enumerate(lengths)))


def source(data: TokenDataset | None = None, *, rank: int = 0, world: int = 1, **train) -> DatasetWindows:
    settings = TrainConfig(**{"batch_size": 4, "micro_tokens": 30, "length_window": 2, **train})
    return DatasetSource().open(
        SourceContext(dataset() if data is None else data, settings, pad_id=0, rank=rank, world=world)
    )


def members(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.example.tolist()]


def test_it_is_the_registered_source():
    assert SOURCES.resolve("dataset") is DatasetSource
    assert issubclass(DatasetSource, Source)


@pytest.mark.parametrize(
    "train, steps",
    [
        ({"epochs": 3.0}, 18),
        ({"epochs": 0.5}, 3),
        ({"epochs": 0.01}, 1),
        ({"epochs": 1.5}, 9),
        ({"epochs": 0.1, "batch_size": 1}, 3),
        ({"epochs": 3.0, "max_steps": 5}, 5),
        ({"epochs": 0.5, "max_steps": 100}, 100),
        ({"epochs": 1.0, "batch_size": 64}, 1),
    ],
)
def test_steps_from_epochs_and_max_steps(train, steps):
    assert source(**train).total_steps == steps
    assert source().steps_per_epoch == 6


def test_rounding_adds_no_step():
    assert 0.07 * 100 > 7
    assert source(dataset(100), epochs=0.07, batch_size=1).total_steps == 7


def test_an_epoch_covers_every_example_once_and_epochs_differ():
    made = source(epochs=2.0)
    for epoch in (0, 1):
        seen = [index for at in range(6) for index in members(made.window(6 * epoch + at))]
        assert sorted(seen) == list(range(21))
    assert made.steps(0) != made.steps(1)
    assert len(members(made.window(5))) == 1


def test_a_window_is_a_pure_function_of_its_step():
    forward, backward = source(epochs=2.0), source(epochs=2.0)
    late = [backward.window(step) for step in reversed(range(12))][::-1]
    for step in range(12):
        for one, other in zip(forward.window(step), late[step], strict=True):
            assert torch.equal(one.input_ids, other.input_ids)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.example, other.example)
    assert [members(source(seed=1).window(step)) for step in range(6)] != [members(forward.window(s)) for s in range(6)]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_a_step_without_gap_or_double(world):
    alone = source()
    for step in range(6):
        parts = [members(source(rank=rank, world=world).window(step)) for rank in range(world)]
        assert sorted(index for part in parts for index in part) == sorted(members(alone.window(step)))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_rank_without_sequences_gets_no_batches():
    assert source(rank=1, world=2).window(5) == []
    assert source(rank=4, world=5).window(0) == []


def test_micro_batches_keep_to_the_budget():
    for step in range(6):
        for batch in source().window(step):
            assert batch.input_ids.shape[0] == 1 or batch.input_ids.numel() <= 30


@pytest.mark.parametrize("step", [-1, 18])
def test_steps_outside_the_run_are_refused(step):
    with pytest.raises(ValueError, match=r"expected a step in 0\.\.17"):
        source().window(step)


def test_nonsense_is_refused_at_once():
    with pytest.raises(ValueError, match=r"empty data set"):
        source(TokenDataset(()))
    with pytest.raises(ValueError, match=r"rank"):
        source(rank=2, world=2)
