"""Asks a source for every answer that an evaluation needs and that is not there yet."""

from collections.abc import Sequence
from dataclasses import replace

from kdcli.config import GenerationConfig
from kdcli.data.examples import TokenDataset
from kdcli.engine.events import Event, Report
from kdcli.runs.evaluation.answering import Answerer, Question, Said
from kdcli.runs.evaluation.kept import KeptAnswers
from kdcli.runs.evaluation.scoring import Texts


def questions_of(dataset: TokenDataset, config: GenerationConfig) -> list[Question]:
    """Return one question per row with all sampling seeds; greedy answers are all the same, so one seed does."""
    seeds = config.seeds if config.temperature > 0 else config.seeds[:1]
    return [
        Question(number, example.question, example.prompt, seeds) for number, example in enumerate(dataset.examples)
    ]


def answer(
    source: Answerer,
    dataset: TokenDataset,
    config: GenerationConfig,
    report: Report,
    kept: KeptAnswers | None = None,
) -> Texts:
    """Return one answer per row and sampling seed, asking only for those that are not kept.

    Args:
        source: who answers.
        dataset: rows whose prompts are asked.
        config: how answers are sampled.
        report: told how far it is.
        kept: answers made before, and where to keep those made now; None keeps nothing.

    Raises:
        KDError: whatever the source refuses; what was answered before is kept.
    """
    questions = questions_of(dataset, config)
    said = ask(source, questions, report, kept)
    rows = [[said[question.number, seed] for seed in question.seeds] for question in questions]
    return Texts(
        predictions=[[one.text for one in row] for row in rows],
        references=[list(example.references) for example in dataset.examples],
        prompts=[example.prompt for example in dataset.examples],
        ended=[[one.answer.ended for one in row] for row in rows],
        answers=[[one.answer for one in row] for row in rows],
    )


def ask(
    source: Answerer, questions: Sequence[Question], report: Report, kept: KeptAnswers | None = None
) -> dict[tuple[int, int], Said]:
    """Return the answer to every question and seed, by example and seed."""
    if kept is None:
        return {(one.number, one.seed): one for one in source.answers_for(questions, report)}
    said = {}
    for question in questions:
        for seed in question.seeds:
            if (known := kept.find(question, seed)) is not None:
                said[question.number, seed] = known
    open_ = [
        replace(question, seeds=seeds)
        for question in questions
        if (seeds := tuple(seed for seed in question.seeds if (question.number, seed) not in said))
    ]
    if said:
        total = sum(len(question.seeds) for question in questions)
        report(Event("note", f"{len(said):,} of {total:,} answers were made before"))
    by_number = {question.number: question for question in questions}
    try:
        for one in source.answers_for(open_, report) if open_ else ():
            kept.add(by_number[one.number], one)
            said[one.number, one.seed] = one
    finally:
        kept.close()
    return said
