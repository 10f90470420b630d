"""What an objective asks of the engine."""

from dataclasses import dataclass
from typing import Literal

_WIDTH = {"none": 0, "teacher": 1, "both": 2}


@dataclass(frozen=True)
class Needs:
    """What an objective asks of the engine before it can run.

    Args:
        teacher: teacher logits are read.
        survey: whose logits the survey pass reads, or "none" for no survey pass.
        facts: per-token facts the source must supply.
        origins: whose words the source must supply, names of ``supplied.ORIGINS``; empty where any will do.
        drawn: sequences must be drawn from a model; rows of a data set will not do.
        same_tokens: the teacher, if one is read, must have the student's tokenizer.
        right_labels: the labels are learnt as right answers, whoever wrote them.
        known: fewest tokens of the teacher that must be known where the rest is one bin.
        whole: why a teacher known on some tokens and one bin for the rest does not do; empty where it does.
        logits: it has a value of the student's logits; False if all it compares are layers inside the models.
        features: what of the models' inside is compared: "hidden", "attention".
    """

    teacher: bool = True
    survey: Literal["none", "teacher", "both"] = "none"
    facts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    whole: str = "it reads single logits of the teacher"
    known: int = 1
    logits: bool = True
    features: frozenset[str] = frozenset()
    drawn: bool = False
    same_tokens: bool = True
    right_labels: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        survey = self.survey if _WIDTH[self.survey] >= _WIDTH[other.survey] else other.survey
        whole = "; ".join(dict.fromkeys(one.whole for one in (self, other) if one.teacher and one.whole))
        facts, origins = self.facts | other.facts, self.origins | other.origins
        known, logits = max(self.known, other.known), self.logits or other.logits
        features, drawn = self.features | other.features, self.drawn or other.drawn
        same = any(one.same_tokens for one in (self, other) if one.anything_of_teacher)
        right = self.right_labels or other.right_labels
        return Needs(
            self.teacher or other.teacher, survey, facts, origins, whole, known, logits, features, drawn, same, right
        )

    @property
    def anything_of_teacher(self) -> bool:
        """Whether a teacher is read at all, its logits or its inside."""
        return self.teacher or bool(self.features)
