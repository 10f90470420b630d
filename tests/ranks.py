"""Trains in several processes at once: forked, on gloo, meeting in a file."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState

PATIENCE = 120.0


def on_ranks(count: int, work: Callable[[int, int], None], meeting: Path) -> list[int]:
    """Run ``work(rank, world)`` in forked processes; return their exit codes."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_one, args=(rank, count, work, meeting)) for rank in range(count)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE)
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, f"{len(late)} of {count} processes hang"
    return [process.exitcode or 0 for process in ranks]


def _one(rank: int, world: int, work: Callable[[int, int], None], meeting: Path) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "OMP_NUM_THREADS": 1}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # a fork knows the single process it was forked from
    GradientState._reset_state()
    if world > 1:
        os.environ.update({name: str(number) for name, number in numbers.items()} | {"GLOO_SOCKET_IFNAME": "lo"})
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
    try:
        work(rank, world)
    except BaseException:
        meeting.with_name(f"{meeting.name}-rank{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
