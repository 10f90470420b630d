"""Rows of texts and classes, made from a seed, and classifiers' folders."""

import json
import random
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import tiny
from kdcli.config.schema import DistillConfig

WORDS = {"animal": ["cat", "dog"], "food": ["bread", "apple"], "tool": ["saw", "nail"]}
FILLERS = ["the", "a", "is", "on", "with", "this"]


def rows(path: Path, count: int = 48, labels=tuple(WORDS), seed: int = 0, **columns: str) -> Path:
    """JSONL of texts, in each of which one word tells the class."""
    draw, lines = random.Random(seed), []
    for number in range(count):
        label = labels[number % len(labels)]
        words = [*draw.choices(FILLERS, k=draw.randint(1, 4)), draw.choice(WORDS[label])]
        draw.shuffle(words)
        lines.append(
            {columns.get("text", "text"): " ".join([*words, str(number)]), columns.get("label", "label"): label}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def folder(path: Path, family: str = "distilbert", *, labels=(), classes: int = 3, seed: int = 0) -> Path:
    """A saved classifier of a family of transformers, with the character tokenizer."""
    sizes = {
        "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
        "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        "llama": {**tiny.SIZES["llama"], "num_hidden_layers": 1},
    }[family]
    names = dict(enumerate(labels)) if labels else {place: f"LABEL_{place}" for place in range(classes)}
    config = AutoConfig.for_model(
        family, vocab_size=len(tiny.WORDS), pad_token_id=0, id2label=names,
        label2id={name: place for place, name in names.items()}, **{**sizes, "max_position_embeddings": 128},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def config(folder: Path, **changes) -> DistillConfig:
    """Settings of a short run in a folder that holds train.jsonl."""
    base = {
        "student": "tiny:kind=bow,width=8,vocab=64",
        "loss": "ce",
        "output": str(folder / "run"),
        "data": {"train": str(folder / "train.jsonl")},
        "train": {"max_steps": 4, "batch_size": 8, "lr": 0.05},
        "hardware": {"device": "cpu"},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return DistillConfig.model_validate(base)
