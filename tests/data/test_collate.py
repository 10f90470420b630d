import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.data.batching import IGNORED, collate
from kdcli.data.tokenize import Example

EOS = 2


def example(*ids: int, prompt: int) -> Example:
    return Example(ids, prompt, "", (), "")


MIXED = [example(5, 6, 7, 8, EOS, prompt=2), example(1, 9, EOS, prompt=1), example(4, 4, 4, 3, prompt=3)]


def test_labels_are_shifted_and_padding_is_on_the_right():
    batch = collate(MIXED, [0, 2, 1], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [4, 4, 4, 0], [1, 9, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [
        [IGNORED, 7, 8, EOS],
        [IGNORED, IGNORED, 3, IGNORED],
        [9, EOS, IGNORED, IGNORED],
    ]
    assert batch.example.tolist() == [0, 2, 1]
    assert batch.targets == 6


def test_first_response_token_is_predicted_from_the_last_prompt_position():
    for index, one in enumerate(MIXED):
        labels = collate(MIXED, [0, 1, 2], pad_id=0).labels[index]
        first = int((labels != IGNORED).nonzero()[0])
        assert first == one.prompt_length - 1
        assert labels[first] == one.ids[one.prompt_length]


def test_end_counts_exactly_once_when_it_is_also_the_pad_and_the_first_token():
    sequences = [example(EOS, 7, EOS, prompt=1), example(EOS, 5, 6, 7, 8, EOS, prompt=1)]
    batch = collate(sequences, [0, 1], pad_id=EOS)
    assert (batch.labels == EOS).sum(dim=1).tolist() == [1, 1]
    assert batch.labels[0].tolist() == [7, EOS, IGNORED, IGNORED, IGNORED]


@st.composite
def sequences(draw):
    made = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, 9), min_size=2, max_size=12))
        made.append(Example(tuple(ids), draw(st.integers(1, len(ids) - 1)), "", (), ""))
    return made


@settings(max_examples=100, deadline=None)
@given(made=sequences(), pad=st.integers(0, 9))
def test_terms_are_the_response_tokens_and_the_pad_id_does_not_matter(made, pad):
    batch = collate(made, list(range(len(made))), pad_id=pad)
    other = collate(made, list(range(len(made))), pad_id=pad + 1)
    assert torch.equal(batch.labels, other.labels)
    assert torch.equal(batch.attention_mask, other.attention_mask)
    for row, one in enumerate(made):
        counted = batch.labels[row][batch.labels[row] != IGNORED]
        assert counted.tolist() == list(one.ids[one.prompt_length :])
        assert batch.input_ids[row][batch.attention_mask[row] == 1].tolist() == list(one.ids[:-1])
        assert bool((batch.attention_mask[row][batch.labels[row] != IGNORED] == 1).all())
