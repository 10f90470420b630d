"""What a loss wants followed is noted on the way, by either road to the gradient, and changes no bit of it."""

import pytest
import torch

from kdcli.losses.build import build_objective
from kdcli.losses.divergences.akl import AdaptiveKL
from kdcli.losses.divergences.base import Divergence
from kdcli.models.head import Head
from kdcli.models.packing import Projection, Workspace
from kdcli.training.fused_loss import FusedInputs, fused_sum

TOKENS, WIDTH, VOCAB = 11, 6, 23
SPECS = ["akl", "akl:flip=true,temperature=2", "0.5*ce+0.5*akl:mu=0.7", "akl+2*akl:mu=0.9", "atkd", "0.3*fkl+0.7*atkd"]


def sides(dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    student, teacher = (
        Projection(
            torch.randn(TOKENS, WIDTH, generator=generator, dtype=dtype).requires_grad_(),
            Head(torch.randn(VOCAB, WIDTH, generator=generator, dtype=dtype).requires_grad_(), None),
        )
        for _ in range(2)
    )
    return student, teacher, torch.randint(VOCAB, (TOKENS,), generator=generator)


def passed(spec, chunk=4):
    student, teacher, labels = sides()
    weights = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)
    work = FusedInputs(
        build_objective(spec),
        labels,
        weights,
        torch.zeros_like(labels),
        teacher,
        VOCAB,
        torch.float64,
        Workspace(chunk),
    )
    total, parts = fused_sum(student, work)
    gradient = torch.autograd.grad(total, [student.hidden, student.head.weight])
    return total, parts, gradient, work.logged


def probabilities():
    student, teacher, _ = sides()
    return tuple((side.hidden @ side.head.weight.T).detach().softmax(-1) for side in (student, teacher))


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_the_weights_of_akl_are_those_it_used(chunk):
    watched = passed("akl", chunk)[3]
    assert list(watched) == ["akl.head_weight"]
    torch.testing.assert_close(watched["akl.head_weight"], AdaptiveKL().weight(*probabilities()))
    assert not watched["akl.head_weight"].requires_grad


@pytest.mark.parametrize("spec", SPECS)
def test_both_roads_note_the_same(spec, monkeypatch):
    total, parts, gradient, watched = passed(spec)
    for kind in (Divergence, type(build_objective("atkd")), type(build_objective("ce"))):
        monkeypatch.setattr(kind, "parts_and_grad", lambda self, tok: None)
    other = passed(spec)
    assert watched.keys() == other[3].keys()
    for name, value in watched.items():
        torch.testing.assert_close(value, other[3][name])
    torch.testing.assert_close(total, other[0])
    for ours, theirs in zip(gradient, other[2], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert parts.keys() == other[1].keys()


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_watched_is_no_part_of_the_sum(spec):
    total, parts, _, watched = passed(spec)
    assert not parts.keys() & watched.keys()
    assert total.item() == pytest.approx(sum(part.mean().item() for part in parts.values()), rel=1e-12)


def test_two_of_a_kind_are_told_apart():
    watched = passed("akl+2*akl:mu=0.9")[3]
    assert list(watched) == ["akl.head_weight", "akl_2.head_weight"]
    torch.testing.assert_close(watched["akl_2.head_weight"], AdaptiveKL(mu=0.9).weight(*probabilities()))


def test_easy_tokens_are_those_below_the_lower_median():
    easy = passed("atkd")[3]["atkd.easy_share"]
    assert set(easy.tolist()) == {0.0, 1.0}
    assert int(easy.sum()) == TOKENS // 2


def test_others_watch_nothing():
    assert passed("0.5*ce+0.5*fkl")[3] == {}
