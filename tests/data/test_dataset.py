import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import tiny
from kdcli.config.schema import DataConfig
from kdcli.data.dataset import load_dataset
from kdcli.data.tokenize import Example, TokenDataset, overlap, overlap_note
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, UsageError

EOS = 2
ENDS = EndTokens((EOS,))
CHATML = (
    "{{ bos_token }}{% for m in messages %}#{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant\n{% endif %}"
)


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def ids(text: str) -> list[int]:
    return [tiny.WORDS.index(letter) for letter in text]


def with_bos(*, and_eos: bool = False):
    made = tiny.tokenizer()
    single = "<s> $A </s>" if and_eos else "<s> $A"
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


def load(path, tokenizer=None, *, ends: EndTokens = ENDS, role="train", limit=None, **config) -> TokenDataset:
    return load_dataset(
        str(path), tokenizer or tiny.tokenizer(), DataConfig(**config), ends=ends, limit=limit, role=role
    )


def one(tmp_path, row, tokenizer=None, **options) -> Example:
    return load(write(tmp_path / "r.jsonl", [row]), tokenizer, **options).examples[0]


def test_prompt_and_response_are_tokenised_apart_and_ended_once(tmp_path):
    example = one(tmp_path, {"prompt": "say a:", "completion": " a."})
    assert example == Example((*ids("say a: a."), EOS), 6, "say a:", (" a.",), "r.jsonl line 1", response=" a.")


def test_bos_comes_first_and_an_automatic_eos_does_not_follow_the_prompt(tmp_path):
    for tokenizer in (with_bos(), with_bos(and_eos=True)):
        example = one(tmp_path, {"prompt": "a", "completion": "b"}, tokenizer)
        assert (example.ids, example.prompt_length) == ((1, *ids("ab"), EOS), 2)


@pytest.mark.parametrize("bos, first", [("<s>", 1), (None, EOS)])
def test_plain_text_starts_from_bos_or_from_the_end_token(tmp_path, bos, first):
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = bos
    for made in (tokenizer, with_bos()) if bos else (tokenizer,):
        example = one(tmp_path, {"text": "once"}, made)
        assert example == Example((first, *ids("once"), EOS), 1, "", ("once",), "r.jsonl line 1", response="once")


def test_one_token_that_is_bos_and_end_at_once(tmp_path):
    example = one(tmp_path, {"text": "once"}, with_bos(), ends=EndTokens((1,)))
    assert (example.ids, example.prompt_length) == ((1, *ids("once"), 1), 1)


def test_pad_that_is_the_end_token_takes_nothing_away(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "</s>"
    assert one(tmp_path, {"prompt": "a", "completion": "b"}, tokenizer).ids == (*ids("ab"), EOS)


def test_chat_template_that_ends_the_turn_gets_no_second_end_token(tmp_path):
    tokenizer = with_bos()
    tokenizer.chat_template = CHATML
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    dataset = load(write(tmp_path / "r.jsonl", [{"messages": messages}]), tokenizer)
    example = dataset.examples[0]
    assert example.prompt == "<s>#user\nhi</s>\n#assistant\n"
    assert example.ids[: example.prompt_length] == (1, *ids("#user\nhi"), EOS, *ids("\n#assistant\n"))
    assert example.ids[example.prompt_length :] == (*ids("yo"), EOS)
    assert example.references == ("yo",)
    assert not any("ended early" in note for note in dataset.notes)


def test_chat_template_without_end_of_turn_is_ended(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    example = one(tmp_path, {"messages": messages}, tokenizer)
    assert example.ids == (*ids("hi\nyo\n"), EOS)


def test_an_end_token_inside_a_response_ends_it(tmp_path):
    dataset = load(write(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "b</s>c"}]))
    assert dataset.examples[0].ids == (*ids("ab"), EOS)
    assert "1 response ended early: an end token stood inside (line 1)" in dataset.notes


def test_a_cut_response_loses_its_end_token_and_is_counted(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"prompt": "aa", "completion": "b" * count} for count in (5, 6, 20)])
    dataset = load(path, max_length=8)
    assert [example.ids for example in dataset.examples] == [
        (*ids("aabbbbb"), EOS),
        tuple(ids("aabbbbbb")),
        tuple(ids("aabbbbbb")),
    ]
    assert "2 responses cut at 8 tokens, without end token (line 2, line 3)" in dataset.notes


def test_long_prompts_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"prompt": "a" * count, "completion": "b"} for count in (3, 5, 7, 8, 30)])
    dataset = load(path, max_length=8)
    assert [example.prompt_length for example in dataset.examples] == [3, 5, 7]
    assert dataset.examples[2].ids == tuple(ids("aaaaaaab"))
    assert "2 rows dropped: the prompt alone fills 8 tokens (line 4, line 5)" in dataset.notes
    dataset = load(path, max_length=8, max_prompt_length=3)
    assert [example.prompt_length for example in dataset.examples] == [3]
    assert "4 rows dropped: prompt over 3 tokens (line 2, line 3, line 4, …)" in dataset.notes


