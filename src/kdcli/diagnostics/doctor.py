"""``kd doctor``: checks the machine, versions, models, rows, and teachers against each other."""

import importlib.metadata
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kdcli.config.schema import DoctorConfig
from kdcli.data.readers import size_text
from kdcli.data.tokenize import TokenDataset
from kdcli.diagnostics.compare_teachers import Difference, between_models, first_batches, with_itself, with_server
from kdcli.distill.fingerprint import environment
from kdcli.errors import InputError, KDError
from kdcli.events import Event, Report
from kdcli.loading.info import ModelInfo, ModelPair
from kdcli.loading.session import Session, check_data_path
from kdcli.models.adapters import NONE, check_adapter
from kdcli.models.devices import Device, prepare
from kdcli.models.load import LanguageModel
from kdcli.models.tokenizer import ACROSS
from kdcli.teachers.remote import RemoteTeacher
from kdcli.text import typed

# One line of a diagnosis.


State: TypeAlias = Literal["ok", "warn", "fail"]
T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: what.
        state: whether it will do.
        what: what was found.
        fix: what to do about it; empty where it is well.
        exit_code: what ``kd`` leaves with where it fails.
    """

    name: str
    state: State
    what: str
    fix: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """All checks.

    Args:
        checks: in the order of looking.
    """

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """That of the first check that failed; 0 where none did."""
        return next((check.exit_code for check in self.checks if check.state == "fail"), 0)


class Examination:
    """Gathers checks; an error becomes a line instead of an end."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def add(self, name: str, state: State, what: str, fix: str = "", exit_code: int = 4) -> None:
        """Add a line; a failure is the machine's unless an exit code says otherwise."""
        self.checks.append(Check(name, state, what, fix, exit_code if state == "fail" else 0))

    def attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """Return what the work gives; a user's error becomes a failed check and None."""
        try:
            return work()
        except KDError as error:
            where = f"{error.where}: " if error.where else ""
            self.checks.append(Check(name, "fail", f"[{error.code}] {where}{error.what}", error.fix, error.exit_code))
            return None


# What this machine has: versions, device, memory, disk.


_LITTLE = 2**30


def examine_machine(config: DoctorConfig, found: Examination) -> Device | None:
    """Check versions, device, threads, memory and disk; return the device."""
    versions = environment()
    libraries = ", ".join(f"{name} {versions['libraries'][name]}" for name in ("torch", "transformers", "accelerate"))
    found.add("versions", "ok", f"kd {versions['kd']}, python {versions['python']}, {libraries}")
    examine_versions(found)
    device = found.attempt("device", lambda: prepare(config.hardware))
    if device is not None:
        found.add("device", "ok", device.description)
        _threads(found)
        _dtype(device, found)
    _memory(device, found)
    _disk(Path(config.output or "."), found)
    return device


def locked_versions() -> dict[str, str]:
    """Return the locked version of each distribution, for this Python and platform.

    >>> locked_versions()["torch"]
    '2.13.0'
    """
    lines = files("kdcli").joinpath("constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {
        canonicalize_name(line.name): next(iter(line.specifier)).version
        for line in locked
        if line.marker is None or line.marker.evaluate()
    }


