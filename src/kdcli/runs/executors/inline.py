"""Runs cells one after another in this process; teacher and data are loaded once for all."""

from kdcli import plugins
from kdcli.engine.events import Report
from kdcli.errors import InterruptedRunError, explained
from kdcli.runs.distill import distill
from kdcli.runs.executors.base import Ended, Executor, Job
from kdcli.runs.workshop import Workshop


class InlineExecutor(Executor):
    """This process.

    Args:
        workshop: what is loaded already.
        command: what to type to go on after an interruption.
    """

    elsewhere = False

    def __init__(self, workshop: Workshop, command: str) -> None:
        super().__init__(capacity=1)
        self._workshop = workshop
        self._command = command
        self._ended: list[Ended] = []

    def submit(self, job: Job, report: Report) -> str:
        """Run the cell to its end; an interruption goes through."""
        cell = job.cell
        try:
            record = distill(
                cell.config, report, command=self._command, workshop=self._workshop, prepared=cell.prepared
            )
        except InterruptedRunError:
            raise
        except Exception as error:  # one cell must not stop the others, whatever is wrong with it
            known = explained(error) or plugins.blamed(error)
            self._ended.append(Ended(job, known.exit_code if known is not None else 1, error))
            return ""
        found = (record, record.evaluation) if record.evaluation is not None else None
        self._ended.append(Ended(job, 0, None, found))
        return ""

    def poll(self) -> list[Ended]:
        """Return the cell that was run."""
        ended, self._ended = self._ended, []
        return ended

    def stop(self, signal_number: int) -> None:
        """Do nothing: a signal reaches the training loop itself."""
