"""Names of settings: flags, aliases of other tools, and suggestions for misspelt ones."""

import difflib
from collections.abc import Iterable, Mapping


def canonical(token: str) -> str:
    """Return the spelling of a flag or command that we declare, for any that users type.

    >>> canonical("batch_size"), canonical("learning_rate"), canonical("output-dir")
    ('batch-size', 'lr', 'output')
    """
    snake = token.replace("-", "_")
    return ALIASES.get(snake, snake).replace("_", "-") if len(token) > 1 else token


FLAGS = {
    "teacher": "teacher",
    "teacher_cache": "teacher_cache",
    "kind": "kind",
    "store_dtype": "store_dtype",
    "top_k": "top_k",
    "student": "student",
    "lora": "lora.rank",
    "local_teacher": "local_teacher",
    "source": "source",
    "count": "count",
    "model": "model",
    "predictions": "predictions",
    "answers": "answers",
    "scores": "scores",
    "server_url": "server.url",
    "server_model": "server.model",
    "loss": "loss",
    "losses": "losses",
    "baseline": "baseline",
    "seed": "train.seed",
    "seeds": "seeds",
    "data": "data.train",
    "eval_data": "data.eval",
    "columns": "data.columns",
    "template": "data.template",
    "max_length": "data.max_length",
    "limit": "data.limit",
    "eval_limit": "data.eval_limit",
    "skip_bad": "data.skip_bad",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "eval_every": "monitor.every",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "metric": "evaluation.metrics",
    "sampling_seeds": "evaluation.generation.seeds",
    "max_new_tokens": "evaluation.generation.max_new_tokens",
    "tasks": "benchmarks.tasks",
    "edge": "edge.measure",
    "protocol": "evaluation.protocol",
    "rouge_tokenizer": "evaluation.rouge_tokenizer",
    "device": "hardware.device",
    "dtype": "hardware.dtype",
    "threads": "hardware.threads",
    "matmul_precision": "hardware.matmul_precision",
    "output": "output",
    "vary": "vary",
    "tune": "tune",
    "tune_by": "tune_by",
    "tune_seeds": "tune_seeds",
    "dev_data": "data.dev",
    "gpus": "hardware.gpus",
    "shard": "hardware.shard",
    "jobs": "execution.jobs",
    "executor": "execution.executor",
    "slurm": "execution.slurm",
    "ray_address": "execution.ray_address",
}
"""Flag in snake case -> the setting it stands for."""

_WITHOUT_TRAINING = {"data": "data.eval", "limit": "data.eval_limit"}

ALIASES = {
    "model_name_or_path": "student",
    "student_model_name_or_path": "student",
    "student_model": "student",
    "teacher_model_name_or_path": "teacher",
    "teacher_model": "teacher",
    "dataset": "data",
    "dataset_name": "data",
    "train_file": "data",
    "train_data": "data",
    "validation_file": "eval_data",
    "eval_dataset": "eval_data",
    "test_file": "eval_data",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_train_steps": "max_steps",
    "steps": "max_steps",
    "train_batch_size": "batch_size",
    "learning_rate": "lr",
    "max_seq_length": "max_length",
    "max_train_samples": "limit",
    "max_samples": "limit",
    "max_eval_samples": "eval_limit",
    "output_dir": "output",
    "out": "output",
    "objective": "loss",
    "metrics": "metric",
    "config_file": "config",
    "resume_from_checkpoint": "resume",
    "backend": "executor",
    "lora_r": "lora",
    "lora_rank": "lora",
}
"""Other tools' spellings, in snake case -> our flag."""

OTHER_MEANINGS = {
    "per_device_train_batch_size": "--batch-size counts the sequences of a step over all processes: give that number",
    "per_device_batch_size": "--batch-size counts the sequences of a step over all processes: give that number",
    "per_device_eval_batch_size": "give --set evaluation.generation.batch_tokens=N, in tokens",
    "gradient_accumulation_steps": "--batch-size is cut by --set train.micro_tokens=N: give the whole of it",
}
"""Other tools' flags, in snake case, that mean something else than a flag of ours -> what to give instead."""


def flag_path(flag: str, known: Iterable[str]) -> str:
    """Return the setting a flag stands for, given the settings a command has.

    >>> flag_path("data", ["data.train", "train.lr"]), flag_path("data", ["data.eval"])
    ('data.train', 'data.eval')
    """
    evaluates_only = not {"train.lr", "store_dtype", "local_teacher", "count"} & set(known)
    return _WITHOUT_TRAINING.get(flag, FLAGS[flag]) if evaluates_only else FLAGS[flag]


def nearest(typed: str, known: Mapping[str, str], cutoff: float = 0.6) -> str | None:
    """Return what the spelling nearest to the typed one stands for, None if none is near.

    Args:
        typed: a name, possibly dotted; its last part may match alone.
        known: spelling -> what it stands for.
        cutoff: least similarity, between 0 and 1.

    >>> nearest("train.leraning_rate", {"train.lr": "train.lr", "learning_rate": "train.lr"})
    'train.lr'
    """
    typed = typed.lower().replace("-", "_")
    last = typed.rpartition(".")[2]
    best, found = cutoff, None
    for spelling, target in known.items():
        for name, other in ((typed, spelling), (last, spelling.rpartition(".")[2])):
            ratio = difflib.SequenceMatcher(None, name, other.lower()).ratio()
            if ratio > best:
                best, found = ratio, target
    return found


def setting_names(known: Iterable[str]) -> dict[str, str]:
    """Return every spelling of the settings given: their paths, flags and other tools' names."""
    paths = list(known)
    names = {path: path for path in paths}
    for flag in FLAGS:
        target = flag_path(flag, paths)
        if target in names:
            names[flag] = target
    for alias, flag in ALIASES.items():
        if flag in names:
            names[alias] = names[flag]
    return names
