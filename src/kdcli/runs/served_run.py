"""Refuses what a teacher behind a server cannot give, before anything is asked of it."""

from kdcli.config import DistillConfig
from kdcli.errors import UsageError
from kdcli.runs.serving.address import is_served
from kdcli.runs.teachers import refuse_measuring
from kdcli.sources.base import Source
from kdcli.sources.describe import cards
from kdcli.text import one_line


def refuse_served(config: DistillConfig, source: Source, label: str, *, measured: bool) -> None:
    """Refuse sources and scores that need more of a teacher than a server shows.

    Args:
        config: the run's settings.
        source: where sequences come from.
        label: objective and source, in canonical form.
        measured: whether rows are measured after training.

    Raises:
        UsageError: SERVE-10, names what would do.
    """
    if config.teacher is None or not is_served(config.teacher):
        return
    refuse_wordless(source, label)
    refuse_measuring(config.evaluation.metrics, measured=measured)
    if config.monitor.every is not None:
        refuse_measuring(config.monitor.metrics, measured=True)


def refuse_wordless(source: Source, label: str) -> None:
    """Refuse a source that wants more of a teacher than its words.

    Raises:
        UsageError: SERVE-10.
    """
    needs = source.needs()
    if not needs.teacher or needs.words:
        return
    able = [f"@{card.name}" for card in cards() if card.words]
    what = f"@{one_line(source.name)} as it is set asks the teacher token by token, and a server gives whole answers"
    fix = f"give the teacher's folder, or use {' or '.join(able)} with sampled or greedy answers"
    raise UsageError("SERVE-10", what, where=label, fix=fix)
