"""``kd student``: a student made from a teacher, as a model folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from kdcli.config.schema import StudentConfig
from kdcli.data.tokenize import TokenDataset
from kdcli.distill.model_card import CARD, on_hub, shown_name, table
from kdcli.errors import InputError, UsageError
from kdcli.events import Event, Report
from kdcli.loading.info import ModelInfo, ModelPair
from kdcli.loading.session import Session, check_data_path
from kdcli.loading.splits import training_rows
from kdcli.models.devices import prepare
from kdcli.models.family_layout import Form, form_of
from kdcli.models.left_out import LeftOut
from kdcli.models.load import LanguageModel, assemble, load_model, save_student
from kdcli.models.random_init import weights_digest
from kdcli.models.sizes import sizes_of
from kdcli.models.zeros import compressed_bytes
from kdcli.storage import atomic
from kdcli.storage.locate import model_of
from kdcli.students.cut import Kept, slice_model
from kdcli.students.made import Cut, config_in, is_made, made_config, rows_of_scores
from kdcli.students.palette import Size, palette_of, parse_pick, pick_size
from kdcli.students.spec import METHODS_ON_ROWS, is_cut, parse_cut
from kdcli.students.supernet_spec import refuse_several_sizes
from kdcli.text import markdown_cell, one_line, typed
from kdcli.version import __version__

ORIGIN = "origin.json"
"""What a student was made from, what stayed of it, and the scores that decided."""
_DIGITS = 9


@dataclass(frozen=True)
class StudentRecord:
    """A student that was made, or would be.

    Args:
        folder: where it lies; None where nothing was written.
        student: what was asked for, in canonical form.
        teacher: the teacher, as it was given.
        sizes: name -> the teacher's and the student's; of a random student its own alone.
        parameters: of the teacher and of the student.
        layers: the teacher's layers that stayed; empty for a random student.
        rows: rows that something was measured on.
        already: whether it was there before.
        zeros: share of the weights of the pruned linear layers that are 0; None where none was pruned.
        disk_bytes: size of the weight files of a sparse student; None where nothing was written.
        compressed_bytes: their size after zlib.
    """

    folder: Path | None
    student: str
    teacher: str
    sizes: Mapping[str, tuple[int, ...]]
    parameters: tuple[int, int]
    layers: tuple[int, ...]
    rows: int
    already: bool = False
    zeros: float | None = None
    disk_bytes: int | None = None
    compressed_bytes: int | None = None


def make_student(config: StudentConfig, report: Report, session: Session | None = None) -> StudentRecord:
    """Make a student from a teacher and write it as a model folder that transformers loads as it stands.

    The same settings give the same bytes. A folder that holds this very student is left as it is.

    Args:
        config: what is made, from which teacher, and where.
        report: called with progress events.
        session: what is loaded already.

    Raises:
        KDError: of the kind that fits; a mistake in the settings is found before weights are read.
    """
    session = session or Session()
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="name one")
    folder, device = Path(config.output), prepare(config.hardware).device
    if config.pick is not None:
        return _write_picked(_picked(config, session), folder, report)
    pair, name = _pair(config, session), str(config.student)
    made_config(name, pair.reader.path)
    identity = f"{pair.student_identity} seed {config.seed}" if pair.student_is_random else pair.student_identity
    if (found := _already(folder, identity)) is not None:
        return found
    for note in pair.notes:
        report(Event("note", note))
    report(Event("stage", "making the student"))
    if is_cut(name):
        cut = session.cut(pair, device)
        origin, student = _origin_of_cut(cut, pair), cut.student
    else:
        student = session.load_student(pair, seed=config.seed, device=device)
        origin = _origin_of_random(student, pair, config.seed)
    return _write(student, origin, pair.reader.path, folder, identity)


def _write(
    student: LanguageModel, origin: dict[str, Any], made_from: str, folder: Path, identity: str
) -> StudentRecord:
    """Write a student with its origin and its card as a folder that appears whole or not at all."""
    atomic.make_folder(folder.parent)

    def fill(target: Path) -> None:
        torch.nn.Module.to(student.model, "cpu")
        save_student(student, target)
        if "sparsity" in origin:
            files = sorted(target.glob("*.safetensors"))
            origin["sparsity"]["disk_bytes"] = sum(file.stat().st_size for file in files)
            origin["sparsity"]["compressed_bytes"] = compressed_bytes(files)
        (target / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
        (target / CARD).write_text(_card(origin, made_from), encoding="utf-8")

    atomic.commit_folder(folder, fill, {"kind": "model", "student": identity})
    return _record(origin, folder)


# One size of a supernet.


@dataclass(frozen=True)
class _Picked:
    """A size of a supernet that is wanted; its weights are not read yet."""

    supernet: ModelInfo
    size: Size
    kept: Kept
    origin: dict[str, Any]

    @property
    def identity(self) -> str:
        """What tells the folder of this student from others."""
        return f"{self.size} of {self.supernet.digest}"


def _picked(config: StudentConfig, session: Session) -> _Picked:
    """Return the size that is wanted.

    Raises:
        UsageError: nothing is named to pick from, or no size is as wanted.
        InputError: the folder holds no supernet.
    """
    if config.student is None or is_made(config.student):
        what = "a size is picked from a supernet that was trained"
        raise UsageError(
            "CLI-20", what, where="--pick", fix="give its folder: kd student FOLDER --pick width=0.5 -o small"
        )
    pick, found = parse_pick(str(config.pick)), session.inspect(config.student)
    settings = config_in(model_of(config.student))
    palette, form = palette_of(settings, config.student), form_of(settings, config.student)
    size, number = pick_size(pick, palette, settings, config.student)
    kept = palette.kept(size, form)
    before, after = _sizes(form), _sizes(kept.form(form))
    origin = {
        "kd": __version__,
        "student": f"the size {size}",
        "teacher": {"name": shown_name(found.path), "sha256": found.digest},
        "rows": _rows(None, 0),
        "parameters": (found.parameters, number),
        "sizes": {name: (before[name], after[name]) for name in before},
        "kept": asdict(kept),
        "left_out": {},
        "similarities": {},
        "scores": {},
        "supernet": True,
    }
    return _Picked(found, size, kept, origin)


def _write_picked(picked: _Picked, folder: Path, report: Report) -> StudentRecord:
    if (found := _already(folder, picked.identity)) is not None:
        return found
    report(Event("stage", "making the student"))
    whole = load_model(model_of(picked.supernet.path), device=torch.device("cpu"), role="student")
    made = slice_model(whole.model, picked.kept, picked.supernet.path)
    student = assemble(
        made, whole.tokenizer, str(picked.size), weights_digest(made), device=torch.device("cpu"), role="student",
        ends=whole.ends,
    )  # fmt: skip
    return _write(student, picked.origin, picked.supernet.path, folder, picked.identity)


def plan_student(config: StudentConfig) -> StudentRecord:
    """Say what would be made; nothing is written, no weight is read."""
    session = Session(planning=True)
    if config.pick is not None:
        return replace(_record(_picked(config, session).origin, Path()), folder=None)
    pair, name = _pair(config, session), str(config.student)
    made, teacher = made_config(name, pair.reader.path), pair.reader
    sizes = _sizes_of(made)
    number = sizes_of(made).parameters
    spec = parse_cut(name) if is_cut(name) else None
    layers = spec.layers if spec is not None and isinstance(spec.layers, tuple) else ()
    rows = 0 if pair.scored_on is None or spec is None else len(rows_of_scores(spec, pair.scored_on))
    return StudentRecord(
        None, str(spec or name), teacher.path, sizes, (teacher.parameters, number), layers, rows,
    )  # fmt: skip


def _pair(config: StudentConfig, session: Session) -> ModelPair:
    """Return student and teacher, with the rows that scores are taken on."""
    if config.student is None or not is_made(config.student):
        what = "no student" if config.student is None else f'"{one_line(config.student, 60)}" says nothing to make'
        raise UsageError(
            "CLI-20", what, where="kd student", fix="give cut:layers=2 or random:layers=3,width=64,heads=4"
        )
    refuse_several_sizes(config.student, "a supernet is trained before a size is picked from it")
    pair = session.pair(config.student, config.teacher)
    if pair.student_needs_rows:
        if config.data.train is None:
            spec = parse_cut(config.student)
            what = f"{' and '.join(spec.read_on_rows)} is measured on rows"
            fix = f"give --data, or {spec.without_rows}"
            raise UsageError("CUT-04", what, where=f'student "{one_line(config.student)}"', fix=fix)
        return replace(pair, scored_on=training_rows(config.data, pair.reader, session))
    if config.data.train is not None:
        check_data_path(config.data.train, "--data")
        what = "has no effect: nothing of this student is measured on rows"
        other = "method=wanda" if is_cut(config.student) and parse_cut(config.student).sparse else "by=activation"
        raise UsageError("CLI-09", what, where="--data", fix=f"leave it out, or choose {other}")
    return pair


def _already(folder: Path, identity: str) -> StudentRecord | None:
    """Return the record of a folder that holds a student; None where there is room for one.

    Raises:
        InputError: CUT-05, the folder holds something else.
        IntegrityError: it holds this student, and a file is not what it was.
    """
    if folder.parent.is_dir():
        atomic.remove_temporaries(folder.parent)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    manifest = atomic.read_manifest(folder) if (folder / atomic.MANIFEST).is_file() else {}
    if manifest.get("student") != identity:
        what = "the folder holds something else" if not manifest.get("student") else "the folder holds another student"
        fix = f"give another folder, or remove {typed(folder)}"
        raise InputError("CUT-05", what, where=str(folder), fix=fix)
    atomic.verify_folder(folder)
    origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    return replace(_record(origin, folder), already=True)


def _record(origin: Mapping[str, Any], folder: Path) -> StudentRecord:
    parameters: tuple[int, int] = tuple(origin["parameters"])
    sizes = {name: tuple(value) for name, value in origin["sizes"].items()}
    told = {name: origin.get("sparsity", {}).get(name) for name in ("zeros", "disk_bytes", "compressed_bytes")}
    return StudentRecord(
        folder, origin["student"], origin["teacher"]["name"], sizes, parameters,
        tuple(origin.get("kept", {}).get("layers", ())), origin["rows"]["count"], **told,
    )  # fmt: skip


def _origin_of_cut(cut: Cut, pair: ModelPair) -> dict[str, Any]:
    """Return what a student that was cut was made from, as JSON."""
    before, after = _sizes(cut.before), _sizes(cut.after)
    scores = {
        "layers": (cut.spec.layer_score, cut.scores.layers),
        "groups": (cut.spec.by, cut.scores.groups),
        "ffn": (cut.spec.by, cut.scores.ffn),
        "width": (cut.spec.by, cut.scores.width),
    }
    return {
        "kd": __version__,
        "student": str(cut.spec),
        "teacher": _teacher(pair),
        "rows": _rows(pair.scored_on if cut.rows else None, cut.rows),
        "parameters": cut.parameters,
        "sizes": {name: (before[name], after[name]) for name in before},
        "kept": asdict(cut.kept),
        "left_out": cut.skipped.as_setting(),
        "similarities": {half: _rounded(list(values)) for half, values in cut.similarities.items()},
        "scores": {
            name: {"by": by, "values": _rounded(values.tolist())}
            for name, (by, values) in scores.items()
            if len(values)
        },
        **({"sparsity": _sparsity(cut)} if cut.pruned else {}),
    }


def _sparsity(cut: Cut) -> dict[str, Any]:
    zeros, weights = (sum(getattr(one, name) for one in cut.pruned) for name in ("zeros", "weights"))
    return {
        "share": cut.spec.sparse,
        "method": cut.spec.method,
        "pattern": cut.spec.pattern,
        "zeros": zeros / weights,
        "error_of": "outputs" if cut.spec.method in METHODS_ON_ROWS else "weights",
        "layers": [asdict(one) | {"error": _rounded(one.error)} for one in cut.pruned],
    }


def _origin_of_random(student: LanguageModel, pair: ModelPair, seed: int) -> dict[str, Any]:
    number = sum(one.numel() for one in student.model.parameters())
    return {
        "kd": __version__,
        "student": pair.student,
        "seed": seed,
        "teacher": _teacher(pair),
        "rows": _rows(None, 0),
        "parameters": (pair.reader.parameters, number),
        "sizes": _sizes_of(student.model.config),
    }


def _teacher(pair: ModelPair) -> dict[str, str]:
    return {"name": shown_name(pair.reader.path), "sha256": pair.reader.digest}


def _rows(rows: TokenDataset | None, count: int) -> dict[str, Any]:
    return {
        "count": count,
        **({} if rows is None else {"sha256": replace(rows, examples=rows.examples[:count]).digest}),
    }


def _rounded(values: Any) -> Any:
    return [_rounded(one) for one in values] if isinstance(values, list) else float(f"{values:.{_DIGITS}g}")


def _sizes(form: Form) -> dict[str, int]:
    return {"layers": form.layers, "heads": form.heads, "KV heads": form.groups, "ffn": form.ffn, "width": form.width}


def _sizes_of(config: Any) -> dict[str, tuple[int, ...]]:
    names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size"}
    return {name: (int(getattr(config, setting)),) for name, setting in names.items()}


# The card.


def _card(origin: Mapping[str, Any], path: str) -> str:
    """Return the model card: what the student was made from, what stayed, and why."""
    name = f"{shown_name(path)}, {origin['student']}"
    data = ModelCardData(
        base_model=[path] if on_hub(path) else None,
        library_name="transformers", pipeline_tag="text-generation", tags=["distillation", "kd"],
    )  # fmt: skip
    before, after = origin["parameters"]
    trained = origin.get("supernet", False)
    made_from = [("supernet" if trained else "teacher", origin["teacher"]["name"], origin["teacher"]["sha256"])]
    if "sha256" in origin["rows"]:
        made_from.append(("rows of the scores", f"{origin['rows']['count']:,}", origin["rows"]["sha256"]))
    sizes = [(key, *map("{:,}".format, value)) for key, value in origin["sizes"].items()]
    if "kept" in origin:
        sizes.append(("parameters", f"{before:,}", f"{after:,}"))
        heads = ["size", made_from[0][0], "student"]
    else:
        sizes.append(("parameters", f"{after:,}"))
        heads = ["size", "student"]
    lines = [
        f"# {markdown_cell(one_line(name, 200))}", "",
        "One size of a supernet that kd trained." if trained
        else "A student made from a teacher by kd; it was not trained yet.", "",
        *table(["made from", "what", "sha256"], made_from), "", *table(heads, sizes), *_why(origin),
    ]  # fmt: skip
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n").content


def _why(origin: Mapping[str, Any]) -> list[str]:
    """Return what stayed and the scores, part by part; all numbers stand in origin.json."""
    kept, scores = origin.get("kept"), origin.get("scores", {})
    if kept is None:
        return ["", f"Weights are random, of seed {origin['seed']}."]
    lines = ["", f"Layers that stayed: {', '.join(map(str, kept['layers']))}."]
    if halves := LeftOut(**{half: tuple(layers) for half, layers in origin["left_out"].items()}):
        lines += [
            "",
            f"Of the student, {halves} is left out: all weights of it are 0 in the file, which is exact in any",
        ]
        lines += ["program; here it is neither run nor counted among the parameters."]
    if alike := origin["similarities"]:
        pairs = zip(*alike.values(), strict=True)
        rows = [(str(layer), *(f"{value:.6g}" for value in both)) for layer, both in enumerate(pairs)]
        lines += ["", *table(["layer", *(f"cos(x, x + {half})" for half in alike)], rows)]
    if "layers" in scores:
        rows = [(str(number), f"{value:.4g}") for number, value in enumerate(scores["layers"]["values"])]
        lines += ["", *table(["layer", f"score ({scores['layers']['by']})"], rows)]
    rows = []
    for part, stayed in (("groups", kept["groups"]), ("ffn", kept["ffn"])):
        if part in scores and len(stayed[0]) < len(scores[part]["values"][0]):
            for layer, chosen in zip(kept["layers"], stayed, strict=True):
                rows.append((f"{part}, layer {layer}", *_gap(scores[part]["values"][layer], chosen)))
    if "width" in scores and len(kept["width"]) < len(scores["width"]["values"]):
        rows.append(("width", *_gap(scores["width"]["values"], kept["width"])))
    if rows:
        by = next(scores[part]["by"] for part in ("groups", "ffn", "width") if part in scores)
        heads = [f"score ({by})", "stayed", "least of those", "left out", "greatest of those"]
        lines += ["", *table(heads, rows)]
    return [*lines, *_zeros(origin), "", f"All scores and numbers of what stayed: {ORIGIN}."]


def _zeros(origin: Mapping[str, Any]) -> list[str]:
    """Return how the student was pruned, linear layer by linear layer; nothing where it was not."""
    found = origin.get("sparsity")
    if found is None:
        return []
    rows = [
        (one["name"], f"{one['weights']:,}", f"{one['zeros'] / one['weights']:.1%}", f"{one['error']:.4g}")
        for one in found["layers"]
    ]
    said = f"{found['zeros']:.1%} of the weights of these linear layers are 0"
    return [
        "",
        f"Pruned by {found['method']}, {found['pattern']}: {said}. The weights take {found['disk_bytes']:,} bytes, and",
        f"{found['compressed_bytes']:,} after zlib. Zeros alone make no answer faster.",
        "",
        *table(["linear layer", "weights", "zeros", f"relative squared error of its {found['error_of']}"], rows),
    ]


def _gap(values: Sequence[float], chosen: Sequence[int]) -> tuple[str, str, str, str]:
    rest = [value for number, value in enumerate(values) if number not in set(chosen)]
    least = min(values[number] for number in chosen)
    return f"{len(chosen):,}", f"{least:.4g}", f"{len(rest):,}", f"{max(rest):.4g}"
