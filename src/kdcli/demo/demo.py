"""The demonstration on built-in parts: data, a teacher, four objectives, one table, three pictures, two students.

Everything is made from seeds and nothing is fetched. What is there already is used again.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kdcli.comparison.records import Comparison
from kdcli.config import resolve
from kdcli.config.schema import CompareConfig, DistillConfig
from kdcli.config.sections import DataConfig, EvalSettings, GenerationConfig, HardwareConfig, TrainConfig
from kdcli.demo import synthetic
from kdcli.demo.synthetic import draw_answers, most_informative_task
from kdcli.demo.toy import draw_fits, fit
from kdcli.distill.records import BEFORE, TEACHER, RunRecord
from kdcli.distill.run import distill
from kdcli.events import Event, Report
from kdcli.loading.session import Session
from kdcli.models.weights import silence_transformers
from kdcli.storage import atomic
from kdcli.study.cells import make_cells
from kdcli.study.compare import compare
from kdcli.study.references import LABELS
from kdcli.study.scheduler import named
from kdcli.study.study_dir import SETTINGS, check_settings, is_study
from kdcli.text import typed

# The demo's own parts, made from a seed: rows, a small tokenizer, a teacher about to learn.


SEED = 0
TEST, DEV = 192, 64
VOCABULARY = 640
_SPECIAL = ("<pad>", "<s>", "</s>")


def make_data(folder: Path) -> None:
    """Write train.jsonl, dev.jsonl and test.jsonl; no prompt is in two of them."""
    atomic.make_folder(folder)
    train, dev, test = synthetic.split(SEED, TEST, DEV)
    synthetic.write_rows(folder / "train.jsonl", train, seed=SEED)
    synthetic.write_tests(folder / "dev.jsonl", dev, seed=SEED + 1)
    synthetic.write_tests(folder / "test.jsonl", test, seed=SEED + 2)


def make_beginner(folder: Path, rows: Path) -> None:
    """Write an untrained teacher: a Llama of about a million parameters, with a tokenizer learnt from the rows."""
    texts = [text for line in rows.read_text(encoding="utf-8").splitlines() for text in json.loads(line).values()]
    tokenizer = make_tokenizer(texts)
    model = make_model(len(tokenizer))

    def fill(target: Path) -> None:
        with silence_transformers():
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)

    atomic.make_folder(folder.parent)
    atomic.commit_folder(folder, fill, {"kind": "model"})


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most 640 tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    pad, bos, eos = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=64
    )


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """Return an untrained Llama of four layers and width 128."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config)


LOSSES = ("fkl", "rkl", "akl", "atkd")
STUDENT = "random:layers=2,width=48,heads=4"
STUDENTS = ("cut:layers=2", "random:layers=2,width=128,heads=4")
"""Two of the teacher's layers, and as many parameters drawn at random."""
_METRICS = ("rougeL", "exact_match", "perplexity", "ece", "kl_to_teacher", "agreement", "distinct")
_ANSWERS = GenerationConfig(max_new_tokens=16, seeds=(10, 20, 30))


def demo(output: Path, report: Report) -> Comparison:
    """Make data and a teacher, distil with four objectives, compare, draw.

    Args:
        output: folder for everything.
        report: called with events.

    Returns:
        the comparison; tables and pictures are in ``output``.
    """
    command, session = f"kd demo -o {typed(output)}", Session()
    data = output / "data"
    if not (data / "test.jsonl").is_file():
        report(Event("stage", "making data and tokenizer"))
        make_data(data)
    beginner = output / "teacher-start"
    if not (beginner / "config.json").is_file():
        make_beginner(beginner, data / "train.jsonl")
    teacher = distill(teacher_config(output), named(report, "teacher"), command=command, session=session)
    report(Event("note", _about_teacher(teacher)))
    distill(student_config(output), named(report, "student before distillation"), command=command, session=session)
    report(Event("note", _about_models(output, session)))
    config = _grown(output) or study_config(output)
    atomic.write_file(output / SETTINGS, resolve.to_yaml(config))
    repeat = f"kd compare -c {typed(output / SETTINGS)}"
    comparison = compare(config, report, command=command, repeat=repeat, session=session)
    if not (output / "fits.svg").is_file():
        report(Event("stage", "drawing the four divergences' fits"))
        draw_fits(output, [fit(loss) for loss in LOSSES])
    _draw_answers(output, comparison, config, session, report)
    students = students_config(output)
    atomic.make_folder(output / "students")
    atomic.write_file(output / "students" / SETTINGS, resolve.to_yaml(students))
    repeat = f"kd compare -c {typed(output / 'students' / SETTINGS)}"
    report(Event("note", _about_students(compare(students, report, command=command, repeat=repeat, session=session))))
    return comparison


