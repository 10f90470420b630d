"""Whole on-policy steps: kd's student source against TRL's GKD trainer, same models, prompts and completion length.

Run by hand, with the extra ``peers`` installed::

    python benchmarks/on_policy.py --vocab 50257 --new-tokens 64

Both sides train the same student (4 x 256) from the same teacher (12 x 768). In every step the student answers 8
prompts by sampling at temperature 1 from the whole vocabulary, each with exactly ``--new-tokens`` tokens (no end token
is known), and then learns from the teacher on its own answers. Each side runs in a process of its own, in turn, with
its own defaults. Speed counts response tokens per second of steps after the first two; memory is the peak of the
process.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from step import make_models

STEPS, WARM, ROWS = 4, 2, 8


def make_prompts(vocab: int) -> list[list[int]]:
    """Prompts of log-normal length around 60 tokens, as Dolly's are."""
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for _ in range((STEPS + WARM) * ROWS):
        size = int(min(max(60 * torch.exp(0.9 * torch.randn(1, generator=generator)), 20), 256))
        prompts.append(torch.randint(1, vocab, (size,), generator=generator).tolist())
    return prompts


def run_trl(folder: Path, options: argparse.Namespace) -> list[float]:
    """TRL's GKD trainer, always on-policy (lmbda = 1)."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["ids"]) for row in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(batch):
            ids[index, width - len(row["ids"]) :] = torch.tensor(row["ids"])
            mask[index, width - len(row["ids"]) :] = 1
        return {
            "input_ids": ids, "attention_mask": mask, "labels": ids, "prompts": ids, "prompt_attention_mask": mask,
        }  # fmt: skip

    student = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    for model in (student, teacher):
        model.generation_config.eos_token_id = None
    arguments = GKDConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=ROWS, max_steps=STEPS + WARM, lmbda=1.0,
        beta={"fkl": 0.0, "jsd": 0.5, "rkl": 1.0}[options.objective], temperature=1.0,
        max_new_tokens=options.new_tokens, bf16=options.dtype == "bf16", report_to=[], save_strategy="no", use_cpu=True,
        logging_steps=1000, gradient_checkpointing=False,
    )  # fmt: skip
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), eos_token="a", pad_token="a"
    )
    trainer = GKDTrainer(
        model=student, teacher_model=teacher, args=arguments, data_collator=collate, processing_class=words,
        train_dataset=Dataset.from_list([{"ids": ids} for ids in make_prompts(options.vocab)]), callbacks=[Clock()],
    )  # fmt: skip
    trainer.generation_config.eos_token_id = None
    trainer.train()
    return marks


def run_kd(folder: Path, options: argparse.Namespace) -> list[float]:
    """Kd's own loop on the source ``student``."""
    from bench_kd import on_policy_marks

    return on_policy_marks(folder, make_prompts(options.vocab), options, STEPS + WARM, ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--objective", choices=("fkl", "jsd", "rkl"), default="jsd")
    parser.add_argument("--matmul-precision", default="highest")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=("trl", "kd"))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    if options.side:
        from kdcli.models.devices import peak_memory

        logging.disable(logging.WARNING)
        marks = {"trl": run_trl, "kd": run_kd}[options.side](options.folder, options)
        seconds = (marks[STEPS + WARM - 1] - marks[WARM - 1]) / STEPS
        tokens = ROWS * options.new_tokens / seconds
        measured = {"seconds": seconds, "tokens": tokens, "peak": peak_memory(torch.device("cpu")) / 2**30}
        print(json.dumps(measured))
        return
    with tempfile.TemporaryDirectory() as name:
        make_models(Path(name), options.vocab)
        found: dict[str, list[dict[str, float]]] = {"trl": [], "kd": []}
        for _ in range(options.repeats):
            for side, results in found.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
                print(side, results[-1], flush=True)
    middle = {s: {key: statistics.median(r[key] for r in found[s]) for key in found[s][0]} for s in found}
    print(f"V = {options.vocab:,}, {options.dtype}, {options.objective}, {ROWS} answers of {options.new_tokens} a step")
    for side, row in middle.items():
        print(f"{side:4} {row['tokens']:8.0f} response tokens/s {row['peak']:8.2f} GiB")
    print(f"{middle['kd']['tokens'] / middle['trl']['tokens']:.2f} times its speed")


if __name__ == "__main__":
    main()
