"""The model card of a student: what it was made from, how, and what it scores."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from kdcli.classifiers.tiny import is_tiny
from kdcli.distill.prepare import Prepared
from kdcli.errors import MachineError, UsageError
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.events import Event, Report
from kdcli.loading.info import ModelPair
from kdcli.losses.base import DistillLoss
from kdcli.models.adapters import alpha_of, save_adapter
from kdcli.models.load import LanguageModel, rehearse_saving, save_student
from kdcli.statistics.rounding import number
from kdcli.storage import atomic
from kdcli.storage.atomic import MANIFEST
from kdcli.storage.run_dir import ADAPTER
from kdcli.students.made import is_made
from kdcli.text import markdown_cell, one_line, typed
from kdcli.version import __version__

CARD = "README.md"
SCORED = "scored"
"""Entry of a model folder's manifest: whether its card holds the run's scores."""


def model_card(prepared: Prepared, evaluation: EvalRecord | None = None) -> str:
    """Return the card as Markdown with a YAML head; strings from outside are harmless in both.

    Args:
        prepared: the run.
        evaluation: its scores, if it was evaluated.
    """
    student = prepared.pair.student
    based = [name for name in (student, prepared.teacher) if name is not None and on_hub(name)]
    name = f"{shown_name(student)} distilled with {one_line(prepared.label, 80)}"
    train = prepared.data.train
    rows = [train] if train is not None and on_hub(train) else None
    data = ModelCardData(
        base_model=based or None,
        license=license_of(student),
        datasets=rows,
        library_name="transformers",
        pipeline_tag=_task(prepared.pair),
        tags=["distillation", "kd"],
        model_name=name if evaluation is not None else None,
        eval_results=_results(evaluation, _task(prepared.pair)) if evaluation is not None else None,
    )
    lines = [f"# {markdown_cell(name)}", "", *_made_from(prepared), "", *_objective(prepared.loss), ""]
    lines += _training(prepared)
    if evaluation is not None:
        lines += ["", *_scores(evaluation)]
    lines += ["", *_usage(license_of(student), prepared.pair)]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")
    return card.content


def card_has_scores(model: Path) -> bool:
    """Whether a run's card has its scores; a model folder that does not say so is one of an older run, and stays.

    Raises:
        IntegrityError: the folder's manifest is damaged.
    """
    return bool(atomic.read_manifest(model).get(SCORED, True))


def renew_card(model: Path, text: str) -> None:
    """Put a card with scores into a saved model folder; the folder is replaced whole, its manifest included.

    Args:
        model: folder whose manifest verifies.
        text: the card; nothing is done if it is there already.
    """
    path = model / CARD
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    manifest = atomic.verify_folder(model)
    extra = {key: value for key, value in manifest.items() if key not in ("schema", "files", "digest")}
    extra |= {SCORED: True} if SCORED in extra else {}

    def fill(target: Path) -> None:
        for name in manifest["files"]:
            if name != CARD:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                _share(model / name, target / name)
        (target / CARD).write_text(text, encoding="utf-8")

    atomic.commit_folder(model, fill, extra)


def _share(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def on_hub(name: str) -> bool:
    """Whether a name can only mean a repository of the hub."""
    if is_tiny(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not Path(name).exists() and not is_made(name)


def shown_name(name: str) -> str:
    """Return a model's name without the folders it lies in."""
    return one_line(name if on_hub(name) or is_made(name) else Path(name).name, 80)


def _made_from(prepared: Prepared) -> list[str]:
    pair, identity = prepared.pair, prepared.identity
    teacher = pair.teacher
    rows = [("student at the start", shown_name(pair.student), str(identity["student"]))]
    if teacher is not None:
        rows.insert(0, ("teacher", shown_name(teacher.path), teacher.digest))
    rows.append(("training rows", f"{len(prepared.dataset):,}", prepared.dataset.digest))
    return table(["made from", "what", "sha256"], rows)