def test_nothing_left_says_why(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"prompt": "a" * 9, "completion": "b"}] * 3 + [{"prompt": ""}])
    with pytest.raises(InputError, match=r"DATA-02.*0 usable rows \(of 4: 3 with a prompt .*, 1 bad\).*max_length"):
        load(path, max_length=8, skip_bad=True)


def test_notes_name_the_place_in_the_file_whatever_its_name(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a" * 9, "completion": "b"}]
    dataset = load(write(tmp_path / "my own line 7.jsonl", rows), max_length=8)
    assert any(note.endswith("fills 8 tokens (line 2)") for note in dataset.notes)


def test_several_references_are_kept_and_training_takes_the_first(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"instruction": "i", "output": ["x", "y"]}])
    held_out, train = load(path, role="eval"), load(path)
    assert held_out.examples[0].references == ("x", "y")
    assert train.examples[0].ids[-2:] == (*ids("x"), EOS)
    assert "1 row with several responses; training takes the first" in train.notes
    assert "template: alpaca" in train.notes


def test_digest_follows_the_tokens_and_lengths_the_rows(tmp_path):
    first = load(write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}]))
    again = load(write(tmp_path / "b.jsonl", [{"completion": "b", "prompt": "a"}]))
    moved = load(write(tmp_path / "c.jsonl", [{"prompt": "ab", "completion": " "}, {"prompt": "a", "completion": "b"}]),
                 skip_bad=True)  # fmt: skip
    other = TokenDataset((Example(first.examples[0].ids, 2, "", (), ""),))
    assert first.digest == again.digest == moved.digest != other.digest
    assert first.files != again.files
    assert first.lengths == (3,)
    assert first.targets == 2


def test_a_tokenizer_that_panics_is_named_with_the_row(tmp_path, capfd):
    core = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a|a|aa)+\1(?=b)"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<unk>")
    path = write(tmp_path / "r.jsonl", [{"prompt": "a", "completion": c} for c in ("a", "a" * 60 + "c", "a")])
    with pytest.raises(InputError, match=r"TOK-07.*r.jsonl line 2: the tokenizer failed: ") as caught:
        load(path, tokenizer, ends=EndTokens((1,)))
    assert "\n" not in str(caught.value)


def test_interrupts_are_not_taken_for_the_tokenizers_fault(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    path = write(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "b"}])
    tokenizer = tiny.tokenizer()
    monkeypatch.setattr(type(tokenizer), "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        load(path, tokenizer)


def test_rows_the_chat_template_refuses_can_be_left_out(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    system = {"role": "system", "content": "be"}
    path = write(tmp_path / "r.jsonl", [{"messages": turns}, {"messages": [system, *turns]}])
    with pytest.raises(InputError, match=r'TOK-10.*line 2: the chat template says "user first"'):
        load(path, tokenizer)
    dataset = load(path, tokenizer, skip_bad=True)
    assert len(dataset) == 1
    assert '1 row left out: the chat template says "user first"' in dataset.notes


def test_unknown_template_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(UsageError, match=r"unknown template"):
        load(tmp_path / "missing.jsonl", template="alpca")


def test_overlap_counts_held_out_prompts_seen_in_training(tmp_path):
    train = load(write(tmp_path / "a.jsonl", [{"prompt": "say  a", "completion": "b"}]))
    rows = [{"prompt": "say a", "completion": "z"}, {"prompt": "b", "completion": "b"}]
    held_out = load(write(tmp_path / "b.jsonl", rows))
    assert overlap(train, held_out) == 1
    assert overlap_note(train, held_out) == "DATA-18: 1 of 2 held-out prompts occur in the training rows"
    text = load(write(tmp_path / "c.jsonl", [{"text": "once"}]))
    assert overlap(text, text) == 1
    assert overlap_note(train, text) is None


LETTERS = st.text("abcdefg .,\n", min_size=1, max_size=12).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=5), longest=st.integers(3, 20))
def test_every_example_is_its_rows_prompt_response_and_end(tmp_path_factory, rows, longest):
    path = write(tmp_path_factory.mktemp("d") / "r.jsonl", [{"prompt": p, "completion": c} for p, c in rows])
    usable = [(p, c) for p, c in rows if len(p) < longest]
    if not usable:
        with pytest.raises(InputError, match=r"DATA-02"):
            load(path, max_length=longest)
        return
    dataset = load(path, max_length=longest)
    assert len(dataset) == len(usable)
    for example, (prompt, completion) in zip(dataset.examples, usable, strict=True):
        whole = (*ids(prompt), *ids(completion), EOS)
        assert example.ids == whole[:longest]
        assert example.prompt_length == len(prompt)
        assert example.ids.count(EOS) == (len(whole) <= longest)
