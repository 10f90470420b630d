import pytest

from kdcli.errors import InputError
from kdcli.metrics.diversity import TruncationRate


def test_it_counts_the_answers_that_were_cut():
    ended = [[True, False], [True, True], [False, False]]
    (score,) = TruncationRate().scores_from_texts([["a", "b"]] * 3, [[]] * 3, ended=ended)
    assert score.per_example.tolist() == [50.0, 0.0, 100.0]
    assert score.value == 50.0
    assert score.answers[:, :, 0].tolist() == [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]


def test_where_nobody_knows_it_is_refused_in_one_line():
    with pytest.raises(InputError, match='"ended" is not known') as caught:
        TruncationRate().compute(predictions=["a"], references=[""])
    assert caught.value.exit_code == 3
    with pytest.raises(InputError, match=r"shape \[1, 1\], expected \[1, 2\]"):
        TruncationRate().scores_from_texts([["a", "b"]], [[]], ended=[[True]])
