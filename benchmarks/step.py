"""Whole distillation steps: kd's loop against TRL's GKD trainer, same models, rows, batch and objective.

Run by hand, with the extra ``bench`` installed::

    python benchmarks/step.py --vocab 50257 --dtype fp32
    python benchmarks/step.py --vocab 151936 --dtype bf16 --products fkl akl jsd atkd

Both sides train the same student (4 x 256) from the same teacher (12 x 768) on rows shaped like Dolly's (up to
512 tokens, 8 rows a step), each in a process of its own, in turn, with its own defaults. Speed counts response tokens
and all non-padding tokens per second of steps after the first two; memory is the peak of the whole process. With
``--products`` kd's steps stand beside the matrix products that they make, and objectives beside each other.
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

STEPS, WARM, ROWS, LENGTH = 8, 2, 8, 512


def make_models(folder: Path, vocab: int) -> None:
    """Two random GPT-2s with the sizes of the comparison."""
    from transformers import GPT2Config, GPT2LMHeadModel

    for name, width, layers, heads in (("student", 256, 4, 4), ("teacher", 768, 12, 12)):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=vocab, n_embd=width, n_layer=layers, n_head=heads, n_positions=LENGTH, bos_token_id=0,
            eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder / name)


def make_rows(vocab: int) -> list[tuple[list[int], int]]:
    """Ids and prompt lengths; log-normal lengths with Dolly's medians (about 60 prompt and 70 response tokens)."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range((STEPS + WARM) * ROWS):
        noise = torch.randn(2, generator=generator)
        prompt = int(min(max(60 * torch.exp(0.9 * noise[0]), 20), 256))
        response = int(min(max(70 * torch.exp(1.0 * noise[1]), 4), LENGTH - prompt))
        rows.append((torch.randint(1, vocab, (prompt + response,), generator=generator).tolist(), prompt))
    return rows


def run_trl(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """TRL's GKD trainer on fixed rows (lmbda = 0: no sampling)."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["ids"]) for row in batch)
        sizes.append((sum(len(row["ids"]) for row in batch), sum(len(row["ids"]) - row["prompt"] for row in batch)))
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for index, row in enumerate(batch):
            size = len(row["ids"])
            ids[index, :size] = torch.tensor(row["ids"])
            mask[index, :size] = 1
            labels[index, row["prompt"] : size] = ids[index, row["prompt"] : size]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    rows, sizes = make_rows(options.vocab), []
    student = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    arguments = GKDConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=ROWS, max_steps=STEPS + WARM, lmbda=0.0,
        beta={"fkl": 0.0, "jsd": 0.5, "rkl": 1.0}[options.objective], bf16=options.dtype == "bf16", report_to=[],
        save_strategy="no", use_cpu=True, logging_steps=1000, max_length=LENGTH, gradient_checkpointing=False,
    )  # fmt: skip
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), eos_token="a", pad_token="a"
    )
    trainer = GKDTrainer(
        model=student, teacher_model=teacher, args=arguments, data_collator=collate, processing_class=words,
        train_dataset=Dataset.from_list([{"ids": ids, "prompt": prompt} for ids, prompt in rows]), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return speed(marks, sizes)


def run_kd(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Kd's own loop with its defaults."""
    from bench_kd import train_marks

    return speed(*train_marks(folder, make_rows(options.vocab), options, STEPS + WARM, ROWS))


def over_products(folder: Path, options: argparse.Namespace) -> None:
    """Print kd's seconds per step with some objectives over those of its own matrix products and of the first one."""
    from bench_kd import train_marks
    from products import Products

    rows, found = make_rows(options.vocab), {name: [] for name in options.products}
    for _ in range(options.repeats):
        for name in options.products:
            options.objective = name
            marks, _ = train_marks(folder, rows, options, STEPS + WARM, ROWS)
            found[name].append((marks[STEPS + WARM - 1] - marks[WARM - 1]) / STEPS)
    print("objective   seconds per step   products alone   over its products   over the first")
    for name, seconds in found.items():
        options.objective = name
        with Products() as products:
            train_marks(folder, rows[: ROWS * STEPS], options, STEPS, ROWS)
        alone, whole = products.seconds() / STEPS, min(seconds)
        beside = whole / min(found[options.products[0]])
        print(f"{name:9} {whole:18.2f} {alone:16.2f} {whole / alone:19.2f} {beside:16.2f}", flush=True)


def speed(marks: list[float], sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Tokens and response tokens per second over the steps after the warm-up, each step with its own tokens."""
    from kdcli.models.devices import peak_memory

    seconds = marks[STEPS + WARM - 1] - marks[WARM - 1]
    tokens, targets = (sum(column) / seconds for column in zip(*sizes[WARM : STEPS + WARM], strict=True))
    peak = peak_memory(torch.device("cpu")) / 2**30
    return {"seconds": seconds / STEPS, "tokens": tokens, "targets": targets, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--objective", choices=("fkl", "jsd", "rkl"), default="fkl")
    parser.add_argument("--matmul-precision", default="highest")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--products", nargs="+", metavar="OBJECTIVE", help="kd alone, against its matrix products")
    parser.add_argument("--side", choices=("trl", "kd"))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    if options.side:
        logging.disable(logging.WARNING)
        print(json.dumps({"trl": run_trl, "kd": run_kd}[options.side](options.folder, options)))
        return
    with tempfile.TemporaryDirectory() as name:
        make_models(Path(name), options.vocab)
        if options.products:
            over_products(Path(name), options)
            return
        found: dict[str, list[dict[str, float]]] = {"trl": [], "kd": []}
        for _ in range(options.repeats):
            for side, results in found.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
                print(side, results[-1], flush=True)
    middle = {s: {key: statistics.median(r[key] for r in found[s]) for key in found[s][0]} for s in found}
    print(f"V = {options.vocab:,}, {options.dtype}, {options.objective}: tokens/s, response tokens/s, peak GiB")
    for side, row in middle.items():
        print(f"{side:4} {row['tokens']:8.0f} {row['targets']:8.0f} {row['peak']:8.2f}")
    faster, share = middle["kd"]["tokens"] / middle["trl"]["tokens"], middle["kd"]["peak"] / middle["trl"]["peak"]
    print(f"{faster:.2f} times its speed, {share:.2f} of its memory")


if __name__ == "__main__":
    main()
