"""Token statistics of sampled answers under both models."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdcli.config.sections import GenerationConfig
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.errors import InputError
from kdcli.evaluation.answer_sources import LocalAnswers
from kdcli.evaluation.answers import answer
from kdcli.evaluation.scoring import Scores, info_of
from kdcli.evaluation.token_facts import token_facts
from kdcli.events import Event, Report
from kdcli.generation import Completion
from kdcli.generation.speculative import as_columns, speculate
from kdcli.loading.info import ModelInfo
from kdcli.loading.session import Session
from kdcli.metrics.on_policy import OnPolicyMetric, SampledTokenStats, Sampler
from kdcli.models.devices import Device
from kdcli.models.load import LanguageModel
from kdcli.teachers.base import LiveTeacher

_MICRO_TOKENS = 4096


@dataclass(frozen=True)
class DecoderPair:
    """Who samples, who is compared with whom, and where.

    Args:
        student: the model measured.
        teacher: what it is compared with, itself and not a cache of it, or None.
        config: how answers are sampled.
        draft_tokens: tokens the student drafts per call of the teacher in speculative sampling.
        device: where to compute.
        report: called with progress events.
    """

    student: LanguageModel
    teacher: LanguageModel | None
    config: GenerationConfig
    draft_tokens: int
    device: Device
    report: Report

    @property
    def seeds(self) -> tuple[int, ...]:
        """Sampling seeds, one answer each; greedy answers are all the same, so one does."""
        return self.config.seeds if self.config.temperature > 0 else self.config.seeds[:1]


def sample_answers(
    model: LanguageModel, dataset: TokenDataset, decoders: DecoderPair, whose: str
) -> list[list[Completion]]:
    """Sample a model's answers to every row, ``[example][sampling seed]``."""
    decoders.report(Event("note", f"sampling the {whose}'s answers"))
    texts = answer(LocalAnswers(model, decoders.config, decoders.device), dataset, decoders.config, decoders.report)
    assert texts.answers is not None, "a model in this process answers in tokens"
    return texts.answers


def facts_of_answers(
    answers: Sequence[Sequence[Completion]],
    dataset: TokenDataset,
    decoders: DecoderPair,
    names: Collection[str],
) -> SampledTokenStats:
    """Measure every token of sampled answers with both models.

    Args:
        answers: ``[example][answer]``, equally many for each example; an end token counts as a token of its answer.
        dataset: the prompts.
        decoders: both models.
        names: token facts wanted.
    """
    count = len(answers[0])
    sampled = TokenDataset(
        tuple(
            _sampled_example(example, answer)
            for example, several in zip(dataset.examples, answers, strict=True)
            for answer in several
        )
    )
    teacher = None if decoders.teacher is None else LiveTeacher(decoders.teacher)
    facts, row = token_facts(
        decoders.student, teacher, sampled,
        vocab=decoders.student.vocab, micro_tokens=_MICRO_TOKENS, device=decoders.device, report=decoders.report,
        names=names,
    )  # fmt: skip
    tokens = np.bincount(row, minlength=len(sampled))
    first = np.cumsum(tokens) - tokens
    return SampledTokenStats(
        facts, row // count, row % count, np.arange(len(row)) - first[row],
        len(dataset), count, decoders.config.max_new_tokens,
    )  # fmt: skip


def facts_of_drafting(dataset: TokenDataset, decoders: DecoderPair) -> SampledTokenStats:
    """Answer every row once per sampling seed by speculative sampling, and record every test of a drafted token."""
    assert decoders.teacher is not None, "metrics that read it say that they need a teacher"
    seeds, stage, tests = decoders.seeds, "drafting for the teacher", []
    decoders.report(Event("stage", stage, total=len(dataset)))
    for number, example in enumerate(dataset.examples):
        prompt = example.question
        for seed in seeds:
            _, found = speculate(
                decoders.student, decoders.teacher, prompt, decoders.config,
                draft_tokens=decoders.draft_tokens, seed=seed, example=number,
            )  # fmt: skip
            tests.append(found)
        decoders.report(Event("progress", stage, done=number + 1, total=len(dataset)))
    facts, row, position = as_columns(tests)
    count = len(seeds)
    return SampledTokenStats(
        facts, row // count, row % count, position, len(dataset), count, decoders.config.max_new_tokens
    )


