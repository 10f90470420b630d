"""One rank of a training on several; started by torchrun, called by test_ranks.py."""

import os
import sys
from pathlib import Path

import torch

from kdcli.engine.loop import train
from running import exact_pair, training


def main(folder: Path, spec: str) -> None:
    torch.set_num_threads(1)
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    student, teacher = exact_pair()
    run = training(folder, spec, student=student, teacher=teacher, world=(rank, size), max_steps=8, batch_size=3)
    train(run)
    if rank == 0:
        torch.save(student.model.state_dict(), folder / "final.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
