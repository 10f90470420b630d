"""What a token can be weighed by: numbers of a token that need no other token."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from kdcli.losses.base import Tokens
from kdcli.losses.groups import Groups
from kdcli.losses.logits import log_softmax

Measured: TypeAlias = Literal[
    "teacher_entropy",
    "student_entropy",
    "teacher_confidence",
    "student_confidence",
    "teacher_nll",
    "student_nll",
    "teacher_right",
    "disagreement",
    "position",
]


@dataclass(frozen=True)
class Measure:
    """One way to measure a token.

    Args:
        reads: whose logits: "teacher", "student", "both", or "none" for a place in the response.
        text: what it is.
    """

    reads: Literal["teacher", "student", "both", "none"]
    text: str


MEASURES: dict[Measured, Measure] = {
    "teacher_entropy": Measure("teacher", "entropy of the teacher, in nats"),
    "student_entropy": Measure("student", "entropy of the student, in nats"),
    "teacher_confidence": Measure("teacher", "the teacher's largest probability"),
    "student_confidence": Measure("student", "the student's largest probability"),
    "teacher_nll": Measure("teacher", "the teacher's -log p of the label, in nats"),
    "student_nll": Measure("student", "the student's -log q of the label, in nats"),
    "teacher_right": Measure("teacher", "1 where the teacher's likeliest token is the label, else 0"),
    "disagreement": Measure("both", "total variation distance of teacher and student, from 0 to 1"),
    "position": Measure("none", "place in the response, from 0 for its first token to 1 for its last"),
}


def measure(name: Measured, tok: Tokens) -> Tensor:
    """Measure tokens, ``[t]``; without gradient, at least in fp32.

    Args:
        name: any of :data:`MEASURES` but the position.
        tok: tokens with the logits that the measure reads.

    >>> import torch
    >>> tok = Tokens(torch.tensor([0]), torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log())
    >>> round(measure("disagreement", tok).item(), 4), round(measure("teacher_nll", tok).item(), 4)
    (0.3, 0.1054)
    """
    if name == "disagreement":
        assert tok.teacher is not None, "the teacher is declared by needs()"
        return 0.5 * (log_softmax(tok.student).exp() - log_softmax(tok.teacher).exp()).abs().sum(-1).detach()
    whose, _, what = name.partition("_")
    logits = tok.teacher if whose == "teacher" else tok.student
    assert logits is not None, "the teacher is declared by needs()"
    log_p = log_softmax(logits.detach())
    if what == "entropy":
        return -(log_p.exp() * log_p).sum(-1)
    if what == "confidence":
        return log_p.amax(-1).exp()
    if what == "nll":
        return -log_p.gather(1, tok.labels[:, None]).squeeze(1)
    return (log_p.argmax(-1) == tok.labels).to(log_p.dtype)


def places(laid: Groups) -> Tensor:
    """Return each token's place in its response, from 0 to 1, fp32 ``[n]``; a lone token stands at 0.

    Args:
        laid: the responses, tokens of one in their order.

    >>> import torch
    >>> places(Groups.by(torch.tensor([0, 0, 0, 1]))).tolist()
    [0.0, 0.5, 1.0, 0.0]
    """
    return laid.places.float() / (laid.sizes - 1).clamp_min(1)
