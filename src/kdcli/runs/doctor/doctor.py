"""From settings to a diagnosis: machine, models, rows, and teachers against each other."""

from kdcli.config import DoctorConfig
from kdcli.data.dataset import TokenDataset
from kdcli.engine.devices import Device
from kdcli.engine.events import Event, Report
from kdcli.errors import InputError
from kdcli.models.quantise import NONE
from kdcli.runs.doctor.check import Diagnosis, Examination
from kdcli.runs.doctor.compare import Difference, between_models, first_batches, with_itself, with_server
from kdcli.runs.doctor.machine import examine_machine
from kdcli.runs.doctor.models import examine_model, examine_pair, examine_rows, load_both
from kdcli.runs.model_facts import ModelFacts
from kdcli.runs.serving.teacher import ServedTeacher
from kdcli.runs.workshop import Workshop

_AGREES, _ONE = 0.98, 0.5
"""Shares of equal likeliest tokens: below the first a warning, below the second it is another model."""
_NEAR = 0.05
"""Nats a token up to which a difference is rounding."""


def diagnose(config: DoctorConfig, report: Report) -> Diagnosis:
    """Look at everything that the settings name; nothing is trained, nothing is written.

    Args:
        config: what a run would be given; whatever is not given is not looked at.
        report: told what is being looked at.
    """
    found, workshop = Examination(), Workshop()
    report(Event("stage", "looking at the machine"))
    device = examine_machine(config, found)
    report(Event("stage", "looking at models and rows"))
    pair = examine_pair(config, workshop, found)
    if pair is None or device is None:
        return Diagnosis(tuple(found.checks))
    rows = examine_rows(config, pair.reader, workshop, found)
    report(Event("stage", "loading the models"))
    student, teacher = load_both(config, pair, device, workshop, found)
    examine_model("student", student, rows, found)
    if rows is not None and pair.teacher is not None and pair.teacher_vocab is not None:
        rows = workshop.data(str(config.data.train), pair.teacher, config.data, role="train")
    examine_model("teacher", teacher, rows, found)
    if rows is not None and pair.teacher is not None:
        report(Event("stage", "comparing teachers"))
        _quantised(pair.teacher, rows, device, workshop, found)
        _served(config, pair.teacher, pair.vocab, rows, device, workshop, found)
    return Diagnosis(tuple(found.checks))


def _quantised(facts: ModelFacts, rows: TokenDataset, device: Device, workshop: Workshop, found: Examination) -> None:
    if facts.quantization == NONE:
        return

    def compare() -> Difference:
        dense, rounded = (workshop.load_teacher(facts.path, device.device, kind) for kind in (NONE, facts.quantization))
        return between_models(dense, rounded, first_batches(rows, device))

    difference = found.attempt("teacher", compare)
    _judge(f"teacher in {facts.quantization}", difference, found, "use int8, or the whole teacher")


def _served(
    config: DoctorConfig, facts: ModelFacts, vocab: int, rows: TokenDataset, device: Device, workshop: Workshop,
    found: Examination,
) -> None:  # fmt: skip
    server, local = facts.server, config.local_teacher
    if server is None:
        return
    teacher = found.attempt("server", lambda: ServedTeacher(server, facts.tokenizer, vocab, config.top_k))
    batches = first_batches(rows, device)
    if teacher is None or found.attempt("server", lambda: with_itself(teacher, batches[0])) is None:
        return
    found.add("server", "ok", f"{facts.digest} gives {config.top_k} tokens a place; its tokenizer is the student's")
    if local is None:
        what = "its numbers were not compared with anything"
        found.add("server's numbers", "warn", what, "give --local-teacher, a folder of the same model")
        return
    loaded = found.attempt("local teacher", lambda: workshop.load_teacher(local, device.device))
    if loaded is not None:
        difference = found.attempt("server's numbers", lambda: with_server(loaded, teacher, batches))
        _judge("server's numbers", difference, found, "serve the same weights, without a temperature, in fp32 or bf16")


def _judge(name: str, difference: Difference | None, found: Examination, fix: str) -> None:
    if difference is None:
        return
    near = difference.top >= _AGREES and difference.kl <= _NEAR
    state = "ok" if near else "warn" if difference.top >= _ONE else "fail"
    found.add(name, state, str(difference), "" if near else fix, InputError.exit_code)