def examine_versions(found: Examination, version: Callable[[str], str] = importlib.metadata.version) -> None:
    """Compare the libraries that are installed with the ranges that ``kd`` asks for and with the versions tested.

    Args:
        found: where the lines go: ``fail`` for a version outside its range, ``warn`` for one that was not tested.
        version: the installed version of a distribution; raises PackageNotFoundError.
    """
    tested = locked_versions()
    outside, other, same = [], [], 0
    for line in importlib.metadata.requires("kdcli") or ():
        asked = Requirement(line)
        name = canonicalize_name(asked.name)
        try:
            here = Version(version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if not asked.specifier.contains(here, prereleases=True):
            outside.append(f"{name} {here} ({asked.specifier})")
        elif tested.get(name) not in (here.public, str(here)):
            other.append(f"{name} {here} (tested {tested.get(name)})")
        else:
            same += 1
    fix = f"pip install -c {typed(files('kdcli').joinpath('constraints.txt'))} kdcli"
    if outside:
        found.add("tested versions", "fail", f"outside the ranges of kd: {', '.join(outside)}", fix)
    elif other:
        found.add("tested versions", "warn", f"{same} libraries as tested, not {', '.join(other)}", fix)
    else:
        found.add("tested versions", "ok", f"{same} libraries, each in the version that was tested")


def _threads(found: Examination) -> None:
    used, here = torch.get_num_threads(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if here and used > here:
        found.add("threads", "warn", f"{used} threads on {here} cores", f"give --threads {here}")
    else:
        found.add("threads", "ok", f"{used} of {here or 'unknown'} cores; part of a run's identity once set")


def _dtype(device: Device, found: Examination) -> None:
    """Multiply in the dtype of the computation."""
    one = torch.ones((8, 8), dtype=device.compute, device=device.device)
    fine = bool(((one @ one).float() == 8.0).all())
    name = str(device.compute).removeprefix("torch.")
    fix = "" if fine else "give --dtype fp32"
    found.add("dtype", "ok" if fine else "fail", f"{name} products are {'right' if fine else 'wrong'}", fix)


def _memory(device: Device | None, found: Examination) -> None:
    if device is not None and device.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device.device)
    else:
        free, total = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    state = "ok" if free > _LITTLE else "warn"
    found.add("memory", state, f"{size_text(free)} free of {size_text(total)}", "" if state == "ok" else "free some")


def _disk(folder: Path, found: Examination) -> None:
    here = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(here).free
    if not os.access(here, os.W_OK):
        found.add("disk", "fail", f"{here} cannot be written", "choose another -o")
    else:
        state = "ok" if free > _LITTLE else "warn"
        found.add("disk", state, f"{size_text(free)} free for {folder}", "" if state == "ok" else "free some")


# Whether student, teacher and rows fit together, weights included.


def examine_pair(config: DoctorConfig, session: Session, found: Examination) -> ModelPair | None:
    """Check tokenizers and vocabularies of student and teacher."""
    if config.student is None:
        return None
    pair = found.attempt(
        "pair",
        lambda: session.pair(config.student, config.teacher, config.teacher_quantization, config.server, across=True),
    )
    if pair is None:
        return None
    notes = "".join(f"; {note}" for note in pair.notes)
    if pair.teacher is None:
        found.add("pair", "ok", f"a student alone, {pair.vocab:,} real ids{notes}")
    elif pair.teacher_vocab is not None:
        found.add("pair", "warn", f"{pair.difference}{''.join(f'; {note}' for note in pair.notes[1:])}", ACROSS)
    else:
        found.add("pair", "ok", f"{pair.vocab:,} real ids shared with {pair.teacher.path}{notes}")
    lora = config.lora
    found.attempt("lora", lambda: check_adapter(lora, student_is_random=pair.student_is_random))
    return pair


def examine_rows(config: DoctorConfig, reader: ModelInfo, session: Session, found: Examination) -> TokenDataset | None:
    """Read and tokenise the training rows."""
    if config.data.train is None:
        return None

    def read() -> TokenDataset:
        return session.data(check_data_path(config.data.train, "--data"), reader, config.data, role="train")

    rows = found.attempt("data", read)
    if rows is not None:
        what = f"{len(rows):,} rows, {rows.targets:,} response tokens, longest {max(rows.lengths):,}"
        what += f"; {rows.cut}" if rows.cut else ""
        found.add("data", "warn" if rows.cut else "ok", what, "raise data.max_length" if rows.cut else "")
    return rows


def examine_model(name: str, model: LanguageModel | None, rows: TokenDataset | None, found: Examination) -> None:
    """Describe a loaded model; loading has verified its split into layers and head."""
    if model is None:
        return
    length = max(rows.lengths) if rows is not None else 0
    parameters = sum(one.numel() for one in model.model.parameters())
    positions = "no bound on positions" if model.positions is None else f"{model.positions:,} positions"
    if found.attempt(name, lambda: model.check_length(length) or True):
        found.add(name, "ok", f"{parameters:,} numbers, split into layers and head verified, causal, {positions}")


def load_both(
    config: DoctorConfig, pair: ModelPair, device: Device, session: Session, found: Examination
) -> tuple[LanguageModel | None, LanguageModel | None]:
    """Load student and teacher; the teacher is None where it is served or cannot be loaded."""
    seed = config.seed
    student = found.attempt(
        "student", lambda: session.load_student(pair, seed=seed, device=device.device, lora=config.lora)
    )
    facts = pair.teacher
    if facts is None or facts.server is not None:
        return student, None
    teacher = found.attempt("teacher", lambda: session.load_teacher(facts.path, device.device, facts.quantization))
    return student, teacher


_AGREES, _ONE = 0.98, 0.5
"""Shares of equal likeliest tokens: below the first a warning, below the second it is another model."""
_NEAR = 0.05
"""Nats a token up to which a difference is rounding."""


def diagnose(config: DoctorConfig, report: Report) -> Diagnosis:
    """Check everything that the settings name; nothing is trained, nothing is written.

    Args:
        config: what a run would be given; whatever is not given is not looked at.
        report: called with each check.
    """
    found, session = Examination(), Session()
    report(Event("stage", "looking at the machine"))
    device = examine_machine(config, found)
    report(Event("stage", "looking at models and rows"))
    pair = examine_pair(config, session, found)
    if pair is None or device is None:
        return Diagnosis(tuple(found.checks))
    rows = examine_rows(config, pair.reader, session, found)
    report(Event("stage", "loading the models"))
    pair = replace(pair, scored_on=rows) if pair.student_needs_rows else pair
    student, teacher = load_both(config, pair, device, session, found)
    examine_model("student", student, rows, found)
    if rows is not None and pair.teacher is not None and pair.teacher_vocab is not None:
        rows = session.data(str(config.data.train), pair.teacher, config.data, role="train")
    examine_model("teacher", teacher, rows, found)
    if rows is not None and pair.teacher is not None:
        report(Event("stage", "comparing teachers"))
        _quantised(pair.teacher, rows, device, session, found)
        _served(config, pair.teacher, pair.vocab, rows, device, session, found)
    return Diagnosis(tuple(found.checks))


def _quantised(facts: ModelInfo, rows: TokenDataset, device: Device, session: Session, found: Examination) -> None:
    if facts.quantization == NONE:
        return

    def compare() -> Difference:
        dense, rounded = (session.load_teacher(facts.path, device.device, kind) for kind in (NONE, facts.quantization))
        return between_models(dense, rounded, first_batches(rows, device))

    difference = found.attempt("teacher", compare)
    _judge(f"teacher in {facts.quantization}", difference, found, "use int8, or the whole teacher")


def _served(
    config: DoctorConfig, facts: ModelInfo, vocab: int, rows: TokenDataset, device: Device, session: Session,
    found: Examination,
) -> None:  # fmt: skip
    server, local = facts.server, config.local_teacher
    if server is None:
        return
    teacher = found.attempt("server", lambda: RemoteTeacher(server, facts.tokenizer, vocab, config.top_k))
    batches = first_batches(rows, device)
    if teacher is None or found.attempt("server", lambda: with_itself(teacher, batches[0])) is None:
        return
    found.add("server", "ok", f"{facts.digest} gives {config.top_k} tokens a place; its tokenizer is the student's")
    if local is None:
        what = "its numbers were not compared with anything"
        found.add("server's numbers", "warn", what, "give --local-teacher, a folder of the same model")
        return
    loaded = found.attempt("local teacher", lambda: session.load_teacher(local, device.device))
    if loaded is not None:
        difference = found.attempt("server's numbers", lambda: with_server(loaded, teacher, batches))
        _judge("server's numbers", difference, found, "serve the same weights, without a temperature, in fp32 or bf16")


def _judge(name: str, difference: Difference | None, found: Examination, fix: str) -> None:
    if difference is None:
        return
    near = difference.top >= _AGREES and difference.kl <= _NEAR
    state = "ok" if near else "warn" if difference.top >= _ONE else "fail"
    found.add(name, state, str(difference), "" if near else fix, InputError.exit_code)
