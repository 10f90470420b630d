"""The training loop: windows -> denominators -> gradients -> optimizer -> events."""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from kdcli.data.batching import IGNORED, Batch
from kdcli.errors import InterruptedRunError, MachineError, NumericsError
from kdcli.events import Event
from kdcli.models.devices import peak_memory, reset_peak_memory
from kdcli.models.load import LanguageModel
from kdcli.models.zeros import linear_weights
from kdcli.signals import StopRequest
from kdcli.sources.token_counts import TokenCounts
from kdcli.storage import atomic
from kdcli.teachers.base import Teacher, live_models
from kdcli.training import checkpoint
from kdcli.training.checkpoint import GatheredState, State, TrainState
from kdcli.training.compile import CompiledLayers
from kdcli.training.fsdp import Sharded
from kdcli.training.job import TrainJob, TrainResult
from kdcli.training.metrics_log import MetricsLog
from kdcli.training.optimizer import KeptZeros, learning_rate, make_optimizer, set_learning_rate
from kdcli.training.placement import Placement, Replicated, clip_gradients
from kdcli.training.ranks import Processes, is_lost_peer, lost_peer
from kdcli.training.step import DistillStep
from kdcli.training.step_logger import StepLogger, logging_steps
from kdcli.training.supernet import SupernetStep

# Ends a run whose loss or gradient is not finite, and keeps which rows made it so.


NAME = "bad_batch.json"


def refuse_infinite(window: list[Batch], step: int, values: dict[str, float], folder: Path, ranks: Processes) -> None:
    """Do nothing if loss and gradient norm are finite, in all processes.

    Args:
        window: this process's micro-batches.
        step: steps done before.
        values: what was measured over all processes, ``loss`` and ``gradient_norm`` among it.
        folder: where the rows are noted.
        ranks: the processes.

    Raises:
        NumericsError: one of them is not.
    """
    if np.isfinite([values["loss"], values["gradient_norm"]]).all():
        return
    rows = ranks.rows(window)
    path = folder / NAME
    if ranks.main:
        record = {"step": step, "rows": rows, "values": {name: repr(value) for name, value in values.items()}}
        atomic.write_file(path, json.dumps(record))
    bad = next(name for name, value in values.items() if not np.isfinite(value))
    raise NumericsError(
        "NUM-01",
        f"{bad} is {values[bad]} at step {step + 1}; no update was made, rows are in {path.name}",
        where=str(folder),
        fix="lower --lr, or look at those rows; the last checkpoint is intact",
    )


# Puts a training's step where it runs: whole in every process, or in shards over all.


def make_placement(training: TrainJob, accelerator: Accelerator) -> Placement:
    """Make a training's step, among the processes as ``hardware.shard`` says.

    Args:
        training: the run.
        accelerator: accelerate's view of the processes.
    """
    device, shard, size = training.device.device, training.hardware.shard, accelerator.num_processes

    options: dict[str, Any] = {
        "vocab": training.vocab, "reduce": training.train.reduce, "autocast": training.device.autocast,
        "chunk_tokens": training.train.chunk_tokens, "seed": training.train.seed,
    }  # fmt: skip

    def step(student: LanguageModel, teacher: Teacher | None) -> DistillStep:
        if training.supernet is not None:
            return SupernetStep(student, training.loss, training.supernet, **options)
        return DistillStep(student, teacher, training.loss, **options)

    if shard != "ddp" and size > 1:
        return Sharded(device, size, step, training.student, training.teacher, keep=shard == "fsdp2")
    return Replicated(accelerator, step, training.student, training.teacher)


def train(training: TrainJob) -> TrainResult:
    """Train to the end, from the newest valid checkpoint if there is one.

    Raises:
        InterruptedRunError: a signal came; everything is saved.
        ExperimentChangedError: the checkpoint belongs to other settings.
        NumericsError: loss or gradient is not finite; no update was made.
    """
    with StopRequest() as stop:
        loop = _Loop(training, stop)
        try:
            result = loop.run()
        except InterruptedRunError:
            loop.close()
            raise
        loop.close()
        return result


