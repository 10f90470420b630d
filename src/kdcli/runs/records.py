"""What runs, evaluations and comparisons hand back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.errors import MachineError
from kdcli.metrics.curve import Curve
from kdcli.statistics import Detectable, Estimate, VarianceShares

BEFORE, TEACHER, MODEL = "before", "teacher", "model"
CONTENDER = "contender"
"""Roles of lines: the student before training, the teacher, a model trained elsewhere, and what is compared."""


@dataclass(frozen=True)
class ScoreInfo:
    """What a reader must know to read a score.

    Args:
        name: as in tables.
        better: "higher", "lower" or "neither".
        metric: the metric that computed it.
        settings: its signature: everything that changes the number.
        eats: what it is computed from, "texts", "tokens", "own", "choices" or "tasks".
    """

    name: str
    better: str
    metric: str
    settings: str
    eats: str = "tokens"


@dataclass(frozen=True)
class Edge:
    """What a model costs on one machine, one request at a time.

    Args:
        parameters: all of them, shared ones once.
        disk_bytes: size of the weight files.
        bytes_by_dtype: bytes of the tensors by the type they are stored in.
        int8_bytes: bytes after storing every matrix in 8 bits, with one scale per row.
        peak_bytes: peak memory in use while it answers, beyond what the process held before.
        first_token_seconds: median time from prompt to first token.
        first_token_range: least and greatest of the repeats.
        tokens_per_second: median speed after the first token.
        tokens_per_second_range: least and greatest of the repeats.
        joules_per_token: energy per token generated; None where the platform does not report it.
        energy_source: what reported it; empty where nothing does.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens generated.
        repeats: measurements behind the medians.
        hardware: device, dtype and threads.
    """

    parameters: int
    disk_bytes: int
    bytes_by_dtype: Mapping[str, int]
    int8_bytes: int
    peak_bytes: int
    first_token_seconds: float
    first_token_range: tuple[float, float]
    tokens_per_second: float
    tokens_per_second_range: tuple[float, float]
    joules_per_token: float | None
    energy_source: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    hardware: str


@dataclass(frozen=True)
class AnswerCounts:
    """How many answers a model gave, and how many of them are not whole, or nothing.

    Args:
        answers: how many.
        empty: those without a letter, digit or sign.
        cut: those that no end token ended; None where that is not known.
        most: tokens they were cut at; None where that is not known.
    """

    answers: int
    empty: int
    cut: int | None = None
    most: int | None = None

    @property
    def sentences(self) -> list[str]:
        """What a reader of scores of these answers must know.

        >>> AnswerCounts(100, 0, 98, 128).sentences
        ['98 of 100 answers were cut at 128 tokens, before an end token']
        """
        found = []
        if self.cut:
            found.append(f"{self.cut:,} of {self.answers:,} answers were cut{self.place}, before an end token")
        if self.empty == self.answers:
            found.append(f"all {self.answers:,} answers are empty: no score of their words means anything")
        elif self.empty:
            found.append(f"{self.empty:,} of {self.answers:,} answers are empty")
        return found

    @property
    def place(self) -> str:
        """Where answers were cut, in words that follow the verb."""
        return "" if self.most is None else f" at {self.most:,} tokens"


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation.

    Args:
        name: name of the test set, as in ``eval/<name>/``.
        model: what was measured.
        folder: where results.json and samples.parquet are; None if they were not written.
        examples: rows measured.
        estimates: score -> value with its interval over examples.
        infos: one entry per score, in the same order.
        protocol: everything that must be equal for two evaluations to be compared.
        model_digest: sha256 that identifies what was measured.
        notes: sentences a reader of the numbers needs.
        curves: what is worth a picture, as data.
        edge: what the model costs on this machine; None where that was not measured.
        documents: benchmark score -> what each document adds to it, where it is their mean.
        answers: how many answers there were, cut and empty ones; None without any, or of an older evaluation.
    """

    name: str
    model: str
    folder: Path | None
    examples: int
    estimates: dict[str, Estimate]
    infos: tuple[ScoreInfo, ...]
    protocol: dict[str, Any]
    model_digest: str
    notes: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = field(default=(), repr=False)
    edge: Edge | None = None
    documents: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    answers: AnswerCounts | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and what is to be known of the answers."""
        return (*self.notes, *(self.answers.sentences if self.answers is not None else ()))


@dataclass(frozen=True)
class RunRecord:
    """One finished training run.

    Args:
        folder: the run folder.
        loss: the objective in canonical form.
        seed: training seed.
        steps: optimizer steps.
        tokens: response tokens trained on.
        seconds: time in training steps, over all resumes.
        peak_bytes: peak memory in training.
        identity: what makes this experiment this experiment.
        evaluation: the evaluation on held-out rows, if there was one.
        already_done: whether the folder held the finished run before.
    """

    folder: Path
    loss: str
    seed: int
    steps: int
    tokens: int
    seconds: float
    peak_bytes: int
    identity: dict[str, Any] = field(repr=False)
    evaluation: EvalRecord | None = None
    already_done: bool = False

    @property
    def model(self) -> Path:
        """The folder of the trained student."""
        return self.folder / "model"


@dataclass(frozen=True)
class Reference:
    """A model that a comparison did not train, measured on its rows.

    Args:
        role: "before" for the student before training, "teacher", or "model" for one trained elsewhere.
        label: what its line is called.
        found: training seed -> evaluation of a student that was made at random with this seed; a model that lies
            in a folder has one evaluation, under None.
        parameters: of the model; None if not known.
    """

    role: str
    label: str
    found: Mapping[int | None, EvalRecord]
    parameters: int | None = None


@dataclass(frozen=True)
class Failure:
    """One cell of a comparison that could not be finished.

    Args:
        loss: the objective.
        seed: training seed.
        message: one line.
        log: file with the whole story.
        exit_code: what the error would have ended a single run with.
    """

    loss: str
    seed: int
    message: str
    log: Path
    exit_code: int


@dataclass(frozen=True)
class ComparisonRow:
    """One objective's line of the table.

    Args:
        label: the objective.
        seeds: training seeds behind it.
        scores: score -> mean with interval: over seeds and examples if there are several seeds, else
            over examples.
        differences: score -> paired difference to the baseline; None on the baseline's own line
            and where nothing can be paired. With several seeds it is about the objectives, with one
            about the trained models. p-values are adjusted for the number of contenders.
        steps: optimizer steps of one run.
        tokens: response tokens of one run.
        seconds: mean training time of one run; depends on the machine.
        seconds_range: least and greatest training time of its runs; both 0 where that was not recorded.
        peak_bytes: largest peak memory; depends on the machine.
        models: score -> the same difference as a statement about these trained models alone: BCa
            interval over examples and permutation p, adjusted likewise.
        best: scores in which no other line has a better mean.
        tied: scores in which it cannot be told from the best, the best itself included.
        student_tokens: tokens that went through the student's trunk in one run; None if not recorded.
        teacher_tokens: tokens whose teacher distribution one run needs, whether or not a cache held them; None if
            not recorded.
        parameters: of the student.
        teacher_parameters: of the teacher; None without one or where it is gone.
        flops: floating-point operations of one run that has no cache, from parameters and tokens, generation
            included; None if not known.
        generated_tokens: tokens that were generated for one run to train on, by student or teacher; None if not
            recorded.
        before: score -> paired difference to the student before training, with p adjusted for the number of
            contenders in a family of its own; None where it was not measured.
        closed: score -> share of the gap between the student before training and the teacher that was closed, with
            the interval of Fieller's method; None where there is no clear gap that ends at the teacher.
    """

    label: str
    seeds: tuple[int, ...]
    scores: dict[str, Estimate]
    differences: dict[str, Estimate | None]
    steps: int
    tokens: int
    seconds: float
    peak_bytes: int
    models: Mapping[str, Estimate | None] = field(default_factory=dict)
    best: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    student_tokens: int | None = None
    teacher_tokens: int | None = None
    parameters: int | None = None
    teacher_parameters: int | None = None
    flops: float | None = None
    generated_tokens: int | None = None
    before: Mapping[str, Estimate | None] = field(default_factory=dict)
    closed: Mapping[str, Estimate | None] = field(default_factory=dict)
    seconds_range: tuple[float, float] = (0.0, 0.0)

    @property
    def teacher_passes(self) -> float | None:
        """Teacher tokens per student token: 1 if the objective needs the teacher on all of them, 0 if never."""
        if self.teacher_tokens is None or not self.student_tokens:
            return None
        return self.teacher_tokens / self.student_tokens


@dataclass(frozen=True)
class ReferenceRow:
    """The line of a model that the comparison did not train, measured on the same rows.

    Args:
        role: "before" for the student before training, "teacher", or "model" for one trained elsewhere.
        label: what the line is called.
        scores: score -> value with interval; a score that makes no sense for this model is left out.
        parameters: of the model; None if not known.
        seeds: training seeds of a student made at random, one start each; empty for a model that was measured once.
        differences: of a model trained elsewhere: score -> paired difference to the baseline, as in
            ``ComparisonRow``, with p adjusted for the number of such models.
        before: of such a model: score -> paired difference to the student before training, likewise.
        closed: of such a model: score -> share of the gap that it closes.
    """

    role: str
    label: str
    scores: dict[str, Estimate]
    parameters: int | None = None
    seeds: tuple[int, ...] = ()
    differences: Mapping[str, Estimate | None] = field(default_factory=dict)
    before: Mapping[str, Estimate | None] = field(default_factory=dict)
    closed: Mapping[str, Estimate | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Args:
        baseline: label of the row that differences are taken to.
        rows: one per objective, in the order asked for.
        scores: the columns.
        notes: what can and cannot be concluded, and what to type next; one sentence each.
        folder: where the tables and pictures are; None if none were written.
        failed: cells that could not be finished.
        detectable: score -> smallest true difference to the baseline that this design finds in 8 of
            10 repeats, with its range; None where it is unknown.
        variance: score -> where the variance of a difference to the baseline comes from.
        pareto: score -> cost ("parameters", "flops") -> labels that no other line beats
            in both; a cost that is unknown or the same for all is left out.
        references: the student before training, the teacher, and models trained elsewhere, on the same rows.
    """

    baseline: str
    rows: tuple[ComparisonRow, ...]
    scores: tuple[ScoreInfo, ...]
    notes: tuple[str, ...]
    folder: Path | None
    failed: tuple[Failure, ...] = ()
    detectable: Mapping[str, Detectable | None] = field(default_factory=dict)
    variance: Mapping[str, VarianceShares] = field(default_factory=dict)
    pareto: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    references: tuple[ReferenceRow, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if every cell is finished; 4 if one failed by the machine's fault, else the first failure's exit code."""
        codes = [one.exit_code for one in self.failed]
        return MachineError.exit_code if MachineError.exit_code in codes else next(iter(codes), 0)


@dataclass(frozen=True)
class Shown:
    """One decoded example of a plan.

    Args:
        where: file and line.
        segments: pieces of text in order, each with whether its tokens are learnt.
        tokens: length in tokens.
        targets: how many are learnt.
    """

    where: str
    segments: tuple[tuple[str, bool], ...]
    tokens: int
    targets: int


@dataclass(frozen=True)
class Plan:
    """What a command would do; nothing was written.

    Args:
        facts: name -> value, in reading order.
        cells: for a comparison, each cell's name and state: done, to resume, to run.
        examples: decoded training examples with the learnt part marked.
        notes: what was detected, cut and left out in the data.
        cost: cells, steps, flops, peak_bytes, seconds where it can be guessed, and gpu_bytes of gpu_memory where GPUs
            compute: the estimates behind the facts, as numbers.
    """

    facts: dict[str, str]
    cells: tuple[tuple[str, str], ...] = ()
    examples: tuple[Shown, ...] = ()
    notes: tuple[str, ...] = ()
    cost: dict[str, float] = field(default_factory=dict)
