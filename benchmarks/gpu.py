"""What an accelerator has to show, in one run of at most eight minutes: correctness, speed, memory, and the same bits.

Run by hand on a machine with one GPU; nothing is fetched::

    python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --rehearse                 # every part in small, on a CPU

Each part runs in a process of its own with a time limit, so that one that fails costs nothing but itself; what could
not be run is listed with its reason. The JSON file is written after each part, and a short table comes last.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
TOLERANCE = {"fp32": 1e-5, "bf16": 4e-2}
"""Relative to the largest gradient, or value, of the same inputs in float64. bf16 keeps 8 bits of each gradient."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts.

    Args:
        device: where to measure.
        vocab: entries of the vocabulary.
        tokens: response tokens of head and loss.
        widths: of the student's and the teacher's hidden states.
        repeats: timed runs, of which the median counts.
        student: layers, width, heads, KV heads and FFN width of a whole step's student.
        teacher: the same of its teacher.
        rows: sequences of a whole step.
        length: tokens of each.
        prompts: prompts that are answered.
        new_tokens: tokens of each answer.
    """

    device: str
    vocab: int
    tokens: int
    widths: tuple[int, int]
    repeats: int
    student: tuple[int, int, int, int, int]
    teacher: tuple[int, int, int, int, int]
    rows: int
    length: int
    prompts: int
    new_tokens: int


REAL = Sizes(
    "cuda", 151_936, 8_192, (1_024, 4_096), 5, (24, 896, 14, 2, 4_864), (28, 3_584, 28, 4, 18_944), 16, 512, 64, 128
)
SMALL = Sizes("cpu", 2_048, 96, (32, 64), 1, (2, 32, 4, 2, 64), (3, 64, 4, 2, 128), 4, 48, 4, 12)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], sizes: Sizes, repeats: int | None = None) -> float:
    """Return the median seconds of some runs after a first one that is not counted."""
    work()
    found = []
    for _ in range(repeats or sizes.repeats):
        synchronise(sizes.device)
        started = time.perf_counter()
        work()
        synchronise(sizes.device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def extra_mebibytes(work: Callable[[], Any], sizes: Sizes) -> float | None:
    """Return the peak above what was allocated before, None on a CPU."""
    if sizes.device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def poison(device: str) -> None:
    """Fill memory that the allocator will hand out again with NaN: whatever reads it before writing shows it."""
    blocks = [
        torch.full((2**power,), float("nan"), device=device) for power in range(8, 25 if device == "cuda" else 20)
    ]
    synchronise(device)
    del blocks


def worst(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected entry; NaN where anything is not finite."""
    found, expected = found.double().cpu(), expected.double().cpu()
    if not torch.isfinite(found).all():
        return float("nan")
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def objectives() -> list[str]:
    """Return every built-in objective and some whose parts work together."""
    from kdcli.registry import catalog

    return [*catalog.LOSSES, "0.5*ce+0.5*akl", "atkd:base=rkl", "weighted:by=teacher_entropy", "fkl:temperature=2"]


def numbers(sizes: Sizes) -> Iterator[Row]:
    """Values and gradients of every objective against float64, from inputs nobody has seen and memory full of NaN."""
    from kdcli.losses.build import build_objective
    from kdcli.losses.samples import sample

    seed = int.from_bytes(os.urandom(4), "little")
    for name in objectives():
        try:
            loss = build_objective(name)
            drawn = sample(loss, tokens=64, entries=min(sizes.vocab, 5_003), scale=3.0, seed=seed)
        except Exception as error:
            yield {"what": name, "not_run": first_line(error)}
            continue
        for dtype in ("fp32", "bf16"):
            rounded = drawn.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
            poison(sizes.device)
            try:
                value, slope = gradient_of(loss, moved(rounded, sizes.device))
                exact, expected = gradient_of(loss, rounded.to(torch.float64))
            except Exception as error:
                yield {"what": f"{name}, {dtype}", "not_run": first_line(error)}
                continue
            off = max(worst(value, exact), worst(slope, expected))
            # autograd's gradient over bf16 logits is itself bf16
            yield {"what": f"{name}, {dtype}", "off": off, "ok": off <= TOLERANCE[dtype], "seed": seed}
    yield from fused_numbers(sizes, seed)


