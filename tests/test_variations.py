import pytest

from kdcli.config.schema import TrainConfig
from kdcli.config.sweep import apply_choice, combinations, format_choice, label_with, read_axes
from kdcli.errors import UsageError


def test_every_combination_once():
    choices = combinations(read_axes(["learning_rate=1e-4,3e-4", "train.batch-size=4,8"], "--vary"))
    assert [format_choice(choice) for choice in choices] == [
        "lr=0.0001, batch_size=4",
        "lr=0.0001, batch_size=8",
        "lr=0.0003, batch_size=4",
        "lr=0.0003, batch_size=8",
    ]
    train = apply_choice(TrainConfig(clip=2.0), choices[-1])
    assert (train.lr, train.batch_size, train.clip) == (3e-4, 8, 2.0)
    assert label_with("akl", choices[0][:1]) == "akl [lr=0.0001]"
    assert combinations(()) == [()]


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        ("lr", "CLI-19", "expected setting=value,value"),
        ("lrr=1,2", "CLI-19", "not a training setting"),
        ("lr=1", "CLI-20", "two values"),
        ("lr=1,1.0", "CLI-08", "given twice"),
        ("lr=1,x", "CLI-05", "must be a number"),
        ("batch_size=0,1", "CLI-07", "must be a whole number >= 1"),
        ("schedule=cosine,linnear", "CLI-06", "must be one of"),
        ("seed=1,2", "CLI-09", "cannot vary"),
        ("save_every=1,2", "CLI-09", "cannot vary"),
    ],
)
def test_mistakes_are_named(text, code, what):
    with pytest.raises(UsageError, match=what) as caught:
        read_axes([text], "--vary")
    assert caught.value.code == code
    assert caught.value.where == f"--vary {text}"


def test_the_nearest_name_is_offered():
    with pytest.raises(UsageError) as caught:
        read_axes(["weight_deca=0,1"], "--tune")
    assert caught.value.fix == "did you mean weight_decay?"
    with pytest.raises(UsageError, match="given twice"):
        read_axes(["lr=1,2", "lr=3,4"], "--tune")
