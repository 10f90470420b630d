"""Matching of hidden states against the formulas and their gradients, in float64."""

import pytest
import torch
from torch import nn

from kdcli.errors import UsageError
from kdcli.losses.base import Dims, Features, Inner, ModelShape, Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.feature_matching import HiddenStates

KINDS = ["mse", "cosine", "pkd", "squarehead"]


def hidden(kind="mse"):
    return build_objective(f"hidden:kind={kind}")


def drawn(tokens=6, student=5, teacher=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ours = torch.randn(tokens, student, generator=generator, dtype=torch.float64).requires_grad_()
    theirs = torch.randn(tokens, teacher, generator=generator, dtype=torch.float64)
    return ours, theirs


def value(loss, ours, theirs, modules=None):
    dims = Dims(ModelShape(1, ours.shape[1], 1), ModelShape(1, theirs.shape[1], 1))
    seen = Features(
        Inner({1: ours}, {}), Inner({1: theirs}, {}), torch.ones(len(ours)), dims, modules or nn.ModuleDict()
    )
    return loss.token_loss(
        Tokens(torch.zeros(len(ours), dtype=torch.int64), ours.new_zeros((len(ours), 0)), features=seen)
    )


def expected(kind, h, g):
    """The definition, one token and one number at a time."""
    apart = sum((a - b) ** 2 for a, b in zip(h, g, strict=True))
    dot, hh, gg = (sum(a * b for a, b in zip(x, y, strict=True)) for x, y in ((h, g), (h, h), (g, g)))
    return {
        "mse": apart / len(h),
        "cosine": 1 - dot / (hh * gg) ** 0.5,
        "pkd": sum((a / hh**0.5 - b / gg**0.5) ** 2 for a, b in zip(h, g, strict=True)) / len(h),
        "squarehead": apart / gg,
    }[kind]


def closed_gradient(kind, h, g):
    width, size, other = h.shape[1], h.norm(dim=1, keepdim=True), g.norm(dim=1, keepdim=True)
    cosine = (h * g).sum(1, keepdim=True) / (size * other)
    turned = -(g / (size * other) - cosine * h / size**2)
    return {
        "mse": 2 * (h - g) / width,
        "cosine": turned,
        "pkd": 2 * turned / width,
        "squarehead": 2 * (h - g) / other**2,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_formulas(kind):
    ours, theirs = drawn()
    found = value(hidden(kind), ours, theirs)
    reference = [expected(kind, *pair) for pair in zip(ours.tolist(), theirs.tolist(), strict=True)]
    torch.testing.assert_close(found.tolist(), reference, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(found.sum(), ours)
    torch.testing.assert_close(grad, closed_gradient(kind, ours.detach(), theirs), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_states_give_0_and_no_gradient(kind):
    ours, _ = drawn()
    found = value(hidden(kind), ours, ours.detach().clone())
    (grad,) = torch.autograd.grad(found.sum(), ours)
    assert found.abs().max() < 1e-15
    assert grad.abs().max() < 1e-14


def test_squarehead_does_not_change_with_the_scale_of_both():
    ours, theirs = drawn()
    for scale in (1e-3, 1e4):
        for kind, free in (("squarehead", True), ("pkd", True), ("cosine", True), ("mse", False)):
            one, other = (
                value(hidden(kind), ours, theirs),
                value(hidden(kind), ours * scale, theirs * scale),
            )
            assert torch.allclose(one, other, rtol=1e-10) == free


def test_pkd_is_the_cosine_distance_times_two_over_the_width():
    ours, theirs = drawn()
    pkd, cosine = (value(hidden(kind), ours, theirs) for kind in ("pkd", "cosine"))
    torch.testing.assert_close(pkd, 2 * cosine / 5, rtol=1e-12, atol=0)


def test_a_learned_map_stands_only_between_different_widths():
    same, wider = (Dims(ModelShape(2, 5, 1), ModelShape(4, width, 1)) for width in (5, 7))
    assert len(HiddenStates().modules(same)) == 0
    made = HiddenStates().modules(wider)
    assert {name: part.shape for name, part in made.named_parameters()} == {"1-2.weight": (7, 5), "2-4.weight": (7, 5)}


def test_the_identity_for_a_map_gives_what_no_map_gives():
    ours, theirs = drawn()
    carry = nn.Linear(5, 5, bias=False, dtype=torch.float64)
    nn.init.eye_(carry.weight)
    for kind in KINDS:
        loss = hidden(kind)
        assert torch.equal(value(loss, ours, theirs), value(loss, ours, theirs, nn.ModuleDict({"1-1": carry})))


def test_the_map_gets_the_gradient_of_least_squares():
    ours, theirs = drawn(teacher=7)
    carry = nn.Linear(5, 7, bias=False, dtype=torch.float64)
    value(HiddenStates(), ours, theirs, nn.ModuleDict({"1-1": carry})).sum().backward()
    apart = ours.detach() @ carry.weight.T - theirs
    torch.testing.assert_close(carry.weight.grad, 2 * apart.T @ ours.detach() / 7, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.grad, (2 * apart @ carry.weight / 7).detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("uniform", ((1, 3), (2, 6), (3, 8))),
        ("last:1", ((3, 8),)),
        ("last:3", ((1, 6), (2, 7), (3, 8))),
        ("0-0/2-5/2-5", ((0, 0), (2, 5))),
    ],
)
def test_maps(text, pairs):
    assert HiddenStates(map=text).pairs(Dims(ModelShape(3, 64, 4), ModelShape(8, 256, 8))) == pairs


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("hidden:map=last:4", "there are 3 layers in the student and 8 in the teacher"),
        ("hidden:map=identity", "map=identity is impossible: there are 3 layers in the student and 8 in the teacher"),
        ("hidden:map=1-9", "the teacher has layers 0 to 8, not 9"),
        ("hidden:map=4-1", "the student has layers 0 to 3, not 4"),
        ("attention:map=0-1", "the student has layers 1 to 3, not 0"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(spec, what):
    with pytest.raises(UsageError, match=what) as caught:
        build_objective(spec).matches(Dims(ModelShape(3, 64, 4), ModelShape(8, 256, 8)))
    assert caught.value.code == "FEAT-01"


def test_the_identity_pairs_each_layer_with_its_own():
    dims = Dims(ModelShape(3, 64, 4), ModelShape(3, 256, 8))
    assert HiddenStates(map="identity").pairs(dims) == HiddenStates().pairs(dims) == ((1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize("text", ["last:0", "first:2", "1:2", "1-2,", "2", ""])
def test_a_map_that_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError):
        build_objective(f"hidden:map={text}")


@pytest.mark.parametrize("spec", ["atkd:hard=hidden", "route:student=(fkl+attention)", "weighted:loss=hidden"])
def test_losses_that_tell_tokens_apart_take_no_features_inside(spec):
    with pytest.raises(UsageError, match="works on logits"):
        build_objective(spec)


def test_a_sum_asks_for_what_its_terms_ask_for():
    needs = build_objective("0.5*ce+hidden").needs()
    assert (needs.teacher, needs.logits, needs.features, needs.anything_of_teacher) == (False, True, {"hidden"}, True)
    pure = build_objective("hidden+2*attention").needs()
    assert (pure.logits, pure.features) == (False, {"hidden", "attention"})
    assert build_objective("ce+0*hidden").needs().features == frozenset()


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_teacher(kind):
    ours, theirs = drawn()
    value(hidden(kind), ours, theirs.requires_grad_()).sum().backward()
    assert ours.grad.abs().sum() > 0
    assert theirs.grad is None


def test_a_ramp_weighs_the_term_on_features():
    """A quarter of the way from 0 to 2 is one half."""
    ours, theirs = drawn()
    shape = Dims(ModelShape(1, 5, 1), ModelShape(1, 5, 1))
    seen = Features(Inner({1: ours}, {}), Inner({1: theirs}, {}), torch.ones(6), shape, nn.ModuleDict())
    tok = Tokens(torch.zeros(6, dtype=torch.int64), ours.new_zeros((6, 0)), progress=0.25, features=seen)
    (found,) = build_objective("ramp:loss=hidden,start=0,end=2").feature_parts(tok).values()
    torch.testing.assert_close(found, value(hidden(), ours, theirs) / 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(tok.logged["ramp.weight"], torch.full((6,), 0.5))
