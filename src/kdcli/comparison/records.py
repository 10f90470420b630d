"""Records of a comparison: its rows and failures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from kdcli.distill.records import CONTENDER
from kdcli.errors import MachineError
from kdcli.evaluation.records import ScoreInfo
from kdcli.statistics import Detectable, Estimate, VarianceShares

RESULTS, SAMPLES, COSTS = "results.parquet", "samples.parquet", "costs.csv"
"""The files of a study that a comparison is computed from."""
MAKE = "run the kd compare that wrote it again; finished runs are kept"


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
        tied: scores in which it does not differ significantly from the best, the best itself included.
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
        zeros: share of the weights of the student's linear layers that are 0; None if not recorded.
        compressed_bytes: size of its weight files after zlib; None where no student of the comparison is sparse.
    """

    role: ClassVar[str] = CONTENDER
    is_reference: ClassVar[bool] = False

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
    zeros: float | None = None
    compressed_bytes: int | None = None

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

    is_reference: ClassVar[bool] = True
    best: ClassVar[tuple[str, ...]] = ()
    tied: ClassVar[tuple[str, ...]] = ()
    models: ClassVar[Mapping[str, Estimate | None]] = {}

    role: str
    label: str
    scores: dict[str, Estimate]
    parameters: int | None = None
    seeds: tuple[int, ...] = ()
    differences: Mapping[str, Estimate | None] = field(default_factory=dict)
    before: Mapping[str, Estimate | None] = field(default_factory=dict)
    closed: Mapping[str, Estimate | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What was compared on what, by names that a reader knows; empty or None where it is not recorded.

    Args:
        teacher: name of the teacher.
        student: name of the student before training.
        data: name of the training rows.
        rows: how many training rows.
        batch_size: sequences of one optimizer step.
        test: name of the held-out rows.
        examples: how many held-out rows.
        protocol: of the evaluation.
        rates: learning rates of the lines, each once.
        tuned: whether each line chose its own value of a setting.
        unfinished: how many runs of a study are finished, in words; empty where all are.
    """

    teacher: str = ""
    student: str = ""
    data: str = ""
    rows: int | None = None
    batch_size: int | None = None
    test: str = ""
    examples: int | None = None
    protocol: str = ""
    rates: tuple[float, ...] = ()
    tuned: bool = False
    unfinished: str = ""


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
        suggested: the command that would make the comparison stronger; empty where none is known.
        suggestions: those of the notes that say what to type next.
        setup: models, rows and settings by name.
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
    suggested: str = ""
    suggestions: tuple[str, ...] = ()
    setup: Setup = Setup()

    @property
    def exit_code(self) -> int:
        """0 if every cell is finished; 4 if one failed by the machine's fault, else the first failure's exit code."""
        codes = [one.exit_code for one in self.failed]
        return MachineError.exit_code if MachineError.exit_code in codes else next(iter(codes), 0)
