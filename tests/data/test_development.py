from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcli.data.dataset import split_development
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.errors import InputError


def rows(prompts):
    return TokenDataset(
        tuple(Example((1, at, 2), 1, prompt, (str(at),), f"line {at}") for at, prompt in enumerate(prompts))
    )


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), st.floats(0.01, 0.9))
def test_no_row_is_lost_and_no_prompt_is_on_both_sides(prompts, share):
    whole = rows(prompts)
    if len(set(prompts)) == 1:
        with pytest.raises(InputError, match="same prompt"):
            split_development(whole, share)
        return
    rest, held = split_development(whole, share)
    assert sorted([*rest.examples, *held.examples], key=lambda row: row.ids) == list(whole.examples)
    assert not {row.prompt for row in rest.examples} & {row.prompt for row in held.examples}
    assert min(len(rest), len(held)) >= 1
    assert rest.digest != whole.digest


def test_the_choice_follows_the_rows_and_not_their_order():
    whole = rows([f"prompt {at}" for at in range(200)])
    turned = replace(whole, examples=whole.examples[::-1])
    chosen = {row.prompt for row in split_development(whole, 0.1)[1].examples}
    assert chosen == {row.prompt for row in split_development(turned, 0.1)[1].examples}
    assert len(chosen) == 20
    assert "20 training rows of 200 kept out of training for development" in split_development(whole, 0.1)[0].notes
