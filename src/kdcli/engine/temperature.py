"""The temperature at which a model's next-token probabilities fit development rows best, fitted by passes over them."""

import torch
from torch import Tensor

from kdcli.data.collate import collate
from kdcli.data.examples import TokenDataset
from kdcli.data.order import micro_batches
from kdcli.engine.devices import Device
from kdcli.engine.events import Event, Report
from kdcli.engine.mixture import applied
from kdcli.engine.pack import find_valid
from kdcli.engine.projection import wide
from kdcli.engine.token_facts import sides_of
from kdcli.engine.workspace import Workspace
from kdcli.metrics.temperature import fit_temperature
from kdcli.models.load import LanguageModel


def fit_token_temperature(
    model: LanguageModel, dataset: TokenDataset, *, micro_tokens: int, device: Device, report: Report
) -> float:
    """Return the temperature that minimises the negative log-likelihood of the rows' response tokens.

    Each Newton step is one pass over the rows, usually four to six in all. Of a pass two numbers are
    kept: memory does not grow with the tokens.

    Args:
        model: the model measured.
        dataset: development rows.
        micro_tokens: padded tokens per batch.
        device: where to compute.
        report: told how far it is.

    Raises:
        NumericsError: the likelihood is not a number.
    """
    workspace, passes = Workspace(), 0

    def slopes(beta: float) -> tuple[float, float]:
        nonlocal passes
        report(Event("stage", f"fitting the temperature, pass {passes + 1}", total=len(dataset)))
        passes += 1
        return _pass(model, dataset, beta, micro_tokens, device, workspace, report)

    return fit_temperature(slopes, "temperature scaling")


@torch.no_grad()
def _pass(
    model: LanguageModel, dataset: TokenDataset, beta: float, micro_tokens: int, device: Device,
    workspace: Workspace, report: Report,
) -> tuple[float, float]:  # fmt: skip
    first = second = 0.0
    done = 0
    for indexes in micro_batches(list(range(len(dataset))), dataset.lengths, micro_tokens):
        batch = collate(dataset.examples, indexes, model.pad_id)
        packing = find_valid(batch.labels)
        (side,) = sides_of(model, None, batch, packing, device)
        head = applied("student", side, model.vocab, device.compute, workspace)
        size = workspace.chunk(model.vocab, device.device)
        for start in range(0, packing.count, size):
            span = slice(start, min(start + size, packing.count))
            slope, curvature = slopes_of_tokens(packing.labels[span].to(device.device), wide(head.logits(span)), beta)
            first, second = first + slope, second + curvature
        done += len(indexes)
        report(Event("progress", "fitting the temperature", done=done, total=len(dataset)))
    return first, second


def slopes_of_tokens(labels: Tensor, logits: Tensor, beta: float) -> tuple[float, float]:
    """Return the derivatives by ``beta = 1/T`` of some tokens' summed negative log-likelihood.

    Args:
        labels: target ids, ``[t]``.
        logits: ``[t, v]``; overwritten.
        beta: inverse temperature.

    Returns:
        ``sum_t (E_q[z] - z_label)`` and ``sum_t Var_q[z]``, with q the softmax of beta z.

    >>> slopes_of_tokens(torch.tensor([1]), torch.tensor([[0.0, 2.0]]), 0.0)
    (-1.0, 1.0)
    """
    logits -= logits.max(dim=1, keepdim=True).values
    q = torch.softmax(beta * logits, dim=1)
    mean = (q * logits).sum(dim=1)
    chosen = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    variance = q.mul_((logits - mean.unsqueeze(1)).square_()).sum(dim=1)
    return float((mean - chosen).double().sum()), float(variance.double().sum())
