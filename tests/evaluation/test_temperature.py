import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from kdcli.config.schema import HardwareConfig
from kdcli.errors import NumericsError
from kdcli.evaluation.token_facts import fit_token_temperature, slopes_of_tokens, token_facts
from kdcli.events import silent
from kdcli.metrics.temperature_scaling import slopes_of
from kdcli.models.devices import prepare
from running import VOCAB, dataset, model

CPU = prepare(HardwareConfig(device="cpu"))


class Largest(TorchDispatchMode):
    """Remembers the most rows that any tensor as wide as the vocabulary had."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[-1] == VOCAB:
                self.rows = max(self.rows, value.numel() // VOCAB)
        return out


def sharp(factor=30.0):
    """A student whose logits are spread wide, so that one temperature is better than another."""
    student = model("student", seed=1)
    with torch.no_grad():
        student.model.get_output_embeddings().weight.mul_(factor)
    return student


def fit(student, rows, micro_tokens=4096):
    return fit_token_temperature(student, rows, micro_tokens=micro_tokens, device=CPU, report=silent)


def whole_logits(student, rows):
    logits, labels = [], []
    for example in rows.examples:
        with torch.no_grad():
            found = student.model(torch.tensor([example.ids])).logits[0].double().numpy()
        for position in range(example.prompt_length - 1, len(example.ids) - 1):
            logits.append(found[position])
            labels.append(example.ids[position + 1])
    return np.array(logits), np.array(labels)


@pytest.mark.parametrize("micro_tokens", [1, 40, 4096])
def test_it_is_the_minimum_over_full_logits(micro_tokens):
    student, rows = sharp(), dataset(24)
    logits, labels = whole_logits(student, rows)

    def nll(log):
        return -log_softmax(logits * math.exp(-log), axis=1)[np.arange(len(labels)), labels].sum()

    best = math.exp(minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x)
    assert best > 2
    assert fit(student, rows, micro_tokens) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 3.0])
def test_slopes_equal_float64_and_autograd(beta):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 9, generator=draw) * 4
    labels = torch.randint(0, 9, (50,), generator=draw)
    variable = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits.double() * variable, labels, reduction="sum")
    (first,) = torch.autograd.grad(loss, variable, create_graph=True)
    (second,) = torch.autograd.grad(first, variable)
    expected = (first.item(), second.item())
    assert slopes_of(logits.double().numpy(), labels.numpy(), beta) == pytest.approx(expected, rel=1e-9)
    assert slopes_of_tokens(labels, logits.clone(), beta) == pytest.approx(expected, rel=1e-4)


def test_facts_at_the_temperature_are_those_of_divided_logits():
    student, rows = sharp(), dataset(9)
    logits, labels = whole_logits(student, rows)
    facts, _ = token_facts(
        student, None, rows, vocab=VOCAB, micro_tokens=60, device=CPU, report=silent, temperature=2.5
    )
    log_q = log_softmax(logits / 2.5, axis=1)
    np.testing.assert_allclose(facts["scaled_label_logp"], log_q[np.arange(len(labels)), labels], rtol=1e-4)
    np.testing.assert_allclose(facts["scaled_top1_prob"], np.exp(log_q.max(1)), rtol=1e-4)
    brier = ((np.exp(log_q) - np.eye(VOCAB)[labels]) ** 2).sum(1)
    np.testing.assert_allclose(facts["scaled_brier"], brier, rtol=1e-4, atol=1e-6)
    assert set(facts["temperature"].tolist()) == {2.5}


def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch):
    monkeypatch.setattr("kdcli.models.execution._CPU_CHUNK", 32 * VOCAB)
    student = sharp()
    for count in (12, 60):
        rows = dataset(count)
        assert rows.targets > 64
        with Largest() as largest:
            fit(student, rows)
            token_facts(student, None, rows, vocab=VOCAB, micro_tokens=4096, device=CPU, report=silent, temperature=2.0)
        assert 0 < largest.rows <= 32


def test_logits_that_are_no_numbers_are_one_line():
    student = sharp()
    with torch.no_grad():
        student.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(NumericsError, match="not a number") as caught:
        fit(student, dataset(4))
    assert caught.value.exit_code == 7
