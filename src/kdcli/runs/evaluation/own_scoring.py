"""Scores of sampled answers: each sampler is asked once, for all metrics that read its answers."""

from collections.abc import Sequence
from dataclasses import replace

from kdcli.config import EvalConfig, GenerationConfig
from kdcli.data.examples import TokenDataset
from kdcli.engine.devices import Device
from kdcli.engine.events import Event, Report
from kdcli.generate import Answer
from kdcli.metrics.own import OwnFacts, OwnMetric, Sampler
from kdcli.models.load import LanguageModel
from kdcli.runs.evaluation.own_samples import Speakers, facts_of_answers, facts_of_drafting, sample_answers
from kdcli.runs.evaluation.scoring import Scored, info_of
from kdcli.runs.model_facts import ModelFacts
from kdcli.runs.workshop import Workshop


def score_own(
    metrics: Sequence[OwnMetric],
    dataset: TokenDataset,
    speakers: Speakers,
    answers: Sequence[Sequence[Answer]] | None = None,
) -> Scored:
    """Sample what the metrics read, measure it, and score.

    Args:
        metrics: metrics of sampled answers.
        dataset: rows whose prompts are answered.
        speakers: student and, where a metric compares, teacher.
        answers: the student's answers, where they are known already, ``[example][sampling seed]``.
    """
    if not metrics:
        return Scored()
    samplers: list[Sampler] = [sampler for metric in metrics for sampler in metric.samplers]
    samples: dict[Sampler, OwnFacts] = {
        sampler: _samples(sampler, _facts_read(metrics, sampler), dataset, speakers, answers)
        for sampler in dict.fromkeys(samplers)
    }
    pairs, curves = [], []
    for metric in metrics:
        notes = _sampling_notes(metric, speakers.config)
        for score in metric.scores_from_own(samples):
            pairs.append((replace(score, notes=(*score.notes, *notes)), info_of(score, metric)))
        curves += metric.curves(metric.checked(samples))
    return Scored(tuple(pairs), tuple(curves))


def check_own(metrics: Sequence[OwnMetric], dataset: TokenDataset, speakers: Speakers) -> None:
    """Refuse what cannot work, before anything is sampled.

    Raises:
        InputError: a context too short for the answers, or answers too short for a metric.
    """
    speakers.check_room(dataset)
    for metric in metrics:
        metric.check_length(speakers.config.max_new_tokens)


def live_teacher(
    metrics: Sequence[OwnMetric],
    facts: ModelFacts | None,
    config: EvalConfig,
    vocab: int,
    device: Device,
    workshop: Workshop,
    report: Report,
) -> LanguageModel | None:
    """Return the teacher itself if a metric reads it; a cache cannot know answers that are yet to be sampled."""
    reading = [metric.name for metric in metrics if metric.needs_teacher()]
    if facts is None or not reading:
        return None
    if config.teacher_cache is not None:
        report(Event("note", f"sampled answers are in no cache: the teacher itself is run for {', '.join(reading)}"))
    return replace(workshop.load_teacher(facts.path, device.device, facts.quantization), vocab=vocab)


def _sampling_notes(metric: OwnMetric, config: GenerationConfig) -> tuple[str, ...]:
    """Say so where answers were not sampled as the metric's definition has it."""
    if not metric.plain_sampling or (config.temperature, config.top_p) == (1.0, 1.0):
        return ()
    how = f"temperature {config.temperature:g} and top-p {config.top_p:g}"
    return (f"{metric.name} is defined on answers sampled at temperature 1 and top-p 1; here: {how}",)


def _facts_read(metrics: Sequence[OwnMetric], sampler: Sampler) -> set[str]:
    return {fact for metric in metrics if sampler in metric.samplers for fact in metric.facts}


def _samples(
    sampler: Sampler,
    names: set[str],
    dataset: TokenDataset,
    speakers: Speakers,
    answers: Sequence[Sequence[Answer]] | None,
) -> OwnFacts:
    if sampler == "student":
        said = answers or sample_answers(speakers.student, dataset, speakers, sampler)
        return facts_of_answers(said, dataset, speakers, names)
    if sampler == "speculative":
        return facts_of_drafting(dataset, speakers)
    assert speakers.teacher is not None, "metrics that read it say that they need a teacher"
    said = sample_answers(speakers.teacher, dataset, speakers, sampler)
    return facts_of_answers(said, dataset, speakers, names)
