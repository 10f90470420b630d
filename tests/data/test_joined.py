"""Prompt and response are one text to a tokenizer: the ids of the whole, and where the response begins in it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

import tiny
from cutters import KINDS, cutter
from kdcli.config.schema import DataConfig
from kdcli.data.choices import encode_choices
from kdcli.data.dataset import load_dataset
from kdcli.data.tokenize import decode_after, encode_pairs, follow, without_prefix
from kdcli.distill.plan import preview
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TURNS = [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "Once upon a time"}]
few = settings(max_examples=40, deadline=None, derandomize=True)
WORDS = st.text("aeilnost .:\n“é日🙂", max_size=16)


def chat(kind, template=CHAT):
    made = PreTrainedTokenizerFast(
        tokenizer_object=cutter(kind).backend_tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.chat_template = template
    return made


def template_ids(tokenizer, turns, **options) -> list[int]:
    found: Any = tokenizer.apply_chat_template(turns, tokenize=True, **options)
    return found["input_ids"]


def load(path, tokenizer, row, **config):
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    ends = EndTokens((tokenizer.eos_token_id,))
    return load_dataset(str(path), tokenizer, DataConfig(**config), ends=ends)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_has_the_ids_that_the_template_gives(tmp_path, kind):
    tokenizer = chat(kind)
    (one,) = load(tmp_path / "r.jsonl", tokenizer, {"messages": TURNS}).examples
    whole = template_ids(tokenizer, TURNS)
    asked = template_ids(tokenizer, TURNS[:1], add_generation_prompt=True)
    assert list(one.ids) == whole[: len(one.ids)]
    assert one.ids[-1] == tokenizer.eos_token_id
    assert list(one.question) == asked
    assert decode_after(tokenizer, one.ids[: one.prompt_length], one.ids[one.prompt_length : -1]) == TURNS[1]["content"]


def test_an_answer_on_a_new_line_begins_without_the_space_that_is_put_before_texts(tmp_path):
    tokenizer = chat("fallback")
    (one,) = load(tmp_path / "r.jsonl", tokenizer, {"messages": TURNS}).examples
    first = str(tokenizer.convert_ids_to_tokens(one.ids[one.prompt_length]))
    assert not first.startswith("▁"), first
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("Once", add_special_tokens=False))[0].startswith("▁")


@pytest.mark.parametrize("kind", KINDS)
@few
@given(prompt=WORDS, response=WORDS)
def test_the_border_is_that_of_the_characters(kind, prompt, response):
    tokenizer = cutter(kind)
    (found,) = encode_pairs(tokenizer, [prompt], [response], ["here"])
    whole = tokenizer(prompt + response, add_special_tokens=False, return_offsets_mapping=True)
    assert found.ids == whole["input_ids"]
    assert found.prompt == tokenizer.encode(prompt, add_special_tokens=False)
    spans = whole["offset_mapping"]
    if found.ids[: len(found.prompt)] == found.prompt:
        assert found.border == len(found.prompt)
        assert not found.straddled
    else:
        assert all(start < len(prompt) for start, _ in spans[: found.border])
        assert all(start >= len(prompt) for start, _ in spans[found.border :])
        assert found.straddled == any(end > len(prompt) for _, end in spans[: found.border])


def test_a_token_on_both_sides_is_prompt_and_is_told(tmp_path):
    tokenizer = cutter("bytes-700")
    dataset = load(tmp_path / "r.jsonl", tokenizer, {"prompt": "say a: ", "completion": "Once upon"})
    (one,) = dataset.examples
    (joined,) = encode_pairs(tokenizer, ["say a: "], ["Once upon"], ["here"])
    assert one.prompt_length == 1 + joined.border
    assert tokenizer.decode(list(one.ids[1 : one.prompt_length])) == "say a: Once"
    assert list(one.question) == tokenizer.encode("say a: ")
    assert any("answer begun by a token of the prompt, which is not learnt" in note for note in dataset.notes)
    said = load(tmp_path / "s.jsonl", tokenizer, {"prompt": "say a:", "completion": " Once upon"})
    assert said.examples[0].asked == ()
    assert not any("begun by" in note for note in said.notes)


def trimmed():
    """A byte-level tokenizer that reports words without the space in front."""
    core = Tokenizer.from_str(cutter("bytes-700").backend_tokenizer.to_str())
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_a_space_that_the_tokenizer_does_not_report_still_belongs_to_its_token():
    (found,) = encode_pairs(trimmed(), ["say a: "], ["Once upon"], ["here"])
    assert trimmed().decode(found.ids[: found.border]) == "say a: Once"
    assert found.straddled


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python that reports no places: pairs of letters, from the left."""

    def __init__(self, lossy=False, **kwargs):
        letters = [chr(97 + at) for at in range(26)] + [":", " "]
        words = ["</s>", "<unk>", *letters, *(one + other for one in letters for other in letters)]
        self.table, self.lossy = {word: at for at, word in enumerate(words)}, lossy
        self.back = dict(enumerate(words))
        super().__init__(eos_token="</s>", unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self):
        return len(self.table)

    def get_vocab(self):
        return dict(self.table)

    def _tokenize(self, text, **_):
        text = text.replace(" ", "") if self.lossy else text
        return [text[at : at + 2] for at in range(0, len(text), 2)]

    def _convert_token_to_id(self, token):
        return self.table.get(token, 1)

    def _convert_id_to_token(self, index):
        return self.back[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


@pytest.mark.parametrize("prompt, response, border, straddled", [("ab", "cd", 1, False), ("abc", "de", 2, True)])
def test_without_reported_places_the_border_is_found_by_decoding(prompt, response, border, straddled):
    tokenizer = Slow()
    assert not tokenizer.is_fast
    (found,) = encode_pairs(tokenizer, [prompt], [response], ["here"])
    assert tokenizer.convert_ids_to_tokens(found.ids) == tokenizer._tokenize(prompt + response)
    assert (found.border, found.straddled) == (border, straddled)


def test_a_border_that_cannot_be_found_is_refused_by_row(tmp_path):
    tokenizer = Slow(lossy=True)
    assert load(tmp_path / "r.jsonl", tokenizer, {"prompt": "a b", "completion": "cd"}).examples[0].prompt_length == 1
    with pytest.raises(InputError, match=r"TOK-14.*r.jsonl line 1"):
        load(tmp_path / "r.jsonl", tokenizer, {"prompt": "a bc", "completion": "de"})


@pytest.mark.parametrize(
    "row, template",
    [
        ({"prompt": "<s>say a:", "completion": " a"}, "auto"),
        ({"instruction": "say a", "output": " a"}, "<s>{instruction}:"),
        ({"text": "<s>say a"}, "auto"),
    ],
)
def test_a_beginning_that_is_written_is_not_put_there_again(tmp_path, row, template):
    tokenizer = cutter("bytes-300")
    (one,) = load(tmp_path / "r.jsonl", tokenizer, row, template=template).examples
    assert one.ids.count(tokenizer.bos_token_id) == 1
    assert one.ids[0] == one.question[0] == tokenizer.bos_token_id
    assert one.prompt_length == (1 if "text" in row else len(tokenizer.encode("say a:")))


def test_a_text_that_begins_with_the_token_that_stands_for_no_prompt(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = "</s>"
    dataset = load(tmp_path / "r.jsonl", tokenizer, {"text": "</s>once"})
    (one,) = dataset.examples
    assert (one.ids, one.prompt_length) == ((2, *map(tiny.WORDS.index, "once"), 2), 1)
    assert "1 response opened with an end token, which ends nothing there (line 1)" in dataset.notes


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_after_a_prompt_reads_back_as_the_same_tokens(tmp_path, kind):
    tokenizer = cutter(kind)
    (one,) = load(tmp_path / "r.jsonl", tokenizer, {"prompt": "say a:", "completion": " Once upon a time"}).examples
    said = decode_after(tokenizer, one.question, one.ids[one.prompt_length : -1])
    assert said == " Once upon a time"
    assert follow(tokenizer, one, [said]) == [(one.ids[:-1], one.prompt_length)]


@pytest.mark.parametrize("kind", KINDS)
def test_choices_are_read_behind_the_prompt_as_one_text(tmp_path, kind):
    tokenizer = cutter(kind)
    row = {"prompt": "say a:\n", "completion": "Once", "choices": ["Once", "time"]}
    dataset = load(tmp_path / "r.jsonl", tokenizer, row)
    (found,) = encode_choices(tokenizer, dataset)
    for text, ids in zip(row["choices"], found.ids, strict=True):
        assert [*found.context, *ids] == tokenizer.encode("say a:\n" + text)


def test_choices_that_change_the_prompts_last_token_are_compared_from_before_it(tmp_path):
    tokenizer = cutter("bytes-700")
    row = {"prompt": "say a: ", "completion": "Once", "choices": ["Once", "🙂"]}
    (found,) = encode_choices(tokenizer, load(tmp_path / "r.jsonl", tokenizer, row))
    assert tokenizer.decode(list(found.context)) == "<s>say a:"
    assert [tokenizer.decode(ids) for ids in found.ids] == [" Once", " 🙂"]


@pytest.mark.parametrize("kind", ["pieces", "fallback"])
def test_a_preview_shows_the_space_in_front(tmp_path, kind):
    tokenizer = cutter(kind)
    dataset = load(tmp_path / "r.jsonl", tokenizer, {"prompt": "say a:", "completion": " Once"})
    assert preview(dataset, tokenizer, 1)[0].segments[-1] == (" Once</s>", True)


def test_a_server_is_sent_a_prompt_without_the_beginning_that_it_adds_itself():
    assert without_prefix(cutter("bytes-300"), "<s>#user\nhi") == "#user\nhi"
    assert without_prefix(cutter("bytes-300"), "hi <s>") == "hi <s>"
    assert without_prefix(tiny.tokenizer(), "<s>hi") == "<s>hi"


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_agrees_with_the_marks_that_a_template_has_itself(tmp_path, kind):
    marked = CHAT.replace(
        "{{ m.content }}{{ eos_token }}",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}",
    )
    tokenizer = chat(kind, marked)
    (one,) = load(tmp_path / "r.jsonl", tokenizer, {"messages": TURNS}).examples
    found: Any = tokenizer.apply_chat_template(
        TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert list(one.ids) == found["input_ids"][: len(one.ids)]
    learnt = [int(at >= one.prompt_length) for at in range(len(one.ids))]
    assert learnt == found["assistant_masks"][: len(one.ids)]