def _sampled_example(example: Example, answer: Completion) -> Example:
    """A row whose response is a sampled answer."""
    prompt = example.question
    return Example((*prompt, *answer.tokens), len(prompt), example.prompt, (), example.where)


# Scores of sampled answers: each sampler is asked once, for all metrics that read its answers.


def score_on_policy(
    metrics: Sequence[OnPolicyMetric],
    dataset: TokenDataset,
    decoders: DecoderPair,
    answers: Sequence[Sequence[Completion]] | None = None,
) -> Scores:
    """Sample what the metrics read, measure it, and score.

    Args:
        metrics: metrics of sampled answers.
        dataset: rows whose prompts are answered.
        decoders: student and, where a metric compares, teacher.
        answers: the student's answers, where they are known already, ``[example][sampling seed]``.
    """
    if not metrics:
        return Scores()
    samplers: list[Sampler] = [sampler for metric in metrics for sampler in metric.samplers]
    samples: dict[Sampler, SampledTokenStats] = {
        sampler: _samples(sampler, _facts_read(metrics, sampler), dataset, decoders, answers)
        for sampler in dict.fromkeys(samplers)
    }
    pairs, curves = [], []
    for metric in metrics:
        notes = _sampling_notes(metric, decoders.config)
        for score in metric.scores_from_own(samples):
            pairs.append((replace(score, notes=(*score.notes, *notes)), info_of(score, metric)))
        curves += metric.curves(metric.checked(samples))
    return Scores(tuple(pairs), tuple(curves))


def check_on_policy(
    metrics: Sequence[OnPolicyMetric], dataset: TokenDataset, most: int, positions: Mapping[str, int | None]
) -> None:
    """Refuse what cannot work, before anything is sampled.

    Args:
        metrics: metrics of sampled answers.
        dataset: rows whose prompts are answered.
        most: tokens of an answer at most.
        positions: the models that answer or are compared -> the longest sequence of each; None for any.

    Raises:
        InputError: a context too short for the answers, or answers too short for a metric.
    """
    longest = max(len(example.question) for example in dataset.examples)
    for path, bound in positions.items():
        if bound is not None and longest + most > bound:
            what = f"{longest} prompt and {most} answer tokens exceed {bound} positions"
            fix = f"set data.max_prompt_length={bound - most}" if bound > most else "set a smaller --max-new-tokens"
            raise InputError("EVAL-06", what, where=path, fix=fix)
    for metric in metrics:
        metric.check_length(most)


def live_teacher(
    metrics: Sequence[OnPolicyMetric],
    facts: ModelInfo | None,
    vocab: int,
    device: Device,
    session: Session,
    report: Report,
    *,
    cached: bool,
) -> LanguageModel | None:
    """Return the teacher itself if a metric reads it; a cache cannot know answers that are yet to be sampled."""
    reading = [metric.name for metric in metrics if metric.needs_teacher()]
    if facts is None or not reading:
        return None
    if cached:
        report(Event("note", f"sampled answers are in no cache: the teacher itself is run for {', '.join(reading)}"))
    return replace(session.load_teacher(facts.path, device.device, facts.quantization), vocab=vocab)


def _sampling_notes(metric: OnPolicyMetric, config: GenerationConfig) -> tuple[str, ...]:
    """Say so where answers were not sampled as the metric's definition has it."""
    if not metric.plain_sampling or (config.temperature, config.top_p) == (1.0, 1.0):
        return ()
    how = f"temperature {config.temperature:g} and top-p {config.top_p:g}"
    return (f"{metric.name} is defined on answers sampled at temperature 1 and top-p 1; here: {how}",)


def _facts_read(metrics: Sequence[OnPolicyMetric], sampler: Sampler) -> set[str]:
    return {fact for metric in metrics if sampler in metric.samplers for fact in metric.facts}


def _samples(
    sampler: Sampler,
    names: set[str],
    dataset: TokenDataset,
    decoders: DecoderPair,
    answers: Sequence[Sequence[Completion]] | None,
) -> SampledTokenStats:
    if sampler == "student":
        said = answers or sample_answers(decoders.student, dataset, decoders, sampler)
        return facts_of_answers(said, dataset, decoders, names)
    if sampler == "speculative":
        return facts_of_drafting(dataset, decoders)
    assert decoders.teacher is not None, "metrics that read it say that they need a teacher"
    said = sample_answers(decoders.teacher, dataset, decoders, sampler)
    return facts_of_answers(said, dataset, decoders, names)