def gradient_of(loss: Any, data: Any) -> tuple[Tensor, Tensor]:
    """Return values and gradient as the engine takes them: in closed form where there is one."""
    from kdcli.losses.samples import tokens_of, values_and_grad, with_facts

    data = with_facts(loss, data)
    if data.features is None:
        with torch.no_grad():
            closed = loss.parts_and_grad(tokens_of(loss, data))
        if closed is not None:
            return torch.stack(list(closed[0].values())).sum(0), closed[1]
    return values_and_grad(loss, data)


def moved(data: Any, device: str) -> Any:
    """Return a sample on another device."""
    facts = {name: fact.to(device) for name, fact in data.facts.items()}
    features = data.features
    if features is not None:
        one, other = (side.map(lambda value: value.to(device)) for side in (features.student, features.teacher))
        features = replace(
            features, student=one, teacher=other, reach=features.reach.to(device), modules=features.modules.to(device)
        )
    student, teacher, labels = (value.to(device) for value in (data.student, data.teacher, data.labels))
    return replace(data, student=student, teacher=teacher, labels=labels, facts=facts, features=features)


def fused_numbers(sizes: Sizes, seed: int) -> Iterator[Row]:
    """Heads and loss together, several chunks, against the plain formula in float64."""
    from plain import PLAIN

    import kdcli

    generator = torch.Generator().manual_seed(seed)
    tokens, vocab, widths = 300, min(sizes.vocab, 5_003), (64, 96)
    drawn = [torch.randn(rows, width, generator=generator) for width in widths for rows in (tokens, vocab)]
    labels = torch.randint(0, vocab, (1, tokens), generator=generator)
    for name, formula in PLAIN.items():
        for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            hidden, head, other, theirs = (
                (value * scale).to(kind)
                for value, scale in zip(drawn, (1.0, widths[0] ** -0.5, 1.0, 2.0 * widths[1] ** -0.5), strict=True)
            )
            exact = [hidden.double().requires_grad_(), head.double().requires_grad_()]
            formula(exact[0] @ exact[1].T, other.double() @ theirs.double().T).mean().backward()
            poison(sizes.device)
            found = [value.to(sizes.device).requires_grad_() for value in (hidden, head)]
            there = (other.to(sizes.device), theirs.to(sizes.device), labels.to(sizes.device))
            kdcli.fused_loss(
                name, found[0].unsqueeze(0), found[1], there[0].unsqueeze(0), there[1], there[2], chunk_tokens=128
            ).backward()
            off = max(worst(one.grad, two.grad) for one, two in zip(found, exact, strict=True))
            yield {"what": f"head and {name}, {dtype}", "off": off, "ok": off <= TOLERANCE[dtype], "seed": seed}


