"""A teacher whose next token follows from the last one alone, so that what it may write is known beforehand."""

import math
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tiny

WORDS = tuple(f" w{at}" for at in range(12))
ANSWERS = (" r0", " r1", " r2")
EXAMPLES = {
    "Prompt:": WORDS,
    **dict.fromkeys(WORDS, ("\nResponse:",)),
    "\nResponse:": ANSWERS,
    **dict.fromkeys(ANSWERS, ("</s>",)),
}
"""Writes a prompt of one word and a response of one word, each with equal chances, and ends."""
GARBAGE = {**EXAMPLES, **dict.fromkeys(WORDS, ("</s>",))}
"""Writes a word and ends, so that no response is there."""
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "\n")


def folder(path: Path, chain: dict[str, tuple[str, ...]] = EXAMPLES) -> Path:
    """A saved Llama folder that follows a chain: token -> the tokens that may come next, equally likely."""
    words = list(dict.fromkeys([*_SPECIAL, *EXAMPLES, *(word for after in chain.values() for word in after)]))
    words += [f"<{at}>" for at in range(-len(words) % 4)]
    size, place = len(words), {word: at for at, word in enumerate(words)}
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    head = torch.full((size, size), -40.0)
    for word in words:
        after = chain.get(word, ("</s>",))
        for one in after:
            head[place[one], place[word]] = -math.log(len(after))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        # The last norm makes a one-hot vector sqrt(size) long.
        model.lm_head.weight.copy_(head / math.sqrt(size))
    model.save_pretrained(path)
    _tokenizer(place).save_pretrained(path)
    return path


def student(path: Path, seed: int = 0) -> Path:
    """A saved Llama folder with random weights and the tokenizer of the teachers."""
    made = PreTrainedTokenizerFast.from_pretrained(folder(path))
    tiny.model(seed=seed, vocab=len(made), max_position_embeddings=512).save_pretrained(path)
    return path


def _tokenizer(place: dict[str, int]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(place, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"Prompt:|\nResponse:| \w+|.|\n"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
