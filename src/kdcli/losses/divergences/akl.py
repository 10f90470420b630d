"""Adaptive KL: forward and reverse KL, weighed token by token."""

from typing import Annotated, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.base import Tokens, finite_logits
from kdcli.losses.divergences.base import Block, StableDivergence, column, dot
from kdcli.losses.divergences.ops import kl, softmax
from kdcli.losses.rows import host_may_read
from kdcli.losses.sorting import first_marked
from kdcli.shapes import Logits, TokenValues

# Finds how much of the gap between two distributions lies in the head of the first.


HeadRule: TypeAlias = Literal["paper", "official"]

_SLICE = 64
_LOOKS = (4, 64)
"""How many slices are looked at; rows not settled go on."""

_RANKED = 64
"""How many of their entries are put in order: the longest head to be found by looking."""

_DIGIT = 13
"""Bits of a probability settled in one go."""

_BINS = 1 << _DIGIT

_TRIED = 3
"""Bits of a probability settled by one pass, where the host may not read: by seven sums at once."""


def head_gap(p: Tensor, gap: Tensor, mu: float, rule: HeadRule) -> Tensor:
    """Sum a gap over the head of p, ``[t]``; takes no gradient.

    Args:
        p: probabilities, ``[t, v]``.
        gap: what to sum, ``[t, v]``.
        mu: mass of the head; 1 means everything, 0 the largest entry alone.
        rule: "paper" takes the fewest entries that reach mu, "official" those before mu is
            passed, and at least one.

    >>> p = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    >>> [head_gap(p, torch.ones_like(p), 0.5, rule).item() for rule in ("paper", "official")]
    [2.0, 1.0]
    """
    if mu >= 1.0:
        return gap.sum(-1)
    mu = max(mu, torch.finfo(p.dtype).tiny)
    if not host_may_read():
        return by_bisection(p, gap, mu, rule)
    if p.shape[1] < 2 * _SLICE * _LOOKS[-1]:
        return by_sorting(p, gap, mu, rule)
    return by_looking(p, gap, mu, rule)


def by_sorting(p: Tensor, gap: Tensor, mu: float, rule: HeadRule) -> Tensor:
    """Sum a gap over the head of p as the definition says."""
    falling, order = torch.sort(p, dim=-1, descending=True, stable=True)
    return (gap.gather(-1, order) * _in_head(falling, mu, rule)).sum(-1)


def by_looking(p: Tensor, gap: Tensor, mu: float, rule: HeadRule) -> Tensor:
    """Sum a gap over the head of p, looking at its largest entries first."""
    total = torch.empty_like(p[:, 0])
    rows = torch.arange(len(p), device=p.device)
    slices = _Slices.of(p)
    long = rows[:0]
    for count in _LOOKS:
        total[rows], settled, hopeless = _look(slices.of_rows(rows, count), gap, rows, mu, rule)
        long = torch.cat((long, rows[hopeless]))
        rows = rows[~(settled | hopeless)]
        if not len(rows):
            break
    rows = torch.cat((rows, long))
    if len(rows) == len(p):
        return by_digits(p, gap, mu, rule)
    if len(rows):
        total[rows] = by_digits(p[rows], gap[rows], mu, rule)
    return total


def by_bisection(p: Tensor, gap: Tensor, mu: float, rule: HeadRule) -> Tensor:
    """Sum a gap over the head of p, in a fixed number of passes over it, of which the host reads nothing.

    The head's last probability is the largest one at or above which lies a mass of mu. Positive floats are ordered as
    their bits are, read as a whole number, so it is found among these numbers, each pass trying several at once.
    """
    kind = torch.int64 if p.dtype == torch.float64 else torch.int32
    bits, last = p.view(kind), torch.zeros_like(p[:, :1], dtype=kind)
    for low in (*range(p.element_size() * 8 - 2 - _TRIED, 0, -_TRIED), 0):  # below 2, the two highest bits are 0
        reached = torch.zeros_like(last)
        for tried in range(1, 1 << _TRIED):
            mass = torch.where(bits >= last + (tried << low), p, 0.0).sum(-1, keepdim=True)
            reached = reached + (mass >= mu if rule == "paper" else mass > mu).to(kind)
        last = last + reached * (1 << low)
    above, tied = bits > last, bits == last
    left = (mu - torch.where(above, p, 0.0).sum(-1, keepdim=True)) / last.view(p.dtype)
    count = left.ceil() if rule == "paper" else torch.maximum(left.floor(), (~above.any(-1, keepdim=True)).to(p.dtype))
    among = first_marked(tied, count.clamp(0.0, float(p.shape[1])).to(torch.int64))
    return torch.where(above | among, gap, 0.0).sum(-1)


