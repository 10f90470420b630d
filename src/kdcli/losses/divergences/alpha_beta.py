"""The alpha-beta divergence, without the holes of its textbook form."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcli.losses.divergences.base import Block, StableDivergence, column, dot
from kdcli.losses.divergences.ops import EXCLUDED, compare, curvature
from kdcli.shapes import Logits, TokenValues


class AlphaBeta(StableDivergence):
    """Alpha-beta divergence: two parameters, of which forward and reverse KL are two points.

    (1, 0) is the forward KL, (0, 1) the reverse KL, (1, 1) half the squared distance, (.5, .5)
    four times one less the overlap sum sqrt(p q). On the lines alpha = 0, beta = 0 and
    alpha + beta = 0 the value is the limit, so that a sweep has no jumps; the authors' code
    divides by alpha or beta there where the limit divides by their square. With an exponent at
    or below 0 the value is infinite where that side excludes a token that the other allows, with
    alpha + beta at or below 0 where either does; elsewhere it is finite, however large.

    Args:
        alpha: exponent of the teacher, from -3 to 3.
        beta: exponent of the student, from -3 to 3.

    Reference: Wang et al., ABKD, arXiv:2505.04560, equation 5; Cichocki et al. 2011.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> [round(AlphaBeta(alpha=a, beta=b).divergence(q, p).item(), 4) for a, b in ((1, 0), (0, 1), (0.2, 0.7))]
    [0.2263, 0.3112, 0.3226]
    """

    name: ClassVar[str] = "ab"
    formula: ClassVar[str] = "-1/(a b) sum_j (p_j^a q_j^b - a/(a+b) p_j^(a+b) - b/(a+b) q_j^(a+b))"
    reference: ClassVar[str] = "Wang et al. 2025 (ABKD), arXiv:2505.04560"
    cost: ClassVar[str] = "about 45 FLOP a vocabulary entry"
    small_below: ClassVar[float] = 2e-3
    total: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=-3, le=3, allow_inf_nan=False, description="exponent of the teacher")] = 0.2
    beta: Annotated[float, Field(ge=-3, le=3, allow_inf_nan=False, description="exponent of the student")] = 0.7

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return the divergence."""
        value: Tensor = _AlphaBeta.apply(log_p, log_q, self.alpha, self.beta, tau)
        return value

    def small_values(self, block: Block) -> Tensor:
        """Return small values."""
        near = _near_total if block.total else _near
        return near(block, self.alpha, self.beta)

    def small_grad(self, block: Block) -> Tensor:
        """Return the gradient where the value is small."""
        a, b = self.alpha, self.beta
        both, end_q = torch.exp(a * block.log_p + b * block.log_q), torch.exp((a + b) * block.log_q)
        pull = _pull(both, end_q, block.exact_log_ratio, a)
        return pull - block.q * column(pull.sum(-1))

    @property
    def small_grad_below(self) -> float:
        """The gradient's q^(a+b) and p^a q^b are nearly equal where the value is small; their difference is over a."""
        return 1e-6 * abs(self.beta / (self.alpha or 1.0))

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return the divergence and its gradient G - q sum G, G = (q^(a+b) - p^a q^b) / a; None near a limit."""
        a, b = self.alpha, self.beta
        if min(abs(a), abs(b), abs(a + b)) < 0.05 or (block.total and min(a, b) < 0):
            return None  # with an exponent below 0, a power of an excluded token is infinite
        log_p, log_q = block.log_p, block.log_q
        both = _power(torch.mul(log_q, b).add_(log_p, alpha=a), 1.0)
        teacher, student = _power(log_p, a + b), _power(log_q, a + b)
        sums = teacher.sum(-1) * (a / (a + b)), student.sum(-1) * (b / (a + b)), both.sum(-1)
        block.size = (sums[0].abs() + sums[1].abs() + sums[2]) / abs(a * b)
        value = sums[0] + sums[1] - sums[2]
        pull = student.sub_(both).mul_(1.0 / a)
        return value.div_(a * b), pull.addcmul_(block.q, column(pull.sum(-1)), value=-1.0)


def _near(block: Block, a: float, b: float) -> Tensor:
    """Return the divergence where it is small, as sum p^a q^b (e^(a r) / a + e^(-b r) / b - 1/a - 1/b) / (a + b).

    Here r = log(q/p); away from the lines where an exponent or the sum of both is 0.
    """
    both = torch.exp(a * block.log_p + b * block.log_q)
    r = block.log_ratio
    return dot(both, torch.expm1(r * a).div_(a).add_(torch.expm1(r * -b), alpha=1.0 / b)).div_(a + b)


def _near_total(block: Block, a: float, b: float) -> Tensor:
    """Return the divergence as a sum of terms that are all at least 0, for exponents above 0."""
    log_p, log_q = block.log_p, block.log_q
    both, end_p, end_q = (torch.exp(log) for log in (a * log_p + b * log_q, (a + b) * log_p, (a + b) * log_q))
    return _terms(both, end_p, end_q, block.exact_log_ratio, a, b).sum(-1).div_(a + b)


_LOG2_E = 1.4426950408889634


def _power(log: Tensor, exponent: float) -> Tensor:
    """Return e^(exponent log), in place; torch is several times faster at powers of 2."""
    return log.mul_(exponent * _LOG2_E).exp2_()


class _AlphaBeta(torch.autograd.Function):
    """The divergence as a sum of terms of one sign, and its gradients in closed form.

    With r = log(p/q) and phi(x) = e^-x - 1 + x, a term of the sum is
    p^a q^b (phi(-b r) / b + phi(a r) / a) / (a + b), in which nothing cancels; and as phi(x)
    goes with x^2, nothing happens at a = 0 or b = 0.
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, a: float, b: float, tau: float) -> Tensor:
        p, q, r = compare(log_p, log_q, tau)
        log_p, log_q = torch.log_softmax(log_p / tau, -1), torch.log_softmax(log_q / tau, -1)
        without_p, without_q = (log * tau < EXCLUDED for log in (log_p, log_q))
        gone = without_p & without_q
        log_both = (a * log_p + b * log_q).masked_fill_(gone, -torch.inf)
        both, end_p, end_q = (log.exp() for log in (log_both, (a + b) * log_p, (a + b) * log_q))
        ctx.save_for_backward(p, q, r, both, end_p, end_q)
        ctx.settings = a, b, tau
        if abs(a + b) > torch.finfo(r.dtype).eps ** (1 / 3):
            terms = _terms(both, end_p, end_q, r, a, b) / (a + b)
        else:
            terms = _on_the_diagonal(log_both, r, 0.5 * (b - a))
        lost = torch.zeros_like(gone)
        if min(a, a + b) <= 0.0:
            lost |= without_p & (q > 0)
        if min(b, a + b) <= 0.0:
            lost |= without_q & (p > 0)
        # Powers that overflow make the term so, also where their difference has no value.
        lost |= terms.isnan() & (both.isinf() | end_p.isinf() | end_q.isinf())
        return terms.masked_fill(lost, torch.inf).masked_fill(gone, 0.0).sum(-1).clamp_min(0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        p, q, r, both, end_p, end_q = ctx.saved_tensors
        a, b, tau = ctx.settings
        upstream = grads[0].unsqueeze(-1) / tau
        slopes: list[Tensor | None] = [None, None]
        for side, (own, end, ratio, exponent) in enumerate(((p, end_p, -r, b), (q, end_q, r, a))):
            if ctx.needs_input_grad[side]:
                pull = _pull(both, end, ratio, exponent)
                slopes[side] = (pull - own * pull.sum(-1, keepdim=True)) * upstream
        return slopes[0], slopes[1], None, None, None


def _terms(both: Tensor, end_p: Tensor, end_q: Tensor, r: Tensor, a: float, b: float) -> Tensor:
    """Return p^a q^b (phi(a r) / a + phi(-b r) / b), given both = p^a q^b and the ends p^(a+b) and q^(a+b)."""
    near_a, near_b = (r * a).abs() < 1.0, (r * b).abs() < 1.0
    small = torch.where(near_a & near_b, r, 0.0)
    near = both * (a * curvature(small * a) + b * curvature(small * -b)) * small * small
    far = end_p / (b or 1.0) + end_q / (a or 1.0) - both * ((a + b) / (a * b or 1.0))
    between = _pull(both, end_q, r, a) + _pull(both, end_p, -r, b)
    return torch.where(near_a & near_b, near, torch.where(near_a | near_b, between, far))


def _on_the_diagonal(log_both: Tensor, r: Tensor, c: float) -> Tensor:
    """Return the limit of a term as a + b goes to 0, with c = (b - a) / 2."""
    x = r * c
    near = x.abs() < 1.0
    small = torch.where(near, x, 0.0)
    series = torch.exp(log_both + small) * curvature(small) * r * r
    far = torch.exp(log_both) - torch.exp(log_both + x) * (1.0 - x)
    return torch.where(near, series, far / (c * c or 1.0))


def _pull(both: Tensor, end: Tensor, r: Tensor, exponent: float) -> Tensor:
    """Return p^a q^b (e^(-exponent r) - 1) / exponent, given end = p^a q^b e^(-exponent r)."""
    if exponent == 0.0:
        return both * -r
    near = torch.expm1((r * -exponent).clamp(-1.0, 1.0)).mul_(both)
    return torch.where((r * exponent).abs() < 1.0, near, end - both) / exponent
