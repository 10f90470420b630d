"""Whether student, teacher and rows fit together, weights included."""

from kdcli.config import DoctorConfig
from kdcli.data.dataset import TokenDataset
from kdcli.engine.devices import Device
from kdcli.models.adapter import check_adapter
from kdcli.models.load import LanguageModel
from kdcli.models.vocabulary import ACROSS
from kdcli.runs.doctor.check import Examination
from kdcli.runs.model_facts import ModelFacts, Pair
from kdcli.runs.workshop import Workshop, check_data_path


def examine_pair(config: DoctorConfig, workshop: Workshop, found: Examination) -> Pair | None:
    """Look at tokenizers and vocabularies of student and teacher."""
    if config.student is None:
        return None
    pair = found.attempt(
        "pair",
        lambda: workshop.pair(config.student, config.teacher, config.teacher_quantization, config.server, across=True),
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


def examine_rows(
    config: DoctorConfig, reader: ModelFacts, workshop: Workshop, found: Examination
) -> TokenDataset | None:
    """Read and tokenise the training rows."""
    if config.data.train is None:
        return None

    def read() -> TokenDataset:
        return workshop.data(check_data_path(config.data.train, "--data"), reader, config.data, role="train")

    rows = found.attempt("data", read)
    if rows is not None:
        cut = [note for note in rows.notes if "cut" in note]
        what = f"{len(rows):,} rows, {rows.targets:,} response tokens, longest {max(rows.lengths):,}"
        what += f"; {cut[0]}" if cut else ""
        found.add("data", "warn" if cut else "ok", what, "raise data.max_length" if cut else "")
    return rows


def examine_model(name: str, model: LanguageModel | None, rows: TokenDataset | None, found: Examination) -> None:
    """Say what a loaded model is; that it was loaded proves its split into layers and head."""
    if model is None:
        return
    length = max(rows.lengths) if rows is not None else 0
    parameters = sum(one.numel() for one in model.model.parameters())
    positions = "no bound on positions" if model.positions is None else f"{model.positions:,} positions"
    if found.attempt(name, lambda: model.check_length(length) or True):
        found.add(name, "ok", f"{parameters:,} numbers, head apart from layers proven, causal, {positions}")


def load_both(
    config: DoctorConfig, pair: Pair, device: Device, workshop: Workshop, found: Examination
) -> tuple[LanguageModel | None, LanguageModel | None]:
    """Load student and teacher; the teacher is None where it is served or cannot be loaded."""
    seed = config.seed
    student = found.attempt(
        "student", lambda: workshop.load_student(pair, seed=seed, device=device.device, lora=config.lora)
    )
    facts = pair.teacher
    if facts is None or facts.server is not None:
        return student, None
    teacher = found.attempt("teacher", lambda: workshop.load_teacher(facts.path, device.device, facts.quantization))
    return student, teacher
