"""The source in which the teacher answers the prompts once, before training: sequence-level distillation."""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kdcli.config import GenerationConfig
from kdcli.errors import InputError
from kdcli.sources.base import Ground, Source, SourceNeeds
from kdcli.sources.effort import Effort, Made
from kdcli.sources.made_text import MadeText, made_text
from kdcli.sources.retold import as_teacher, retold
from kdcli.sources.rows import RowWindows
from kdcli.sources.sentences import Sentence
from kdcli.sources.writing import KNOWN, Written, coins


class TeacherSource(Source):
    """The teacher's answers to the prompts of the training rows, made once before training and kept.

    With ``ce`` this is SeqKD: train on what the teacher says. ``decode=beam`` is the original form, sampling the
    usual one with large models. ``prompts=bos`` is data-free distillation: the teacher makes whole texts from the
    token that begins one. What is made depends on teacher, prompts and options, ``seed`` among them, and not on the
    run: all runs with the same ``data.made`` folder and all cells of a comparison share it. The filters choose
    among what was made. A step has as many sequences as with the rows themselves: each row's prompt with one of its
    answers, another one in each epoch; where all answers to a prompt were filtered out, another prompt's.
    All rows are asked, also those that a run shorter than an epoch never comes to: ``--limit N`` asks fewer.
    A teacher of another tokenizer reads the prompts in its own tokens; its answers go to the student as text.

    >>> TeacherSource(decode="beam", answers=2).needs().teacher
    True
    """

    mixable: ClassVar[bool] = True
    name: ClassVar[str] = "teacher"
    summary: ClassVar[str] = "the teacher's answers, made once and kept (SeqKD, data-free)"
    reference: ClassVar[str] = "Kim and Rush 2016 (arXiv 1606.07947), section 3.2"

    decode: Annotated[Literal["sample", "greedy", "beam"], Field(description="how the teacher chooses its words")] = (
        "sample"
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False, description="of sampling")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, description="nucleus mass of sampling")] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1, description="tokens per answer at most, end token included")] = 128
    answers: Annotated[int, Field(ge=1, le=1000, description="answers per prompt; of beam search the best ones")] = 1
    beams: Annotated[int, Field(ge=2, le=64, description="width of beam search")] = 4
    prompts: Annotated[Literal["rows", "bos"], Field(description="of the rows, or the first token alone")] = "rows"
    min_tokens: Annotated[int, Field(ge=1, description="drop shorter answers, end token counted")] = 1
    max_nll: Annotated[
        float | None, Field(gt=0, description="drop answers the teacher finds less likely, mean nats per token")
    ] = None
    ended: Annotated[bool, Field(description="drop answers that were cut at max_new_tokens")] = False
    seed: Annotated[int, Field(ge=0, description="of sampling; not the run's seed, so that runs share answers")] = 0

    @model_validator(mode="after")
    def _consistent(self) -> "TeacherSource":
        if self.decode == "greedy" and self.answers > 1:
            raise ValueError("greedy decoding has one answer; set decode=sample or decode=beam")
        if self.decode == "greedy" and self.prompts == "bos":
            raise ValueError("greedy decoding from BOS makes one and the same text; set decode=sample")
        if self.decode == "beam" and self.answers > self.beams:
            raise ValueError(f"beam search of width {self.beams} has at most {self.beams} answers; raise beams")
        if self.decode == "beam" and self.prompts == "bos":
            raise ValueError("beam search from BOS makes one and the same text; set decode=sample")
        return self

    def needs(self) -> SourceNeeds:
        """Ask for the teacher, to write; beams are followed by the model itself, other words may come from anywhere."""
        words = self.decode != "beam"
        return SourceNeeds(teacher=True, fixed=False, facts=KNOWN, origins=frozenset({"teacher"}), words=words)

    def open(self, ground: Ground) -> "TeacherWindows":
        """Return the windows of a run; what is not made yet is made now, if the teacher is there."""
        return TeacherWindows(ground, self)

    @property
    def sampling(self) -> GenerationConfig:
        """How answers are sampled; at temperature 0 where they are not."""
        temperature = self.temperature if self.decode == "sample" else 0.0
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens, temperature=temperature, top_p=self.top_p, seeds=(0,)
        )

    def kept(self, text: MadeText) -> list[Sentence]:
        """Return the sentences that pass the filters, each once.

        Raises:
            InputError: none does, or one without a likelihood is to be judged by it.
        """
        found: dict[tuple[int, ...], Sentence] = {}
        for one in text.sentences:
            if self.fault(one) is None:
                found.setdefault(one.example.ids, one)
        if not found:
            what = f"none of the teacher's {len(text.sentences):,} answers passes the filters"
            raise InputError(
                "SRC-01", what, where=str(text.folder or "@teacher"), fix="widen min_tokens, max_nll or ended"
            )
        return list(found.values())

    def fault(self, one: Sentence) -> str | None:
        """Return the filter that an answer does not pass; None if it passes all.

        Raises:
            InputError: its likelihood is asked for and nobody knows it.
        """
        self.check_likelihood(one)
        if one.targets < self.min_tokens:
            return "too short"
        if self.max_nll is not None and one.nll is not None and one.nll > self.max_nll:
            return "too unlikely"
        return "not ended" if self.ended and not one.ended else None

    def check_likelihood(self, one: Sentence) -> None:
        """Refuse to judge an answer by a likelihood that nobody knows.

        Raises:
            InputError: SRC-02.
        """
        if self.max_nll is not None and one.nll is None:
            what = "max_nll needs log-probabilities, and the teacher's server gives none"
            raise InputError("SRC-02", what, where="@teacher", fix="leave max_nll out, or use the teacher itself")


