"""Four objectives on one teacher: with the exact cache, with a live teacher each time, and the least there can be.

Run by hand::

    python benchmarks/compare.py

Teacher (12 x 768) and student (4 x 256) are those of the step benchmark, eight times apart; rows are shaped like
Dolly's. Measured in one process, objective by objective in turn:

* pass: the teacher's trunk over every row once, nothing kept
* student: training alone, the teacher's hidden states held in memory
* live: training with the teacher running
* cached: building the cache on disk, then training from it
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from bench_kd import examples_of, language_model, run_training
from step import ROWS, make_models, make_rows

from kdcli.data.batching import Batch, collate
from kdcli.data.tokenize import Example
from kdcli.models.packing import Packing, Projection, find_valid
from kdcli.teachers.base import LiveTeacher, Teacher
from kdcli.teachers.cached import HIDDEN, CachedTeacher
from kdcli.teachers.token_store import TokenStore, sequence_keys

OBJECTIVES = ("fkl", "rkl", "jsd", "akl")


class Held(Teacher):
    """A teacher whose hidden states are in memory."""

    def __init__(self, states: dict[str, torch.Tensor], live: LiveTeacher) -> None:
        self.states, self.head = states, live.model.head

    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Return what is held."""
        return Projection(torch.cat([self.states[key] for key in sequence_keys(batch)]), self.head)


def timed(work, *arguments):
    started = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - started, result


def one_pass(live: LiveTeacher, examples: tuple[Example, ...]) -> dict[str, torch.Tensor]:
    states = {}
    for index in range(len(examples)):
        batch = collate(examples, [index], 0)
        states[sequence_keys(batch)[0]] = live.side(batch, find_valid(batch.labels)).hidden
    return states


def build(live: LiveTeacher, examples: tuple[Example, ...], folder: Path) -> CachedTeacher:
    store = TokenStore(folder)
    store.add([(key, {HIDDEN: hidden}) for key, hidden in one_pass(live, examples).items()])
    return CachedTeacher(TokenStore(folder), live.model.head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--matmul-precision", default="highest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, options.vocab)
        live = LiveTeacher(language_model(folder / "teacher"))
        examples = examples_of(make_rows(options.vocab)[: options.steps * ROWS])
        one_pass(live, examples[:ROWS])
        bare, states = timed(one_pass, live, examples)
        building, cached = timed(build, live, examples, folder)
        seconds = {"student": 0.0, "live": 0.0, "cached": building}
        for objective in OBJECTIVES:
            options.objective = objective
            for kind, teacher in (("student", Held(states, live)), ("live", live), ("cached", cached)):
                spent, _ = timed(run_training, folder, teacher, examples, options, options.steps, ROWS)
                seconds[kind] += spent
                print(f"{objective:4} {kind:8} {spent:7.1f} s", flush=True)
    least = bare + seconds["student"]
    print(f"teacher pass {bare:.1f} s, cache {building:.1f} s, {seconds}")
    print(f"cached / (one pass + student-only) {seconds['cached'] / least:.2f}")
    print(f"cached / live                      {seconds['cached'] / seconds['live']:.2f}")


if __name__ == "__main__":
    main()
