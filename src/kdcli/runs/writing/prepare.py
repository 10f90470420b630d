"""From settings to a source and the ground it stands on, cheapest checks first."""

from dataclasses import dataclass
from pathlib import Path

from kdcli.config import GenerateConfig, TrainConfig
from kdcli.data.dataset import Example, TokenDataset
from kdcli.engine.devices import Device, prepare
from kdcli.errors import UsageError
from kdcli.models.load import positions_stated
from kdcli.models.random import is_random
from kdcli.models.vocabulary import shared_vocabulary
from kdcli.runs.across import rows_of_teacher
from kdcli.runs.ensemble import refuse_blend
from kdcli.runs.folder import model_of
from kdcli.runs.model_facts import ModelFacts, Pair
from kdcli.runs.served_run import refuse_wordless
from kdcli.runs.serving.address import is_served
from kdcli.runs.workshop import Workshop, check_data_path
from kdcli.sources.base import Ground
from kdcli.sources.build import build_source, tail_of
from kdcli.sources.teacher import TeacherSource
from kdcli.text import one_line


@dataclass(frozen=True)
class Task:
    """What is to be written, before weights are read.

    Args:
        source: how the teacher writes.
        teacher: the teacher.
        reader: whose tokenizer reads the prompts, and the words of a server.
        dataset: the prompts, or as many first tokens as texts are wanted.
        vocab: real ids.
        longest: tokens that prompt and answer may have, as far as settings say; None for any number.
        device: where it computes.
        path: the prompts' file; None for none.
        notes: what to know about the models' tokens.
    """

    source: TeacherSource
    teacher: ModelFacts
    reader: ModelFacts
    dataset: TokenDataset
    vocab: int
    longest: int | None
    device: Device
    path: str | None
    notes: tuple[str, ...] = ()

    @property
    def answers(self) -> int:
        """Answers to be written in all."""
        return len(self.dataset) * self.source.answers

    def ground(self, folder: Path) -> Ground:
        """Return the ground without its teacher."""
        return Ground(
            self.dataset, TrainConfig(), 0, vocab=self.vocab, longest=self.longest, autocast=self.device.autocast,
            folder=folder,
        )  # fmt: skip


def prepare_task(config: GenerateConfig, workshop: Workshop) -> Task:
    """Check everything that can be checked before weights are read.

    Raises:
        UsageError: another source than the teacher's, no prompts, or prompts and a count.
        InputError: rows, tokenizers or model folders that cannot be used.
        MachineError: the device is missing.
    """
    source = _source(config)
    if config.teacher is None:
        raise UsageError("CLI-20", "no teacher", where="--teacher", fix="give a folder or a hub id")
    refuse_blend(config.teacher, "one teacher writes a text", "--teacher", "give one of them")
    student = None if config.student is None or is_random(config.student) else config.student
    if is_served(config.teacher):
        _check_served(source, student)
    path = None if config.data.train is None else check_data_path(config.data.train, "--data")
    device = prepare(config.hardware)
    if student is None:
        teacher = workshop.look(config.teacher)
        real = shared_vocabulary(teacher.tokenizer, teacher.tokenizer, teacher.rows, teacher.rows)
        pair = Pair(config.teacher, teacher, teacher, real)
    else:
        pair = workshop.pair(student, config.teacher, server=config.server, across=True)
    teacher, across = pair.teacher, pair.teacher_vocab is not None
    assert teacher is not None, "one is named"
    dataset = _prompts(config, path, pair, workshop)
    vocab, reader = pair.teacher_vocab or pair.vocab, teacher if across else pair.reader
    longest = positions_stated(model_of(teacher.path)) if across else _longest(config, (config.teacher, student))
    return Task(source, teacher, reader, dataset, vocab, longest, device, path, _notes(pair, teacher))


def _notes(pair: Pair, teacher: ModelFacts) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*pair.notes, *teacher.writing_notes]))


def _prompts(config: GenerateConfig, path: str | None, pair: Pair, workshop: Workshop) -> TokenDataset:
    """Return the prompts as the teacher reads them, each that the student can read too."""
    if path is None:
        nothing = Example((pair.reader.ends.default,), 1, "", (), "no prompt")
        return TokenDataset((nothing,) * (config.count or 1))
    own = workshop.data(path, pair.reader, config.data, role="prompts")
    return rows_of_teacher(pair, own, config.data, workshop, role="prompts") or own


def _source(config: GenerateConfig) -> TeacherSource:
    found = build_source(config.source)
    if not isinstance(found, TeacherSource):
        what = f"@{one_line(found.name)} needs a training; a text by itself is the teacher's"
        raise UsageError("TEXT-01", what, where="--source", fix="give teacher with options, as teacher:decode=beam")
    if config.data.train is None and found.prompts == "rows":
        fix = "give --data, or --source teacher:prompts=bos with --count N"
        raise UsageError("CLI-20", "there are no prompts", where="--data", fix=fix)
    if (config.data.train is None) != (config.count is not None):
        what = "prompts=bos without rows needs a number of texts" if config.count is None else "rows say how many texts"
        fix = "give --count N" if config.count is None else "leave --count out, or use --limit"
        raise UsageError("TEXT-02", what, where="--count", fix=fix)
    return found


def _check_served(source: TeacherSource, student: str | None) -> None:
    refuse_wordless(source, f"--source {tail_of(source).removeprefix('@')}")
    if student is None:
        what = "a server shows no tokenizer to read its words"
        raise UsageError("SERVE-10", what, where="--student", fix="give the folder of the student that will learn them")


def _longest(config: GenerateConfig, models: tuple[str | None, ...]) -> int:
    """Return how long a text may be, so that every model named can read it."""
    stated = [positions_stated(model_of(path)) for path in models if path is not None and not is_served(path)]
    return min(limit for limit in (config.data.max_length, *stated) if limit is not None)
