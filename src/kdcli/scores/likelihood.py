"""Scores from the probability of a row's response."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from kdcli.scores.base import Score, ScoredRow, ScoreNeeds, Side, needs_of

Whose = Annotated[Side, Field(description="whose logits are read")]


class NegativeLogLikelihood(Score):
    """How unlikely a model finds a row's response, in nats a token, its end token included.

    >>> NegativeLogLikelihood(of="teacher").needs().teacher
    True
    """

    name: ClassVar[str] = "nll"
    summary: ClassVar[str] = "mean -log-probability of the response's tokens, in nats"
    formula: ClassVar[str] = "-(1/T) sum_t log q(y_t | x, y_<t)"
    reference: ClassVar[str] = "the loss of ce on the row"

    of: Whose = "student"

    def needs(self) -> ScoreNeeds:
        """Ask for the model that reads."""
        return needs_of(self.of)

    def value(self, row: ScoredRow) -> float:
        """Return the mean over the response's tokens."""
        return -row.reading(self.of).log_probs.mean().item()


class InstructionFollowingDifficulty(Score):
    """Perplexity of the response behind its prompt over its perplexity as a text by itself.

    1 where the prompt is no help, as for a model that does not read it; below 1 where it helps, above 1 where it
    misleads. High ones are those from which a model has most to learn about following prompts. Plain texts, which
    have no prompt, have exactly 1.

    >>> InstructionFollowingDifficulty().needs().student
    True
    """

    name: ClassVar[str] = "ifd"
    summary: ClassVar[str] = "how little the prompt helps: perplexity with it over perplexity without it"
    formula: ClassVar[str] = "PPL(y | x) / PPL(y), PPL = exp of the mean -log q"
    reference: ClassVar[str] = "Li et al. 2024, arXiv:2308.12032; used by BalDistill, arXiv:2406.13114"

    of: Whose = "student"

    def needs(self) -> ScoreNeeds:
        """Ask for the model that reads."""
        return needs_of(self.of)

    def value(self, row: ScoredRow) -> float:
        """Return the ratio."""
        alone = row.without_prompt(self.of).reading(self.of).log_probs.mean()
        return (alone - row.reading(self.of).log_probs.mean()).exp().item()


class Energy(Score):
    """Mean free energy of the student at the response: high where a row is unlike what the student has seen.

    A constant added to all logits of a token lowers it by that constant: unlike a loss, it is not free of such a
    shift, and numbers of two students cannot be compared.

    >>> Energy().formula
    '-(1/T) sum_t log sum_j exp z_tj'
    """

    name: ClassVar[str] = "energy"
    summary: ClassVar[str] = "mean -logsumexp of the logits over the response's tokens"
    formula: ClassVar[str] = "-(1/T) sum_t log sum_j exp z_tj"
    reference: ClassVar[str] = "GOLD, arXiv:2403.19754; Liu et al. 2020, arXiv:2010.03759"

    of: Whose = "student"

    def needs(self) -> ScoreNeeds:
        """Ask for the model that reads."""
        return needs_of(self.of)

    def value(self, row: ScoredRow) -> float:
        """Return the mean over the response's tokens."""
        return -row.reading(self.of).each(lambda logits, _: torch.logsumexp(logits, -1)).mean().item()


class TeacherRight(Score):
    """Share of the response's tokens that are the teacher's likeliest.

    >>> TeacherRight().needs().teacher
    True
    """

    name: ClassVar[str] = "teacher_right"
    summary: ClassVar[str] = "share of the response's tokens that the teacher holds for likeliest"
    formula: ClassVar[str] = "(1/T) sum_t 1[argmax_j p_tj = y_t]"
    reference: ClassVar[str] = "the mean over a row of weighted's measure teacher_right"

    def needs(self) -> ScoreNeeds:
        """Ask for the teacher."""
        return needs_of("teacher")

    def value(self, row: ScoredRow) -> float:
        """Return the share."""
        return row.reading("teacher").each(lambda logits, labels: logits.argmax(-1) == labels).mean().item()


class LogRatio(Score):
    """How much likelier the teacher finds the response than the student does, in nats a token.

    High where there is something to learn that the teacher knows; below 0 where the student is ahead.

    >>> needs = LogRatio().needs()
    >>> needs.student and needs.teacher
    True
    """

    name: ClassVar[str] = "log_ratio"
    summary: ClassVar[str] = "mean log of the teacher's over the student's probability of the response's tokens"
    formula: ClassVar[str] = "(1/T) sum_t log p(y_t) - log q(y_t)"
    reference: ClassVar[str] = "the difference of two nll"

    def needs(self) -> ScoreNeeds:
        """Ask for both."""
        return needs_of("student") | needs_of("teacher")

    def value(self, row: ScoredRow) -> float:
        """Return the mean difference."""
        return (row.reading("teacher").log_probs - row.reading("student").log_probs).mean().item()


class Length(Score):
    """Length of the response: tokens, its end token included, or words or characters of its text.

    >>> Length(unit="words").unit
    'words'
    """

    name: ClassVar[str] = "length"
    summary: ClassVar[str] = "length of the response"
    formula: ClassVar[str] = "T"
    reference: ClassVar[str] = "the measure of curriculum's by=length"

    unit: Annotated[Literal["tokens", "words", "characters"], Field(description="what is counted")] = "tokens"

    def value(self, row: ScoredRow) -> float:
        """Return the length."""
        text = row.example.response
        return float({"tokens": row.targets, "words": len(text.split()), "characters": len(text)}[self.unit])
