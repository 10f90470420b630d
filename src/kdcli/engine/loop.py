"""The one training loop: windows -> denominators -> gradients -> optimizer -> events."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor

from kdcli import durable
from kdcli.config import HardwareConfig, TrainConfig
from kdcli.data.collate import IGNORED, Batch
from kdcli.engine import checkpoint
from kdcli.engine.checkpoint import Collected, Kept, State
from kdcli.engine.devices import Device, peak_memory, reset_peak_memory
from kdcli.engine.events import Event, Report
from kdcli.engine.journal import Deaf, Journal
from kdcli.engine.monitor import Monitor
from kdcli.engine.optim import learning_rate, make_optimizer, set_learning_rate
from kdcli.engine.pack import count_valid
from kdcli.engine.peers import is_lost_peer, lost_peer
from kdcli.engine.placement import Placement, Replicated, Side, clip_gradients
from kdcli.engine.sharded import Sharded
from kdcli.engine.step import DistillStep
from kdcli.engine.stop import StopRequest
from kdcli.engine.teacher import Teacher
from kdcli.errors import InterruptedRunError, MachineError, NumericsError
from kdcli.losses.base import DistillLoss
from kdcli.models.load import LanguageModel
from kdcli.sources.base import Windows


@dataclass(frozen=True)
class Training:
    """Everything one run trains with.

    Args:
        student: the model that learns; changed in place.
        teacher: what it learns from; None when the objective needs none.
        loss: the objective.
        windows: yields the micro-batches of each optimizer step.
        vocab: real ids shared by both models.
        train: settings of the loop.
        device: where it computes.
        folder: the run folder; it exists.
        identity: what must be equal for a run to be continued.
        report: told what happens.
        resume_command: the command that goes on, printed when stopped.
        monitor: measures the student between steps; asked on the first rank only.
        hardware: how the models lie among several processes, and how long one waits for the others.
        drawn_with: models that write sequences of a window.
        measured_with: models that the monitor reads.
    """

    student: LanguageModel
    teacher: Teacher | None
    loss: DistillLoss
    windows: Windows
    vocab: int
    train: TrainConfig
    device: Device
    folder: Path
    identity: dict[str, Any]
    report: Report
    resume_command: str
    monitor: Monitor | None = None
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    drawn_with: frozenset[Side] = frozenset()
    measured_with: frozenset[Side] = frozenset({"student"})


@dataclass(frozen=True)
class Outcome:
    """What a finished training cost.

    Args:
        steps: optimizer steps.
        tokens: response tokens trained on.
        student_tokens: tokens that went through the student's trunk, prompts included.
        seconds: time in steps.
        peak_bytes: peak memory of the device, or of the process on a CPU.
        generated_tokens: tokens that were generated to train on.
        generation_seconds: the part of ``seconds`` that this took.
    """

    steps: int
    tokens: int
    student_tokens: int
    seconds: float
    peak_bytes: int
    generated_tokens: int = 0
    generation_seconds: float = 0.0


def train(training: Training) -> Outcome:
    """Train to the end, from the newest valid checkpoint if there is one.

    Raises:
        InterruptedRunError: a signal came; everything is saved.
        ExperimentChangedError: the checkpoint belongs to other settings.
        NumericsError: loss or gradient is not finite; no update was made.
    """
    with StopRequest() as stop:
        return _Loop(training, stop).run()


class _Loop:
    def __init__(self, training: Training, stop: StopRequest) -> None:
        self.training, self.stop, config = training, stop, training.train
        self.accelerator = Accelerator(
            cpu=training.device.device.type == "cpu",
            log_with=list(config.report_to) or None,
            project_dir=training.folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=training.hardware.wait))],
        )
        self.world = self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.place = self._placed()
        self.model, self.step, self.trained = self.place.model, self.place.step, self.place.trained
        self.optimizer = make_optimizer(self.trained, config)
        self.total = training.windows.total_steps
        self.monitor = training.monitor if self.main else None
        self.kept = Kept(
            self.model, self.trained.learned, self.optimizer, training.windows, training.identity, self.world
        )
        self.reached: State | None = None

    def _placed(self) -> Placement:
        training = self.training

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

        if training.hardware.shard == "fsdp2" and self.world > 1:
            return Sharded(training.device.device, self.world, step, training.student, training.teacher)
        return Replicated(self.accelerator, step, training.student, training.teacher)

    def run(self) -> Outcome:
        """Run every remaining step."""
        training = self.training
        durable.sweep(training.folder)
        state = checkpoint.restore(training.folder, self.kept, training.report)
        self.model.train()
        if training.train.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        reset_peak_memory(training.device.device)
        training.report(Event("stage", "training", done=state.step, total=self.total))
        with self._journal(state) as journal, self._trackers():
            if self.monitor is not None:
                self.monitor.recall(journal.read())
            try:
                state = self._all(state, journal)
            except RuntimeError as error:
                if self.world == 1 or not is_lost_peer(error):
                    raise
                raise self._bereft(journal) from error
            self.place.finish()
        self.model.eval()
        spent = (state.generated_tokens, state.generation_seconds)
        return Outcome(state.step, state.tokens, state.student_tokens, state.seconds, self._peak(state), *spent)

    def _all(self, state: State, journal: Journal) -> State:
        self.reached = state
        while state.step < self.total and not self._ends():
            state = self._one(state, journal)
        return self._save(state, journal) if state.step < self.total else state

    def _one(self, state: State, journal: Journal) -> State:
        started = time.perf_counter()
        with self.place.whole(self.training.drawn_with):
            window = self.training.windows.window(state.step) or [self._nothing()]
        drawing = time.perf_counter() - started
        tokens, sequences, read, generated, stop, most = self._count(window)
        if stop:
            self._leave(state, journal, stop)
        if self.place.alike:
            window = window + [self._nothing()] * (most - len(window))
        rate = learning_rate(self.training.train, state.step, self.total)
        set_learning_rate(self.optimizer, rate)
        denominator = tokens if self.training.train.reduce == "token" else sequences
        values = self._update(window, state.step, max(denominator, 1))
        seconds = time.perf_counter() - started
        state = replace(
            state,
            step=state.step + 1,
            tokens=state.tokens + tokens,
            student_tokens=state.student_tokens + read,
            seconds=state.seconds + seconds,
            generated_tokens=state.generated_tokens + generated,
            generation_seconds=state.generation_seconds + (drawing if generated else 0.0),
        )
        drawn = self.training.windows.values() | ({"generated_tokens": generated} if generated else {})
        seen = self._look(state.step)
        timing = {"seconds": seconds} | ({"generation_seconds": drawing} if generated else {})
        self._tell(state, journal, {**values, **drawn, "lr": rate, "tokens": tokens}, timing, seen)
        self.reached = state
        if state.step % self.training.train.save_every == 0 or state.step == self.total:
            state = self._save(state, journal)
        return state

    def _update(self, window: list[Batch], step: int, denominator: int) -> dict[str, float]:
        """Accumulate the window's gradients and, if all is finite, update."""
        parts: dict[str, Tensor] = {}
        for index, batch in enumerate(window):
            torch.manual_seed(_seed(self.training.train.seed, step, index, self.accelerator.process_index))
            with self.place.accumulating(index == len(window) - 1):
                loss, sums = self.step(
                    batch.to(self.training.device.device), denominator, step / max(self.total - 1, 1)
                )
                (loss * self.world).backward()
            for name, value in {"loss": loss.detach(), **sums}.items():
                parts[name] = parts[name] + value if name in parts else value
        norm = clip_gradients(self.trained, self.training.train.clip)
        values = {**self._totals(parts), "gradient_norm": norm.item()}
        if not np.isfinite([values["loss"], values["gradient_norm"]]).all():
            self._refuse(window, step, values)
        self.reached = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return values

    def _look(self, step: int) -> dict[str, Any] | None:
        """Let the first rank measure the student, if that is due; the others lend it their shards and hear of it."""
        monitor = self.training.monitor
        if monitor is None or not monitor.due(step):
            return None
        with self.place.whole(self.training.measured_with):
            seen = monitor.look(step) if self.main else None
        if self.world > 1:
            seen = broadcast_object_list([seen])[0]
        if seen is not None:
            self.training.windows.observe(step, seen["scores"])
        return seen

    def _count(self, window: list[Batch]) -> tuple[int, int, int, int, int, int]:
        """Over all ranks: valid tokens, sequences, tokens read and generated; any signal, and most micro-batches."""
        read, generated = sum(batch.tokens for batch in window), self.training.windows.generated
        own = [*count_valid(window), read, generated, self.stop.signal_number, len(window)]
        table = self.accelerator.gather(torch.tensor([own], device=self.training.device.device))
        assert isinstance(table, Tensor)
        tokens, sequences, read, generated, _, _ = table.sum(0).tolist()
        *_, stop, most = table.amax(0).tolist()
        return tokens, sequences, read, generated, stop, most

    def _totals(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """Sum each part over the ranks; one without a token of its own knows no parts but the loss."""
        own = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
        if self.world == 1:
            return own
        table = gather_object([own])
        names = max(table, key=len)
        return {name: sum(line.get(name, 0.0) for line in table) for name in names}

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        summed = self.accelerator.reduce(values, "sum")
        assert isinstance(summed, Tensor)
        return summed

    def _refuse(self, window: list[Batch], step: int, values: dict[str, float]) -> None:
        rows = gather_object([index for batch in window for index in batch.example.tolist() if index >= 0])
        path = self.training.folder / "bad_batch.json"
        if self.main:
            record = {"step": step, "rows": rows, "values": {name: repr(value) for name, value in values.items()}}
            durable.write_file(path, json.dumps(record))
        bad = next(name for name, value in values.items() if not np.isfinite(value))
        raise NumericsError(
            "NUM-01",
            f"{bad} is {values[bad]} at step {step + 1}; no update was made, rows are in {path.name}",
            where=str(self.training.folder),
            fix="lower --lr, or look at those rows; the last checkpoint is intact",
        )

    def _tell(
        self,
        state: State,
        journal: Journal,
        values: dict[str, float],
        timing: dict[str, float],
        seen: dict[str, Any] | None,
    ) -> None:
        speed = {"tokens_per_second": values["tokens"] / timing["seconds"]}
        if "generation_seconds" in timing:
            speed["generated_per_second"] = values["generated_tokens"] / timing["generation_seconds"]
        if self.main:
            line = {"step": state.step, **values, **({"evaluation": seen} if seen else {})}
            journal.write(line, {"step": state.step, **timing})
            measured = {f"eval/{name}": value for name, value in (seen or {}).get("scores", {}).items() if value}
            self.accelerator.log({**values, **measured}, step=state.step)
            shown = {**values, **speed}
            self.training.report(Event("progress", "training", done=state.step, total=self.total, values=shown))

    def _save(self, state: State, journal: Journal) -> State:
        collected = checkpoint.collect(self.kept, here=self.main)
        state = self._write(state, journal, collected)
        self.accelerator.wait_for_everyone()
        return state

    def _write(self, state: State, journal: Journal, collected: Collected) -> State:
        state = replace(state, metrics_bytes=journal.settle(), peak_bytes=self._peak(state))
        if self.main:
            path = checkpoint.save(self.training.folder, self.kept, state, self.training.train.keep, collected)
            self.training.report(Event("saved", path.name, done=state.step, total=self.total))
        return state

    def _leave(self, state: State, journal: Journal, signal_number: int) -> None:
        self._save(state, journal)
        raise InterruptedRunError(
            signal_number,
            f"stopped at step {state.step} of {self.total}, saved",
            fix=f"go on with: {self.training.resume_command}",
        )

    def _bereft(self, journal: Journal) -> MachineError:
        """Save what this process has in full, now that another is gone, and say where to go on.

        Shards are not saved, for those of the lost process are missing, and neither is a source that keeps a state
        of its own, which the step at hand may have changed; the newest checkpoint stands then.
        """
        state, complete = self.reached, not self.place.alike and not self.training.windows.state()
        last = checkpoint.newest_step(self.training.folder)
        if self.main and complete and state is not None and state.step > (last or 0):
            self._write(state, journal, checkpoint.collect(self.kept))
            last = state.step
        reached = state.step if state is not None else last or 0
        return lost_peer(reached, last, self.training.resume_command)

    def _ends(self) -> bool:
        """Whether the monitor has seen enough; all ranks agree."""
        if self.training.monitor is None:
            return False
        ends = self.monitor is not None and self.monitor.ends
        return bool(self._sum_over_ranks(torch.tensor(int(ends), device=self.training.device.device)))

    def _peak(self, state: State) -> int:
        return max(state.peak_bytes, peak_memory(self.training.device.device))

    def _nothing(self) -> Batch:
        """A micro-batch without valid tokens, for a rank the step has no sequence for."""
        one = torch.zeros((1, 1), dtype=torch.int64)
        return Batch(one, one + 1, one + IGNORED, torch.full((1,), -1))

    @contextmanager
    def _journal(self, state: State) -> Iterator[Journal]:
        journal = Journal(self.training.folder, state.metrics_bytes) if self.main else Deaf()
        try:
            yield journal
        finally:
            journal.close()

    @contextmanager
    def _trackers(self) -> Iterator[None]:
        if self.training.train.report_to:
            self.accelerator.init_trackers("kd")
        try:
            yield
        finally:
            self.accelerator.end_training()


def _seed(*numbers: int) -> int:
    """Mix run seed, step, micro-batch and rank into one seed: no random state is ever stored."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
