"""A temperature for the teacher alone."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdcli.losses.base import Tokens
from kdcli.losses.teacher_view import TeacherView
from kdcli.shapes import Logits


class Tempered(TeacherView):
    """A loss whose teacher is softened or sharpened, the student being left as it is.

    Below 1 the teacher is sharpened towards its likeliest token, above 1 softened. A temperature of
    the loss inside comes on top, on both sides.

    >>> import torch
    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.75, 0.25]]).log()
    >>> round(Tempered(temperature=2.0).token_loss(Tokens(torch.tensor([0]), q, p)).item(), 6)
    0.0
    """

    name: ClassVar[str] = "tempered"
    formula: ClassVar[str] = "L with softmax(t / tau) for p"
    reference: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531, section 2, on one side only"
    cost: ClassVar[str] = "that of the loss inside, and a division"

    reads_ids: ClassVar[bool] = False
    whole: ClassVar[str] = "at a temperature other than 1 the rest has no known mass"

    temperature: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="softmax temperature tau of the teacher alone")
    ] = 2.0

    def changed(self, tok: Tokens, teacher: Logits) -> Tensor:
        """Return the teacher's logits over tau."""
        return teacher / self.temperature
