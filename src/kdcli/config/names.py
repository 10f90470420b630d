"""Names of settings: flags, aliases of other tools, and suggestions for misspelt ones."""

import difflib
from collections.abc import Mapping

MODELS, DATA, OBJECTIVE, GRID, FEDERATION = "Models", "Data", "Objective", "Grid", "Federation"
TRAINING, EVALUATION, OUTPUT, HARDWARE = "Training", "Evaluation", "Output", "Hardware"
TABLE = "Table"
PANELS = (MODELS, DATA, OBJECTIVE, FEDERATION, GRID, TRAINING, EVALUATION, OUTPUT, TABLE, HARDWARE)
"""Headings of a command's help, in their order."""


def canonical(token: str) -> str:
    """Return the spelling of a flag or command that we declare, for any that users type.

    >>> canonical("batch_size"), canonical("learning_rate"), canonical("output-dir")
    ('batch-size', 'lr', 'output')
    """
    snake = token.replace("-", "_")
    return ALIASES.get(snake, snake).replace("_", "-") if len(token) > 1 else token


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

EARLIER = {"data.made": "data.teacher_text"}
"""Settings that had another name -> the name they have now; files and commands with the old one stay valid."""

OTHER_MEANINGS = {
    "per_device_train_batch_size": "--batch-size counts the sequences of a step over all processes: give that number",
    "per_device_batch_size": "--batch-size counts the sequences of a step over all processes: give that number",
    "per_device_eval_batch_size": "give --set evaluation.generation.batch_tokens=N, in tokens",
    "gradient_accumulation_steps": "--batch-size is cut by --set train.micro_tokens=N: give the whole of it",
    "bf16": "give --dtype bf16",
    "fp16": "give --dtype bf16 (mixed precision in fp16 needs a GPU: --dtype fp16)",
    "tf32": "give --matmul-precision high",
    "torch_dtype": "give --dtype NAME",
    "logging_steps": "give --set train.log_every=N",
    "save_steps": "give --set train.save_every=N",
    "save_total_limit": "give --set train.keep=N",
    "eval_steps": "give --eval-every N",
    "warmup_ratio": "give --set train.warmup=SHARE",
    "warmup_steps": "give --set train.warmup=STEPS",
    "weight_decay": "give --set train.weight_decay=X",
    "max_grad_norm": "give --set train.clip=X",
    "lr_scheduler_type": "give --set train.schedule=cosine, linear or constant",
    "lora_alpha": "give --set lora.alpha=X",
    "lora_dropout": "give --set lora.dropout=X",
    "lora_target_modules": "give --set lora.targets=NAME,NAME",
    "use_peft": "give --lora RANK",
    "load_in_4bit": "give --set teacher_quantization=nf4",
    "load_in_8bit": "give --set teacher_quantization=int8",
    "temperature": "it is an option of the objective: --loss fkl:temperature=2",
    "beta": "it is an option of the objective: --loss jsd:beta=0.5",
    "lmbda": "it is an option of the source: --loss jsd@student:rate=0.5",
}
"""Other tools' flags, in snake case, that mean something else than a flag of ours -> what to give instead."""


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
