"""What transforms of the teacher share: the loss inside sees another teacher than there is."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from pydantic import model_validator
from torch import Tensor

from kdcli.losses.around import Around
from kdcli.losses.base import Tokens
from kdcli.losses.children import refuse_features
from kdcli.losses.logits import finite_logits
from kdcli.losses.needs import Needs
from kdcli.shapes import Logits


class TeacherView(Around):
    """A loss whose teacher is changed before it looks at it, in its survey too.

    Subclasses are final and define :meth:`changed`. They nest: the outer one changes the teacher first.
    """

    zero_stays: ClassVar[bool] = False

    whole: ClassVar[str] = "a transform of the teacher reads all of its logits"
    reads_student: ClassVar[bool] = False
    """Whether the changed teacher depends on the student, which a survey must then see as well."""
    reads_ids: ClassVar[bool] = True
    """Whether an id must mean the same token to teacher and student."""

    @model_validator(mode="after")
    def _there_is_a_teacher(self) -> "TeacherView":
        if not self.loss.needs().teacher:
            raise ValueError(f"{self.loss.name} looks at no teacher's logits, so nothing would change")
        refuse_features({"loss": self.loss}, self.name)
        return self

    @abstractmethod
    def changed(self, tok: Tokens, teacher: Logits) -> Tensor:
        """Return the logits that the loss inside sees in place of the teacher's, ``[t, v]``, as a new tensor.

        Args:
            tok: the tokens in hand.
            teacher: the teacher's logits, at least fp32, finite.
        """

    def needs(self) -> Needs:
        """Ask for the whole teacher, and for what the loss inside asks."""
        inner = super().needs()
        survey = "both" if self.reads_student and inner.survey != "none" else inner.survey
        return inner | Needs(survey=survey, whole=self.whole, same_tokens=self.reads_ids)

    def shown(self, tok: Tokens) -> Tokens:
        """Return the tokens with the changed teacher."""
        assert tok.teacher is not None, "needs().teacher is declared"
        return replace(tok, teacher=self.changed(tok, finite_logits(tok.teacher.detach())))
