"""Scores of classification: every choice of every row read as a continuation of its prompt."""

from dataclasses import replace

import numpy as np

from kdcli.data.choices import Choices, encode_choices
from kdcli.data.examples import TokenDataset
from kdcli.engine.continuations import Reader
from kdcli.engine.devices import Device
from kdcli.engine.events import Event, Report
from kdcli.metrics.choices import ChoiceMetric, ChoiceTable
from kdcli.models.load import LanguageModel
from kdcli.runs.evaluation.scoring import Scored, info_of


def score_choices(
    metrics: tuple[ChoiceMetric, ...],
    model: LanguageModel,
    dataset: TokenDataset,
    development: TokenDataset | None,
    device: Device,
    report: Report,
) -> Scored:
    """Read every choice, and score with every metric of choices.

    Args:
        metrics: what to compute; nothing is read where there are none.
        model: the model measured.
        dataset: rows with choices.
        development: rows to fit on, where a metric needs them.
        device: where to compute.
        report: told how far it is.

    Raises:
        InputError: a row whose choices cannot be used.
    """
    if not metrics:
        return Scored()
    table = read_choices(model, dataset, device, report)
    if development is not None and any(metric.needs_development for metric in metrics):
        table = replace(table, development=read_choices(model, development, device, report))
    pairs, curves = [], []
    for metric in metrics:
        pairs += [(score, info_of(score, metric)) for score in metric.scores_from_choices(table)]
        curves += metric.curves(metric.checked(table))
    return Scored(tuple(pairs), tuple(curves))


def read_choices(model: LanguageModel, dataset: TokenDataset, device: Device, report: Report) -> ChoiceTable:
    """Return the summed log-probability of every choice of every row.

    Raises:
        InputError: a row whose choices cannot be used, or a prompt and choice that exceed the model's context.
    """
    rows = encode_choices(model.tokenizer, dataset)
    model.check_length(max(len(row.context) + max(map(len, row.ids)) for row in rows))
    reader, scores = Reader(model, device), []
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
