"""Tokenizers that cannot be used, and how the end token is found."""

import base64
import importlib.util

import pytest
import torch

import tiny
from kdcli.errors import InputError, MachineError
from kdcli.models import tokenizer as tokenizer_module
from kdcli.models.load import load_model
from kdcli.models.tokenizer import load_tokenizer
from models.folders import copy, edit

CPU = torch.device("cpu")


@pytest.fixture
def bad(good, tmp_path):
    return copy(good, tmp_path / "bad")


def refuse(folder, code, *words):
    with pytest.raises(InputError) as caught:
        load_model(str(folder), device=CPU, role="student")
    message = str(caught.value)
    assert caught.value.code == code, message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_none(bad):
    (bad / "tokenizer.json").unlink()
    refuse(bad, "TOK-01", "no tokenizer in")
    with pytest.raises(InputError, match="TOK-01"):
        load_tokenizer("./nowhere")


def test_damaged(bad):
    path = bad / "tokenizer.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    refuse(bad, "TOK-02", "tokenizer.json", "of 200")
    path.write_text("{}")
    refuse(bad, "TOK-02")
    path.write_bytes(whole)
    edit(path, model={"type": "WordLevel"})
    refuse(bad, "TOK-02")
    path.write_bytes(whole)
    (bad / "tokenizer_config.json").write_text("[]")
    refuse(bad, "TOK-02", "tokenizer_config.json")


def test_a_tokenizer_alone_loads(bad):
    (bad / "config.json").unlink()
    assert len(load_tokenizer(str(bad))) == len(tiny.WORDS)


def test_more_tokens_than_rows(tmp_path, good):
    folder = tiny.folder(tmp_path / "small", vocab=len(tiny.WORDS) - 1)
    tiny.tokenizer().save_pretrained(folder)
    highest = len(tiny.WORDS) - 1
    refuse(folder, "TOK-04", f"{highest} >= {highest} embedding rows")


def test_end_and_padding_ids(bad):
    path = bad / "generation_config.json"
    loaded = load_model(str(bad), device=CPU, role="student")
    assert (loaded.ends.ids, loaded.pad_id) == ((2,), 0)
    edit(path, eos_token_id=[1, 2])
    loaded = load_model(str(bad), device=CPU, role="student")
    assert (loaded.ends.ids, loaded.ends.default) == ((1, 2), 1)
    edit(path, eos_token_id=999)
    refuse(bad, "TOK-04", "999")
    for name in (path, bad / "config.json"):
        edit(name, eos_token_id=None)
    assert load_model(str(bad), device=CPU, role="student").ends.ids == (2,)
    edit(bad / "tokenizer_config.json", eos_token=..., pad_token=...)
    refuse(bad, "TOK-13", "no end token")


def test_padding_falls_back_to_the_end_token(bad):
    edit(bad / "tokenizer_config.json", pad_token=...)
    loaded = load_model(str(bad), device=CPU, role="student")
    assert loaded.tokenizer.pad_token_id is None
    assert loaded.pad_id == 2


PIECES = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
RANKS = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


@pytest.mark.parametrize(
    "name, content, line",
    [
        ("tokenizer.model", PIECES, "pip install sentencepiece"),
        ("spiece.model", PIECES, "pip install sentencepiece"),
        ("tokenizer.model", RANKS, "pip install tiktoken"),
        ("qwen.tiktoken", RANKS, "pip install tiktoken"),
        ("tekken.json", b"{}", "pip install mistral-common"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, name, content, line):
    real = importlib.util.find_spec
    absent = {"sentencepiece", "tiktoken", "mistral_common"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module in absent else real(module, *rest)
    )
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MachineError) as caught:
        load_tokenizer(str(tmp_path))
    assert (caught.value.code, caught.value.exit_code) == ("TOK-12", 4)
    assert name in caught.value.what
    assert caught.value.fix.startswith(line)


@pytest.mark.parametrize(
    "error, code, words",
    [
        (ModuleNotFoundError("No module named 'fugashi.x'", name="fugashi.x"), "ENV-05", "pip install fugashi"),
        (ImportError("please install jieba"), "ENV-05", "please install jieba"),
        (PermissionError(13, "Permission denied"), "ENV-03", "Permission denied"),
    ],
)
def test_what_the_machine_lacks_is_no_damaged_tokenizer(bad, monkeypatch, error, code, words):
    def fail(*_, **__):
        raise ValueError("wrapped") from error

    monkeypatch.setattr(tokenizer_module.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(MachineError, match=words) as caught:
        load_tokenizer(str(bad))
    assert caught.value.code == code
