"""Trains in several processes at once: forked, on gloo, meeting in a file.

The processes are forked from a copy of this one that is made when this module is imported, before any test has run. A
fork of the process of the tests itself could wait for ever for a lock that some thread of a test (a compiler's, Ray's,
a progress bar's) held at that moment and nobody holds in the fork.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import cloudpickle
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState

PATIENCE = 120.0
_TESTS = Path(__file__).parent


def on_ranks(count: int, work: Callable[[int, int], None], meeting: Path) -> list[int]:
    """Run ``work(rank, world)`` in forked processes; return their exit codes.

    What a test has patched does not reach them; ``work`` patches it again.
    """
    tests = [module for name, module in sys.modules.items() if name.rpartition(".")[2].startswith("test_")]
    for module in tests:  # not importable by its name
        cloudpickle.register_pickle_by_value(module)
    try:
        _SERVER.send_bytes(cloudpickle.dumps((count, work, meeting)))
    finally:
        for module in tests:
            cloudpickle.unregister_pickle_by_value(module)
    codes, failure = _SERVER.recv()
    assert not failure, failure
    return codes


def _server() -> Connection:
    """Fork the process that forks the others; return the connection to it, whose end is its end."""
    here, there = multiprocessing.Pipe()
    if os.fork():
        there.close()
        return here
    here.close()
    for name, module in list(sys.modules.items()):  # some are half imported; they are imported again when asked for
        if name != __name__ and str(getattr(module, "__file__", "")).startswith(str(_TESTS)):
            del sys.modules[name]
    try:
        while True:
            asked = there.recv_bytes()
            try:
                there.send(_forked(*cloudpickle.loads(asked)))
            except Exception:
                there.send(([], traceback.format_exc()))
    finally:  # the tests ended, or were interrupted
        os._exit(0)


def _forked(count: int, work: Callable[[int, int], None], meeting: Path) -> tuple[list[int], str]:
    """Return the exit codes, and what each process was doing if some did not end."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_one, args=(rank, count, work, meeting)) for rank in range(count)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE)
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        os.kill(process.pid or 0, signal.SIGUSR1)
        time.sleep(1.0)
        process.kill()
    stacks = [_stacks(meeting, rank).read_text() for rank, process in enumerate(ranks) if process in late]
    failure = "\n".join([f"{len(stacks)} of {count} processes hang", *stacks]) if stacks else ""
    return [process.exitcode or 0 for process in ranks], failure


def _stacks(meeting: Path, rank: int) -> Path:
    return meeting.with_name(f"{meeting.name}-stacks-of-{rank}.txt")


def _one(rank: int, world: int, work: Callable[[int, int], None], meeting: Path) -> None:
    stacks = _stacks(meeting, rank).open("w")
    faulthandler.register(signal.SIGUSR1, stacks)
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


_SERVER = _server()
