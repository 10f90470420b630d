"""Value and gradient over logits already there: closed forms in blocks against plain PyTorch on the whole.

    python benchmarks/pointwise.py [--tokens 1024] [--vocab 50257] [--gap 1.0] [--repeat 3] [losses ...]

Both sides start from fp32 logits of ``tokens x vocab``, end with the mean loss and its gradient, and
include both softmaxes. The plain side is what one writes by hand: log_softmax, the formula, mean, backward.
CPU seconds of one thread are printed, the least of the repetitions, as they are steadier than wall time;
``--threads`` and ``--wall`` change that. On Linux a third of the time or more goes into memory
that the C library gives back and fetches again; MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_
of 1000000000 in the environment make it keep it.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective

LOSSES = ("fkl", "rkl", "sym_kl", "jsd", "skl", "srkl", "tvd", "ab", "akl", "ce", "soft_ce", "mse_logits")


def plain(name: str, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each token as one writes it by hand."""
    if name == "mse_logits":
        centred = [side - side.mean(-1, keepdim=True) for side in (student, teacher)]
        return (centred[0] - centred[1]).square().mean(-1)
    log_q = student.log_softmax(-1)
    if name == "ce":
        return -log_q.gather(1, labels[:, None]).squeeze(1)
    log_p = teacher.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    if name == "akl":
        return _plain_akl(p, q, log_p, log_q)
    table: dict[str, Callable[[], Tensor]] = {
        "fkl": lambda: _kl(p, log_p, log_q),
        "soft_ce": lambda: -(p * log_q).sum(-1),
        "rkl": lambda: _kl(q, log_q, log_p),
        "sym_kl": lambda: 0.5 * _kl(p, log_p, log_q) + 0.5 * _kl(q, log_q, log_p),
        "jsd": lambda: 0.5 * _kl(p, log_p, _mix(log_p, log_q, 0.5)) + 0.5 * _kl(q, log_q, _mix(log_p, log_q, 0.5)),
        "skl": lambda: _kl(p, log_p, _mix(log_p, log_q, 0.1)),
        "srkl": lambda: _kl(q, log_q, _mix(log_q, log_p, 0.1)),
        "tvd": lambda: 0.5 * (p - q).abs().sum(-1),
        "ab": lambda: _plain_ab(log_p, log_q, 0.2, 0.7),
    }
    return table[name]()


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    return (p * (log_p - log_q)).sum(-1)


def _mix(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _plain_ab(log_p: Tensor, log_q: Tensor, a: float, b: float) -> Tensor:
    both = torch.exp(a * log_p + b * log_q)
    ends = a / (a + b) * torch.exp((a + b) * log_p) + b / (a + b) * torch.exp((a + b) * log_q)
    return (ends - both).sum(-1) / (a * b)


def _plain_akl(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    with torch.no_grad():
        falling, order = torch.sort(p, dim=-1, descending=True)
        gap = (p - q).abs().gather(-1, order)
        head = falling.cumsum(-1) - falling < 0.5
        w = (gap * head).sum(-1) / gap.sum(-1)
    return w * _kl(p, log_p, log_q) + (1 - w) * _kl(q, log_q, log_p)


def run_plain(name: str, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    """Take the mean loss and its gradient by autograd on everything at once."""
    leaf = student.detach().requires_grad_()
    plain(name, leaf, teacher, labels).mean().backward()


def run_blocks(name: str, student: Tensor, teacher: Tensor, labels: Tensor, rows: int) -> None:
    """Take the mean loss and its gradient block by block, by closed form where there is one."""
    loss = build_objective(name)
    sums = torch.zeros(())
    for start in range(0, len(labels), rows):
        block = slice(start, start + rows)
        closed = loss.parts_and_grad(Tokens(labels[block], student[block], teacher[block]))
        assert closed is not None, f"{name} has no closed form here"
        sums += sum(part.sum() for part in closed[0].values())
        closed[1].mul_(1.0 / len(labels))


def least(work: Callable[[], None], repeat: int, clock: Callable[[], float]) -> float:
    """Return the least seconds of several runs."""
    best = math.inf
    for _ in range(repeat):
        start = clock()
        work()
        best = min(best, clock() - start)
    return best


def main() -> None:
    """Print one line a loss: plain seconds, and how many times as fast each block size is."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("losses", nargs="*", default=LOSSES)
    for name, default in (("tokens", 1024), ("vocab", 50257), ("repeat", 3), ("threads", 1)):
        ask.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("scale", 3.0), ("gap", 1.0)):
        ask.add_argument(f"--{name}", type=float, default=default)
    ask.add_argument("--rows", type=int, nargs="*", default=[8, 16, 32])
    ask.add_argument("--wall", action="store_true")
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    teacher = torch.randn(given.tokens, given.vocab) * given.scale
    student = teacher + torch.randn_like(teacher) * given.gap
    labels = torch.randint(given.vocab, (given.tokens,))
    clock = time.perf_counter if given.wall else time.process_time
    print(f"{given.tokens} x {given.vocab}, fp32, logits of scale {given.scale}, student off by {given.gap}")
    print(f"{'loss':<11}{'plain s':>9}" + "".join(f"{f'{rows} rows':>10}" for rows in given.rows))
    for name in given.losses:
        by_hand = least(lambda name=name: run_plain(name, student, teacher, labels), min(given.repeat, 2), clock)
        cells = [
            least(lambda name=name, rows=rows: run_blocks(name, student, teacher, labels, rows), given.repeat, clock)
            for rows in given.rows
        ]
        print(f"{name:<11}{by_hand:>9.3f}" + "".join(f"{by_hand / cell:>9.1f}x" for cell in cells))


if __name__ == "__main__":
    main()
