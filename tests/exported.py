"""Tiny models with tokenizers of the kinds that are exported."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import tiny

FAMILIES = {
    "llama": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "max_position_embeddings": 128,
    },
    "gpt2": {"n_embd": 64, "n_head": 4},
}  # fmt: skip
_MERGES = ["t h", "th e", "Ġ a", "Ġ the", "a t", "c at", "Ġ s"]


def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's, with a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", "<s>", "</s>", *letters, *(merge.replace(" ", "") for merge in _MERGES)]
    vocab = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[(a, b) for a, b in (merge.split(" ") for merge in _MERGES)]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


def sentence_piece(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """BPE of SentencePiece's form, with byte fallback."""
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "t"), ("c", "at"), ("▁", "a")]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    letters = ["▁", *(chr(97 + number) for number in range(26)), ".", ","]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *letters, *("".join(pair) for pair in merges)]
    vocab = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    core.normalizer = normalizers.Sequence([*([normalizer] if normalizer is not None else []), *steps])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


def folder(path: Path, family: str = "llama", *, tokenizer=None, **options) -> Path:
    """A saved model folder whose tokenizer GGUF knows."""
    tokens = tokenizer or byte_level()
    rows = options.pop("vocab", len(tokens))
    tiny.model(family, vocab=rows, **{**FAMILIES[family], **options}).save_pretrained(path)
    tokens.save_pretrained(path)
    return path
