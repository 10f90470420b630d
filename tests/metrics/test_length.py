import pytest

from kdcli.errors import InputError
from kdcli.metrics.length import Length


def test_words_and_ratio_over_seeds_references_and_examples():
    length, ratio = Length().scores_from_texts([["a b", "a b c d"], ["", "a"]], [["x y", "x y z w"], ["x"]])
    assert length.value == pytest.approx((3 + 0.5) / 2)
    assert ratio.value == pytest.approx((3 + 0.5) / (3 + 1))
    assert (length.better, ratio.better) == ("neither", "neither")


def test_references_without_words_are_refused():
    with pytest.raises(InputError, match="hold no words"):
        Length().compute(predictions=["a"], references=[" "])
