"""Head and loss alone, forward and backward: the fused path against plain PyTorch on full logits.

Run by hand::

    python benchmarks/head.py --tokens 1024
    python benchmarks/head.py --tokens 4096 --dtype bf16 --vocab 151936 --widths 896 1536
    python benchmarks/head.py --tokens 1024 --dtype bf16 --vocab 151936 --products

Times alternate between the two within one process; memory is measured in a process of its own. With ``--products``,
on a CPU, the fused path's time stands beside that of the matrix products it makes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from plain import PLAIN
from products import Products
from torch import Tensor

import kdcli
from kdcli.models.devices import peak_memory, reset_peak_memory

GUEST = f"{Path(__file__).with_name('guest.py')}:GuestForwardKL"
NAMES = {**{name: name for name in PLAIN}, "atkd": "atkd", "guest": GUEST}


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = options.widths
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    device = options.device

    def make(rows: int, width: int, scale: float) -> Tensor:
        return (torch.randn(rows, width, device=device) * scale).to(dtype)

    hidden = make(options.tokens, student, 1.0).requires_grad_()
    head = make(options.vocab, student, student**-0.5).requires_grad_()
    other = make(options.tokens, teacher, 1.0)
    teacher_head = make(options.vocab, teacher, 2.0 * teacher**-0.5)
    labels = torch.randint(0, options.vocab, (1, options.tokens), device=device)
    return hidden, head, other, teacher_head, labels


def plain(name: str, data: tuple[Tensor, ...]) -> float:
    hidden, head, other, teacher_head, _ = data
    with torch.no_grad():
        t = (other @ teacher_head.T).float()
    loss = PLAIN["fkl" if name == "guest" else name]((hidden @ head.T).float(), t).mean()
    loss.backward()
    return loss.item()


def fused(name: str, data: tuple[Tensor, ...]) -> float:
    hidden, head, other, teacher_head, labels = data
    loss = kdcli.fused_loss(NAMES[name], hidden.unsqueeze(0), head, other.unsqueeze(0), teacher_head, labels)
    loss.backward()
    return loss.item()


def timed(run: Callable[[str, tuple[Tensor, ...]], float], name: str, data: tuple[Tensor, ...]) -> tuple[float, float]:
    data[0].grad = data[1].grad = None
    synchronise(data[0])
    started = time.perf_counter()
    value = run(name, data)
    synchronise(data[0])
    return time.perf_counter() - started, value


def synchronise(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize()


def over_products(options: argparse.Namespace) -> None:
    """Print each objective's time over that of its own matrix products, and over fkl's, times in turn."""
    data, times, alone = inputs(options), {}, {}
    for name in options.objectives:
        with Products() as products:
            fused(name, data)
        alone[name] = products
    found = {name: ([], []) for name in options.objectives}
    for _ in range(options.repeats):
        for name in options.objectives:
            found[name][0].append(timed(fused, name, data)[0])
            found[name][1].append(alone[name].seconds(1))
    times = {name: (min(whole), min(products)) for name, (whole, products) in found.items()}
    print("objective   fused ms   products ms   over its products   over fkl")
    for name, (whole, products) in times.items():
        beside = f"{whole / times['fkl'][0]:10.2f}" if "fkl" in times else ""
        print(f"{name:9} {whole * 1e3:10.0f} {products * 1e3:13.0f} {whole / products:19.2f} {beside}")


def extra_peak(side: str, name: str, options: argparse.Namespace) -> float:
    """MiB above the inputs, measured in a fresh process."""
    arguments = [sys.executable, __file__, "--measure", side, name]
    for key in ("tokens", "vocab", "dtype", "device"):
        arguments += [f"--{key}", str(getattr(options, key))]
    arguments += ["--widths", *map(str, options.widths)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, name: str, options: argparse.Namespace) -> None:
    data = inputs(options)
    small = argparse.Namespace(**{**vars(options), "tokens": 8, "vocab": 64})
    {"plain": plain, "fused": fused}[side](name, inputs(small))
    device = data[0].device
    reset_peak_memory(device)
    before = peak_memory(device)
    {"plain": plain, "fused": fused}[side](name, data)
    print(json.dumps((peak_memory(device) - before) / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--widths", type=int, nargs=2, default=(256, 768))
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--objectives", nargs="*", default=[*PLAIN, "guest"], choices=list(NAMES))
    parser.add_argument("--speed-only", action="store_true", help="leave memory out")
    parser.add_argument("--products", action="store_true", help="against the fused path's own matrix products")
    parser.add_argument("--measure", nargs=2)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options)
        return
    print(f"{options.tokens} tokens, V = {options.vocab:,}, widths {options.widths}, {options.dtype}, {options.device}")
    if options.products:
        over_products(options)
        return
    print("objective   plain ms   fused ms   speed   plain MiB   fused MiB   share   difference")
    data = inputs(options)
    for name in options.objectives:
        runs = {"plain": [], "fused": []}
        for _ in range(options.repeats + 1):
            for side, run in (("plain", plain), ("fused", fused)):
                runs[side].append(timed(run, name, data))
        slow, quick = (statistics.median(t for t, _ in runs[side][1:]) * 1e3 for side in ("plain", "fused"))
        memory = [0.0 if options.speed_only else extra_peak(side, name, options) for side in ("plain", "fused")]
        apart = abs(runs["plain"][0][1] / runs["fused"][0][1] - 1)
        print(
            f"{name:9} {slow:10.0f} {quick:10.0f} {slow / quick:6.2f}x {memory[0]:10.0f} {memory[1]:11.0f} "
            f"{memory[1] / (memory[0] or 1.0):7.3f} {apart:12.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
