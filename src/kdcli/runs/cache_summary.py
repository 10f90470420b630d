"""Makes the entries of a compact cache, and measures what they lose, objective by objective."""

import json
import math
from typing import Any

import torch
from torch import Tensor

from kdcli.engine.cached_teacher import IDS, LOG_PROBS
from kdcli.engine.devices import Device
from kdcli.engine.projection import AppliedHead, Projection, wide
from kdcli.engine.token_store import TokenStore
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
        tried: tokens that were measured before.
    """

    def __init__(self, key: dict[str, Any], teacher: LanguageModel, device: Device, tried: int = 0) -> None:
        self.top_k = int(key["top_k"])
        self.vocab, self.device, self.workspace = teacher.vocab, device, Workspace()
        self.tried, self._taken = tried, tried
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

    def take(self) -> dict[str, Any]:
        """Return what was measured since this was asked last: tokens, and the sums of each divergence."""
        taken = {"tokens": self.tried - self._taken, "sums": self._sums}
        self._sums, self._taken = {}, self.tried
        return taken

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


def tried_of(store: TokenStore) -> int:
    """Return the tokens that a cache's shards were measured on."""
    return sum(one["lost"]["tokens"] for one in store.manifests() if "lost" in one)


def errors_text(key: dict[str, Any], store: TokenStore) -> str | None:
    """Return what ``errors.json`` says: each divergence's mean on whole distributions and on bins, and the share lost.

    Args:
        key: the cache's.
        store: its shards, whose manifests hold what was measured; None is returned where none does.
    """
    parts = [one["lost"] for one in store.manifests() if one.get("lost", {}).get("tokens")]
    if not parts:
        return None
    tried = sum(part["tokens"] for part in parts)
    found: dict[str, Any] = {}
    for name in parts[0]["sums"]:
        whole, bins = (math.fsum(part["sums"][name][at] for part in parts) for at in (0, 1))
        lost = 1 - bins / whole if whole else 0.0
        found[name] = {"whole": whole / tried, "bins": bins / tried, "lost": lost}
    about = {"top_k": key["top_k"], "tokens": tried, "student": f"the teacher at temperature {_HEAT:g}"}
    return json.dumps({**about, **found}, indent=1, sort_keys=True) + "\n"
