"""Equal tables are shared, padded rows cut off, different tables refused."""

import pytest
from tokenizers import normalizers

import tiny
from kdcli.errors import InputError
from kdcli.models.tokenizer import padding_note, refuse_same_model, same_model, shared_vocabulary

COUNT = len(tiny.WORDS)


def test_padded_rows_are_cut_to_the_real_ids():
    assert shared_vocabulary(tiny.tokenizer(), tiny.tokenizer(), COUNT, COUNT + 77) == COUNT
    assert padding_note(COUNT, COUNT, COUNT) is None
    assert "restricted to the 47 real ids" in (padding_note(47, 47, 64) or "")


def test_rows_for_every_id():
    with pytest.raises(InputError, match=r"TOK-04.*of the teacher"):
        shared_vocabulary(tiny.tokenizer(), tiny.tokenizer(), COUNT, COUNT - 1)


@pytest.mark.parametrize(
    "words,parts",
    [
        ([*tiny.WORDS[:-2], "\x1b[31m", "#"], ["in 1 ids", f'id {COUNT - 2} is ":"', '"\\x1b[31m"']),
        (tiny.WORDS[:-1], [f"student {COUNT} tokens, teacher {COUNT - 1}", "no token"]),
        ([*tiny.WORDS[:4], "b", "a", *tiny.WORDS[6:]], ["in 2 ids", 'id 4 is "a" for the student and "b"']),
    ],
)
def test_different_tables(words, parts):
    with pytest.raises(InputError) as caught:
        shared_vocabulary(tiny.tokenizer(), tiny.tokenizer(words), 100, 100)
    assert caught.value.code == "TOK-03"
    for part in parts:
        assert part in str(caught.value)


def test_one_table_but_other_cuts():
    other = tiny.tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match=r"TOK-03.*cut text differently"):
        shared_vocabulary(tiny.tokenizer(), other, 100, 100)


def test_a_model_is_not_distilled_into_itself(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert same_model("a", str(tmp_path / "link"))
    assert same_model("org/x", "org/x")
    assert not same_model("a", "b")
    assert not same_model("a", "random:layers=1,width=8,heads=1")
    refuse_same_model("a", "b")
    with pytest.raises(InputError, match="MOD-18"):
        refuse_same_model("a", "./a/../a")


def padded(tokenizer=None):
    made = tokenizer or tiny.tokenizer()
    made.add_special_tokens({"pad_token": "[PAD]"})
    return made


def test_an_added_token_needs_no_row_of_its_own():
    assert shared_vocabulary(padded(), padded(), COUNT, COUNT) == COUNT
    assert shared_vocabulary(padded(), padded(), COUNT + 1, COUNT) == COUNT
    assert shared_vocabulary(padded(), tiny.tokenizer(), COUNT, COUNT) == COUNT
    assert shared_vocabulary(tiny.tokenizer(), padded(), COUNT, COUNT + 1) == COUNT
    assert shared_vocabulary(padded(), padded(), COUNT + 1, COUNT + 64) == COUNT + 1
    with pytest.raises(InputError, match=r"TOK-03"):
        shared_vocabulary(padded(), tiny.tokenizer(), COUNT + 1, COUNT + 1)
    with pytest.raises(InputError, match=r"TOK-04.*46 >= 46 embedding rows of the student"):
        shared_vocabulary(padded(), padded(), COUNT - 1, COUNT)
