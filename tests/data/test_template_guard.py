"""Templates and tokenizers that never end, or take all memory, for some row: the row is named, in bounded time."""

import json
import os
import signal
import time

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from kdcli.config.schema import DataConfig
from kdcli.data.dataset import load_dataset
from kdcli.data.rows import Row
from kdcli.data.templates import render_guarded
from kdcli.data.tokenize import encode
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError
from kdcli.models.tokenizer import load_tokenizer
from kdcli.storage import forked as module
from kdcli.storage.forked import ExceededError, bounded

BARE = "{% for m in messages %}{{ m.content }}.{% endfor %}{% if not add_generation_prompt %}{% endif %}"
ENDLESS = (
    "{% for m in messages %}{% if 'zz' in m.content %}{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}{% endif %}{% endfor %}"
)
GREEDY = "{% for m in messages %}{% if 'zz' in m.content %}{{ 'x' * 3000000000 }}{% endif %}{% endfor %}"
WORDY = "{% for m in messages %}{% if 'zz' in m.content %}{{ 'x' * 40000000 }}{% endif %}{% endfor %}"


@pytest.fixture(autouse=True)
def in_children(monkeypatch):
    monkeypatch.setattr(module, "CHILDREN", True)


def rows(count, bad):
    said = ["zz" if at == bad else "a" for at in range(count)]
    turns = [({"role": "user", "content": text},) for text in said]
    return [
        Row(text, ("b",), f"r.jsonl line {at}", "messages", messages=turn)
        for at, (text, turn) in enumerate(zip(said, turns, strict=True))
    ]


def tokenizer(template):
    made = tiny.tokenizer()
    made.chat_template = template
    return made


@pytest.mark.parametrize("count, bad", [(1, 0), (7, 3), (600, 550)])
def test_a_template_that_is_endless_for_one_row_is_stopped_and_the_row_named(count, bad):
    started = time.process_time()
    with pytest.raises(InputError, match=rf"TOK-09.*line {bad}: the chat template exceeded 0.2 s"):
        list(render_guarded(rows(count, bad), tokenizer(ENDLESS + BARE), seconds=0.2))
    assert time.process_time() - started < 5


@pytest.mark.parametrize("template, said", [(GREEDY, "exceeded 512 MiB"), (WORDY, "makes .* of one row")])
def test_a_template_that_takes_all_memory_for_one_row_is_stopped(template, said):
    found = render_guarded(rows(5, 2), tokenizer(template + BARE))
    with pytest.raises(InputError, match=rf"TOK-09.*line 2: the chat template {said}"):
        _raise_first(found)


def _raise_first(found):
    for one in found:
        if isinstance(one, InputError):
            raise one


def growing():
    """A tokenizer that makes thirty thousand million letters of one."""
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Replace("z", "z" * 32) for _ in range(7)])
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<unk>")


class Endless(PreTrainedTokenizerFast):
    """A tokenizer that never ends for one text."""

    def __call__(self, text, *arguments, **options):
        while any("zz" in one for one in text):
            pass
        return super().__call__(text, *arguments, **options)


def test_a_tokenizer_that_grows_one_text_is_stopped_and_the_row_named(tmp_path):
    path = tmp_path / "r.jsonl"
    lines = [{"prompt": "a", "completion": "z" if at == 4 else "b"} for at in range(9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"TOK-09.*line 5: the tokenizer took more than 512 MiB for one text"):
        load_dataset(str(path), growing(), DataConfig(), ends=EndTokens((1,)))


def test_a_tokenizer_that_is_endless_for_one_text_is_stopped(monkeypatch):
    monkeypatch.setattr("kdcli.data.tokenize.bounded", lambda sizes, work: bounded(sizes, work, 0.2))
    endless = Endless(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    with pytest.raises(InputError, match=r"TOK-09.*: 2: the tokenizer took more than 0.2 s for one text"):
        encode(endless, ["a", "a", "zz", "a"], list("0123"), guarded=True)


def test_a_tokenizer_that_grows_every_text_is_refused_when_it_is_loaded(tmp_path):
    core = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Replace("e", "e" * 32) for _ in range(7)])
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"TOK-09.*took more than 512 MiB for one line of text"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 499, 1501])
def test_answers_come_in_order_whatever_the_number_of_processes(monkeypatch, workers, count):
    monkeypatch.setattr(module, "_processors", lambda: workers)
    found = b"".join(bounded([1] * count, lambda part: b"".join(at.to_bytes(4, "big") for at in part)))
    assert found == b"".join(at.to_bytes(4, "big") for at in range(count))


def test_slow_items_that_are_each_within_the_bound_all_pass():
    def slow(part):
        until = time.process_time() + 0.05 * len(part)
        while time.process_time() < until:
            pass
        return bytes(part)

    assert b"".join(bounded([1] * 8, slow, seconds=0.2)) == bytes(range(8))


def test_an_error_is_raised_again_here_and_named_as_ever():
    def broken(part):
        if 3 in part:
            raise ValueError("three")
        return b"x"

    with pytest.raises(ValueError, match="three"):
        list(bounded([1] * 5, broken))
    with pytest.raises(ExceededError) as caught:
        list(bounded([2**18] * 5, lambda part: bytes(2**33) if part[0] == 2 else b"x"))
    assert caught.value.item == 2


def test_guarded_ids_are_those_of_the_tokenizer():
    texts = ["say a: b." * (at % 40) for at in range(1300)]
    assert encode(tiny.tokenizer(), texts, texts, guarded=True) == encode(tiny.tokenizer(), texts, texts)


def test_where_a_copied_process_may_end_by_itself_the_rest_is_done_here(monkeypatch):
    here = os.getpid()

    def work(part):
        if os.getpid() != here and 1000 in part:
            os.kill(os.getpid(), signal.SIGKILL)
        return bytes([part[0] % 251])

    with pytest.raises(ExceededError):
        list(bounded([1] * 2000, work))
    monkeypatch.setattr(module, "_address_space", lambda: 0)
    assert list(bounded([1] * 2000, work)) == [bytes([start % 251]) for start in range(0, 2000, 500)]


def test_without_copies_of_processes_all_is_done_here(monkeypatch):
    monkeypatch.setattr(module, "CHILDREN", False)
    assert list(bounded([1, 1], lambda part: bytes(part))) == [b"\x00\x01"]
