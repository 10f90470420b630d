"""Scores a model on held-out rows: texts are generated, tokens are measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdcli.config.sections import EvalSettings
from kdcli.data.tokenize import TokenDataset
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, UsageError, raise_all
from kdcli.evaluation.answers import TextSamples
from kdcli.evaluation.records import AnswerCounts, ScoreInfo
from kdcli.evaluation.token_facts import fit_token_temperature, token_facts
from kdcli.events import Report
from kdcli.loading.splits import leaves_answers_out
from kdcli.metrics.base import Metric, TextMetric, TokenMetric
from kdcli.metrics.classification import ChoiceMetric, ChoiceTable
from kdcli.metrics.curve import Curve
from kdcli.metrics.diversity import unspaced_note
from kdcli.metrics.on_policy import OnPolicyMetric, one_token
from kdcli.metrics.score import Score
from kdcli.models.devices import Device
from kdcli.models.load import LanguageModel
from kdcli.models.plain import SETTING
from kdcli.registry.registry import METRICS
from kdcli.teachers.base import Teacher
from kdcli.version import __version__

_MICRO_TOKENS = 4096


@dataclass(frozen=True)
class _Lack:
    """Why a metric cannot be computed, and what to do about it; empty where nothing can be done."""

    why: str
    fix: str = ""

    def __str__(self) -> str:
        return "; ".join(part for part in (self.why, self.fix) if part)


_NO_TEACHER = _Lack("needs a teacher", "give --teacher")
_OTHER_TOKENS = _Lack("compares token ids with a teacher's, and this one has another tokenizer")


@dataclass(frozen=True)
class MetricSet:
    """The metrics of an evaluation, split by their inputs.

    Args:
        texts: metrics of generated texts.
        tokens: metrics of token facts.
        own: metrics of token facts of sampled answers.
        choices: metrics of the probabilities of given answers.
        notes: which default metrics were left out, and why.
    """

    texts: tuple[TextMetric, ...]
    tokens: tuple[TokenMetric, ...]
    own: tuple[OnPolicyMetric, ...] = ()
    choices: tuple[ChoiceMetric, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def needs_teacher(self) -> bool:
        """Whether one of them compares with a teacher."""
        return any(metric.needs_teacher() for metric in (*self.tokens, *self.own))

    @property
    def all(self) -> tuple[Metric, ...]:
        """Every metric, texts first."""
        return (*self.texts, *self.tokens, *self.own, *self.choices)

    @property
    def needs_development(self) -> bool:
        """Whether one of them is fitted on development rows."""
        return any(metric.needs_development for metric in (*self.tokens, *self.choices))


@dataclass(frozen=True)
class Scores:
    """What metrics say about a model.

    Args:
        pairs: each score with what a reader must know about it.
        curves: what is worth a picture.
        notes: what a reader of several scores must know.
    """

    pairs: tuple[tuple[Score, ScoreInfo], ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Scores") -> "Scores":
        """Join scores of texts, of tokens, and of sampled answers."""
        return Scores(self.pairs + other.pairs, self.curves + other.curves, self.notes + other.notes)


def build_metrics(
    settings: EvalSettings,
) -> tuple[list[TextMetric], list[TokenMetric], list[OnPolicyMetric], list[ChoiceMetric]]:
    """Construct the metrics named in the settings, each once, split by their inputs.

    Args:
        settings: names, and the options some of them take.

    Returns:
        metrics of texts, of token facts, of a model's own samples, and of given choices, in the order named.

    Raises:
        UsageError: an unknown name.

    >>> texts, tokens, own, choices = build_metrics(EvalSettings(metrics=("ppl", "rougeL", "perplexity")))
    >>> [metric.name for metric in texts], [metric.name for metric in tokens]
    (['rougeL'], ['perplexity'])
    """
    metrics = [build_metric(name, settings) for name in _unique(settings.metrics)]

    def reading(kind: str) -> list[Any]:
        return [metric for metric in metrics if metric.input_kind == kind]

    return reading("texts"), reading("tokens"), reading("own"), reading("choices")


def build_metric(name: str, settings: EvalSettings) -> Metric:
    """Construct one metric with the options it takes, from settings fields of the same name."""
    found: type[Metric] = METRICS.resolve(name)
    return found(**{option: getattr(settings, option) for option in found.options if hasattr(settings, option)})


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(METRICS.canonical(name) for name in names))


def choose_metrics(
    settings: EvalSettings, *, teacher: bool, model: bool = True, development: bool = True, other_tokens: bool = False
) -> MetricSet:
    """Construct the metrics; of the default list, leave out those that cannot be computed.

    Args:
        settings: names and options.
        teacher: whether there is a teacher to compare with.
        model: whether there is a model at all; without one only texts can be scored.
        development: whether there are development rows to fit on, apart from those measured.
        other_tokens: whether there is a teacher, and it cannot be compared with as its tokenizer is another one.

    Raises:
        UsageError: a metric was asked for that needs a teacher, a model or rows that are not there.
    """
    build = texts, tokens, own, choices = build_metrics(settings)
    why = None if teacher else _OTHER_TOKENS if other_tokens else _NO_TEACHER
    lacking = _lacking(build, why, model=model, development=development or settings.split == "dev")
    asked = settings.metrics != EvalSettings().metrics
    if lacking and asked:
        first = {lack: name for name, lack in reversed(lacking.items())}
        raise_all(
            UsageError("EVAL-01", f"{name} {lack.why}", where="--metric", fix=lack.fix or f"leave {name} out")
            for name, lack in lacking.items()
            if first[lack] == name
        )
    if settings.split == "dev":  # a study measures its candidates there; what is fitted on the same rows says nothing
        fitted = [metric.name for metric in (*tokens, *choices) if metric.needs_development]
        lacking |= dict.fromkeys(fitted, _Lack("is fitted on development rows, and those are measured here"))
    notes = tuple(f"{name} left out: it {why}" for name, why in lacking.items())
    left = tuple(metric for metric in tokens if metric.name not in lacking)
    ours = tuple(metric for metric in own if metric.name not in lacking)
    return MetricSet(tuple(texts), left, ours, tuple(metric for metric in choices if metric.name not in lacking), notes)


def _lacking(
    build: tuple[Sequence[Metric], Sequence[TokenMetric], Sequence[OnPolicyMetric], Sequence[ChoiceMetric]],
    no_teacher: _Lack | None, *, model: bool, development: bool,
) -> dict[str, _Lack]:  # fmt: skip
    """Return the metrics that cannot be computed, each with the reason."""
    _, tokens, own, choices = build
    found: dict[str, _Lack] = {}
    if no_teacher is not None:
        compared = [metric for metric in (*tokens, *own) if metric.needs_teacher()]
        found |= {metric.name: no_teacher for metric in compared}
    if not development:
        fitted = [metric for metric in (*tokens, *choices) if metric.needs_development]
        found |= {metric.name: _Lack("needs development rows", "give --set data.dev=FILE") for metric in fitted}
    if not model:
        why = _Lack("is measured on a model", "--predictions and --server-url give texts only")
        found |= {metric.name: why for metric in (*tokens, *own, *choices)}
    return found


def refuse_images(chosen: MetricSet, dataset: TokenDataset) -> None:
    """Refuse metrics that do not read the images of rows.

    Args:
        chosen: the metrics.
        dataset: the rows measured.

    Raises:
        UsageError: IMG-06.
    """
    blind = [metric.name for metric in (*chosen.own, *chosen.choices)]
    if dataset.with_images and blind:
        what = f"{', '.join(blind)} cannot be measured on rows with images"
        left = [metric.name for metric in (*chosen.texts, *chosen.tokens)] or ["perplexity"]
        raise UsageError("IMG-06", what, where="--metric", fix=f"give --metric {','.join(left)}")


def without_prompts(chosen: MetricSet, settings: EvalSettings, dataset: TokenDataset) -> MetricSet:
    """Leave the default metrics of answers out where no row has a prompt to answer; say so where some have none.

    Args:
        chosen: the metrics.
        settings: their names; what was asked for by name stays.
        dataset: the rows.
    """
    bare = dataset.without_prompt
    if not bare or not chosen.texts:
        return chosen
    names = ", ".join(metric.name for metric in chosen.texts)
    if leaves_answers_out(settings, dataset):
        return replace(chosen, texts=(), notes=(*chosen.notes, f"{names} left out: the rows have no prompt to answer"))
    note = f"{bare:,} of {len(dataset):,} rows have no prompt: {names} compare what follows the first token alone"
    return replace(chosen, notes=(*chosen.notes, note))


def with_reference_tokens(texts: TextSamples, dataset: TokenDataset, ends: EndTokens) -> TextSamples:
    """Return the texts with the number of tokens of each example's first reference, end token left out."""
    answers = [example.ids[example.prompt_length :] for example in dataset.examples]
    return replace(texts, reference_tokens=[len(ends.body(ids)) for ids in answers])


