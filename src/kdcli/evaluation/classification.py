"""Scores of classification: every choice of every row as a continuation of its prompt."""

from dataclasses import replace

import numpy as np

from kdcli.data.choices import Choices, encode_choices
from kdcli.data.tokenize import TokenDataset
from kdcli.evaluation.scoring import Scores, info_of
from kdcli.events import Event, Report
from kdcli.generation.scoring import LogProbScorer
from kdcli.metrics.classification import ChoiceMetric, ChoiceTable
from kdcli.models.devices import Device
from kdcli.models.load import LanguageModel


def score_choices(
    metrics: tuple[ChoiceMetric, ...],
    model: LanguageModel,
    dataset: TokenDataset,
    development: TokenDataset | None,
    device: Device,
    report: Report,
) -> Scores:
    """Read every choice, and score with every metric of choices.

    Args:
        metrics: what to compute; nothing is read where there are none.
        model: the model measured.
        dataset: rows with choices.
        development: rows to fit on, where a metric needs them.
        device: where to compute.
        report: called with progress events.

    Raises:
        InputError: a row whose choices cannot be used.
    """
    if not metrics:
        return Scores()
    table = read_choices(model, dataset, device, report)
    if development is not None and any(metric.needs_development for metric in metrics):
        table = replace(table, development=read_choices(model, development, device, report))
    pairs, curves = [], []
    for metric in metrics:
        pairs += [(score, info_of(score, metric)) for score in metric.scores_from_choices(table)]
        curves += metric.curves(metric.checked(table))
    return Scores(tuple(pairs), tuple(curves))


def read_choices(model: LanguageModel, dataset: TokenDataset, device: Device, report: Report) -> ChoiceTable:
    """Return the summed log-probability of every choice of every row.

    Raises:
        InputError: a row whose choices cannot be used, or a prompt and choice that exceed the model's context.
    """
    rows = encode_choices(model.tokenizer, dataset)
    model.check_length(max(len(row.context) + max(map(len, row.ids)) for row in rows))
    reader, scores = LogProbScorer(model, device), []
    report(Event("stage", "reading choices", total=len(rows)))
    for row in rows:
        scores.append(reader.logp(row.context, row.ids))
        report(Event("progress", "reading choices", done=len(scores), total=len(rows)))
    return _table([row.choices for row in rows], scores, [list(map(len, row.ids)) for row in rows])


def _table(rows: list[Choices], found: list[list[float]], tokens: list[list[int]]) -> ChoiceTable:
    """Lay the choices out in rows; where all rows have the same ones, in the first row's order."""
    labels = rows[0].texts if len({frozenset(row.texts) for row in rows}) == 1 else ()
    shape = len(rows), max(len(row.texts) for row in rows)
    scores, lengths, right = np.full(shape, -np.inf), np.ones(shape, dtype=np.int64), np.zeros(len(rows), np.int64)
    for index, row in enumerate(rows):
        places = [labels.index(text) for text in row.texts] if labels else list(range(len(row.texts)))
        scores[index, places], lengths[index, places] = found[index], tokens[index]
        right[index] = places[row.right]
    return ChoiceTable(scores, lengths, right, labels)
