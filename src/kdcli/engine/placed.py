"""Puts a training's step where it runs: whole in every process, or in shards over all."""

from accelerate import Accelerator

from kdcli.engine.placement import Placement, Replicated
from kdcli.engine.sharded import Sharded
from kdcli.engine.step import DistillStep
from kdcli.engine.teacher import Teacher
from kdcli.engine.training import Training
from kdcli.models.load import LanguageModel


def placed(training: Training, accelerator: Accelerator) -> Placement:
    """Make a training's step, among the processes as ``hardware.shard`` says.

    Args:
        training: the run.
        accelerator: accelerate's view of the processes.
    """
    device, shard, size = training.device.device, training.hardware.shard, accelerator.num_processes

    def step(student: LanguageModel, teacher: Teacher | None) -> DistillStep:
        return DistillStep(
            student,
            teacher,
            training.loss,
            vocab=training.vocab,
            reduce=training.train.reduce,
            autocast=training.device.autocast,
            chunk_tokens=training.train.chunk_tokens,
            seed=training.train.seed,
        )

    if shard != "ddp" and size > 1:
        return Sharded(device, size, step, training.student, training.teacher, keep=shard == "fsdp2")
    return Replicated(accelerator, step, training.student, training.teacher)
