"""Measures what each process of a training holds: the bytes of all storages that are alive, after every operation."""

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import running
import tiny
from kdcli.config.schema import HardwareConfig, LoraConfig
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.models.adapters import attach
from kdcli.models.devices import prepare
from kdcli.models.load import assemble
from kdcli.training.step import DistillStep
from kdcli.training.trainer import train
from ranks import on_ranks

VOCAB = 512
WORDS = tiny.WORDS + [f"w{index}" for index in range(VOCAB - len(tiny.WORDS))]


def model(role: str, seed: int, family: str, **sizes):
    made = tiny.model(family, seed=seed, vocab=VOCAB, **sizes)
    return assemble(made, tiny.tokenizer(WORDS), role, "digest", device=torch.device("cpu"), role=role)


def rows(count: int, length: int) -> TokenDataset:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, VOCAB, (count, length - 2), generator=generator).tolist()
    return TokenDataset(tuple(Example((1, *ids, 2), 1, "", (), f"row {at}") for at, ids in enumerate(drawn)))


def measured(folder: Path, case, processes: int) -> list[dict[str, int]]:
    """Train two steps in each of some processes; return what each one held in the second, in bytes.

    ``standing`` is there between steps; ``forward`` and ``backward`` are the peaks of the step's two halves; the rest
    are the sizes of weights, gradients and moments, counted from the tensors that the optimizer holds.
    """
    folder.mkdir()

    def work(rank: int, world: int) -> None:
        (folder / f"{rank}.json").write_text(json.dumps(_one(folder / "run", case, rank, world)))

    codes = on_ranks(processes, work, folder / "meeting")
    assert set(codes) == {0}, "\n".join(path.read_text() for path in folder.glob("meeting-rank*"))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


class Alive(TorchDispatchMode):
    """Sums the storages alive after every operation, those resized meanwhile and those held by C++ included."""

    def __init__(self) -> None:
        super().__init__()
        self.storages = weakref.WeakSet()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor):
                local = value.to_local() if isinstance(value, DTensor) else value
                self.storages.add(local.untyped_storage())
        self.most = max(self.most, self.now())
        return found

    def now(self) -> int:
        return sum(one.nbytes() for one in list(self.storages))

    def taken(self) -> int:
        """Return the most bytes since the last call."""
        most, self.most = self.most, 0
        return most


def _one(folder: Path, case, rank: int, world: int) -> dict[str, int]:
    found: dict[str, int] = {}
    alive, plain = Alive(), DistillStep.forward

    def forward(step, *given):
        result = plain(step, *given)
        found["forward"] = max(found["forward"], alive.taken())
        return result

    def updating(optimizer, *_):
        held = [one for group in optimizer.param_groups for one in group["params"]]
        state = [value for one in optimizer.state.values() for value in one.values() if value.dim()]
        found.update(weights=_bytes(held), gradients=_bytes([one.grad for one in held]), moments=_bytes(state))
        found["backward"] = alive.taken()

    DistillStep.forward = forward
    hook = register_optimizer_step_pre_hook(updating)
    with alive:
        student, teacher = model("student", 1, **case.student), model("teacher", 2, **case.teacher)
        if case.rank is not None:
            student = replace(
                student, adapter=attach(student.model, LoraConfig(rank=case.rank), seed=0, name="student")
            )
        batch = case.rows * case.micro_batches * world
        made = running.training(
            folder, case.loss, student=student, teacher=teacher, data=rows(2 * batch, case.length), world=(rank, world),
            max_steps=2, batch_size=batch, micro_tokens=case.rows * case.length, save_every=99,
            gradient_checkpointing=case.checkpointing,
        )  # fmt: skip
        chosen = HardwareConfig.model_validate({"device": "cpu", "shard": case.shard, "dtype": case.dtype})
        made = replace(made, vocab=VOCAB, hardware=chosen, device=prepare(chosen))
        window = made.windows.window

        def asked(step):
            gc.collect()  # cycles of the step before are garbage, and go whenever Python looks
            alive.taken()
            found.update(standing=alive.now(), forward=0)
            return window(step)

        made.windows.window = asked
        train(made)
    DistillStep.forward = plain
    hook.remove()
    return found


def _bytes(tensors: list) -> int:
    """Return the bytes behind tensors, or behind this process's shards of them; what two share counts once."""
    local = [one.to_local() if isinstance(one, DTensor) else one for one in tensors]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in local}.values())
