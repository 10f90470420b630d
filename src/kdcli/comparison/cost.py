"""The cost of a run: machine-independent counts, and seconds and memory of one machine."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from kdcli.config.yaml_file import read_config
from kdcli.distill.prepare import objective_of
from kdcli.distill.records import RunRecord
from kdcli.errors import KDError
from kdcli.evaluation.records import is_sparse
from kdcli.models.checks import ModelFolder, open_folder
from kdcli.models.zeros import compressed_bytes
from kdcli.sources.token_counts import TokenCounts
from kdcli.storage.locate import model_of
from kdcli.storage.run_dir import CONFIG, RunFolder
from kdcli.text import csv_cell


@dataclass(frozen=True)
class Size:
    """How many numbers a model multiplies a token with.

    Args:
        parameters: all of them.
        trunk: those every token passes: all but embedding and head.
        head: those of the head, which only response tokens pass.
    """

    parameters: int
    trunk: int
    head: int


@dataclass(frozen=True)
class Cost:
    """What one run asks for, in counts that depend neither on the machine nor on what lay in a cache.

    Args:
        steps: optimizer steps.
        tokens: response tokens trained on.
        student_tokens: tokens that went through the student's trunk; None if not recorded.
        teacher_tokens: tokens whose teacher distribution the objective needs: all the student reads, or 0; None if
            not recorded, as for a teacher that reads other tokens.
        parameters: of the student; None if its folder is gone.
        teacher_parameters: of the teacher; None without one or where it is gone.
        flops: floating-point operations of training and generation; None if something above is missing.
        generated_tokens: tokens that were generated to train on, by the student while training or before it by the
            teacher; filters come later.
        generation_flops: the part of ``flops`` that generation takes.
        zeros: share of the weights of the student's linear layers that are 0; None if not recorded.
        compressed_bytes: size of its weight files after zlib; None where nothing asks for it.
    """

    steps: int
    tokens: int
    student_tokens: int | None
    teacher_tokens: int | None
    parameters: int | None
    teacher_parameters: int | None
    flops: float | None
    generated_tokens: int = 0
    generation_flops: float | None = None
    zeros: float | None = None
    compressed_bytes: int | None = None


def costs_of(runs: Sequence[RunRecord]) -> list[Cost]:
    """Return what finished runs ask for; where one of their students is sparse, the compressed size of all."""
    costs = [cost_of(run) for run in runs]
    if not any(is_sparse(cost.zeros) for cost in costs):
        return costs
    return [
        cost if cost.compressed_bytes is not None else replace(cost, compressed_bytes=_compressed(run.model))
        for run, cost in zip(runs, costs, strict=True)
    ]


def _compressed(model: Path) -> int | None:
    try:
        return compressed_bytes(open_folder(str(model), images=True).files)
    except (KDError, OSError):
        return None


def cost_of(run: RunRecord) -> Cost:
    """Return what a finished run asks for."""
    status = RunFolder(run.folder).status()
    seen = status.get("student_tokens")
    asked = seen if _needs_teacher(run) else 0
    if asked and "teacher.tokenizer" in run.identity:
        asked = None
    effort = _effort(status, "made_effort")
    student, teacher = _sizes(run, taught=asked != 0 or effort is None or effort.teacher_read > 0)
    generation = generation_flops(student, teacher, effort)
    return Cost(
        run.steps, run.tokens, seen, asked,
        student.parameters if student else None, teacher.parameters if teacher else None,
        _sum(flops(student, teacher, run.tokens, seen, asked), generation),
        status.get("generated_tokens", 0) + status.get("made_tokens", 0), generation,
        status.get("zeros"), status.get("compressed_bytes"),
    )  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """What was done in one run: less than it asks for where a cache or a text was there already.

    Args:
        teacher_tokens_read: tokens that its teacher distributions were computed for.
        flops_done: operations of training and generation.
        written_tokens: tokens of the teacher's text that this run let it write.
        writing_seconds: how long that took.
    """

    teacher_tokens_read: int | None
    flops_done: float | None
    written_tokens: int
    writing_seconds: float


def spent_on(run: RunRecord) -> Spent:
    """Return what was done in a finished run."""
    status = RunFolder(run.folder).status()
    seen, read = status.get("student_tokens"), status.get("teacher_tokens")
    wrote = status.get("wrote", {})
    effort = _effort({**status, "fresh_effort": wrote.get("effort", {})}, "fresh_effort")
    student, teacher = _sizes(run, taught=read != 0 or effort is None or effort.teacher_read > 0)
    done = _sum(flops(student, teacher, run.tokens, seen, read), generation_flops(student, teacher, effort))
    return Spent(read, done, wrote.get("tokens", 0), wrote.get("seconds", 0.0))


def generation_flops(student: Size | None, teacher: Size | None, effort: TokenCounts | None) -> float | None:
    """Return the floating-point operations of writing sequences: 2 per parameter and token, forward only.

    Args:
        student: its size.
        teacher: its size; None without one.
        effort: tokens through trunks and heads; None if not recorded.

    >>> generation_flops(Size(12, 8, 2), Size(120, 80, 20), TokenCounts(9, 4, 10, 5))
    1960.0
    """
    if effort is None:
        return None
    total = 0.0
    for size, read, said in ((student, *effort.counts[:2]), (teacher, *effort.counts[2:])):
        if size is None and read:
            return None
        total += 2.0 * (size.trunk * read + size.head * said) if size is not None else 0.0
    return total


def _effort(status: Mapping[str, Any], before: str) -> TokenCounts | None:
    """Return what generation took while training and before it; None where it was not recorded."""
    counts = status.get("effort")
    if counts is None:
        return None if status.get("generated_tokens") or status.get("made_tokens") else TokenCounts()
    return TokenCounts.of_counts(counts) + TokenCounts.of_counts(status.get(before) or {})


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def flops(
    student: Size | None, teacher: Size | None, responses: int, student_tokens: int | None, teacher_tokens: int | None
) -> float | None:
    """Return the floating-point operations of a training run, by the usual count; generation has its own.

    Forward 2 and backward 4 per parameter and token; the teacher goes forward only. Heads see
    response tokens only; of a teacher that read part of the tokens, the same part of these.
    Attention scores and embeddings are not counted.

    Args:
        student: its size.
        teacher: its size; None without one.
        responses: response tokens.
        student_tokens: tokens through the student's trunk.
        teacher_tokens: tokens through the teacher's trunk.

    >>> flops(Size(12, 8, 2), Size(120, 80, 20), 10, 100, 100)
    21320.0
    """
    if student is None or student_tokens is None or teacher_tokens is None or (teacher is None and teacher_tokens):
        return None
    spent = 6.0 * (student.trunk * student_tokens + student.head * responses)
    if teacher is None or not student_tokens:
        return spent
    share = teacher_tokens / student_tokens
    return spent + 2.0 * (teacher.trunk * teacher_tokens + teacher.head * responses * share)


def model_size(path: str) -> Size | None:
    """Return the size of a model folder or a cached hub id from its files' headers; None where there is none."""
    try:
        here = Path(path).expanduser().is_dir()
        return _size(open_folder(path if here else snapshot_download(path, local_files_only=True), images=True))
    except (KDError, OSError, ValueError):
        return None