def answer_counts(texts: TextSamples, most: int | None) -> AnswerCounts:
    """Count answers, cut ones and empty ones.

    Args:
        texts: the answers.
        most: tokens they were cut at, as far as that is known.
    """
    said = [text for answers in texts.predictions for text in answers]
    cut = sum(not ended for answers in texts.ended for ended in answers) if texts.ended_is_known else None
    return AnswerCounts(len(said), sum(not text.strip() for text in said), cut, most)


def score_texts(chosen: MetricSet, texts: TextSamples) -> Scores:
    """Score answers with every metric of texts."""
    pairs, curves = [], []
    for metric in chosen.texts:
        scores = metric.scores_from_texts(texts.predictions, texts.references, **texts.also)
        pairs += [(score, info_of(score, metric)) for score in scores]
        curves += metric.curves(texts.predictions, texts.references, **texts.also)
    names = [metric.name for metric in chosen.texts if metric.splits_at_spaces]
    note = unspaced_note(names, (text for several in (*texts.predictions, *texts.references) for text in several))
    return Scores(tuple(pairs), tuple(curves), (note,) if note else ())


def score_tokens(
    chosen: MetricSet,
    student: LanguageModel,
    teacher: Teacher | None,
    dataset: TokenDataset,
    device: Device,
    report: Report,
    development: TokenDataset | None = None,
) -> Scores:
    """Measure every response token, and score with every metric of token facts."""
    if not chosen.tokens:
        return Scores()
    temperature = None
    if development is not None and any(metric.needs_development for metric in chosen.tokens):
        temperature = fit_token_temperature(
            student, development, micro_tokens=_MICRO_TOKENS, device=device, report=report
        )
    facts, example = token_facts(
        student, teacher, dataset, temperature=temperature,
        vocab=student.vocab, micro_tokens=_MICRO_TOKENS, device=device, report=report,
        names={name for metric in chosen.tokens for name in metric.facts},
    )  # fmt: skip
    pairs, curves = [], []
    for metric in chosen.tokens:
        scores = metric.scores_from_tokens(facts, example, len(dataset))
        pairs += [(score, info_of(score, metric)) for score in scores]
        curves += metric.curves(facts, example, len(dataset))
    return Scores(tuple(pairs), tuple(curves))


