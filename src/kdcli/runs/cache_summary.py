"""Makes the entries of a compact cache, and measures what they lose, objective by objective."""

import math
from typing import Any

import torch
from torch import Tensor

from kdcli.engine.cached_teacher import IDS, LOG_PROBS
from kdcli.engine.devices import Device
from kdcli.engine.projection import AppliedHead, Projection, wide
from kdcli.engine.workspace import Workspace
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.coarse import coarse_view
from kdcli.losses.divergence import Divergence
from kdcli.models.load import LanguageModel
from kdcli.registry import LOSSES

ERRORS = "errors.json"
_SAMPLE = 4096
_HEAT = 2.0


class Summary:
    """Sums up distributions and keeps count of what that loses.

    The loss is measured against a student twice as hot as the teacher, on the first tokens seen: a
    student's own distance is not known before it is trained.

    Args:
        key: the cache's; ``top_k`` counts.
        teacher: whose head reads the hidden states.
        device: where to compute.
    """

    def __init__(self, key: dict[str, Any], teacher: LanguageModel, device: Device) -> None:
        self.top_k = int(key["top_k"])
        self.vocab, self.device, self.workspace = teacher.vocab, device, Workspace()
        self.tried = 0
        self._sums: dict[str, list[float]] = {}

    def of(self, side: Projection) -> dict[str, Tensor]:
        """Return the entries of some tokens: ``ids [n, k]`` and ``log_probs [n, k + 1]``."""
        head = AppliedHead("teacher", side, self.vocab, self.device.compute, self.workspace)
        size = self.workspace.chunk(self.vocab, self.device.device)
        ids, values = [], []
        for start in range(0, len(side.hidden), size):
            logits = wide(head.logits(slice(start, min(start + size, len(side.hidden)))))
            view = coarse_view(logits, self.top_k)
            ids.append(view.ids.int())
            values.append(view.log_probs)
            if self.tried < _SAMPLE:
                self._measure(logits[: _SAMPLE - self.tried])
        return {IDS: torch.cat(ids), LOG_PROBS: torch.cat(values)}

    def errors(self) -> dict[str, Any]:
        """Return each divergence's mean on whole distributions and on bins, and the share that is lost."""
        found: dict[str, Any] = {
            name: {"whole": whole / self.tried, "bins": bins / self.tried, "lost": 1 - bins / whole if whole else 0.0}
            for name, (whole, bins) in self._sums.items()
        }
        return {"top_k": self.top_k, "tokens": self.tried, "student": f"the teacher at temperature {_HEAT:g}", **found}

    def _measure(self, logits: Tensor) -> None:
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        view = coarse_view(logits, self.top_k)
        for name in LOSSES.names():
            loss = build_objective(name)
            if isinstance(loss, Divergence) and not loss.needs().whole:
                whole = loss.token_loss(Tokens(labels, logits / _HEAT, logits)).double().sum().item()
                bins = loss.token_loss(Tokens(labels, logits / _HEAT, None, coarse=view)).double().sum().item()
                before = self._sums.setdefault(name, [0.0, 0.0])
                self._sums[name] = [before[0] + whole, before[1] + bins]
        self.tried += len(logits)
        assert all(math.isfinite(value) for pair in self._sums.values() for value in pair), "bins of finite logits"
