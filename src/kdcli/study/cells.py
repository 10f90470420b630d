"""The cells of a comparison: their settings, folders and states."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

from kdcli.config.names import nearest
from kdcli.config.schema import CompareConfig, DistillConfig
from kdcli.config.sweep import (
    STUDENT,
    Choice,
    apply_choice,
    combinations,
    format_choice,
    label_with,
    read_axes,
    split_label,
)
from kdcli.data.tokenize import TokenDataset
from kdcli.distill.fingerprint import short_hash
from kdcli.distill.plan import CellState, FolderState, folder_state
from kdcli.distill.prepare import Prepared, combine, objective_of, prepare_run
from kdcli.errors import InputError, KDError, UsageError, raise_all
from kdcli.loading import splits
from kdcli.loading.session import Session
from kdcli.loading.splits import leaves_answers_out
from kdcli.metrics.describe import MetricCard, cards, describe
from kdcli.metrics.titles import current
from kdcli.storage.run_dir import MADE, RunFolder
from kdcli.students.supernet_spec import refuse_several_sizes
from kdcli.study.study_dir import is_study, read_study
from kdcli.text import one_line

# The score that tuning goes by.


@dataclass(frozen=True)
class TunedBy:
    """A score that values are chosen by.

    Args:
        metric: the metric that computes it.
        score: its name in tables.
        higher: whether more is better.
    """

    metric: str
    score: str
    higher: bool


def tuned_by(config: CompareConfig, rows: TokenDataset | None = None) -> TunedBy:
    """Return the score that chooses: the one asked for, else the first one measured that has a better direction.

    Args:
        config: the study's settings.
        rows: what is measured, as far as it is known; where no row has a prompt, default metrics of answers are not.

    Raises:
        UsageError: no such score, or none of which more or less is better.

    >>> tuned_by(CompareConfig(tune_by="nll"))
    TunedBy(metric='perplexity', score='nll', higher=False)
    """
    if config.tune_by is None:
        left_out = leaves_answers_out(config.evaluation, rows)
        for card in map(describe, config.evaluation.metrics):
            if card.input_kind == "texts" and left_out:
                continue
            for score, better in card.scores.items():
                if better != "neither":
                    return TunedBy(card.name, score, better == "higher")
        raise UsageError("CLI-20", "no score to tune by", where="--tune-by", fix="name one, such as nll")
    card, score = _find(current(config.tune_by), [*map(describe, config.evaluation.metrics), *cards()])
    if card.scores[score] == "neither":
        raise UsageError("CLI-06", f"neither more nor less {score} is better", where="--tune-by", fix="name another")
    return TunedBy(card.name, score, card.scores[score] == "higher")


def _find(wanted: str, known: list[MetricCard]) -> tuple[MetricCard, str]:
    for card in known:
        if wanted in card.scores:
            return card, wanted
    for card in known:
        if wanted in (card.name, *card.aliases):
            return card, next(iter(card.scores))
    names = {name: name for card in known for name in (card.name, *card.scores)}
    near = nearest(wanted, names)
    fix = f"did you mean {near}?" if near else "kd metrics list shows them"
    raise UsageError("METRIC-01", f'no score is called "{one_line(wanted, 60)}"', where="--tune-by", fix=fix)


CELLS = "cells"
_FIRST_TUNING_SEED = 1000
SHARE = 0.1
"""Of the training rows, kept for tuning where no development rows are given."""


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Args:
        label: what the line is called: the objective in canonical form, and the values it varies.
        objective: the objective as given.
        varied: the values of ``--vary``.
    """

    label: str
    objective: str
    varied: Choice = ()

    @property
    def student(self) -> str | None:
        """The student that it names; None where all lines have one."""
        return dict(self.varied).get(STUDENT)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        label: the contender.
        seed: training seed.
        settings: of the run, its folder left out.
        prepared: the run, checked.
        folder: its run folder, named after what the run is, so that equal settings meet again.
        tried: the values of ``--tune`` that it tries; empty without tuning.
    """

    label: str
    seed: int
    settings: DistillConfig
    prepared: Prepared
    folder: RunFolder
    tried: Choice = ()

    @property
    def name(self) -> str:
        """What to call it in progress lines."""
        if not self.tried:
            return f"{self.label} · seed {self.seed}"
        rows = "" if self.prepared.evaluation.split == "dev" else " · test rows"
        return f"{self.label} · {format_choice(self.tried)} · seed {self.seed}{rows}"

    @property
    def config(self) -> DistillConfig:
        """Its settings, run folder included."""
        return self.settings.model_copy(update={"output": str(self.folder.path)})

    @property
    def evaluation(self) -> Path:
        """The folder of its evaluation, there or not."""
        return self.folder.path / splits.evaluation_folder(self.prepared.data, self.prepared.evaluation.split)

    def state(self) -> FolderState:
        """Return how far it is, or why it cannot go on."""
        try:
            return folder_state(self.folder, self.prepared)
        except KDError as error:
            return FolderState(CellState.REFUSED, why=str(error))

    def reported(self, seed: int, metrics: tuple[str, ...], session: Session) -> "Cell":
        """Return the run with the same settings and this seed, to be measured on the test rows.

        Args:
            seed: training seed.
            metrics: what to measure.
            session: what is loaded already.
        """
        evaluation = self.settings.evaluation.model_copy(update={"split": "test", "metrics": metrics})
        train = self.settings.train.model_copy(update={"seed": seed})
        settings = self.settings.model_copy(update={"evaluation": evaluation, "train": train})
        prepared = prepare_run(settings, session)
        folder = RunFolder(self.folder.path.parent / _name(prepared))
        return replace(self, seed=seed, settings=settings, prepared=prepared, folder=folder)


def variants(config: CompareConfig) -> list[Variant]:
    """Return the lines of the table: each objective with each combination of varied settings.

    Raises:
        UsageError: fewer than two, one given twice, or a setting that cannot vary.
    """
    choices = combinations(read_axes(config.vary, "--vary"))
    found: list[Variant] = []
    for text in config.losses:
        label = objective_of(text)[1]
        if any(other.label == label_with(label, choices[0]) for other in found):
            raise UsageError("CLI-08", f"{label} is given twice", where=f'objective "{text}"', fix="leave one out")
        found += [Variant(label_with(label, choice), text, choice) for choice in choices]
    if len(found) < 2:
        what = f"needs two objectives or more, got {len(found)}"
        raise UsageError("CLI-18", what, where="kd compare", fix="name another, or use kd distill")
    return found


def make_cells(config: CompareConfig, session: Session) -> list[Cell]:
    """Check a comparison's settings and name its cells, contender by contender.

    With ``--tune``, a cell for each value tried, measured on development rows.

    Raises:
        UsageError: fewer than two contenders, one given twice, or a baseline that is not among them.
        KDError: what any of its runs would stop at before weights are read.
    """
    lines, tried = variants(config), combinations(read_axes(config.tune, "--tune"))
    baseline_of(config, lines)
    root = Path(config.output) if config.output is not None else None
    cells, by = [], tuned_by(config).metric if config.tune else None
    seeds = tuning_seeds(config) or config.seeds
    _check_lines([_run_config(config, line, tried[0], seeds[0], by) for line in lines], session)
    for line in lines:
        for choice in tried:
            for seed in seeds:
                settings = _run_config(config, line, choice, seed, by)
                prepared = prepare_run(settings, session)
                if by is not None and (fitting := tuned_by(config, prepared.test).metric) != by:
                    by = fitting
                    settings = _run_config(config, line, choice, seed, by)
                    prepared = prepare_run(settings, session)
                cells.append(Cell(line.label, seed, settings, prepared, _folder(root, prepared), choice))
    return cells


def _check_lines(lines: Sequence[DistillConfig], session: Session) -> None:
    """Raise what is wrong with every line at once."""
    faults: list[KDError] = []
    for settings in lines:
        try:
            combine(settings, session)
        except (UsageError, InputError) as fault:
            faults += [fault, *fault.also]
    raise_all(faults)


def tuning_seeds(config: CompareConfig) -> tuple[int, ...]:
    """Return the training seeds with which ``--tune`` chooses; none without it.

    Those asked for, else those that a study in this folder chose with, else as many as are reported, from 1000 on:
    other seeds than those of the table, for the seeds that chose a value flatter it.

    >>> tuning_seeds(CompareConfig(tune=("lr=1e-4,3e-4",), seeds=(0, 1, 1001)))
    (1000, 1002, 1003)
    """
    if not config.tune:
        return ()
    if config.tune_seeds is not None:
        return config.tune_seeds
    output = Path(config.output) if config.output is not None else None
    if output is not None and is_study(output):
        measured = splits.evaluation_folder(config.data, "dev")
        before = [cell.seed for cell in read_study(output).cells if cell.tried and cell.evaluation == measured]
        if before:
            return tuple(dict.fromkeys(before))
    fresh = (seed for seed in count(_FIRST_TUNING_SEED) if seed not in config.seeds)
    return tuple(islice(fresh, len(config.seeds)))


def baseline_of(config: CompareConfig, lines: Sequence[Variant]) -> str:
    """Return the label that differences are taken to: the one asked for, else the first."""
    if config.baseline is None:
        return lines[0].label
    labels = [line.label for line in lines]
    if config.baseline in labels:
        return config.baseline
    objective, _ = split_label(config.baseline)
    wanted = objective_of(objective)[1]
    match = [line.label for line in lines if objective_of(line.objective)[1] == wanted]
    if objective != config.baseline or not match:
        raise UsageError(
            "CLI-18",
            f'"{config.baseline}" is not among the objectives',
            where="--baseline",
            fix=f"choose one of {', '.join(labels)}",
        )
    return match[0]


def slug(label: str) -> str:
    """Return a label as part of a folder's name.

    >>> slug("0.5*ce+0.5*akl:mu=0.6")
    '0.5ce-0.5akl-mu0.6'
    """
    short = label.replace("*", "").replace("=", "")
    return re.sub(r"[^A-Za-z0-9.]+", "-", short).strip("-.")[:40] or "objective"


def _run_config(config: CompareConfig, line: Variant, tried: Choice, seed: int, by: str | None) -> DistillConfig:
    refuse_several_sizes(line.student or config.student, "a line of a comparison trains one size")
    data, evaluation = config.data, config.evaluation
    if by is not None:
        share = 0.0 if data.dev else data.dev_share or SHARE
        data = data.model_copy(update={"dev_share": share})
        evaluation = evaluation.model_copy(update={"split": "dev", "metrics": (by,)})
    if config.output is not None and data.teacher_text is None:
        data = data.model_copy(update={"teacher_text": str(Path(config.output) / MADE)})
    train = apply_choice(config.train, line.varied, tried)
    return DistillConfig(
        teacher=config.teacher,
        teacher_cache=None if config.teacher_cache in ("auto", "none") else config.teacher_cache,
        student=line.student or config.student,
        lora=config.lora,
        teacher_quantization=config.teacher_quantization,
        server=config.server,
        loss=line.objective,
        data=data,
        train=train.model_copy(update={"seed": seed}),
        hardware=config.hardware,
        evaluation=evaluation,
        benchmarks=config.benchmarks,
    )


def _folder(root: Path | None, prepared: Prepared) -> RunFolder:
    return RunFolder((root or Path()) / CELLS / _name(prepared))


def _name(prepared: Prepared) -> str:
    return f"{slug(prepared.label)}-s{prepared.train.seed}-{short_hash(prepared.identity)}"