def by_digits(p: Tensor, gap: Tensor, mu: float, rule: HeadRule) -> Tensor:
    """Sum a gap over the head of p, finding the head's last probability by its bits.

    Positive floats are ordered as their bits are, read as a whole number. The highest bits still
    unknown are settled by a histogram of mass: what lies above the bin in which mu is reached is
    in the head, what lies in that bin is looked at again.
    """
    above, total = torch.zeros(2, len(p), 1, dtype=torch.float64, device=p.device)
    lowest = [*range(p.element_size() * 8 - _DIGIT, 0, -_DIGIT), 0]
    digit = _falling_digit(p, lowest[0])
    mass, gaps = (_empty(p).scatter_add_(1, digit, values.double()) for values in (p, gap))
    last, above, total = _crossing(mass, gaps, above, total, mu, rule)
    row, place = torch.nonzero(digit == last, as_tuple=True)
    left = torch.stack((p[row, place], gap[row, place]))
    for low in lowest[1:]:
        digit = _falling_digit(left[0], low)
        bins = torch.add(digit, row, alpha=_BINS)
        mass, gaps = (_empty(p).view(-1).scatter_add_(0, bins, values.double()).view_as(mass) for values in left)
        last, above, total = _crossing(mass, gaps, above, total, mu, rule)
        kept = torch.nonzero(digit == last[row, 0]).squeeze(1)
        row, left = row[kept], left[:, kept]
    start = torch.searchsorted(row, torch.arange(len(p), device=p.device))
    rank = torch.arange(len(row), device=p.device) - start[row]
    before = above[row, 0] + left[0] * rank
    inside = before < mu if rule == "paper" else (before + left[0] <= mu) | (before == 0)
    return total[:, 0].index_add_(0, row, (left[1] * inside).double()).to(gap.dtype)


