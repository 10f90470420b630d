"""Tells a step's numbers to the run's journal, to trackers, and to whoever listens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from kdcli.engine.checkpoint import State
from kdcli.engine.events import Event
from kdcli.engine.journal import Journal, NoJournal
from kdcli.engine.training import Training
from kdcli.errors import MachineError
from kdcli.text import one_line


class Teller:
    """Speaks for all processes; deaf and silent in every one but the first.

    Args:
        training: the run.
        accelerator: what holds the trackers.
        journal: the run's metrics file.
    """

    def __init__(self, training: Training, accelerator: Accelerator, journal: Journal) -> None:
        self._report, self._total = training.report, training.windows.total_steps
        self._accelerator, self.journal = accelerator, journal

    def tell(
        self, state: State, values: dict[str, float], timing: dict[str, float], seen: dict[str, Any] | None
    ) -> None:
        """Tell of one step.

        Args:
            state: where the run is after it.
            values: what was measured in it; a function of the run's settings and this machine's arithmetic.
            timing: the seconds it took, which are not.
            seen: what the monitor measured after it, if it was due.
        """
        speed = {"tokens_per_second": values["tokens"] / timing["seconds"]}
        if "generation_seconds" in timing:
            speed["generated_per_second"] = values["generated_tokens"] / timing["generation_seconds"]
        if not self._accelerator.is_main_process:
            return
        line = {"step": state.step, **values, **({"evaluation": seen} if seen else {})}
        self.journal.write(line, {"step": state.step, **timing})
        measured = {f"eval/{name}": value for name, value in (seen or {}).get("scores", {}).items() if value}
        self._accelerator.log({**values, **measured}, step=state.step)
        shown = {**values, **speed}
        self._report(Event("progress", "training", done=state.step, total=self._total, values=shown))


def _start(accelerator: Accelerator, names: Sequence[str]) -> None:
    try:
        accelerator.init_trackers("kd")
    except Exception as error:  # each tracker raises what it likes
        what = f"{', '.join(names)} cannot be started: {type(error).__name__}: {one_line(str(error), 200)}"
        fix = "make it work in Python first, or leave train.report_to out"
        raise MachineError("TRACK-03", what, where="train.report_to", fix=fix) from error


@contextmanager
def telling(training: Training, accelerator: Accelerator, state: State) -> Iterator[Teller]:
    """Open journal and trackers for a run that goes on from a state, and close them after it."""
    journal = Journal(training.folder, *state.marks) if accelerator.is_main_process else NoJournal()
    try:
        if training.train.report_to:
            _start(accelerator, training.train.report_to)
        try:
            yield Teller(training, accelerator, journal)
        finally:
            accelerator.end_training()
    finally:
        journal.close()
