import pytest
import torch
import torch.nn.functional as F

import kdcli
from kdcli.errors import UsageError

B, T, V, D, D_TEACHER = 3, 5, 13, 4, 6


def logits(seed):
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def labels():
    found = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(5))
    found[0, :3] = -100
    found[2] = -100
    return found


def test_token_losses_are_forward_kl_where_valid_and_zero_elsewhere(labels):
    z, t = logits(0), logits(1)
    values = kdcli.token_losses("fkl", z, t, labels)
    expected = F.kl_div(z.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(values, expected * (labels != -100))


def test_ignored_positions_may_hold_anything(labels):
    z, t = logits(0), logits(1)
    spoiled = z.clone()
    spoiled[labels == -100] = float("nan")
    spoiled.requires_grad_()
    values = kdcli.token_losses("0.5*ce+0.5*atkd", spoiled, t, labels)
    torch.testing.assert_close(values, kdcli.token_losses("0.5*ce+0.5*atkd", z, t, labels))
    values.sum().backward()
    assert spoiled.grad[labels == -100].abs().max() == 0


def test_no_valid_token_gives_live_zeros():
    z = logits(0).requires_grad_()
    values = kdcli.token_losses("akl", z, logits(1), torch.full((B, T), -100))
    values.sum().backward()
    assert values.abs().max() == 0
    assert z.grad.abs().max() == 0


@pytest.mark.parametrize("spec", ["fkl", "0.5*ce+0.5*akl:mu=0.6", "atkd", "ce"])
def test_fused_loss_is_the_mean_of_token_losses(labels, spec):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher_hidden = torch.randn(B, T, D_TEACHER, generator=generator, dtype=torch.float64)
    head = torch.nn.Linear(D, V, dtype=torch.float64)
    teacher_head = torch.randn(V, D_TEACHER, generator=generator, dtype=torch.float64)
    fused = kdcli.fused_loss(spec, hidden, head, teacher_hidden, teacher_head, labels, chunk_tokens=3)
    whole = kdcli.token_losses(spec, head(hidden), teacher_hidden @ teacher_head.T, labels).sum()
    whole = whole / (labels != -100).sum()
    assert fused.item() == pytest.approx(whole.item(), rel=1e-12)
    inputs = [hidden, head.weight, head.bias]
    for ours, theirs in zip(torch.autograd.grad(fused, inputs), torch.autograd.grad(whole, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_vocabularies_of_different_size_need_a_word(labels):
    hidden = torch.zeros(B, T, D)
    with pytest.raises(ValueError, match="13 and 15 rows"):
        kdcli.fused_loss("fkl", hidden, torch.ones(V, D), hidden, torch.ones(V + 2, D), labels)
    kdcli.fused_loss("fkl", hidden, torch.ones(V, D), hidden, torch.ones(V + 2, D), labels, vocab=V)


def test_a_missing_teacher_is_said():
    with pytest.raises(ValueError, match="expected teacher_logits"):
        kdcli.token_losses("fkl", logits(0), None, torch.zeros(B, T, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected teacher_hidden"):
        kdcli.fused_loss(
            "fkl", torch.zeros(1, 1, 2), torch.ones(3, 2), None, None, torch.zeros(1, 1, dtype=torch.int64)
        )


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(UsageError, match="akl"):
        kdcli.objective("akll")


def test_a_teacher_of_another_vocabulary_goes_with_uld_and_with_nothing_else(labels):
    z = logits(0).requires_grad_()
    wide = torch.cat((logits(1), logits(2)), -1)
    values = kdcli.token_losses("uld", z, wide, labels)
    q, p = (side.softmax(-1).sort(-1, descending=True).values for side in (z, wide))
    expected = (F.pad(q, (0, V)) - p).abs().sum(-1)
    torch.testing.assert_close(values, expected * (labels != -100))
    with pytest.raises(ValueError, match="one shape"):
        kdcli.token_losses("0.5*fkl+0.5*uld", z, wide, labels)


@pytest.mark.parametrize("vocab, teacher_vocab", [(None, None), (V - 2, None), (None, 9), (V - 2, 9)])
def test_heads_of_two_vocabularies_are_restricted_apart(labels, vocab, teacher_vocab):
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, theirs = draw(B, T, D).requires_grad_(), draw(B, T, D_TEACHER)
    head, other = draw(V, D), draw(2 * V, D_TEACHER)
    labels = labels.clamp_max(V - 3)
    found = kdcli.fused_loss(
        "ce+uld", hidden, head, theirs, other, labels, vocab=vocab, teacher_vocab=teacher_vocab, chunk_tokens=2
    )
    own, said = (hidden @ head.T)[..., :vocab], (theirs @ other.T)[..., :teacher_vocab]
    expected = kdcli.token_losses("ce+uld", own, said, labels).sum() / (labels != -100).sum()
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="teacher_vocab"):
        kdcli.fused_loss("fkl", hidden, head, theirs, other, labels, vocab=9, teacher_vocab=9)