def _crossing(
    mass: Tensor, gaps: Tensor, above: Tensor, total: Tensor, mu: float, rule: HeadRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bin in which mu is reached, and the mass and the gap above it, each ``[t, 1]``."""
    reached = mass.cumsum(1) + above
    last = (reached < mu if rule == "paper" else reached <= mu).sum(1, keepdim=True).clamp_max_(_BINS - 1)
    return last, (reached - mass).gather(1, last), total + (gaps.cumsum(1) - gaps).gather(1, last)


def _empty(p: Tensor) -> Tensor:
    return torch.zeros(len(p), _BINS, dtype=torch.float64, device=p.device)


def _falling_digit(p: Tensor, low: int) -> Tensor:
    """Return a few bits of p as a number that is smaller for a larger p."""
    bits = p.view(torch.int64 if p.dtype == torch.float64 else torch.int32)
    return torch.bitwise_right_shift(bits, low).bitwise_not_().bitwise_and_(_BINS - 1).long()


class _Candidates(NamedTuple):
    """Entries of some rows by rising index, and a bound on all the others, ``[r, 1]``."""

    p: Tensor
    place: Tensor
    bound: Tensor


class _Slices(NamedTuple):
    """The vocabulary cut into slices, the largest entry of each, and what is left over at its end."""

    p: Tensor
    tops: Tensor
    rest: Tensor

    @classmethod
    def of(cls, p: Tensor) -> "_Slices":
        whole = p.shape[1] // _SLICE * _SLICE
        return cls(
            p, p[:, :whole].unflatten(1, (-1, _SLICE)).amax(-1), torch.arange(whole, p.shape[1], device=p.device)
        )

    def of_rows(self, rows: Tensor, count: int) -> _Candidates:
        """Return the entries of the slices with the largest tops, and the left-over ones."""
        best = torch.topk(self.tops[rows], count, dim=-1)
        start = best.indices.sort(-1).values.mul_(_SLICE).unsqueeze(-1)
        inner = (start + torch.arange(_SLICE, device=start.device)).flatten(1)
        place = torch.cat((inner, self.rest.expand(len(rows), -1)), 1)
        return _Candidates(self.p[rows.unsqueeze(1), place], place, best.values[:, -1:])


def _look(found: _Candidates, gap: Tensor, rows: Tensor, mu: float, rule: HeadRule) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the gap over heads that end among the candidates; say for which rows that is so, and where it never will be.

    A longer look can add no more to the mass of the ranked entries than as many times the bound on all others.
    """
    falling = torch.topk(found.p, _RANKED, dim=-1).values
    inside = _in_head(falling, mu, rule)
    last = falling.gather(1, inside.sum(1, keepdim=True) - 1)
    settled = (last > found.bound).squeeze(1) & ~inside[:, -1]
    above, equal = found.p > last, found.p == last
    wanted = inside.sum(1, keepdim=True) - above.sum(1, keepdim=True)
    pick = above | (equal & (equal.cumsum(1) <= wanted))
    hopeless = falling.sum(1) + _RANKED * found.bound.squeeze(1) < mu
    return (gap[rows.unsqueeze(1), found.place] * pick).sum(1), settled, hopeless


def _in_head(falling: Tensor, mu: float, rule: HeadRule) -> Tensor:
    """Mark the head of rows in falling order."""
    reached = falling.cumsum(-1)
    inside = torch.ones_like(falling, dtype=torch.bool)
    inside[:, 1:] = reached[:, :-1] < mu if rule == "paper" else reached[:, 1:] <= mu
    return inside


_HEAD_WEIGHT = "akl.head_weight"


class AdaptiveKL(StableDivergence):
    """Forward KL weighed by the gap in the teacher's head, reverse KL by the gap in its tail.

    The head is the teacher's top tokens up to a mass of mu, the gap is |p - q|. As both gaps add
    up to twice the total variation, only the head has to be found. No gradient flows through the
    weights. Where p = q, both weights are 1/2. On a teacher that is sure of one token the
    reverse KL is infinite, and so is this.

    Args:
        mu: teacher mass that counts as head; 1 makes it the forward KL.
        head_rule: "paper" counts the token that crosses mu to the head, "official" (the authors'
            code) to the tail, unless it is the first.
        flip: exchange the two weights (the paper's ablation AKL-r).

    Reference: Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for
    Large Language Models, arXiv:2404.02657, section 4.

    >>> import torch
    >>> q, p = torch.tensor([[0.2, 0.5, 0.3]]).log(), torch.tensor([[0.4, 0.35, 0.25]]).log()
    >>> round(AdaptiveKL().divergence(q, p).item(), 4), round(AdaptiveKL().weight(q.exp(), p.exp()).item(), 4)
    (0.1053, 0.875)
    """

    name: ClassVar[str] = "akl"
    formula: ClassVar[str] = "w KL(p || q) + (1 - w) KL(q || p), w = sum_head |p - q| / sum |p - q|"
    reference: ClassVar[str] = "Wu et al. 2025, arXiv:2404.02657, section 4"
    cost: ClassVar[str] = "about 45 FLOP a vocabulary entry, and a search for the head"
    total: ClassVar[bool] = True

    mu: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="teacher mass that counts as head")] = 0.5
    head_rule: Annotated[
        HeadRule, Field(description="whether the token crossing mu is in the head (paper) or not (official code)")
    ] = "paper"
    flip: Annotated[bool, Field(description="exchange the weights, the ablation AKL-r")] = False

    @torch.no_grad()
    def weight(self, q: Tensor, p: Tensor) -> Tensor:
        """Return the weight of the forward KL, ``[t]``, from probabilities ``[t, v]``."""
        gap = torch.sub(q, p).abs_()
        return self._weight(p, gap)

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return the weighed mix; a side without weight is not looked at, be it infinite."""
        return self._mixed(log_q, log_p, tau)[0]

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the mix at the temperature, times tau^2 if asked; its weights may be logged."""
        if tok.coarse is not None:
            return super().token_loss(tok)
        assert tok.teacher is not None, "a divergence declares needs().teacher"
        student, teacher = finite_logits(tok.student), finite_logits(tok.teacher.detach())
        value, tok.logged[_HEAD_WEIGHT] = self._mixed(student, teacher, self.temperature)
        return value if self._scale == 1.0 else value * self._scale

    def on_bins(self, log_q: Logits, log_p: Logits) -> TokenValues:
        """Return the weighed mix of bins; the head is looked for among single tokens, the rest's bin is tail."""
        p = log_p.detach().exp()
        gap = (log_q.detach().exp() - p).abs_()
        w = self._weight(p[:, :-1], gap[:, :-1], gap.sum(-1))
        return self._mixed(log_q, log_p, 1.0, w)[0]

    def _mixed(self, log_q: Logits, log_p: Logits, tau: float, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if w is None:
            w = self.weight(softmax(log_q.detach(), tau), softmax(log_p.detach(), tau))
        return _mix(w, kl(log_p, log_q, tau), kl(log_q, log_p, tau)), w

    def small_values(self, block: Block) -> Tensor:
        """Return small values."""
        w = block.logged[_HEAD_WEIGHT] = self.weight(block.q, block.p)
        return torch.lerp(block.small_kl(reverse=True), block.small_kl(), w)

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the mix and its gradient w (q - p) + (1 - w) q (log q - log p - KL(q || p))."""
        p, q, ratio = block.p, block.q, block.log_ratio
        forward, reverse = dot(p, ratio).neg_(), dot(q, ratio)
        pull = torch.sub(q, p)
        if _HEAD_WEIGHT not in block.logged:
            block.logged[_HEAD_WEIGHT] = self._weight(p, torch.abs(pull))
        w = block.logged[_HEAD_WEIGHT]
        value = _mix(w, *block.both_unless_excluded(forward, reverse)) if block.total else reverse.lerp(forward, w)
        slope = ratio.sub_(column(reverse)).mul_(q)
        return value, torch.lerp(slope, pull, column(w), out=slope)

    def _weight(self, p: Tensor, gap: Tensor, whole: Tensor | None = None) -> Tensor:
        whole = gap.sum(-1) if whole is None else whole
        w = torch.where(whole > 0, head_gap(p, gap, self.mu, self.head_rule) / whole, 0.5).clamp_(0.0, 1.0)
        return 1 - w if self.flip else w


def _mix(w: Tensor, forward: Tensor, reverse: Tensor) -> Tensor:
    """Return w times the forward and 1 - w times the reverse KL; a side without weight may be infinite."""
    return torch.where(w > 0, w * forward, 0.0) + torch.where(w < 1, (1 - w) * reverse, 0.0)
