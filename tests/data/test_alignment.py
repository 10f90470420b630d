"""What a teacher of another tokenizer is given to read: prompts, special tokens, responses of data and of models."""

import json

import pytest

import tiny
from cutters import cutter
from kdcli.config.schema import DataConfig
from kdcli.data.alignment import NO_OFFSET, AlignedSequence, TokenAligner, TokenReader, pair_rows
from kdcli.data.dataset import load_dataset
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError

ROWS = [
    {"prompt": "say a:", "completion": " aaaa. Größe 🙂"},
    {"prompt": "Once upon", "completion": " a time there was a little girl named Lily."},
    {"prompt": "She had", "completion": "."},
]
CHAT = (
    "{%% for m in messages %%}<|%(mark)s|>{{ m.content }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|%(mark)s|>{%% else %%}[%(mark)s]{%% endif %%}"
)


def reader(tokenizer, path, **settings) -> TokenReader:
    config = DataConfig(train=str(path), **{"max_length": 1000, **settings})
    end = tokenizer.eos_token_id
    return TokenReader(tokenizer, EndTokens((end,)), load_dataset(str(path), tokenizer, config, ends=EndTokens((end,))))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    found.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return found


@pytest.fixture(scope="module")
def aligner(path) -> TokenAligner:
    return TokenAligner(reader(cutter("bytes-300"), path), reader(cutter("fallback"), path))


def said(aligner, aligned: AlignedSequence) -> list[str]:
    """The text that the teacher has read of the response at each place."""
    tokens = aligned.ids[aligned.prompt_length :]
    return ["?" if place == NO_OFFSET else aligner.other.tokenizer.decode(tokens[:place]) for place in aligned.places]


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_a_row_is_read_as_the_teacher_reads_it(aligner, row):
    mine, theirs = aligner.own.rows.examples[row], aligner.other.rows.examples[row]
    found = aligner.align(mine.ids, mine.prompt_length, row)
    assert found.ids[: found.prompt_length] == theirs.ids[: theirs.prompt_length]
    assert found.ids[0] == aligner.other.tokenizer.bos_token_id
    assert found.ids == theirs.ids[:-1]
    assert len(found.places) == len(mine.ids) - mine.prompt_length
    assert said(aligner, found)[0] == ""
    assert found.places[-1] == len(found.ids) - found.prompt_length


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_both_have_read_the_same_text_wherever_they_meet(aligner, row):
    mine = aligner.own.rows.examples[row]
    found = aligner.align(mine.ids, mine.prompt_length, row)
    own = aligner.own.tokenizer
    response = mine.ids[mine.prompt_length :]
    for count, text in enumerate(said(aligner, found)):
        assert text.lstrip() in ("?", own.decode(response[:count]).lstrip())
    assert sum(text != "?" for text in said(aligner, found)) >= len(found.ids) // 2 - found.prompt_length


def test_a_row_that_was_cut_keeps_its_places(path):
    short = TokenAligner(reader(cutter("bytes-300"), path, max_length=16), reader(cutter("fallback"), path))
    mine = short.own.rows.examples[1]
    assert mine.ids[-1] not in short.own.ends
    whole = TokenAligner(reader(cutter("bytes-300"), path), reader(cutter("fallback"), path))
    entire = whole.own.rows.examples[1]
    there = whole.align(entire.ids, entire.prompt_length, 1).places
    found = short.align(mine.ids, mine.prompt_length, 1)
    assert found.places == there[: len(found.places)]
    assert len(found.ids) - found.prompt_length == max(found.places)


def test_what_a_model_wrote_is_decoded_and_read_after_the_rows_prompt(aligner):
    mine, theirs = aligner.own.rows.examples[0], aligner.other.rows.examples[0]
    own = aligner.own.tokenizer
    answer = own.encode("She loved to play", add_special_tokens=False)
    for tail in ((), (own.eos_token_id,)):
        ids = (*mine.ids[: mine.prompt_length], *answer, *tail)
        found = aligner.align(ids, mine.prompt_length, 0)
        assert found.ids[: found.prompt_length] == theirs.ids[: theirs.prompt_length]
        read = aligner.other.tokenizer.decode(found.ids[found.prompt_length :])
        assert read == "She loved to play" if tail else "She loved to play".startswith(read)
        assert read, "the end of what was said is no place where a label stands, its beginning is"
        assert len(found.places) == len(answer) + len(tail)
        for count, text in enumerate(said(aligner, found)):
            assert text in ("?", own.decode(answer[:count]))