def _objective(loss: DistillLoss) -> list[str]:
    lines = ["## Objective", ""]
    for kind in dict.fromkeys(type(one) for one in _leaves(loss)):
        formula, reference = (str(getattr(kind, name, "not stated")) for name in ("formula", "reference"))
        formula = formula.replace("`", "'")
        lines.append(f"- {markdown_cell(kind.name)}: `{one_line(formula)}` ({markdown_cell(reference, 400)})")
    return lines


def _leaves(loss: DistillLoss) -> Iterator[DistillLoss]:
    """Yield the losses that a sum is made of, or the loss itself."""
    terms = getattr(loss, "terms", None)
    if terms is None:
        yield loss
        return
    for _, child in terms:
        yield from _leaves(child)


def _training(prepared: Prepared) -> list[str]:
    train = prepared.train
    rows: list[tuple[str, Any]] = [
        ("objective", prepared.label),
        *_adapter(prepared),
        ("optimizer steps", f"{prepared.steps:,}"),
        ("sequences per step", train.batch_size),
        ("peak learning rate", f"{train.lr:g}, {train.schedule}"),
        ("weight decay", f"{train.weight_decay:g}"),
        ("seed", train.seed),
        ("longest row (tokens)", prepared.data.max_length),
        ("precision", prepared.identity["precision"]),
        ("kd", __version__),
    ]
    return ["## Training", "", *table(["setting", "value"], [(name, str(value)) for name, value in rows])]


def _adapter(prepared: Prepared) -> list[tuple[str, Any]]:
    lora = prepared.lora
    if lora.rank is None:
        return []
    shown = f"LoRA of rank {lora.rank}, alpha {alpha_of(lora):g}, on {', '.join(lora.targets)}; merged"
    return [("trained", one_line(shown, 160))]


def _scores(evaluation: EvalRecord) -> list[str]:
    rows = [
        (info.name, number(evaluation.estimates[info.name]), info.better, info.settings) for info in evaluation.infos
    ]
    where = f"On {markdown_cell(evaluation.name)}, {evaluation.examples:,} examples; ± or [ ] is a 95 % interval."
    scores = table(["score", "value", "better", "how it was taken"], rows)
    said = [f"- {markdown_cell(remark, 1000)}" for remark in evaluation.remarks]
    return ["## Scores", "", where, "", *scores, *([""] if said else []), *said]


def _task(pair: ModelPair) -> str:
    """Return the hub's name for what a student does."""
    return "text-classification" if pair.classifies else "text-generation"


def _results(evaluation: EvalRecord, task: str) -> list[EvalResult]:
    name = one_line(evaluation.name, 80)
    return [
        EvalResult(task, name, name, one_line(info.metric, 80), evaluation.estimates[info.name].mean,
                   metric_name=one_line(info.name, 80), metric_args=_taken(evaluation, info))
        for info in evaluation.infos
    ]  # fmt: skip


def _taken(evaluation: EvalRecord, info: ScoreInfo) -> dict[str, Any]:
    """Return the 95 % interval of a score, the examples behind it, and the settings and protocol it was taken by."""
    found, protocol = evaluation.estimates[info.name], evaluation.protocol
    return {
        "interval_95": None if found.low is None or found.high is None else [found.low, found.high],
        "examples": evaluation.examples,
        "settings": one_line(info.settings, 400),
        "protocol": one_line("-".join(str(protocol[key]) for key in ("name", "hash") if protocol.get(key)), 80),
    }


_PLAIN_WORD = re.compile(r"[a-z0-9][a-z0-9.-]{1,39}")


def license_of(student: str | None) -> str | None:
    """Return the licence that the student's own card names, which a model made from it inherits; None if none does."""
    card = Path(student or "") / CARD
    try:
        found = (
            ModelCard(card.read_text(encoding="utf-8")).data.to_dict().get("license")
            if student and card.is_file()
            else None
        )
    except (OSError, ValueError, TypeError):
        return None
    return found if isinstance(found, str) and _PLAIN_WORD.fullmatch(found) else None