class _Loop:
    def __init__(self, training: TrainJob, stop: StopRequest) -> None:
        self.training, self.stop, config = training, stop, training.train
        self.accelerator = Accelerator(
            cpu=training.device.device.type == "cpu",
            log_with=list(config.report_to) or None,
            project_dir=training.folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=training.hardware.wait))],
        )
        self.ranks = Processes(self.accelerator, training.device.device)
        self.place = make_placement(training, self.accelerator)
        self.model, self.trained = self.place.model, self.place.trained
        self.optimizer = make_optimizer(self.trained, config)
        self.zeros = KeptZeros(linear_weights(self.model) if config.keep_zeros else ())
        self.total = training.windows.total_steps
        self.monitor = training.monitor if self.ranks.main else None
        self.kept = TrainState(
            self.model, self.trained.learned, self.optimizer, training.windows, training.identity, self.ranks.size
        )
        self.reached: State | None = None
        self.compiled = CompiledLayers(self.place.running) if training.hardware.compile else None

    def run(self) -> TrainResult:
        """Run every remaining step."""
        training = self.training
        if training.train.keep_zeros and not self.ranks.greatest(int(self.zeros.any)):
            what = "train.keep_zeros changes nothing: no weight of the student's linear layers is 0"
            training.report(Event("warning", what))
        state = checkpoint.restore(training.folder, self.kept, training.report)
        self.zeros.as_restored()
        if self.ranks.main:
            checkpoint.prune(training.folder, state.step, training.train.keep)
        self.model.train()
        if training.train.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._compile()
        reset_peak_memory(training.device.device)
        training.report(Event("stage", "training", done=state.step, total=self.total))
        with logging_steps(training, self.accelerator, state) as step_logger:
            if self.monitor is not None:
                self.monitor.recall(step_logger.metrics_log.read())
            try:
                state = self._all(state, step_logger)
            except RuntimeError as error:
                if self.ranks.size == 1 or not is_lost_peer(error):
                    raise
                raise self._save_after_lost_rank(step_logger.metrics_log) from error
            self.place.finish()
            self.trained.finish()
            files = step_logger.metrics_log.digests()
        self.model.eval()
        made = training.windows.made
        return TrainResult(
            state.step, state.tokens, state.student_tokens, state.seconds, self._peak(state), state.generated_tokens,
            state.generation_seconds, asdict(TokenCounts.of_counts(state.effort)), made.tokens, asdict(made.effort),
            files,
        )  # fmt: skip

    def close(self) -> None:
        """Leave the group of processes, which nothing needs any more."""
        self.place.close()
        self.accelerator.state.destroy_process_group()

    def _compile(self) -> None:
        training, device = self.training, self.training.device.device
        self.trained.warm(device)
        for note in self.trained.workspace.on(device).notes:
            training.report(Event("note", note))
        if self.compiled is None:
            return
        training.report(Event("stage", "compiling"))
        readers = [training.student, *live_models(training.teacher)]
        limits = [model.positions for model in readers if model.positions is not None]
        rehearse = partial(self.trained.rehearse, teacher=len(readers) > 1)
        self.compiled.prepare(rehearse, min(limits, default=None), device)
        self.optimizer.zero_grad(set_to_none=True)

    def _all(self, state: State, step_logger: StepLogger) -> State:
        self.reached = state
        while state.step < self.total and not self._ends():
            if stop := self.ranks.greatest(self.stop.signal_number):
                self._leave(state, step_logger.metrics_log, stop)
            state = self._one(state, step_logger)
        return self._save(state, step_logger.metrics_log) if state.step < self.total else state

    def _one(self, state: State, step_logger: StepLogger) -> State:
        started = time.perf_counter()
        with self.place.gathered_params(self.training.generates_with):
            window = self.training.windows.window(state.step) or [_nothing()]
        drawing = time.perf_counter() - started
        written = self.training.windows
        counted = self.ranks.count(window, written.generated, written.effort)
        if self.place.lockstep:
            window = window + [_nothing()] * (counted.most - len(window))
        rate = learning_rate(self.training.train, state.step, self.total)
        set_learning_rate(self.optimizer, rate)
        denominator = counted.tokens if self.training.train.reduce == "token" else counted.sequences
        values = self._update(window, state.step, max(denominator, 1))
        seconds, generated = time.perf_counter() - started, counted.generated
        state = replace(
            state,
            step=state.step + 1,
            tokens=state.tokens + counted.tokens,
            student_tokens=state.student_tokens + counted.read,
            seconds=state.seconds + seconds,
            generated_tokens=state.generated_tokens + generated,
            generation_seconds=state.generation_seconds + (drawing if generated else 0.0),
            effort=asdict(TokenCounts.of_counts(state.effort) + counted.effort),
        )
        drawn = self.training.windows.values() | ({"generated_tokens": generated} if generated else {})
        seen = self._look(state.step)
        timing = {"seconds": seconds} | ({"generation_seconds": drawing} if generated else {})
        step_logger.tell(state, {**values, **drawn, "lr": rate, "tokens": counted.tokens}, timing, seen)
        self.reached = state
        if state.step % self.training.train.save_every == 0 or state.step == self.total:
            state = self._save(state, step_logger.metrics_log)
        return state

    def _update(self, window: list[Batch], step: int, denominator: int) -> dict[str, float]:
        """Accumulate the window's gradients and, if all is finite, update."""
        parts: dict[str, Tensor] = {}
        self.trained.begin(step, self.total)
        for index, batch in enumerate(window):
            torch.manual_seed(_seed(self.training.train.seed, step, index, self.ranks.index))
            with self.place.accumulating(index == len(window) - 1), self._at_work():
                loss, sums = self.place.step(
                    batch.to(self.training.device.device), denominator, step / max(self.total - 1, 1)
                )
                (loss * self.ranks.size).backward()
            for name, value in {"loss": loss.detach(), **sums}.items():
                parts[name] = parts[name] + value if name in parts else value
        self.zeros.in_gradients()
        norm = clip_gradients(self.trained, self.training.train.clip)
        values = {**self.ranks.totals(parts), "gradient_norm": norm.item()}
        refuse_infinite(window, step, values, self.training.folder, self.ranks)
        self.reached = None
        self.optimizer.step()
        self.zeros.in_weights()
        self.optimizer.zero_grad(set_to_none=True)
        return values

    def _at_work(self) -> AbstractContextManager[None]:
        return nullcontext() if self.compiled is None else self.compiled.at_work()

    def _look(self, step: int) -> dict[str, Any] | None:
        """Let the first rank measure the student, if that is due; the other ranks gather their shards for it."""
        monitor = self.training.monitor
        if monitor is None or not monitor.due(step):
            return None
        with self.place.gathered_params(self.training.evaluates_with):
            seen = self.ranks.from_first(monitor.evaluate_if_due(step) if self.ranks.main else None)
        if seen is not None:
            self.training.windows.observe(step, seen["scores"])
        return seen

    def _save(self, state: State, metrics_log: MetricsLog) -> State:
        collected = checkpoint.collect(self.kept, here=self.ranks.main)
        state = self._write(state, metrics_log, collected)
        self.ranks.wait()
        return state

    def _write(self, state: State, metrics_log: MetricsLog, collected: GatheredState) -> State:
        state = replace(state.at(*metrics_log.settle()), peak_bytes=self._peak(state))
        if self.ranks.main:
            path = checkpoint.save(self.training.folder, self.kept, state, self.training.train.keep, collected)
            self.training.report(Event("saved", path.name, done=state.step, total=self.total))
        return state

    def _leave(self, state: State, metrics_log: MetricsLog, signal_number: int) -> None:
        """Save and end; between two steps only, for a source may change its state when it draws a window."""
        self._save(state, metrics_log)
        raise InterruptedRunError(
            signal_number,
            f"stopped at step {state.step} of {self.total}, saved",
            fix=f"go on with: {self.training.resume_command}",
        )

    def _save_after_lost_rank(self, metrics_log: MetricsLog) -> MachineError:
        """Save what this process has in full, now that another is gone, and raise how to go on.

        Shards are not saved, for those of the lost process are missing, and neither is a source that keeps a state
        of its own, which the step at hand may have changed; the newest checkpoint stands then.
        """
        state, complete = self.reached, not self.place.lockstep and not self.training.windows.state()
        last = checkpoint.newest_step(self.training.folder)
        if self.ranks.main and complete and state is not None and state.step > (last or 0):
            self._write(state, metrics_log, checkpoint.collect(self.kept))
            last = state.step
        reached = state.step if state is not None else last or 0
        return lost_peer(reached, last, self.training.resume_command)

    def _ends(self) -> bool:
        """Whether the monitor has seen enough; all ranks agree."""
        if self.training.monitor is None:
            return False
        ends = self.monitor is not None and self.monitor.ends
        return bool(self.ranks.greatest(int(ends)))

    def _peak(self, state: State) -> int:
        return max(state.peak_bytes, peak_memory(self.training.device.device))


def _seed(*numbers: int) -> int:
    """Mix run seed, step, micro-batch and rank into one seed: no random state is ever stored."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _nothing() -> Batch:
    """Return a micro-batch without valid tokens, for a rank the step has no sequence for."""
    one = torch.zeros((1, 1), dtype=torch.int64)
    return Batch(one, one + 1, one + IGNORED, torch.full((1,), -1))
