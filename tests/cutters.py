"""Tokenizers of several kinds, trained on a page of text in a moment."""

import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import tiny

TEXT = (
    "say a: aaaa. say b: bbb. Once upon a time there was a little girl named Lily.",
    "She had a big red ball, and she loved to play with it in the park every day.",
    "“Größe”, naïve café; 日本語 and 你好 🙂🙂 — 12 + 34 = 46.\n\n  two  spaces",
) * 4
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
KINDS = ("bytes-300", "bytes-700", "pieces", "fallback")


@cache
def cutter(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer: BPE on bytes, a unigram model on pieces with the space in front, or BPE that falls back to bytes."""
    core = {"bytes-300": _on_bytes, "bytes-700": _on_bytes, "pieces": _pieces, "fallback": _falling_back}[kind](
        int(kind.partition("-")[2] or 200)
    )
    begin = core.token_to_id(BEGIN)
    core.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BEGIN, eos_token=END, unk_token=None if "bytes" in kind else UNKNOWN,
        model_max_length=128,
    )  # fmt: skip


def _on_bytes(size: int) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=[BEGIN, END])
    )
    return core


def _pieces(size: int) -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=size, special_tokens=[UNKNOWN, BEGIN, END], unk_token=UNKNOWN)
    )
    return core


def _falling_back(size: int) -> Tokenizer:
    """As SentencePiece makes them: spaces runs become one, one is put in front, unknown characters become bytes."""
    taught = Tokenizer(models.BPE())
    taught.pre_tokenizer = pre_tokenizers.Metaspace()
    taught.train_from_iterator(TEXT[:2], trainers.BpeTrainer(vocab_size=size))
    merges = [tuple(merge) for merge in json.loads(taught.to_str())["model"]["merges"]]
    words = [UNKNOWN, BEGIN, END, *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [word for word, _ in sorted(taught.get_vocab().items(), key=lambda item: item[1])]
    core = Tokenizer(
        models.BPE({word: place for place, word in enumerate(words)}, merges, unk_token=UNKNOWN, byte_fallback=True,
                   fuse_unk=True)
    )  # fmt: skip
    core.normalizer = normalizers.Sequence(
        [normalizers.Replace("  ", " "), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([UNKNOWN, BEGIN, END])
    return core


def model(kind: str, family: str = "llama", **options):
    """A random causal LM for such a tokenizer."""
    tokenizer = cutter(kind)
    made = tiny.model(family, vocab=len(tokenizer), **options)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    made.config.update(ends)
    made.generation_config.update(**ends, pad_token_id=tokenizer.eos_token_id)
    return made


def folder(path: Path, kind: str, family: str = "llama", **options) -> Path:
    """A saved model folder with such a tokenizer."""
    model(kind, family, **options).save_pretrained(path)
    cutter(kind).save_pretrained(path)
    return path