def _grown(output: Path) -> CompareConfig | None:
    """Return the settings of the demo's study where it has more seeds or objectives than the demo gives it."""
    own = study_config(output)
    if not is_study(output):
        return None
    check_settings(output)
    found = resolve.resolve(CompareConfig, file=output / SETTINGS, environ={})
    alike = found.model_copy(update={"losses": own.losses, "seeds": own.seeds, "baseline": own.baseline}) == own
    return found if alike and {*own.losses} <= {*found.losses} and {*own.seeds} <= {*found.seeds} else None


def _draw_answers(
    output: Path, comparison: Comparison, config: CompareConfig, session: Session, report: Report
) -> None:
    """Draw who gives which answer, for the first seed."""
    _, _, test = synthetic.split(SEED, TEST, DEV)
    cells = {cell.label: cell.folder.path for cell in make_cells(config, session) if cell.seed == config.seeds[0]}
    there = {row.label: str(cells[row.label]) for row in comparison.rows}
    references = {LABELS[TEACHER]: str(output / "teacher"), LABELS[BEFORE]: str(output / "student")}
    draw_answers(output, most_informative_task(test), references, there, config, report)


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


def students_config(output: Path) -> CompareConfig:
    """Return the settings of the second comparison: a student made from the teacher beside a random one of its size."""
    return CompareConfig(
        losses=("fkl",),
        vary=(f"student={','.join(STUDENTS)}",),
        seeds=(0,),
        teacher=str(output / "teacher"),
        data=DataConfig(train=str(output / "data" / "train.jsonl"), eval=str(output / "data" / "test.jsonl")),
        train=_train(max_steps=100, batch_size=32, lr=1e-3, save_every=100),
        hardware=_hardware(),
        evaluation=EvalSettings(metrics=("perplexity",)),
        output=str(output / "students"),
    )


def _train(**chosen: Any) -> TrainConfig:
    """Batches are drawn at random: answers of one length are tasks of one kind, and padding costs little here."""
    return TrainConfig(weight_decay=0.1, length_window=1, log_every=50, **chosen)


def _hardware() -> HardwareConfig:
    """Use one CPU thread: the models are too small for more, and the numbers do not depend on the cores."""
    return HardwareConfig(device="cpu", dtype="fp32", threads=1)


def _about_models(output: Path, session: Session) -> str:
    sizes = {name: session.inspect(str(output / name)).parameters for name in ("teacher", "student")}
    shown = " · ".join(f"{name} {size:,} parameters" for name, size in sizes.items())
    return f"{shown} · {len(LOSSES)} objectives, one seed, equal budget"


def _about_students(found: Comparison) -> str:
    """Return the perplexities of both students, before and after training, and where the rest of them is told."""
    before = [row.scores["perplexity"].mean for row in found.references if row.role == BEFORE]
    after = [row.scores["perplexity"].mean for row in found.rows]
    cut, drawn = (f"{one:.3g} before and {other:.3g} after" for one, other in zip(before, after, strict=True))
    row = found.rows[0]
    size = f"{row.parameters or 0:,} parameters, {row.steps} steps of fkl"
    return (
        f"another student, {size}, perplexity: cut from the teacher "
        f"{cut}, random {drawn} (table and report: {found.folder})"
    )


def _about_teacher(teacher: RunRecord) -> str:
    found = teacher.evaluation.estimates if teacher.evaluation is not None else {}
    numbers = ", ".join(f"{name} {found[name].mean:.2f}" for name in ("exact_match", "perplexity") if name in found)
    return f"the teacher on prompts it has not seen: {numbers}"
