"""Says where a student was chosen, or its training ended, by the very rows that it is measured on."""

from pathlib import Path

from kdcli import settings
from kdcli.config import DistillConfig
from kdcli.errors import KDError
from kdcli.runs import splits
from kdcli.runs.folder import BEST, CONFIG, MODEL, RunFolder

_FIX = "give development rows: data.dev=FILE or data.dev_share=0.1"


def watches_held_out(config: DistillConfig) -> bool:
    """Whether a run looks at its held-out rows while it trains, for want of development rows."""
    return config.monitor.every is not None and not splits.measures_after_training(config.data, "dev")


def watching_warning(config: DistillConfig, *, follows: bool) -> str:
    """Return the warning of a run that looks at its held-out rows while it trains; empty where it does not.

    Args:
        config: the run's settings.
        follows: whether its source follows what is measured meanwhile.
    """
    if not watches_held_out(config):
        return ""
    parts = [f"{BEST}/"]
    parts += ["the end of training (monitor.patience)"] if config.monitor.patience is not None else []
    parts += ["the mixture that the source draws"] if follows else []
    what = f"no development rows: {', '.join(parts)} are chosen by the held-out rows"
    return f"{what}, so scores on those come out too good; {_FIX}"


def choice_note(model: str, name: str) -> str:
    """Return what a reader of a student's scores must know of how it was chosen; empty where there is nothing.

    Args:
        model: a run folder, or the ``best`` or ``model`` folder in one.
        name: of the evaluation, which is called after its rows.
    """
    here = Path(model).expanduser()
    run = here if here.name not in (BEST, MODEL) else here.parent
    try:
        if not RunFolder(run).is_run:
            return ""
        follows = "monitor" in RunFolder(run).manifest()["identity"]
        config = settings.resolve(DistillConfig, file=run / CONFIG)
    except (KDError, OSError):
        return ""
    if not watches_held_out(config) or name != splits.evaluation_name(str(config.data.eval)):
        return ""
    if here.name == BEST:
        return f"{run.name}/{BEST} was chosen by the held-out rows that it is measured on: its scores are too good"
    if follows:
        return f"the training of {run.name} followed the held-out rows that it is measured on: its scores are too good"
    return ""