class TeacherWindows(RowWindows):
    """Windows in which each row's prompt is followed by an answer of the teacher.

    Args:
        ground: what the source stands on.
        source: its options.
    """

    def __init__(self, ground: Ground, source: TeacherSource) -> None:
        super().__init__(ground)
        self.source = source
        if ground.teacher is not None or ground.author is not None:
            assert self.pool, "answers are there before the first step"

    @cached_property
    def _text(self) -> MadeText:
        return made_text(self.source, as_teacher(self.ground))

    @cached_property
    def pool(self) -> list[Sentence]:
        """Every answer that may be trained on."""
        return retold(self.source.kept(self._text), self.ground)

    @property
    def made(self) -> Made:
        """What the teacher wrote, before any filter."""
        every, fresh = self._text.sentences, self._text.fresh
        new = [one for one in every if (one.row, one.answer) in fresh]
        return Made(
            sum(one.targets for one in every), self._took(every), sum(one.targets for one in new), self._took(new),
            self._text.seconds,
        )  # fmt: skip

    def _took(self, sentences: Sequence[Sentence]) -> Effort:
        """Return what answers take: a prompt is read once for all of its answers, and a model here reads them again."""
        by_prompt: dict[int, list[tuple[int, int]]] = {}
        for one in sentences:
            by_prompt.setdefault(one.row, []).append((one.example.prompt_length, one.targets))
        total = Effort()
        for lengths in by_prompt.values():
            prompt, longest = lengths[0][0], max(said for _, said in lengths)
            if self.source.decode == "beam":
                width = self.source.beams
                total += Effort.of("teacher", width * (prompt + longest - 1), width * longest)
            else:
                later = sum(said - 1 for _, said in lengths)
                total += Effort.of("teacher", prompt + later, 1 + later)
            total += Effort() if self.ground.author is not None else Effort.of_answers("teacher", lengths)
        return total

    @cached_property
    def by_row(self) -> dict[int, list[Sentence]]:
        """The answers to each row's prompt."""
        found: dict[int, list[Sentence]] = {}
        for one in self.pool:
            found.setdefault(one.row, []).append(one)
        return found

    def write(self, step: int, rows: Sequence[int]) -> list[Written]:
        """Return, for each row, one of the teacher's answers."""
        drawn = coins(self.ground.train.seed, step, rows)
        epoch = step // self.steps_per_epoch
        found = []
        for row, coin in zip(rows, drawn, strict=True):
            own = self.by_row.get(row) or [self.pool[int(coin * len(self.pool))]]
            found.append(Written(own[epoch % len(own)].example, row, "teacher"))
        return found
