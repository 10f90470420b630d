"""Ends of tokens against the bytes that tokens stand for, and meetings against a search through all pairs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tiny
from cutters import KINDS, cutter
from kdcli.data.alignment import NO_OFFSET, TokenOffsets, common_boundaries, read_ids, read_text

few = settings(max_examples=60, deadline=None, derandomize=True)
ANY = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=30)
KNOWN = st.text("aeilnost .,:  \n“”éß日本🙂12", max_size=40)
TEXTS = st.one_of(ANY, KNOWN)
BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


def lengths(tokenizer, ids) -> list[int]:
    """Bytes that the first k tokens of a byte-level tokenizer stand for."""
    found = [0]
    for token in tokenizer.convert_ids_to_tokens(list(ids)):
        found.append(found[-1] + len(bytes(BYTES[letter] for letter in token)))
    return found


@pytest.mark.parametrize("kind", ["bytes-300", "bytes-700"])
@few
@given(text=TEXTS)
def test_ends_of_byte_tokens_are_those_of_their_bytes(kind, text):
    read = read_text(cutter(kind), text)
    whole = {len(text[:place].encode()): place for place in range(len(text) + 1)}
    assert list(read.ends) == [whole.get(length, NO_OFFSET) for length in lengths(cutter(kind), read.ids)]


@pytest.mark.parametrize("kind", KINDS)
@few
@given(text=TEXTS)
def test_what_stands_before_an_end_and_after_it_is_read_as_such(kind, text):
    """A place is the end of k tokens only if text before and after it is what these tokens, and the rest, decode to."""
    tokenizer = cutter(kind)
    read = read_text(tokenizer, text)
    assert read.ends[0] == (0 if read.ids else len(text))
    assert read.ends[-1] == len(text)
    known = [end for end in read.ends if end != NO_OFFSET]
    assert known == sorted(known)
    if tokenizer.decode(read.ids) == text:
        for count, end in enumerate(read.ends[:-1]):
            assert end in (NO_OFFSET, len(tokenizer.decode(read.ids[:count])))
            if end != NO_OFFSET:
                assert tokenizer.decode(read.ids[:count]) == text[:end]


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("own", KINDS)
@few
@given(text=TEXTS)
def test_tokenizers_meet_where_both_end(own, other, text):
    mine, theirs = read_text(cutter(own), text), read_text(cutter(other), text)
    found = common_boundaries(mine, theirs)
    assert len(found) == len(mine.ids) + 1
    assert found[-1] == len(theirs.ids)
    for count, place in enumerate(found):
        ends = [other for other, end in enumerate(theirs.ends) if end == mine.ends[count] != NO_OFFSET]
        last = mine.ends[count] not in mine.ends[count + 1 :]
        assert place == (ends[-1] if ends and last else NO_OFFSET)
    met = [place for place in found if place != NO_OFFSET]
    assert met == sorted(set(met))


@few
@given(text=TEXTS)
def test_two_byte_tokenizers_meet_wherever_their_bytes_do(text):
    small, large = cutter("bytes-300"), cutter("bytes-700")
    mine, theirs = read_text(small, text), read_text(large, text)
    whole = {len(text[:place].encode()) for place in range(len(text) + 1)}
    there = lengths(large, theirs.ids)
    expected = [there.index(end) if end in there and end in whole else NO_OFFSET for end in lengths(small, mine.ids)]
    assert list(common_boundaries(mine, theirs)) == expected


@pytest.mark.parametrize("kind", KINDS)
@few
@given(text=KNOWN)
def test_what_a_tokenizer_cut_is_read_alike_from_its_tokens(kind, text):
    read = read_text(cutter(kind), text)
    again = read_ids(cutter(kind), read.ids)
    assert again.ids == read.ids
    if again.text == text:
        known = [(one, two) for one, two in zip(read.ends, again.ends, strict=True) if NO_OFFSET not in (one, two)]
        assert all(one == two for one, two in known)
        assert read.ends == again.ends or kind in ("pieces", "fallback")


@pytest.mark.parametrize("kind", ["bytes-300", "fallback"])
def test_words_that_nobody_would_cut_so_are_read_by_what_they_say(kind):
    tokenizer = cutter(kind)
    ids = [token for letter in "little girl" for token in read_text(tokenizer, letter).ids]
    read = read_ids(tokenizer, ids)
    assert read.ids == tuple(ids) != read_text(tokenizer, read.text).ids
    for count, end in enumerate(read.ends):
        assert end == NO_OFFSET or tokenizer.decode(ids[:count]) == read.text[:end]
    assert read.ends[-1] == len(read.text)
    assert sum(end != NO_OFFSET for end in read.ends) > len(ids) // 2


def test_a_character_that_is_cut_off_is_no_place():
    tokenizer = cutter("bytes-300")
    ids = read_text(tokenizer, "a🜁").ids[:-1]
    assert read_ids(tokenizer, ids).ends[-1] == NO_OFFSET


def test_unknown_characters_count_as_text():
    assert read_text(tiny.tokenizer(), "a!b").ends == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "own, other, found",
    [
        (TokenOffsets("ab", (1, 2), (0, 1, 2)), TokenOffsets("abc", (1, 2), (0, 2, 3)), (0, -1, 1)),
        (TokenOffsets("ab<end>", (1, 2, 3), (0, 1, 2, 7)), TokenOffsets("ab</s>", (1, 2), (0, 2, 6)), (0, -1, 1, -1)),
        (TokenOffsets("ab", (1, 2, 3), (0, 0, 1, 2)), TokenOffsets("ab", (1, 2), (0, 1, 2)), (-1, 0, 1, 2)),
        (TokenOffsets("ab", (1, 2), (0, 1, 2)), TokenOffsets("ab", (1, 2, 3), (0, 0, 1, 2)), (1, 2, 3)),
        (TokenOffsets("", (), (0,)), TokenOffsets("", (), (0,)), (0,)),
        (TokenOffsets("a", (1,), (0, 1)), TokenOffsets("b", (1,), (0, 1)), (0, -1)),
    ],
    ids=["longer", "other ends", "own empty token", "their empty token", "nothing", "nothing alike"],
)
def test_meetings_by_hand(own, other, found):
    assert common_boundaries(own, other) == found


def test_a_tokenizer_that_reports_no_places_is_asked_what_its_tokens_say():
    class Plain(type(tiny.tokenizer())):
        is_fast = False

    core = cutter("bytes-700")
    plain = Plain(tokenizer_object=core.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    for text in ("Once upon a time 🙂", "naïve café; 日本語"):
        assert read_text(plain, text) == read_text(core, text)