def forms(chosen: MetricSet) -> dict[str, Score]:
    """Return each score of made-up examples: what turns stored sums into it, and its bounds."""
    also = {"ended": [[True]], "reference_tokens": [1]}
    scores = [
        metric.bounded(score)
        for metric in chosen.texts
        for score in metric.measure([["a"]], [["a"]], **{name: also[name] for name in metric.extra_inputs})
    ]
    for metric in chosen.tokens:
        facts = {name: np.array([0.5]) for name in metric.facts}
        scores += metric.scores_from_tokens(facts, np.array([0]), 1)
    for metric in chosen.own:
        scores += metric.scores_from_own(dict.fromkeys(metric.samplers, one_token(metric.facts)))
    two = np.log([[0.75, 0.25], [0.25, 0.75]])  # one row of each class: with one alone there is no kappa
    one = ChoiceTable(two, np.ones((2, 2), dtype=np.int64), np.array([0, 1]))
    for metric in chosen.choices:
        scores += metric.scores_from_choices(replace(one, development=one))
    return {score.name: score for score in scores}


def complete(info: ScoreInfo, protocol: dict[str, Any]) -> ScoreInfo:
    """Complete a score's signature: how answers were made, on which rows, by which version."""
    parts, generation = [info.settings], protocol["generation"]
    if generation is not None and info.input_kind in ("texts", "own"):
        sampled = [f"temp:{generation['temperature']:g}", f"top_p:{generation['top_p']:g}"]
        seeds = ",".join(map(str, generation["seeds"]))
        parts += [*sampled, f"seeds:{seeds}"] if generation["temperature"] else ["gen:greedy"]
        parts += [f"max:{generation['max_new_tokens']}", "processors:server" if "server" in protocol else SETTING]
    elif info.input_kind == "texts":
        parts.append("answers:given")
    parts += [f"server:{protocol['server']}"] if "server" in protocol and info.input_kind == "texts" else []
    parts += [f"tmpl:{protocol['template']}"] if protocol.get("template") else []
    parts += [f"protocol:{protocol['name']}-{protocol['hash']}"] if "hash" in protocol else []
    parts += [f"data:{protocol['data'][:8]}", f"n:{protocol['examples']}", f"kd:{__version__}"]
    return replace(info, settings="|".join(parts))


def info_of(score: Score, metric: Metric) -> ScoreInfo:
    """Return what a reader must know about a metric's score."""
    return ScoreInfo(score.name, score.better, metric.name, metric.signature, metric.input_kind)


def each_once(pairs: Sequence[tuple[Score, ScoreInfo]]) -> list[tuple[Score, ScoreInfo]]:
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
