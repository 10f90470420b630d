"""The demo's own parts, made from a seed: rows, a small tokenizer, a teacher about to learn."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kdcli import durable
from kdcli.models.quiet import quiet
from kdcli.runs import synthetic

SEED = 0
TEST, DEV = 192, 64
VOCABULARY = 640
_SPECIAL = ("<pad>", "<s>", "</s>")


def make_data(folder: Path) -> None:
    """Write train.jsonl, dev.jsonl and test.jsonl; no prompt is in two of them."""
    durable.make_folder(folder)
    train, dev, test = synthetic.split(SEED, TEST, DEV)
    synthetic.write_rows(folder / "train.jsonl", train, seed=SEED)
    synthetic.write_tests(folder / "dev.jsonl", dev, seed=SEED + 1)
    synthetic.write_tests(folder / "test.jsonl", test, seed=SEED + 2)


def make_beginner(folder: Path, rows: Path) -> None:
    """Write an untrained teacher: a Llama of about a million parameters, with a tokenizer learnt from the rows."""
    texts = [text for line in rows.read_text(encoding="utf-8").splitlines() for text in json.loads(line).values()]
    tokenizer = make_tokenizer(texts)
    model = make_model(len(tokenizer))

    def fill(target: Path) -> None:
        with quiet():
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)

    durable.make_folder(folder.parent)
    durable.commit_folder(folder, fill, {"kind": "model"})


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most 640 tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    pad, bos, eos = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=64
    )


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """Return an untrained Llama of four layers and width 128."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config)
