import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdcli.losses.build import build_objective
from kdcli.models.head import Head
from kdcli.models.packing import Projection, Workspace
from kdcli.training.fused_loss import FusedInputs, fused_sum
from two_sides import SEQUENCE, SPECS, TOKENS, VOCAB, gradients, reference, sides, supplied

GUEST = "guests.py:Overlap"


def fused(spec, student, teacher, labels, weights, chunk=4, vocab=VOCAB):
    loss = build_objective(spec)
    seen = teacher if loss.needs().teacher else None
    work = FusedInputs(
        loss, labels, weights, SEQUENCE, seen, vocab, student.hidden.dtype, Workspace(chunk), supplied(loss)
    )
    return fused_sum(student, work)


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("spec", SPECS)
def test_fused_equals_full_logits(spec, chunk):
    data = sides()
    expected = reference(spec, *data)
    total, parts = fused(spec, *data, chunk=chunk)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert sum((part * data[3]).sum().item() for part in parts.values()) == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(gradients(total, data[0]), gradients(expected, data[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"bias": True}, {"softcap": 3.0}, {"scale": 0.25, "bias": True, "softcap": 2.0}])
def test_bias_scale_and_softcap_are_honoured(options):
    data = sides(**options)
    expected = reference("akl", *data)
    total, _ = fused("akl", *data)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(gradients(total, data[0]), gradients(expected, data[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_padded_rows_get_no_gradient_and_no_mass():
    data = sides(rows=VOCAB + 3)
    total, _ = fused("fkl", *data)
    assert total.item() == pytest.approx(reference("fkl", *data).item(), rel=1e-12)
    _, weight = gradients(total, data[0])
    assert weight[VOCAB:].abs().max() == 0
    assert weight[:VOCAB].abs().min() > 0


def test_upstream_gradient_scales():
    data = sides()
    once, _ = fused("jsd", *data)
    thrice, _ = fused("jsd", *data)
    for single, triple in zip(gradients(once, data[0]), gradients(3 * thrice, data[0]), strict=True):
        torch.testing.assert_close(3 * single, triple)


def test_no_tokens_is_a_live_zero():
    student, teacher, labels, weights = sides()
    empty = Projection(student.hidden[:0], student.head)
    loss = build_objective("akl")
    work = FusedInputs(
        loss, labels[:0], weights[:0], labels[:0], Projection(teacher.hidden[:0], teacher.head), VOCAB, torch.float64
    )
    total, parts = fused_sum(empty, work)
    assert total.item() == 0
    assert not parts
    assert torch.autograd.grad(total, student.head.weight)[0].abs().max() == 0


def test_bf16_heads_stay_close_to_fp32():
    wide = sides(torch.float32)
    narrow = [Projection(side.hidden.bfloat16(), Head(side.head.weight.bfloat16())) for side in wide[:2]]
    exact, _ = fused("fkl", *wide)
    rough, _ = fused("fkl", narrow[0], narrow[1], wide[2], wide[3])
    assert rough.item() == pytest.approx(exact.item(), rel=5e-2)


class Largest(TorchDispatchMode):
    """Remembers the most rows any tensor of vocabulary width had."""

    def __init__(self, width):
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape[1] == self.width:
                self.rows = max(self.rows, value.shape[0])
        return out


@pytest.mark.parametrize("spec", [*SPECS, "tests/training/guests.py:Overlap"])
def test_full_logits_never_exist(spec, request):
    spec = spec.replace("tests/engine", str(request.path.parent))
    data = sides()
    with Largest(VOCAB) as largest:
        total, _ = fused(spec, *data, chunk=7)  # no narrower than the heads, whose transposes are seen too
        gradients(total, data[0])
    assert 0 < largest.rows <= 7 < TOKENS
