"""The whole road on built-in parts: data, a teacher, four objectives, one table, three pictures.

Everything is made from seeds and nothing is fetched. What is there already is used again.
"""

from pathlib import Path
from typing import Any

from kdcli import durable, settings
from kdcli.config import (
    CompareConfig,
    DataConfig,
    DistillConfig,
    EvalSettings,
    GenerationConfig,
    HardwareConfig,
    TrainConfig,
)
from kdcli.engine.events import Event, Report
from kdcli.runs import demo_parts, synthetic
from kdcli.runs.answers import draw_answers, telling_task
from kdcli.runs.cells import make_cells
from kdcli.runs.compare import compare, named
from kdcli.runs.distill import distill
from kdcli.runs.fits import draw_fits, fit
from kdcli.runs.records import BEFORE, TEACHER, Comparison, RunRecord
from kdcli.runs.references import LABELS
from kdcli.runs.workshop import Workshop
from kdcli.text import typed

LOSSES = ("fkl", "rkl", "akl", "atkd")
STUDENT = "random:layers=2,width=48,heads=4"
_METRICS = ("rougeL", "exact_match", "perplexity", "ece", "kl_to_teacher", "agreement", "distinct")
_ANSWERS = GenerationConfig(max_new_tokens=16, seeds=(10, 20, 30))


def demo(output: Path, report: Report) -> Comparison:
    """Make data and a teacher, distil with four objectives, compare, draw.

    Args:
        output: folder for everything.
        report: told what happens.

    Returns:
        the comparison; tables and pictures are in ``output``.
    """
    command, workshop = f"kd demo -o {typed(output)}", Workshop()
    data = output / "data"
    if not (data / "test.jsonl").is_file():
        report(Event("stage", "making data and tokenizer"))
        demo_parts.make_data(data)
    beginner = output / "teacher-start"
    if not (beginner / "config.json").is_file():
        demo_parts.make_beginner(beginner, data / "train.jsonl")
    teacher = distill(teacher_config(output), named(report, "teacher"), command=command, workshop=workshop)
    report(Event("note", _about_teacher(teacher)))
    distill(student_config(output), named(report, "student before distillation"), command=command, workshop=workshop)
    report(Event("note", _about_models(output, workshop)))
    config = study_config(output)
    durable.write_file(output / "study.yaml", settings.to_yaml(config))
    repeat = f"kd compare -c {typed(output / 'study.yaml')}"
    comparison = compare(config, report, command=command, repeat=repeat, workshop=workshop)
    if not (output / "fits.svg").is_file():
        report(Event("stage", "drawing the four divergences' fits"))
        draw_fits(output, [fit(loss) for loss in LOSSES])
    _draw_answers(output, comparison, config, workshop, report)
    return comparison


def _draw_answers(
    output: Path, comparison: Comparison, config: CompareConfig, workshop: Workshop, report: Report
) -> None:
    """Draw who gives which answer, for the first seed."""
    _, _, test = synthetic.split(demo_parts.SEED, demo_parts.TEST, demo_parts.DEV)
    cells = {cell.label: cell.folder.path for cell in make_cells(config, workshop) if cell.seed == config.seeds[0]}
    there = {row.label: str(cells[row.label]) for row in comparison.rows}
    references = {LABELS[TEACHER]: str(output / "teacher"), LABELS[BEFORE]: str(output / "student")}
    draw_answers(output, telling_task(test), references, there, config, report)


def teacher_config(output: Path) -> DistillConfig:
    """Return the settings the teacher is trained with: plain cross-entropy on the rows."""
    return DistillConfig(
        student=str(output / "teacher-start"),
        loss="ce",
        data=DataConfig(train=str(output / "data" / "train.jsonl"), eval=str(output / "data" / "dev.jsonl")),
        train=_train(max_steps=900, batch_size=64, lr=4e-3, save_every=300),
        hardware=_hardware(),
        evaluation=EvalSettings(metrics=("exact_match", "perplexity"), generation=_ANSWERS),
        output=str(output / "teacher"),
    )


def student_config(output: Path) -> DistillConfig:
    """Return the settings that teach the student the form of an answer, before any objective; all start from it."""
    return DistillConfig(
        teacher=str(output / "teacher"),
        student=STUDENT,
        loss="ce",
        data=DataConfig(train=str(output / "data" / "train.jsonl")),
        train=_train(max_steps=400, batch_size=64, lr=5e-3, save_every=200),
        hardware=_hardware(),
        output=str(output / "student"),
    )


def study_config(output: Path) -> CompareConfig:
    """Return the settings of the comparison; ``kd compare -c`` takes them with more seeds."""
    return CompareConfig(
        losses=LOSSES,
        seeds=(0,),
        teacher=str(output / "teacher"),
        student=str(output / "student"),
        data=DataConfig(train=str(output / "data" / "train.jsonl"), eval=str(output / "data" / "test.jsonl")),
        train=_train(max_steps=300, batch_size=32, lr=3e-3, save_every=150),
        hardware=_hardware(),
        evaluation=EvalSettings(metrics=_METRICS, generation=_ANSWERS),
        output=str(output),
    )


def _train(**chosen: Any) -> TrainConfig:
    """Batches are drawn at random: answers of one length are tasks of one kind, and padding costs little here."""
    return TrainConfig(weight_decay=0.1, length_window=1, log_every=50, **chosen)


def _hardware() -> HardwareConfig:
    """Use one CPU thread: the models are too small for more, and the numbers do not depend on the cores."""
    return HardwareConfig(device="cpu", dtype="fp32", threads=1)


def _about_models(output: Path, workshop: Workshop) -> str:
    sizes = {name: workshop.look(str(output / name)).parameters for name in ("teacher", "student")}
    shown = " · ".join(f"{name} {size:,} parameters" for name, size in sizes.items())
    return f"{shown} · {len(LOSSES)} objectives, one seed, equal budget"


def _about_teacher(teacher: RunRecord) -> str:
    found = teacher.evaluation.estimates if teacher.evaluation is not None else {}
    numbers = ", ".join(f"{name} {found[name].mean:.2f}" for name in ("exact_match", "perplexity") if name in found)
    return f"the teacher on prompts it has not seen: {numbers}"