def machine_table(runs: Sequence[tuple[str, RunRecord, Cost]]) -> str:
    """Return ``costs.csv``: one line per cell, with what depends on the machine.

    Args:
        runs: label, run and cost of each cell.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    counts = tuple(Cost.__dataclass_fields__)
    did = tuple(Spent.__dataclass_fields__)
    writer.writerow(["objective", "seed", "run", *counts, *did, "seconds", "peak_bytes"])
    for label, run, cost in runs:
        asked = [getattr(cost, count) for count in counts]
        name, seconds = csv_cell(run.folder.name), round(run.seconds, 3)
        spent = spent_on(run)
        done = [getattr(spent, count) for count in did]
        writer.writerow([csv_cell(label), run.seed, name, *asked, *done, seconds, run.peak_bytes])
    return buffer.getvalue()


def read_machine(path: Path, labels: Sequence[str]) -> dict[tuple[str, int], tuple[float, int]]:
    """Return label and seed -> seconds and peak bytes from ``costs.csv``; empty where there is none.

    Args:
        path: the file.
        labels: the labels to look for, as they were before they were made safe for the file.
    """
    if not path.is_file():
        return {}
    known = {csv_cell(label): label for label in labels}
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (known[line["objective"]], int(line["seed"])): (float(line["seconds"]), int(line["peak_bytes"]))
            for line in csv.DictReader(file)
            if line["objective"] in known
        }


def _needs_teacher(run: RunRecord) -> bool:
    """Whether the objective looks at a teacher; as recorded, else by its name, of a plug-in whether there was one."""
    recorded = RunFolder(run.folder).status().get("asks_teacher")
    if isinstance(recorded, bool):
        return recorded
    try:
        return objective_of(run.loss)[0].needs().anything_of_teacher
    except KDError:
        return run.identity.get("teacher") is not None


def _sizes(run: RunRecord, *, taught: bool) -> tuple[Size | None, Size | None]:
    return model_size(str(run.model)), _teacher_size(run.folder) if taught else None


def _teacher_size(run: Path) -> Size | None:
    try:
        teacher = read_config(run / CONFIG).get("teacher")
    except (KDError, OSError):
        return None
    return model_size(model_of(str(teacher.value))) if teacher and teacher.value else None


def _size(found: ModelFolder) -> Size:
    table: dict[str, Any] = found.settings.get("text_config") or found.settings
    rows = table.get("vocab_size") or found.settings.get("vocab_size")
    total = sum(info.numel for info in found.tensors.values())
    by_word = [info.numel for info in found.tensors.values() if len(info.shape) == 2 and info.shape[0] == rows]
    return Size(total, total - sum(by_word), max(by_word, default=0))
