"""Rows as examples of a prompt: what is shown is read back, what could be misread is not shown, draws are seeded."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.data.columns import infer_schema
from kdcli.data.few_shot import ExampleLayout, draw, row_key, text_key
from kdcli.data.readers import Record
from kdcli.data.rows import check_record

PIECES = ["a", "b", " ", "\n", ":", "Prompt:", "Response:", "Context:", "Text:"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
COLUMNS = {
    "prompt": lambda asked, about, said: {"prompt": asked, "completion": said},
    "instruction": lambda asked, about, said: {"instruction": asked, "input": about, "output": said},
    "text": lambda asked, about, said: {"text": said},
    "messages": lambda asked, about, said: {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    },
}


def row_of(fields):
    return check_record(Record("here", fields), infer_schema([*fields], {}, "here"))


@pytest.mark.parametrize("form", COLUMNS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=3))
def test_examples_that_are_shown_are_read_back(form, rows):
    rows = [row_of(COLUMNS[form](*row)) for row in rows if row[0].strip() and row[2].strip()]
    layout = ExampleLayout(form)
    shown = [(row, text) for row in rows if (text := layout.show(row))]
    read = layout.parse("\n\n".join(text for _, text in shown), ended=True) if shown else []
    assert [text_key(one) for one in read] == [row_key(row) for row, _ in shown]
    for (row, _), parts in zip(shown, read, strict=True):
        again = row_of(layout.columns(parts))
        assert row_key(again) == row_key(row)
        assert again.form == form


def test_what_could_be_misread_or_has_more_parts_is_not_shown():
    prompt = ExampleLayout("prompt")
    assert prompt.show(row_of({"prompt": "a\nResponse: b", "completion": "c"})) == ""
    assert prompt.show(row_of({"prompt": "a", "completion": "b", "choices": ["b", "c"]})) == ""
    turns = [{"role": name, "content": name} for name in ("user", "assistant", "user", "assistant")]
    assert ExampleLayout("messages").show(row_of({"messages": turns})) == ""
    assert ExampleLayout("messages").show(row_of({"messages": turns[:2]})) == "Prompt: user\nResponse: assistant"
    context = {"instruction": "i", "input": "c", "output": "o"}
    assert ExampleLayout("instruction").show(row_of(context)) == "Prompt: i\nContext: c\nResponse: o"


@pytest.mark.parametrize(
    ("text", "ended", "found"),
    [
        (" 1\nResponse: 2", True, [("1", "2")]),
        ("Prompt: 1\nResponse: 2", True, [("1", "2")]),
        (" 1\nResponse: 2", False, []),
        (" 1\nResponse: 2\n\nPrompt: 3\nResponse: 4", False, [("1", "2")]),
        ("Sure, here it is:\n\nPrompt: 1\nResponse: 2", True, [("1", "2")]),
        (" 1\nResponse:\n\nPrompt: 3\nResponse: 4", True, [("3", "4")]),
        (" 1\nResponse: 2\nResponse: 3", True, []),
        ("\nResponse: 2", True, []),
        ("", True, []),
    ],
)
def test_rows_in_a_text(text, ended, found):
    assert ExampleLayout("prompt").parse(text, ended=ended) == [
        {"prompt": asked, "response": said} for asked, said in found
    ]


def test_draws_follow_from_seed_and_number_and_take_every_row_alike():
    assert draw(5, 9, 1, 2) != sorted(draw(5, 9, 1, 2)) or draw(5, 9, 1, 3) != sorted(draw(5, 9, 1, 3))
    assert sorted(draw(5, 9, 1, 2)) == [0, 1, 2, 3, 4]
    assert draw(100, 4, 1, 2) == draw(100, 4, 1, 2) != draw(100, 4, 2, 2)
    counts = Counter(at for number in range(2000) for at in draw(10, 2, 7, number))
    # 2 of 10 in 2,000 draws: 400 of each expected, a standard deviation of 18.
    assert max(abs(counts[at] - 400) for at in range(10)) < 90
