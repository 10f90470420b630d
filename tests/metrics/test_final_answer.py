import pytest

from kdcli.metrics.qa import FinalAnswer, final_answer, same_final_answer


@pytest.mark.parametrize(
    "text, found",
    [("a ### b", "b"), ("a ### b ### c", "c"), ("a ###", None), ("a ### \n", None), ("a b", None), ("a #### 4", "4")],
)
def test_what_follows_the_last_separator(text, found):
    assert final_answer(text) == found


@pytest.mark.parametrize(
    "text, references, same",
    [
        ("it is ### The  End!", ["the end"], True),
        ("it is ### the end", ["so it was ### the end"], True),
        ("it is ### the end", ["a", "the end"], True),
        ("the end", ["the end"], False),
        ("it is ### the", ["the end"], False),
        ("the end ###", [""], False),
    ],
)
def test_the_answer_alone_is_compared(text, references, same):
    assert same_final_answer(text, references) is same


def test_the_values_are_shares_over_seeds_and_examples_in_percent():
    predictions = [["x ### a", "x ### b"], ["a", "x ### a"], ["c", "y"]]
    right, parsed = FinalAnswer().scores_from_texts(predictions, [["a"], ["a"], ["c"]])
    assert (right.name, parsed.name) == ("final_answer", "parsed")
    assert right.value == pytest.approx(100 * 2 / 6)
    assert parsed.value == pytest.approx(100 * 3 / 6)
    assert right.per_example.tolist() == [50.0, 50.0, 0.0]
    assert "after:###" in FinalAnswer().signature
