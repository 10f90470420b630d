"""From what was measured to the record that is handed back and kept."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.config import EvalConfig
from kdcli.runs.evaluation import scoring
from kdcli.runs.evaluation.beside import Beside
from kdcli.runs.evaluation.results import Rows, make_place, write_results
from kdcli.runs.evaluation.scoring import Scored
from kdcli.runs.records import AnswerCounts, EvalRecord
from kdcli.statistics import over_examples


@dataclass(frozen=True)
class Measured:
    """One evaluation's findings.

    Args:
        name: of the test set.
        model: what was measured.
        model_digest: sha256 that identifies it.
        folder: where to keep the record; None keeps nothing.
        protocol: everything but the model that the numbers follow from.
        scored: scores and curves.
        rows: per-example values.
        notes: sentences a reader of the numbers needs.
        beside: benchmarks, and what the model costs.
    """

    name: str
    model: str
    model_digest: str
    folder: Path | None
    protocol: dict[str, Any]
    scored: Scored
    rows: Rows
    notes: tuple[str, ...]
    beside: Beside = field(default_factory=Beside)


def keep(measured: Measured, config: EvalConfig) -> EvalRecord:
    """Make the record of what was measured, and write it if there is a place for it."""
    pairs = scoring.each_once(measured.scored.pairs)
    said = [note for score, _ in pairs for note in score.notes]
    record = EvalRecord(
        name=measured.name,
        model=measured.model,
        model_digest=measured.model_digest,
        folder=measured.folder,
        examples=measured.protocol["examples"],
        estimates={score.name: over_examples(score) for score, _ in pairs},
        infos=tuple(scoring.complete(info, measured.protocol) for _, info in pairs),
        protocol=measured.protocol,
        notes=tuple(dict.fromkeys([*measured.notes, *said, *measured.scored.notes])),
        curves=measured.scored.curves,
        answers=_counts(measured, config),
    )
    record = measured.beside.join(record)
    if measured.folder is not None:
        scores = [score for score, _ in pairs]
        make_place(measured.folder, config.output)
        write_results(measured.folder, record, config.evaluation, measured.rows, scores, pictures=config.pictures)
    return record


def _counts(measured: Measured, config: EvalConfig) -> AnswerCounts | None:
    texts = measured.rows.texts
    if texts is None:
        return None
    most = config.evaluation.generation.max_new_tokens if measured.protocol["generation"] is not None else None
    return scoring.answer_counts(texts, most)