def test_an_answer_that_begins_as_the_rows_own_is_read_by_itself(aligner):
    mine = aligner.own.rows.examples[1]
    ids = mine.ids[: mine.prompt_length + 2]
    said = aligner.own.tokenizer.decode(ids[mine.prompt_length :])
    assert mine.response.startswith(said)
    assert said != mine.response
    found = aligner.align((*ids, aligner.own.ends.default), mine.prompt_length, 1)
    assert found.ids == tuple(aligner.other.tokenizer.encode(mine.prompt + said))
    assert found.places[-1] == len(found.ids) - found.prompt_length


def test_a_prompt_of_no_row_is_decoded_too(aligner):
    own, other = aligner.own, aligner.other
    prompt = (*own.prefix, *own.tokenizer.encode("say b:", add_special_tokens=False))
    answer = tuple(own.tokenizer.encode("bb", add_special_tokens=False))
    for row in (-1, 1):
        found = aligner.align((*prompt, *answer), len(prompt), row)
        expected = (*other.prefix, *other.tokenizer.encode("say b:", add_special_tokens=False))
        assert found.ids[: found.prompt_length] == expected
    nothing = aligner.align((own.beginning, *answer), 1, -1)
    assert nothing.ids[0] == other.beginning
    assert nothing.prompt_length == 1


def test_each_reads_a_conversation_in_its_own_template(tmp_path):
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "aaa"}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    sides = []
    for kind, mark in (("bytes-300", "one"), ("bytes-700", "two")):
        tokenizer = cutter(kind).__class__(
            tokenizer_object=cutter(kind).backend_tokenizer, bos_token="<s>", eos_token="</s>"
        )
        tokenizer.chat_template = CHAT % {"mark": mark}
        sides.append(reader(tokenizer, path))
    aligner = TokenAligner(*sides)
    (mine,), (theirs,) = (side.rows.examples for side in sides)
    assert (mine.response, theirs.response) == ("aaa[one]", "aaa[two]")
    found = aligner.align(mine.ids, mine.prompt_length, 0)
    assert "two" in sides[1].tokenizer.decode(found.ids[: found.prompt_length])
    reached = [text for text in said(aligner, found) if text != "?"]
    assert reached[0] == ""
    assert "aaa[" in reached
    assert not any("one" in text or "two" in text for text in reached)
    assert found.places[-1] == NO_OFFSET


def test_what_a_teacher_has_no_position_for_is_left_out():
    whole = AlignedSequence((5, 6, 7, 8, 9), 2, (0, 1, NO_OFFSET, 3))
    assert whole.within(None) is whole
    assert whole.within(5) is whole
    assert whole.within(4) == AlignedSequence((5, 6, 7, 8), 2, (0, 1, NO_OFFSET, NO_OFFSET))
    assert whole.within(2) == AlignedSequence((5, 6), 2, (0, NO_OFFSET, NO_OFFSET, NO_OFFSET))
    assert whole.within(1).places == (NO_OFFSET,) * 4


def test_rows_are_matched_by_their_place():
    def rows(*places):
        return TokenDataset(tuple(Example((1, index), 1, "", (), place) for index, place in enumerate(places)))

    assert pair_rows(rows("b", "a"), rows("a", "x", "b")).examples == tuple(
        Example((1, index), 1, "", (), place) for index, place in ((2, "b"), (0, "a"))
    )
    with pytest.raises(InputError, match=r"TOK-16.: c: "):
        pair_rows(rows("a", "c"), rows("a"))


def test_a_tokenizer_that_knows_less_still_reads_the_rows_text(path):
    letters = TokenAligner(reader(tiny.tokenizer(), path), reader(cutter("bytes-300"), path))
    mine, theirs = letters.own.rows.examples[0], letters.other.rows.examples[0]
    assert letters.own.tokenizer.unk_token_id in mine.ids
    found = letters.align(mine.ids, mine.prompt_length, 0)
    assert found.ids == theirs.ids[:-1]
    assert found.places[-1] == len(found.ids) - found.prompt_length
    assert len([place for place in found.places if place != NO_OFFSET]) > len(found.places) // 2
