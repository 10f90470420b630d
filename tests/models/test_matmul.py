"""Large products go to another library: their values are those of float64; small and odd ones stay where they were."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kdcli.models import kernels
from kdcli.models.kernels import (
    OneDNNConv1D,
    OneDNNLinear,
    add_outer,
    product_back,
    product_into,
    use_onednn,
    worthwhile,
)

ROWS, IN, OUT = 37, 96, 2051
"""Their product is above the bound from which the other library computes it."""


def matrix(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Hold a value to fp32 rounding of sums of this length."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


@pytest.fixture(params=[1, 64 * 37 * 4, 2**24], ids=["64 columns", "64 rows", "one slice"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_SLICE_BYTES", request.param)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("biased", [False, True])
def test_product_into(biased: bool) -> None:
    left, right, bias = matrix(ROWS, IN, seed=0), matrix(OUT, IN, seed=1), matrix(OUT, seed=2) if biased else None
    out = torch.full((ROWS, OUT), float("nan"))
    product_into(out, left, right, bias)
    close(out, left.double() @ right.double().T + (bias.double() if bias is not None else 0.0))


@pytest.mark.usefixtures("slices")
def test_gradients_of_a_product() -> None:
    grad, right, left = matrix(ROWS, OUT, seed=3), matrix(OUT, IN, seed=1), matrix(ROWS, IN, seed=0)
    close(product_back(grad, right), grad.double() @ right.double())
    total = matrix(OUT, IN, seed=4)
    exact = total.double() + grad.double().T @ left.double()
    add_outer(total, grad, left)
    close(total, exact)


@pytest.mark.parametrize("odd", ["transposed", "every other"])
def test_other_layouts_give_the_same(odd: str) -> None:
    make = {
        "transposed": lambda rows, columns, seed: matrix(columns, rows, seed=seed).T,
        "every other": lambda rows, columns, seed: matrix(rows, 2 * columns, seed=seed)[:, ::2],
    }[odd]
    left, right, grad = make(ROWS, IN, 0), make(OUT, IN, 1), make(ROWS, OUT, 3)
    out, total = torch.empty(ROWS, OUT), torch.zeros(OUT, IN)
    product_into(out, left, right)
    close(out, left.double() @ right.double().T)
    close(product_back(grad, right), grad.double() @ right.double())
    add_outer(total, grad, left)
    close(total, grad.double().T @ left.double())


def test_only_large_fp32_products_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HAS_ONEDNN", True)
    one = torch.ones(1, 1)
    assert worthwhile(one, one, 2**22)
    assert not worthwhile(one, one, 2**22 - 1)
    assert not worthwhile(one.double(), one.double(), 2**30)
    assert not worthwhile(one.bfloat16(), one.bfloat16(), 2**30)
    monkeypatch.setattr(kernels, "HAS_ONEDNN", False)
    assert not worthwhile(one, one, 2**30)


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
@pytest.mark.parametrize("shape", [(ROWS, IN), (2, ROWS, IN), (1, 2, IN)], ids=["rows", "batch", "small"])
def test_layers_keep_values_and_gradients(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = Conv1D(OUT, IN) if kind == "conv1d" else nn.Linear(IN, OUT, bias="without" not in kind)
    quick = Conv1D(OUT, IN) if kind == "conv1d" else nn.Linear(IN, OUT, bias="without" not in kind)
    quick.load_state_dict(plain.state_dict())
    assert use_onednn(quick) == 1
    assert type(quick) in (OneDNNLinear, OneDNNConv1D)
    plain.double()
    x, seen = matrix(*shape, seed=5).requires_grad_(), matrix(*shape, seed=5).double().requires_grad_()
    out, exact = quick(x), plain(seen)
    close(out, exact)
    upstream = matrix(*out.shape, seed=6)
    out.backward(upstream)
    exact.backward(upstream.double())
    assert x.grad is not None
    assert seen.grad is not None
    close(x.grad, seen.grad)
    for found, wanted in zip(quick.parameters(), plain.parameters(), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        close(found.grad, wanted.grad)


def test_a_layer_under_autocast_or_in_float64_is_the_library_s_own() -> None:
    layer, x = nn.Linear(IN, OUT), matrix(ROWS, IN, seed=0)
    use_onednn(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64


def test_layers_of_other_classes_stay() -> None:
    class Special(nn.Linear):
        pass

    assert use_onednn(Special(2, 2)) == 0