def head(sizes: Sizes) -> Iterator[Row]:
    """Head and loss, forward and backward, in bf16: over their own matrix products, plain PyTorch, TRL, Liger."""
    import kdcli

    torch.manual_seed(0)
    device, kind = sizes.device, torch.bfloat16
    own, theirs = sizes.widths
    hidden = torch.randn(sizes.tokens, own, device=device).to(kind).requires_grad_()
    weight = (torch.randn(sizes.vocab, own, device=device) * own**-0.5).to(kind).requires_grad_()
    other = torch.randn(sizes.tokens, theirs, device=device).to(kind)
    teacher = (torch.randn(sizes.vocab, theirs, device=device) * 2 * theirs**-0.5).to(kind)
    labels = torch.randint(0, sizes.vocab, (1, sizes.tokens), device=device)

    def products() -> None:
        with torch.no_grad():
            other @ teacher.T
            logits = hidden @ weight.T
            logits @ weight
            logits.T @ hidden

    def cleared(work: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            hidden.grad = weight.grad = None
            work().backward()

        return run

    limit = seconds(products, sizes)
    yield {"what": "matrix products alone", "seconds": limit, "ratio": 1.0}

    def measured(what: str, work: Callable[[], Tensor]) -> Row:
        run = cleared(work)
        try:
            started = time.perf_counter()
            run()
            synchronise(device)
            first = time.perf_counter() - started
            took, memory = seconds(run, sizes), extra_mebibytes(run, sizes)
        except Exception as error:
            return {"what": what, "not_run": first_line(error)}
        return {"what": what, "seconds": took, "ratio": limit / took, "mebibytes": memory, "first_seconds": first}

    for name in ("fkl", "rkl", "jsd", "skl", "akl", "tvd", "ab", "ce", "atkd", "mse_logits"):
        yield measured(
            f"kd {name}",
            lambda name=name: kdcli.fused_loss(name, hidden.unsqueeze(0), weight, other.unsqueeze(0), teacher, labels),
        )
    from plain import PLAIN

    for name, formula in PLAIN.items():

        def plain(formula: Callable[[Tensor, Tensor], Tensor] = formula) -> Tensor:
            with torch.no_grad():
                t = (other @ teacher.T).float()
            return formula((hidden @ weight.T).float(), t).mean()

        yield measured(f"plain {name}", plain)
    yield from peers(measured, hidden, weight, other, teacher, labels)


def peers(measured: Callable[[str, Callable[[], Tensor]], Row], *data: Tensor) -> Iterator[Row]:
    """TRL's loss on full logits, and Liger's kernels, where they are installed."""
    hidden, weight, other, teacher, labels = data
    try:
        from trl.experimental.gkd import GKDTrainer
    except Exception as error:
        yield {"what": "TRL jsd", "not_run": first_line(error)}
    else:
        for name, beta in (("fkl", 0.0), ("jsd", 0.5), ("rkl", 1.0)):

            def theirs(beta: float = beta) -> Tensor:
                with torch.no_grad():
                    t = (other @ teacher.T).unsqueeze(0)
                return GKDTrainer.generalized_jsd_loss((hidden @ weight.T).unsqueeze(0), t, labels=labels, beta=beta)

            yield measured(f"TRL {name}", theirs)
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except Exception as error:
        yield {"what": "Liger jsd", "not_run": first_line(error)}
        return
    for name, beta in (("fkl", 0.0), ("jsd", 0.5), ("rkl", 1.0)):
        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)
        yield measured(f"Liger {name}", lambda loss=loss: loss(hidden, weight, other, teacher, labels[0]))


