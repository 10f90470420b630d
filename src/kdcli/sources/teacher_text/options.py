"""Options of teacher text: decoding and filtering."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from kdcli.config.sections import GenerationConfig
from kdcli.errors import InputError
from kdcli.sources.base import Source
from kdcli.sources.completions import TeacherCompletion, completion_text


class TeacherTextOptions(Source):
    """Decoding of the teacher and the filters over its answers, shared by whatever writes or reads them."""

    decode: Annotated[
        Literal["sample", "greedy", "beam"], Field(description="how the teacher's answers are decoded")
    ] = "sample"
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
    agree: Annotated[bool, Field(description="drop answers whose text after ### is not the row's own answer")] = False
    seed: Annotated[int, Field(ge=0, description="of sampling; not the run's seed, so that runs share answers")] = 0

    @model_validator(mode="after")
    def _consistent(self) -> "TeacherTextOptions":
        if self.decode == "greedy" and self.answers > 1:
            raise ValueError("greedy decoding has one answer; set decode=sample or decode=beam")
        if self.decode == "greedy" and self.prompts == "bos":
            raise ValueError("greedy decoding from BOS makes one and the same text; set decode=sample")
        if self.decode == "beam" and self.answers > self.beams:
            raise ValueError(f"beam search of width {self.beams} has at most {self.beams} answers; raise beams")
        if self.decode == "beam" and self.prompts == "bos":
            raise ValueError("beam search from BOS makes one and the same text; set decode=sample")
        if self.agree and self.prompts == "bos":
            raise ValueError("a text from BOS has no row whose answer it could agree with; set prompts=rows")
        return self

    @property
    def sampling(self) -> GenerationConfig:
        """How answers are sampled; at temperature 0 where they are not."""
        temperature = self.temperature if self.decode == "sample" else 0.0
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens, temperature=temperature, top_p=self.top_p, seeds=(0,)
        )

    def fault(self, one: TeacherCompletion, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the filter that an answer does not pass; None if it passes all.

        Args:
            one: the answer, and the references of its row.
            tokenizer: the teacher's.

        Raises:
            InputError: its likelihood is asked for and unknown, or the row's answer, which it has none of.
        """
        self.check_likelihood(one)
        if one.targets < self.min_tokens:
            return "too short"
        if self.max_nll is not None and one.nll is not None and one.nll > self.max_nll:
            return "too unlikely"
        if self.ended and not one.ended:
            return "not ended"
        return "disagrees" if self.agree and not self._agrees(one, tokenizer) else None

    def _agrees(self, one: TeacherCompletion, tokenizer: PreTrainedTokenizerBase) -> bool:
        from kdcli.metrics.qa import same_final_answer  # it imports evaluate, which takes a second

        own = [reference for reference in one.example.references if reference.strip()]
        if not own:
            what = "agree compares with the row's own answer, and the row has none"
            raise InputError("SRC-03", what, where=one.example.where, fix="leave agree out, or give rows with answers")
        return same_final_answer(completion_text(one, tokenizer), own)

    def check_likelihood(self, one: TeacherCompletion) -> None:
        """Refuse to filter an answer by a likelihood that is unknown.

        Raises:
            InputError: SRC-02.
        """
        if self.max_nll is not None and one.nll is None:
            what = "max_nll needs log-probabilities, and the teacher's server gives none"
            raise InputError("SRC-02", what, where="@teacher", fix="leave max_nll out, or use the teacher itself")
