"""From a model and held-out rows to scores: texts are generated, tokens are measured."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdcli import __version__
from kdcli.config import EvalSettings, GenerationConfig
from kdcli.data.dataset import TokenDataset
from kdcli.engine.devices import Device
from kdcli.engine.events import Event, Report
from kdcli.engine.teacher import Teacher
from kdcli.engine.token_facts import token_facts
from kdcli.errors import InputError, UsageError
from kdcli.generate import generate
from kdcli.metrics.base import Metric, TextMetric, TokenMetric
from kdcli.metrics.build import build_metrics
from kdcli.metrics.score import Finish, Score
from kdcli.models.load import LanguageModel
from kdcli.runs.records import ScoreInfo

_MICRO_TOKENS = 4096


@dataclass(frozen=True)
class Chosen:
    """The metrics of an evaluation, split by what they eat.

    Args:
        texts: metrics of generated texts.
        tokens: metrics of token facts.
        notes: which default metrics were left out, and why.
    """

    texts: tuple[TextMetric, ...]
    tokens: tuple[TokenMetric, ...]
    notes: tuple[str, ...] = ()

    @property
    def needs_teacher(self) -> bool:
        """Whether one of them compares with a teacher."""
        return any(metric.needs_teacher() for metric in self.tokens)

    @property
    def all(self) -> tuple[Metric, ...]:
        """Every metric, texts first."""
        return (*self.texts, *self.tokens)


@dataclass(frozen=True)
class Texts:
    """What was asked and what was answered.

    Args:
        predictions: answers, ``[example][sampling seed]``.
        references: valid answers of each example.
        prompts: prompt of each example.
        ended: whether each answer was ended by the model itself.
    """

    predictions: list[list[str]]
    references: list[list[str]]
    prompts: list[str]
    ended: list[list[bool]]


def choose_metrics(settings: EvalSettings, *, teacher: bool, model: bool = True) -> Chosen:
    """Construct the metrics; of the default list, leave out what cannot be had.

    Args:
        settings: names and options.
        teacher: whether there is a teacher to compare with.
        model: whether there is a model at all; without one only texts can be scored.

    Raises:
        UsageError: a metric was asked for that needs a teacher or a model that is not there.
    """
    texts, tokens = build_metrics(settings)
    lacking = {}
    if not teacher:
        lacking = {metric.name: "needs a teacher; give --teacher" for metric in tokens if metric.needs_teacher()}
    if not model:
        lacking |= {metric.name: "is measured on a model; --predictions holds texts" for metric in tokens}
    asked = settings.metrics != EvalSettings().metrics
    if lacking and asked:
        name, why = next(iter(lacking.items()))
        what, _, fix = why.partition("; ")
        raise UsageError("EVAL-01", f"{name} {what}", where="--metric", fix=fix or f"leave {name} out")
    left = tuple(metric for metric in tokens if metric.name not in lacking)
    return Chosen(tuple(texts), left, tuple(f"{name} left out: it {why}" for name, why in lacking.items()))


def answer(model: LanguageModel, dataset: TokenDataset, config: GenerationConfig, report: Report) -> Texts:
    """Generate one answer per row and sampling seed; at temperature 0 one per row."""
    rows = [example.ids[: example.prompt_length] for example in dataset.examples]
    seeds = config.seeds if config.temperature > 0 else config.seeds[:1]
    predictions: list[list[str]] = [[] for _ in rows]
    ended: list[list[bool]] = [[] for _ in rows]
    made = 0
    report(Event("stage", "answering", total=len(seeds)))
    for index, seed in enumerate(seeds):

        def tell(tokens: int, done: int = index) -> None:
            nonlocal made
            made += tokens
            report(Event("progress", "answering", done=done, total=len(seeds), values={"tokens": made}))

        answers = generate(model, rows, config, seed=seed, rows=model.vocab, report=tell)
        for row, said in enumerate(answers):
            text = model.tokenizer.decode(list(said.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            predictions[row].append(str(text).strip())
            ended[row].append(said.ended)
        report(Event("progress", "answering", done=index + 1, total=len(seeds)))
    references = [list(example.references) for example in dataset.examples]
    return Texts(predictions, references, [example.prompt for example in dataset.examples], ended)


def score_texts(chosen: Chosen, texts: Texts) -> list[tuple[Score, ScoreInfo]]:
    """Score answers with every metric of texts."""
    return [
        (score, _info(score, metric))
        for metric in chosen.texts
        for score in metric.scores_from_texts(texts.predictions, texts.references)
    ]


def score_tokens(
    chosen: Chosen,
    student: LanguageModel,
    teacher: Teacher | None,
    dataset: TokenDataset,
    device: Device,
    report: Report,
) -> list[tuple[Score, ScoreInfo]]:
    """Measure every response token, and score with every metric of token facts."""
    if not chosen.tokens:
        return []
    facts, example = token_facts(
        student, teacher if chosen.needs_teacher else None, dataset,
        vocab=student.vocab, micro_tokens=_MICRO_TOKENS, device=device, report=report,
    )  # fmt: skip
    return [
        (score, _info(score, metric))
        for metric in chosen.tokens
        for score in metric.scores_from_tokens(facts, example, len(dataset))
    ]


def finishes(chosen: Chosen) -> dict[str, Finish]:
    """Return what turns stored sums into each score, learnt from one made-up example."""
    scores = [score for metric in chosen.texts for score in metric.scores_from_texts([["a"]], [["a"]])]
    for metric in chosen.tokens:
        facts = {name: np.array([0.5]) for name in metric.facts}
        scores += metric.scores_from_tokens(facts, np.array([0]), 1)
    return {score.name: score.finish for score in scores}


def complete(info: ScoreInfo, protocol: dict[str, Any]) -> ScoreInfo:
    """Complete a score's signature: how answers were made, on which rows, by which version."""
    parts, generation = [info.settings], protocol["generation"]
    if generation is not None and info.eats == "texts":
        sampled = [f"temp:{generation['temperature']:g}", f"top_p:{generation['top_p']:g}"]
        seeds = ",".join(map(str, generation["seeds"]))
        parts += [*sampled, f"seeds:{seeds}"] if generation["temperature"] else ["gen:greedy"]
        parts.append(f"max:{generation['max_new_tokens']}")
    parts += [f"data:{protocol['data'][:8]}", f"n:{protocol['examples']}", f"kd:{__version__}"]
    return replace(info, settings="|".join(parts))


def _info(score: Score, metric: Metric) -> ScoreInfo:
    return ScoreInfo(score.name, score.better, metric.name, metric.signature, metric.eats)


def each_once(pairs: list[tuple[Score, ScoreInfo]]) -> list[tuple[Score, ScoreInfo]]:
    """Keep the first of scores that two metrics both compute.

    Raises:
        InputError: two metrics give one name to different numbers.
    """
    kept: dict[str, tuple[Score, ScoreInfo]] = {}
    for score, info in pairs:
        first, owner = kept.setdefault(score.name, (score, info))
        if first.value != score.value:
            what = f'the score "{score.name}" comes from {owner.metric} and from {info.metric}'
            raise InputError("METRIC-07", what, where="--metric", fix="leave one of them out")
    return list(kept.values())