def qwen(shape: tuple[int, int, int, int, int], vocab: int, positions: int) -> Any:
    """Return the config of a Qwen2-shaped model."""
    from transformers import Qwen2Config

    layers, width, heads, kv_heads, inner = shape
    return Qwen2Config(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=inner, max_position_embeddings=positions,
        tie_word_embeddings=layers < 26, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def random_model(
    shape: tuple[int, int, int, int, int], vocab: int, positions: int, dtype: torch.dtype, device: str
) -> Any:
    """Return a random model made on the device itself."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(qwen(shape, vocab, positions), dtype=dtype).eval()


def step(sizes: Sizes) -> Iterator[Row]:
    """Whole training steps in bf16: kd's loop, and TRL's trainer where it is installed."""
    from bench_kd import in_memory, train_on

    steps, warm = 6, 3
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(sizes.rows * steps):
        length = int(torch.randint(sizes.length // 2, sizes.length + 1, (1,), generator=generator))
        rows.append((torch.randint(3, sizes.vocab, (length,), generator=generator).tolist(), length // 3))
    tokens = sum(len(ids) - prompt for ids, prompt in rows[warm * sizes.rows :])
    teacher = random_model(sizes.teacher, sizes.vocab, 2 * sizes.length, torch.bfloat16, sizes.device)
    for name in ("fkl", "akl"):
        student = random_model(sizes.student, sizes.vocab, 2 * sizes.length, torch.float32, sizes.device)
        if sizes.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        marks = train_on(
            in_memory(student), in_memory(teacher), rows, name, steps=steps, batch_size=sizes.rows, device=sizes.device
        )
        took = marks[-1] - marks[warm - 1]
        peak = torch.cuda.max_memory_allocated() / 2**20 if sizes.device == "cuda" else None
        yield {"what": f"kd step {name}", "seconds": took / (steps - warm), "tokens": tokens / took, "mebibytes": peak}
        del student
    try:
        yield trl_step(sizes, rows, teacher, steps, warm, tokens)
    except Exception as error:
        yield {"what": "TRL step fkl", "not_run": first_line(error)}


def trl_step(sizes: Sizes, rows: list, teacher: Any, steps: int, warm: int, tokens: int) -> Row:
    """TRL's GKD trainer on the same rows, without sampling."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            synchronise(sizes.device)
            marks.append(time.perf_counter())

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["ids"]) for row in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for index, row in enumerate(batch):
            size = len(row["ids"])
            ids[index, :size], mask[index, :size] = torch.tensor(row["ids"]), 1
            labels[index, row["prompt"] : size] = ids[index, row["prompt"] : size]
        shortest = min(row["prompt"] for row in batch)
        return {
            "input_ids": ids, "attention_mask": mask, "labels": labels, "prompts": ids[:, :shortest],
            "prompt_attention_mask": mask[:, :shortest],
        }  # fmt: skip

    student = random_model(sizes.student, sizes.vocab, 2 * sizes.length, torch.float32, sizes.device)
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), eos_token="a", pad_token="a"
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = GKDConfig(
            output_dir=folder, per_device_train_batch_size=sizes.rows, max_steps=steps, lmbda=0.0, beta=0.0,
            temperature=1.0, bf16=True, report_to=[], save_strategy="no", use_cpu=sizes.device == "cpu",
            gradient_checkpointing=False, remove_unused_columns=False, logging_steps=1000,
        )  # fmt: skip
        trainer = GKDTrainer(
            model=student, teacher_model=teacher, args=arguments, data_collator=collate, processing_class=words,
            train_dataset=Dataset.from_list([{"ids": ids, "prompt": prompt} for ids, prompt in rows]),
            callbacks=[Clock()],
        )  # fmt: skip
        if sizes.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    took = marks[-1] - marks[warm - 1]
    peak = torch.cuda.max_memory_allocated() / 2**20 if sizes.device == "cuda" else None
    return {"what": "TRL step fkl", "seconds": took / (steps - warm), "tokens": tokens / took, "mebibytes": peak}


