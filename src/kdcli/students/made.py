"""Students made on the spot from a teacher: ``random:`` in its form, ``cut:`` out of it, or a ``supernet:`` of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NoReturn

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.data.batching import Batch
from kdcli.data.tokenize import TokenDataset
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, UsageError
from kdcli.models.checks import open_folder, open_settings
from kdcli.models.family_layout import Form, family_of, form_of
from kdcli.models.left_out import FIELD, LeftOut, cache_holders
from kdcli.models.load import LanguageModel, assemble, positions_of
from kdcli.models.random_init import is_random, random_config, weights_digest
from kdcli.models.sizes import Footprint, sizes_of
from kdcli.models.skipping import zero_out
from kdcli.models.tokenizer import folder_end_tokens, load_tokenizer
from kdcli.models.weights import build_config, load_weights
from kdcli.students.cut import Kept, config_of, counter, refused_by_config, slice_model
from kdcli.students.scores import Scores, batches_of, highest, score, similarities, spaced
from kdcli.students.sparsity import PrunedLayer, prune
from kdcli.students.spec import CutSpec, Half, choose_sizes, choose_skipped, is_cut, parse_cut
from kdcli.students.supernet_spec import is_supernet, parse_supernet
from kdcli.text import one_line


def is_made(student: str) -> bool:
    """Whether a student is a spec from which it is made, rather than a folder or hub id."""
    return is_random(student) or is_cut(student) or is_supernet(student)


def made_config(student: str, teacher_folder: str) -> PreTrainedConfig:
    """Return the config of a student that would be made; nothing is built.

    Args:
        student: ``random:``, ``cut:`` or ``supernet:`` spec; of a supernet the whole size.
        teacher_folder: folder or hub id of the teacher.

    Raises:
        UsageError: the spec cannot be used.
        InputError: the teacher's folder cannot be used.
    """
    if is_supernet(student):
        config = config_in(teacher_folder)
        parse_supernet(student).check_on(config, teacher_folder)
        return config
    if is_random(student):
        return random_config(student, teacher_folder)
    spec, teacher = parse_cut(student), config_in(teacher_folder)
    layers = spec.layers if isinstance(spec.layers, tuple) else None
    made = config_of(teacher, _sizes(spec, teacher, teacher_folder), layers, teacher_folder)
    if halves := _skipped(spec, made, {}):
        setattr(made, FIELD, halves.as_setting())
    return made


@cache
def footprint(
    model: str, teacher: str | None, *, rows: int, length: int, keep: bool, autocast: torch.dtype | None = None
) -> Footprint:
    """Return a model's sizes.

    Args:
        model: folder, hub id, ``random:`` or ``cut:`` spec.
        teacher: folder or hub id that a student is made from.
        rows: sequences of the largest micro-batch.
        length: its padded tokens per sequence.
        keep: whether activations are walked through; without, they count as nothing.
        autocast: dtype of the forward pass; None computes in fp32.

    Raises:
        KDError: the model cannot be used.
    """
    config = made_config(model, str(teacher)) if is_made(model) else _config(model)
    return sizes_of(config, rows=rows, length=length, keep=keep, autocast=autocast)


def cut_identity(student: str, teacher_digest: str, rows: TokenDataset | None) -> str:
    """Return what identifies a student that has a teacher's weights: spec, teacher, and the rows its scores need.

    Args:
        student: ``cut:`` or ``supernet:`` spec.
        teacher_digest: sha256 that identifies the teacher's weights.
        rows: what scores are taken on; None where no score needs rows, or none are known yet.
    """
    scoring, spec = scoring_of(student)
    seen = f" on {rows_of_scores(scoring, rows).digest}" if scoring.needs_rows and rows is not None else ""
    return f"{spec} of {teacher_digest}{seen}"


def keeps_weights(student: str) -> bool:
    """Whether a student is a spec that takes its teacher's weights: ``cut:`` or ``supernet:``."""
    return is_cut(student) or is_supernet(student)


def scoring_of(student: str) -> tuple[CutSpec, str]:
    """Return what names the scores that a student needs, and its spec in canonical form.

    Args:
        student: ``cut:`` or ``supernet:`` spec.

    Raises:
        UsageError: the spec cannot be used.
    """
    if is_supernet(student):
        spec = parse_supernet(student)
        return spec.scoring, str(spec)
    cut = parse_cut(student)
    return cut, str(cut)