def _usage(licence: str | None, pair: ModelPair) -> list[str]:
    """Return lines of Python that load the student, and what to do where its licence is not known."""
    code = (
        _classifying(pair)
        if pair.classifies
        else _seeing()
        if pair.reader.processor is not None
        else [
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER OR REPOSITORY")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER OR REPOSITORY")',
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))",
            "```",
        ]
    )
    unknown = "The licences of teacher, student and rows hold for what is made of them; check them before you share it."
    return ["## Use", "", *code, *([] if licence else ["", unknown])]


def _seeing() -> list[str]:
    return [
        "```python",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        'model = AutoModelForImageTextToText.from_pretrained("THIS FOLDER OR REPOSITORY")',
        'processor = AutoProcessor.from_pretrained("THIS FOLDER OR REPOSITORY")',
        "```",
    ]


def _classifying(pair: ModelPair) -> list[str]:
    tiny = is_tiny(pair.student)
    code = [
        "import torch",
        "from kdcli.classifiers.model import load_classifier",
        "",
        'model = load_classifier("THIS FOLDER", device=torch.device("cpu"), role="teacher")',
        'print(model.labels[model.class_logits(["Once upon a time"], [""], 512).argmax()])',
    ]
    if not tiny:
        code = [
            "from transformers import pipeline",
            "",
            'print(pipeline("text-classification", "THIS FOLDER OR REPOSITORY")("Once upon a time"))',
        ]
    return ["```python", *code, "```"]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of Markdown; strings from outside are harmless in it."""
    lines = [heads, ["---"] * len(heads), *([markdown_cell(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


# Keeps a student, its card and its adapter as folders that appear whole or not at all.


def save_model(model: LanguageModel, final: Path, extra: dict[str, Any], card: str) -> None:
    """Write a student and its card as a transformers folder that appears whole or not at all."""

    def fill(target: Path) -> None:
        save_student(model, target)
        (target / CARD).write_text(card, encoding="utf-8")

    atomic.commit_folder(final, fill, {"kind": "model", **extra})


def rehearse(model: LanguageModel, run: Path, card: str, *, adapter: bool) -> None:
    """Write all that a run will keep of its student but the weights, and remove it again.

    Args:
        model: the student before training.
        run: the run's folder.
        card: its card.
        adapter: whether its adapter will be kept, too.

    Raises:
        InputError: MOD-25, something of it cannot be saved.
        MachineError: the disk refuses.
    """
    with atomic.scratch(run) as place:
        rehearse_saving(model, place)
        (place / CARD).write_text(card, encoding="utf-8")
        if adapter:
            save_adapter(model.adapter, place)


def save_adapter_alone(model: LanguageModel, run: Path) -> None:
    """Write a student's adapter into a run's folder."""
    atomic.commit_folder(run / ADAPTER, lambda target: save_adapter(model.adapter, target), {"kind": "adapter"})


# Uploads a finished student; a failed upload does not fail the run.


def check_repository(name: str) -> str:
    """Return the name of a repository that could exist.

    Raises:
        UsageError: it could not.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        what = f'"{one_line(name, 60)}" is not the name of a repository'
        raise UsageError("CLI-06", what, where="--push-to-hub", fix="write owner/name") from error
    return name


def push(model: Path, name: str, report: Report) -> None:
    """Upload a model folder.

    Args:
        model: the student's folder, card included.
        name: the repository; made if it does not exist.
        report: called with the address.

    Raises:
        MachineError: PUSH-01, the hub or the network refuses; the run itself is complete.
    """
    report(Event("stage", f"pushing to {name}"))
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        where = api.upload_folder(repo_id=name, folder_path=str(model), ignore_patterns=[MANIFEST])
    except Exception as error:  # whatever the hub or the network answers, the run itself is done
        what = f"not pushed to {name}, the run is complete: {one_line(f'{type(error).__name__}: {error}', 300)}"
        fix = f"later: hf upload {typed(name)} {typed(model)}"
        raise MachineError("PUSH-01", what, where="--push-to-hub", fix=fix) from error
    report(Event("note", f"pushed to {one_line(str(where), 300)}"))
