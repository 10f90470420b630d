"""Server optimizers: how the weights that clients return become the next weights of all.

With x the weights that a round began with, x_c those of client c after it and n_c its rows or tokens::

    mean  = sum_c n_c x_c / sum_c n_c
    Delta = mean - x

    FedAvg    x += eta Delta                                    McMahan et al. 2017, arXiv:1602.05629
    FedAvgM   m = beta m + Delta;  x += eta m                   Hsu et al. 2019, arXiv:1909.06335
    FedAdam   m = b1 m + (1 - b1) Delta
              v = b2 v + (1 - b2) Delta^2
              x += eta m / (sqrt(v) + tau)                      Reddi et al. 2021, arXiv:2003.00295
    FedAdamW  as FedAdam, and x -= eta wd x

Everything is summed in float64; m and v begin at 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.errors import UsageError
from kdcli.registry.build import build_term, single
from kdcli.registry.options import Plugin
from kdcli.registry.spec import parse_objective
from kdcli.text import one_line

_BLOCK = 2**20
"""Numbers of every client that are held in float64 at once."""

_Rate = Annotated[float, Field(gt=0, le=1e6, description="the server's learning rate")]
_Decay = Annotated[float, Field(ge=0, lt=1)]


def weighted_mean(values: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Return sum_c n_c x_c / sum_c n_c in float64; the order of the clients changes no bit.

    Args:
        values: one tensor of the same shape for each client.
        weights: n_c, whole numbers, of which one at least is not 0.

    >>> weighted_mean([torch.tensor([1.0]), torch.tensor([4.0])], [2, 1])
    tensor([2.], dtype=torch.float64)
    """
    total, flat = float(sum(weights)), [value.reshape(-1) for value in values]
    found = torch.empty(flat[0].numel(), dtype=torch.float64)
    for start in range(0, len(found), _BLOCK):
        here = slice(start, start + _BLOCK)
        terms = torch.stack([one[here].double() * weight for one, weight in zip(flat, weights, strict=True)])
        first, *others = torch.sort(terms, dim=0).values
        for term in others:
            first = first + term
        found[here] = first / total
    return found.reshape(values[0].shape)


class ServerOptimizer(Plugin, ABC):
    """One rule for the server's step; its fields are its options."""

    part: ClassVar[str] = "server"

    @abstractmethod
    def step(
        self, x: Tensor, mean: Tensor, state: Mapping[str, Tensor], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the next weights and the next state of one tensor.

        Args:
            x: what the round began with, float64.
            mean: the clients' weighted mean, float64, of the same shape.
            state: what the step before returned; empty before the first.
            number: rounds before this one in which a client returned.
        """


class FedAvg(ServerOptimizer):
    """The mean itself, or a part of the way there.

    >>> FedAvg(eta=0.5).step(torch.tensor(1.0), torch.tensor(2.0), {}, 0)
    (tensor(1.5000), {})
    """

    name: ClassVar[str] = "fedavg"

    eta: _Rate = 1.0

    def step(
        self, x: Tensor, mean: Tensor, state: Mapping[str, Tensor], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Go from x towards the mean; with eta=1 the mean bit for bit."""
        return (mean if self.eta == 1 else x + self.eta * (mean - x)), {}


class FedAvgM(ServerOptimizer):
    """Momentum of the mean's movement."""

    name: ClassVar[str] = "fedavgm"

    eta: _Rate = 1.0
    beta: Annotated[_Decay, Field(description="momentum")] = 0.9

    def step(
        self, x: Tensor, mean: Tensor, state: Mapping[str, Tensor], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the movement to the momentum and go by it."""
        moved = self.beta * state["m"] + (mean - x) if state else mean - x
        return x + self.eta * moved, {"m": moved}


class FedAdam(ServerOptimizer):
    """Adam on the mean's movement."""

    name: ClassVar[str] = "fedadam"

    eta: _Rate = 0.1
    b1: Annotated[_Decay, Field(description="decay of the first moment")] = 0.9
    b2: Annotated[_Decay, Field(description="decay of the second moment")] = 0.99
    tau: Annotated[float, Field(gt=0, le=1e6, description="added to the root of the second moment")] = 1e-3
    correct: Annotated[bool, Field(description="divide both moments by what they lack in the first rounds")] = False

    def step(
        self, x: Tensor, mean: Tensor, state: Mapping[str, Tensor], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Update both moments and go by their quotient."""
        delta, zero = mean - x, torch.zeros_like(mean)
        m = self.b1 * state.get("m", zero) + (1 - self.b1) * delta
        v = self.b2 * state.get("v", zero) + (1 - self.b2) * delta**2
        rate = self.eta
        if self.correct:
            rate *= (1 - self.b2 ** (number + 1)) ** 0.5 / (1 - self.b1 ** (number + 1))
        return x + rate * m / (v.sqrt() + self.tau), {"m": m, "v": v}


class FedAdamW(FedAdam):
    """FedAdam whose weights shrink by themselves, too."""

    name: ClassVar[str] = "fedadamw"

    wd: Annotated[float, Field(ge=0, lt=1, description="weight decay")] = 0.01

    def step(
        self, x: Tensor, mean: Tensor, state: Mapping[str, Tensor], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Do FedAdam's step from weights of which eta times wd of themselves is taken away."""
        found, moments = super().step(x, mean, state, number)
        return found - self.eta * self.wd * x, moments


SERVERS: dict[str, type[ServerOptimizer]] = {kind.name: kind for kind in (FedAvg, FedAvgM, FedAdam, FedAdamW)}
"""Server optimizers by name."""


def build_server(text: str) -> ServerOptimizer:
    """Build the server optimizer that a spec string names.

    Raises:
        UsageError: no such optimizer, or options that it does not have.

    >>> build_server("fedadam:eta=0.03")
    FedAdam(eta=0.03, b1=0.9, b2=0.99, tau=0.001, correct=False)
    """
    term = single(parse_objective(text))
    if term is None or term.name not in SERVERS:
        what = f'"{one_line(text, 60)}" is no server optimizer'
        fix = "give fedavg, fedavgm, fedadam or fedadamw, as in fedadam:eta=0.03"
        raise UsageError("CLI-06", what, where="--server", fix=fix)
    return build_term(SERVERS[term.name], term)


def server_step(
    optimizer: ServerOptimizer,
    start: Mapping[str, Tensor],
    means: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    number: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the next weights and the server's next state, tensor by tensor, in float64.

    Args:
        optimizer: the rule.
        start: name -> what the round began with.
        means: name -> the clients' weighted mean.
        state: ``name/moment`` -> what the step before returned; empty before the first.
        number: rounds before this one in which a client returned.
    """
    found: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for name, mean in means.items():
        prefix = f"{name}/"
        before = {key.removeprefix(prefix): value for key, value in state.items() if key.rpartition("/")[0] == name}
        found[name], moments = optimizer.step(start[name].double(), mean, before, number)
        after |= {prefix + key: value for key, value in moments.items()}
    return found, after
