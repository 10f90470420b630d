"""Scores of classifiers: accuracy, macro-F1, calibration, and the distance to a teacher, over the classes of rows."""

import statistics
import time
from dataclasses import replace

import numpy as np

from kdcli.classifiers.model import ClassReader
from kdcli.config.sections import EvalSettings
from kdcli.data.tokenize import TokenDataset
from kdcli.errors import UsageError
from kdcli.evaluation.scoring import MetricSet, Scores, info_of
from kdcli.events import Report
from kdcli.metrics.classification import ChoiceTable
from kdcli.metrics.describe import describe
from kdcli.metrics.score import facts_from_logits
from kdcli.teachers.class_view import logits_of

METRICS = ("answers", "macro_f1")
OF_TEACHER = ("kl_to_teacher", "agreement")
"""What is measured of a classifier where nothing was asked for: in itself, and against its teacher."""

_TIMED = 64


def class_settings(evaluation: EvalSettings, *, teacher: bool) -> EvalSettings:
    """Return settings with the metrics of a classifier, unless others were asked for.

    Args:
        evaluation: what is measured.
        teacher: whether there is a teacher to compare with.
    """
    if evaluation.metrics != EvalSettings().metrics:
        return evaluation
    return evaluation.model_copy(update={"metrics": METRICS + OF_TEACHER * teacher})


def check_class_metrics(evaluation: EvalSettings) -> None:
    """Refuse metrics of texts that are written.

    Raises:
        UsageError: CLS-03, names them.
    """
    bad = [name for name in evaluation.metrics if describe(name).input_kind not in ("choices", "tokens")]
    if bad:
        what = f"{', '.join(bad)} is of texts that a model writes, and a classifier writes none"
        fix = f"give --metric {','.join(METRICS)}"
        raise UsageError("CLS-03", what, where="--metric", fix=fix)


def score_classes(
    chosen: MetricSet,
    reader: ClassReader,
    teacher: ClassReader | None,
    rows: TokenDataset,
    development: TokenDataset | None,
    longest: int,
    report: Report,
) -> Scores:
    """Read rows, and score with every metric.

    Args:
        chosen: the metrics, of choices and of tokens; a row's class is its one token.
        reader: what is measured.
        teacher: what it is compared with, of the same classes; None where no metric compares.
        rows: texts and their classes.
        development: rows to fit on, where a metric needs them.
        longest: tokens of a row at most, the class included.
        report: called with events.
    """
    table = class_table(reader, rows, longest, report)
    if development is not None and chosen.needs_development:
        table = replace(table, development=class_table(reader, development, longest, report))
    pairs, curves = [], []
    for metric in chosen.choices:
        pairs += [(score, info_of(score, metric)) for score in metric.scores_from_choices(table)]
        curves += metric.curves(metric.checked(table))
    if chosen.tokens:
        theirs = None if teacher is None else logits_of(teacher, rows, longest, report, "the teacher reads texts")
        facts, each = facts_from_logits(table.scores, table.right, theirs), np.arange(len(rows))
        for one in chosen.tokens:
            pairs += [(score, info_of(score, one)) for score in one.scores_from_tokens(facts, each, len(rows))]
            curves += one.curves(facts, each, len(rows))
    return Scores(tuple(pairs), tuple(curves), (f"{reader.parameters:,} parameters",))


def class_table(reader: ClassReader, rows: TokenDataset, longest: int, report: Report) -> ChoiceTable:
    """Return a reader's log-probabilities of the classes of rows.

    Args:
        reader: a classifier of the rows' classes.
        rows: texts and their classes.
        longest: tokens of a row at most, the class included.
        report: called with events.
    """
    logits = logits_of(reader, rows, longest, report)
    high = logits.max(-1, keepdims=True)
    scores = logits - high - np.log(np.exp(logits - high).sum(-1, keepdims=True))
    right = np.array([one.ids[-1] for one in rows.examples], dtype=np.int64)
    return ChoiceTable(scores, np.ones(scores.shape, dtype=np.int64), right, rows.labels)


def timing_note(reader: ClassReader, rows: TokenDataset, longest: int, repeats: int, hardware: str) -> str:
    """Return how long one text takes, read alone: the median over repeats of the mean over the first rows.

    Args:
        reader: a classifier.
        rows: texts.
        longest: tokens of a row at most, the class included.
        repeats: measurements; one more comes first, to warm up.
        hardware: what computes.
    """
    texts, times = rows.examples[:_TIMED], []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        for one in texts:
            reader.class_logits([one.prompt], [one.where], longest - 1)
        times.append((time.perf_counter() - started) / len(texts))
    taken = statistics.median(times[1:]) * 1e3
    return f"{taken:.3g} ms a text ({len(texts)} texts read alone, median of {repeats}; {hardware})"
