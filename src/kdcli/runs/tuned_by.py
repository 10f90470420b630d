"""The score that tuning goes by."""

from dataclasses import dataclass

from kdcli.config import CompareConfig
from kdcli.data.examples import TokenDataset
from kdcli.errors import UsageError
from kdcli.metrics.describe import MetricCard, cards, describe
from kdcli.runs.splits import leaves_answers_out
from kdcli.spelling import nearest
from kdcli.text import one_line


@dataclass(frozen=True)
class TunedBy:
    """A score that values are chosen by.

    Args:
        metric: the metric that computes it.
        score: its name in tables.
        higher: whether more is better.
    """

    metric: str
    score: str
    higher: bool


def tuned_by(config: CompareConfig, rows: TokenDataset | None = None) -> TunedBy:
    """Return the score that chooses: the one asked for, else the first one measured that has a better direction.

    Args:
        config: the study's settings.
        rows: what is measured, as far as it is known; where no row has a prompt, default metrics of answers are not.

    Raises:
        UsageError: no such score, or none of which more or less is better.

    >>> tuned_by(CompareConfig(tune_by="nll"))
    TunedBy(metric='perplexity', score='nll', higher=False)
    """
    if config.tune_by is None:
        left_out = leaves_answers_out(config.evaluation, rows)
        for card in map(describe, config.evaluation.metrics):
            if card.eats == "texts" and left_out:
                continue
            for score, better in card.scores.items():
                if better != "neither":
                    return TunedBy(card.name, score, better == "higher")
        raise UsageError("CLI-20", "no score to tune by", where="--tune-by", fix="name one, such as nll")
    card, score = _find(config.tune_by, [*map(describe, config.evaluation.metrics), *cards()])
    if card.scores[score] == "neither":
        raise UsageError("CLI-06", f"neither more nor less {score} is better", where="--tune-by", fix="name another")
    return TunedBy(card.name, score, card.scores[score] == "higher")


def _find(wanted: str, known: list[MetricCard]) -> tuple[MetricCard, str]:
    for card in known:
        if wanted in card.scores:
            return card, wanted
    for card in known:
        if wanted in (card.name, *card.aliases):
            return card, next(iter(card.scores))
    names = {name: name for card in known for name in (card.name, *card.scores)}
    near = nearest(wanted, names)
    fix = f"did you mean {near}?" if near else "kd metrics list shows them"
    raise UsageError("METRIC-01", f'no score is called "{one_line(wanted, 60)}"', where="--tune-by", fix=fix)