def rows_of_scores(spec: CutSpec, rows: TokenDataset) -> TokenDataset:
    """Return the rows that scores are taken on: the first ones."""
    return replace(rows, examples=rows.examples[: spec.rows])


@dataclass(frozen=True)
class Cut:
    """A student cut out of a teacher, and why.

    Args:
        student: the student.
        spec: what was asked for.
        before: the teacher's sizes.
        after: the student's sizes.
        kept: what stayed.
        scores: what decided.
        similarities: of what halves of the student's layers read and what they make of it, if that was measured.
        skipped: halves of the student's layers that are left out.
        parameters: of teacher and student; what is left out is not counted.
        rows: rows that scores were taken on.
        pruned: the linear layers of which a share of the weights was set to 0.
    """

    student: LanguageModel
    spec: CutSpec
    before: Form
    after: Form
    kept: Kept
    scores: Scores
    similarities: Mapping[Half, Sequence[float]]
    skipped: LeftOut
    parameters: tuple[int, int]
    rows: int
    pruned: tuple[PrunedLayer, ...] = ()


@dataclass(frozen=True)
class OpenedTeacher:
    """A teacher that a student is made from, with its weights.

    Args:
        model: the teacher, on the device that scores are computed on.
        tokenizer: its tokenizer.
        ends: the tokens that end its texts.
        notes: what was ignored while loading.
        batches: the rows that scores are taken on; none where no score needs rows.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: EndTokens
    notes: tuple[str, ...]
    batches: Sequence[Batch]

    def assembled(self, made: PreTrainedModel, name: str, device: torch.device) -> LanguageModel:
        """Return a model made of its weights as a student with its tokenizer."""
        return assemble(
            made, self.tokenizer, name, weights_digest(made), device=device, role="student", notes=self.notes,
            ends=self.ends,
        )  # fmt: skip


def open_teacher(
    spec: CutSpec, teacher_folder: str, rows: TokenDataset | None, device: torch.device, text: str
) -> OpenedTeacher:
    """Load a teacher and the batches that its scores need.

    Args:
        spec: names the scores.
        teacher_folder: folder or hub id of the teacher.
        rows: what scores are taken on.
        device: where they are computed.
        text: the student's spec, for messages.

    Raises:
        UsageError: CUT-04, rows are missing.
        InputError: the teacher cannot be used.
    """
    if spec.needs_rows and rows is None:
        _without_rows(spec, text)
    checked = open_folder(teacher_folder)
    tokenizer = load_tokenizer(teacher_folder)
    teacher = load_weights(checked, build_config(checked.settings, str(checked.folder)), torch.float32)
    torch.nn.Module.to(teacher, device)
    ends, _ = folder_end_tokens(checked, tokenizer, int(teacher.config.vocab_size), teacher_folder)
    batches: Sequence[Batch] = []
    if spec.needs_rows and rows is not None:
        batches = batches_of(rows, spec.rows, ends.default, device)
        _check_positions(teacher, batches, teacher_folder)
    return OpenedTeacher(teacher, tokenizer, ends, checked.notes, batches)


def cut_student(
    text: str, teacher_folder: str, *, rows: TokenDataset | None, device: torch.device, known: Scores | None = None
) -> Cut:
    """Cut a student out of a teacher; the same spec, teacher and rows give the same student.

    Args:
        text: ``cut:`` spec.
        teacher_folder: folder or hub id of the teacher.
        rows: what scores are taken on, if one needs rows.
        device: where scores are computed, and the student is put.
        known: scores that were taken before, on the same teacher and rows.

    Raises:
        UsageError: the spec cannot be used, or rows are missing.
        InputError: the teacher cannot be used, or its family cannot be cut.
    """
    spec = parse_cut(text)
    before = form_of(config_in(teacher_folder), teacher_folder)
    after = _sizes(spec, config_in(teacher_folder), teacher_folder)
    opened = open_teacher(spec, teacher_folder, rows, device, text)
    teacher, batches = opened.model, opened.batches
    scores = known or score(teacher, spec, batches, teacher_folder)
    kept = choose(spec, before, after, scores)
    made = slice_model(teacher, kept, teacher_folder)
    alike: Mapping[Half, Sequence[float]] = {}
    if any(skip is not None and skip.by == "score" for skip in (spec.skip_attention, spec.skip_mlp)):
        alike = similarities(made, batches, teacher_folder)
    if skipped := _skipped(spec, made.config, alike):
        zero_out(made, skipped)
    thinned = prune(made, spec, batches, skipped) if spec.sparse is not None else ()
    student = opened.assembled(made, str(spec), device)
    sizes = tuple(sum(one.numel() for one in model.parameters()) for model in (teacher, made))
    seen = len(rows_of_scores(spec, rows)) if spec.needs_rows and rows is not None else 0
    return Cut(student, spec, before, after, kept, scores, alike, skipped, (sizes[0], sizes[1]), seen, thinned)


def choose(spec: CutSpec, before: Form, after: Form, scores: Scores) -> Kept:
    """Return what stays: the parts of the highest scores, in the order that they have in the teacher.

    Args:
        spec: what is asked for.
        before: the teacher's sizes.
        after: the student's sizes.
        scores: of the teacher's parts.
    """
    whole = Kept.everything(before)
    layers = _layers(spec, before, after, scores)
    groups = units = tuple(() for _ in layers)
    if after.groups < before.groups:
        groups = tuple(highest(scores.groups[layer], after.groups) for layer in layers)
    if after.ffn < before.ffn:
        units = tuple(highest(scores.ffn[layer], after.ffn) for layer in layers)
    return Kept(
        layers,
        groups if after.groups < before.groups else whole.groups[: len(layers)],
        units if after.ffn < before.ffn else whole.ffn[: len(layers)],
        highest(scores.width, after.width) if after.width < before.width else whole.width,
    )


def _layers(spec: CutSpec, before: Form, after: Form, scores: Scores) -> tuple[int, ...]:
    if isinstance(spec.layers, tuple):
        return spec.layers
    if after.layers == before.layers:
        return tuple(range(before.layers))
    always = [*range(spec.keep_first), *range(before.layers - spec.keep_last, before.layers)]
    if spec.layer_score == "spaced":
        return spaced(before.layers, after.layers, always)
    return highest(scores.layers, after.layers, always)


def _skipped(spec: CutSpec, config: PreTrainedConfig, alike: Mapping[Half, Sequence[float]]) -> LeftOut:
    """Return what is left out of a student; before anything is scored, as many layers of the same size."""
    layers, holders = config.num_hidden_layers, cache_holders(config)
    halves: tuple[Half, Half] = ("attention", "mlp")
    return LeftOut(*(choose_skipped(spec, half, layers, holders, alike.get(half, ())) for half in halves))


def _sizes(spec: CutSpec, teacher: PreTrainedConfig, where: str) -> Form:
    family, form = family_of(teacher, where), form_of(teacher, where)
    return choose_sizes(
        spec, form, family, counter(teacher, where), lambda sizes: refused_by_config(teacher, sizes, where)
    )


def _config(folder: str) -> PreTrainedConfig:
    settings, place, _ = open_settings(folder)
    return build_config(settings, str(place))


def config_in(folder: str) -> PreTrainedConfig:
    """Return the config of the language model in a folder; no weight is read."""
    return _config(folder).get_text_config(decoder=True)


def _without_rows(spec: CutSpec, text: str) -> NoReturn:
    what = f"{' and '.join(spec.read_on_rows)} is measured on rows, and there are none"
    fix = f"give --data, or {spec.without_rows}"
    raise UsageError("CUT-04", what, where=f'student "{one_line(text)}"', fix=fix)


def _check_positions(teacher: PreTrainedModel, batches: Sequence[Batch], where: str) -> None:
    bound, longest = positions_of(teacher), max(batch.input_ids.shape[1] for batch in batches)
    if bound is not None and longest > bound:
        what = f"rows of {longest} tokens > {bound} positions"
        raise InputError("MOD-22", what, where=one_line(where), fix=f"set data.max_length to at most {bound}")
