"""Tiny models, tokenizers and data, built from a seed; no download."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *(chr(97 + i) for i in range(26)),
    *(str(i) for i in range(10)),
    " ",
    "\n",
    ".",
    ",",
    "?",
    ":",
    "#",
]

SIZES = {
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
}


def tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """A character tokenizer: every token is one character."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=128,
    )


def model(family: str = "llama", *, seed: int = 0, vocab: int = len(WORDS), **sizes):
    """A random causal LM of a family, in fp32, on the CPU."""
    config = AutoConfig.for_model(
        family, vocab_size=vocab, bos_token_id=1, eos_token_id=2, pad_token_id=0, **{**SIZES.get(family, {}), **sizes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def folder(path: Path, family: str = "llama", *, words: list[str] = WORDS, **options) -> Path:
    """A saved model folder with tokenizer."""
    model(family, **{"vocab": len(words), **options}).save_pretrained(path)
    tokenizer(words).save_pretrained(path)
    return path


def rows(path: Path, count: int = 24) -> Path:
    """A JSONL of prompt and completion."""
    lines = [
        {"prompt": f"say {chr(97 + i % 26)}:", "completion": f" {chr(97 + i % 26) * (1 + i % 5)}."}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