def generation(sizes: Sizes) -> Iterator[Row]:
    """Answers in bf16 against transformers' ``generate``, and the price of not depending on the batch."""
    from bench_kd import in_memory
    from generate import ours, theirs

    from kdcli.end_tokens import EndTokens

    generator = torch.Generator().manual_seed(2)
    longest = 2 * sizes.length
    model = random_model(sizes.student, sizes.vocab, longest, torch.bfloat16, sizes.device)
    ready = replace(in_memory(model), ends=EndTokens())
    lengths = torch.randint(sizes.length // 8 + 1, sizes.length // 2, (sizes.prompts,), generator=generator).tolist()
    prompts = [torch.randint(3, sizes.vocab, (length,), generator=generator).tolist() for length in lengths]
    wanted = torch.randint(2, sizes.new_tokens + 1, (sizes.prompts,), generator=generator).tolist()
    batch, total = 32, sum(wanted)
    once = 1
    reference = seconds(lambda: theirs(ready, prompts, wanted, batch), sizes, once)
    yield {"what": "transformers generate", "seconds": reference, "tokens": total / reference}
    for what, settle in (("kd generation", True), ("kd generation, batch-dependent", False)):
        took = seconds(lambda settle=settle: ours(ready, prompts, wanted, batch, settle=settle), sizes, once)
        yield {"what": what, "seconds": took, "tokens": total / took, "ratio": reference / took}


def small_pair(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Write a teacher, a student and rows, and return the settings that name them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(chr(97 + i) for i in range(26)), " ", ".", ":"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    real = sizes.device == "cuda"
    for name, shape in (
        ("student", (4, 512, 8, 4, 1_024) if real else (2, 32, 4, 2, 64)),
        ("teacher", (8, 1_024, 16, 8, 4_096) if real else (3, 64, 4, 2, 128)),
    ):
        random_model(shape, len(words), 256, torch.float32, "cpu").save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lines = [
        {"prompt": f"say {chr(97 + i % 26)}:", "completion": f" {chr(97 + i % 26) * (1 + i % 60)}."} for i in range(96)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {
        "teacher": str(folder / "teacher"), "student": str(folder / "student"), "loss": "akl",
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 96},
        "train": {"max_steps": 8, "batch_size": 8, "save_every": 4, "seed": 1, "log_every": 1},
        "hardware": {"device": sizes.device},
    }  # fmt: skip


def trained(settings: dict[str, Any], output: Path, stop_at: int | None = None) -> tuple[Any, list[float]]:
    """Train, and return the record and the loss of each step; stop by a signal after a step if asked."""
    from kdcli.config.schema import DistillConfig
    from kdcli.distill.run import distill

    losses: list[float] = []

    def report(event: Any) -> None:
        if event.kind == "progress" and "loss" in event.values:
            losses.append(event.values["loss"])
            if stop_at is not None and len(losses) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

    return distill(DistillConfig.model_validate({**settings, "output": str(output)}), report), losses


def weights(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors")))


def bits(sizes: Sizes) -> Iterator[Row]:
    """The same weights, bit for bit: from a second run, from a cache of the teacher, and after a stop."""
    from kdcli.config.schema import CacheConfig
    from kdcli.errors import InterruptedRunError
    from kdcli.teachers.load import cache

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = small_pair(folder, sizes)
        trained(settings, folder / "one")
        expected = weights(folder / "one")
        trained(settings, folder / "two")
        yield {"what": "two runs give the same bits", "ok": weights(folder / "two") == expected}
        kept = {name: settings[name] for name in ("teacher", "data", "hardware")}
        cache(CacheConfig.model_validate({**kept, "output": str(folder / "cache")}), lambda event: None)
        trained({**settings, "teacher_cache": str(folder / "cache")}, folder / "cached")
        yield {"what": "exact cache and live teacher give the same bits", "ok": weights(folder / "cached") == expected}
        try:
            trained(settings, folder / "stopped", stop_at=5)
            yield {"what": "resume", "not_run": "the run was not stopped by the signal"}
            return
        except InterruptedRunError:
            trained(settings, folder / "stopped")
        yield {"what": "a resumed run gives the same bits", "ok": weights(folder / "stopped") == expected}


def regimes(sizes: Sizes) -> Iterator[Row]:
    """Some steps each with LoRA, quantized teachers, gradient checkpointing and compiled layers: memory and loss."""
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "LoRA": {"lora": {"rank": 8}},
        "int8 teacher": {"teacher_quantization": "int8"},
        "nf4 teacher": {"teacher_quantization": "nf4"},
        "gradient checkpointing": {"train": {"gradient_checkpointing": True}},
        "compiled layers": {"hardware": {"compile": True}},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = small_pair(folder, sizes)
        for what, change in ways.items():
            merged = {**settings}
            for key, value in change.items():
                merged[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
            try:
                record, losses = trained(merged, folder / what.replace(" ", "-"))
            except Exception as error:
                yield {"what": what, "not_run": first_line(error)}
                continue
            finite = all(loss == loss and abs(loss) != float("inf") for loss in losses)
            yield {
                "what": what, "loss": losses[-1], "mebibytes": record.peak_bytes / 2**20, "seconds": record.seconds,
                "ok": finite and len(losses) == 8,
            }  # fmt: skip


PARTS: dict[str, tuple[Callable[[Sizes], Iterator[Row]], int]] = {
    "numbers": (numbers, 100),
    "head": (head, 120),
    "step": (step, 90),
    "generation": (generation, 40),
    "bits": (bits, 50),
    "regimes": (regimes, 80),
}
"""Part -> what it does, and the most seconds it may take; ``--minutes`` bounds them all together."""


def first_line(error: BaseException) -> str:
    """Return an error's kind and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200] if said else 'no message'}"


def run_part(name: str, sizes: Sizes) -> None:
    """Print one part's measurements, a line each."""
    if sizes.device == "cpu":
        torch.set_num_threads(1)
    try:
        for row in PARTS[name][0](sizes):
            print(json.dumps({"part": name, **row}), flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"part": name, "what": name, "not_run": first_line(error)}), flush=True)


def machine(sizes: Sizes) -> Row:
    """Return what the measurements were made with."""
    from importlib import metadata

    versions = {}
    for package in ("torch", "transformers", "accelerate", "triton", "trl", "liger-kernel", "torchao", "bitsandbytes"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = torch.cuda.get_device_name() if sizes.device == "cuda" else platform.processor() or platform.machine()
    return {"device": device, "python": platform.python_version(), "versions": versions}


def cell(row: Row) -> str:
    """Return one measurement as text."""
    if "not_run" in row:
        return f"not run: {row['not_run']}"
    words = []
    for key, form in (
        ("seconds", "{:.4f} s"), ("ratio", "{:.2f} of the reference"), ("tokens", "{:,.0f} tokens/s"),
        ("mebibytes", "{:,.0f} MiB"), ("off", "off by {:.1e}"), ("loss", "loss {:.4f}"),
    ):  # fmt: skip
        if row.get(key) is not None:
            words.append(form.format(row[key]))
    if "ok" in row:
        words.append("ok" if row["ok"] else "WRONG")
    return ", ".join(words)


def table(rows: list[Row]) -> list[str]:
    """Return the short table: of the numbers only the worst, and whatever is wrong or was not run."""
    lines = []
    checked = [row for row in rows if row["part"] == "numbers" and "off" in row]
    for dtype in TOLERANCE:
        of_type = [row for row in checked if row["what"].endswith(dtype)]
        if of_type:
            worst_row = max(of_type, key=lambda row: float("inf") if row["off"] != row["off"] else row["off"])
            right = sum(row["ok"] for row in of_type)
            lines.append(
                f"{right} of {len(of_type)} objectives right in {dtype}; worst: {worst_row['what']} {cell(worst_row)}"
            )
    wrong = [row for row in checked if not row["ok"]]
    others = [row for row in rows if row["part"] != "numbers" or "not_run" in row]
    width = max((len(row["what"]) for row in [*wrong, *others]), default=0)
    return lines + [f"{row['what']:{width}}  {cell(row)}" for row in [*wrong, *others]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="every part in small, on a CPU")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated parts to run")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins that may end later")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = SMALL if options.rehearse else REAL
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")
    if sizes.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is here; --rehearse runs every part in small on a CPU")
    if options.part:
        run_part(options.part, sizes)
        return
    ends = time.monotonic() + 60 * options.minutes
    about, rows = machine(sizes), []
    print(json.dumps(about))
    for name in options.parts.split(","):
        left = min(PARTS[name][1], ends - time.monotonic())
        command = [sys.executable, __file__, "--part", name, *(["--rehearse"] if options.rehearse else [])]
        started = time.monotonic()
        found = run_child(command, left) if left > 5 else [{"part": name, "what": name, "not_run": "no time was left"}]
        rows += found
        options.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {len(found)} measurements in {time.monotonic() - started:.0f} s", flush=True)
    print("\n".join(table(rows)))


def run_child(command: list[str], limit: float) -> list[Row]:
    """Run one part, and return what it measured until it ended or its time was over."""
    name = command[command.index("--part") + 1]
    with tempfile.TemporaryFile("w+") as out:
        try:
            done = subprocess.run(command, stdout=out, timeout=limit, check=False)
            why = f"its process ended with status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"stopped after {limit:.0f} s"
        out.seek(0)
        rows = [json.loads(line) for line in out if line.startswith('{"part": ')]
    return [*rows, {"part": name, "what": f"rest of {name}", "not_run": why}] if why else rows


if __name__ == "__main__":
    main()
