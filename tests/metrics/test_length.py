import pytest

from kdcli.errors import InputError
from kdcli.metrics.diversity import Length


def test_words_and_ratio_over_seeds_references_and_examples():
    length, ratio = Length().scores_from_texts([["a b", "a b c d"], ["", "a"]], [["x y", "x y z w"], ["x"]])
    assert length.value == pytest.approx((3 + 0.5) / 2)
    assert ratio.value == pytest.approx((3 + 0.5) / (3 + 1))
    assert (length.better, ratio.better) == ("neither", "neither")


def test_references_without_words_are_refused():
    with pytest.raises(InputError, match="hold no words"):
        Length().compute(predictions=["a"], references=[" "])


def test_the_histogram_holds_every_text_once():
    answers = [["", "a"], ["a b", "a b c"], ["a " * 7, "a " * 8]]
    (curve,) = Length().curves(answers, [["a"], ["a b c d", ""], ["x"]])
    ours, theirs = curve.series
    assert curve.ticks == ("0", "1", "2–3", "4–7", "8–15")
    assert ours.count == (1.0, 1.0, 2.0, 1.0, 1.0)
    assert theirs.count == (1.0, 2.0, 0.0, 1.0, 0.0)
    assert sum(ours.y) == pytest.approx(1.0)
    assert Length().curves([[""]], [[""]])[0].ticks == ("0",)
