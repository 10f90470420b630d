"""Scores against hand-made numbers, closed forms, autograd, and exact retraining."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import running
import tiny
from kdcli.data.tokenize import Example
from kdcli.end_tokens import EndTokens
from kdcli.models.head import Head
from kdcli.models.load import LanguageModel
from kdcli.scores.base import Reading, ScoreContext, ScoredRow
from kdcli.scores.build import build_score
from kdcli.scores.gradients import errors, gradient_product


class Stub(LanguageModel):
    """A model of which only what the scores read is there."""

    def __init__(self, **parts):
        vars(self).update(parts)


class Given(ScoredRow):
    """A row of which the logits are given; hidden states are the logits."""

    def __init__(self, labels, **logits):
        super().__init__(Example((1, *labels), 1, "", (), "", response="two words"), ScoreContext())
        for side, table in logits.items():
            values = torch.tensor(table, dtype=torch.float64)
            head = Head(torch.eye(values.shape[1], dtype=torch.float64))
            model = Stub(vocab=values.shape[1], logits=lambda hidden: hidden, head=head)
            self._readings[side] = Reading(model, values, torch.tensor(labels))


THIRDS, CERTAIN = [math.log(1 / 3)] * 3, [math.log(0.8), math.log(0.1), math.log(0.1)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nll", -(math.log(1 / 3) + math.log(0.1)) / 2),
        ("nll:of=teacher", -(math.log(0.8) + math.log(1 / 3)) / 2),
        ("log_ratio", (math.log(0.8) - math.log(1 / 3) + math.log(1 / 3) - math.log(0.1)) / 2),
        ("teacher_right", 0.5),
        # (1/3, 1/3, 1/3) - (1, 0, 0), and (.8, .1, .1) - (0, 1, 0)
        ("el2n", (math.sqrt(4 / 9 + 2 / 9) + math.sqrt(0.64 + 0.81 + 0.01)) / 2),
        ("energy", 0.0),
        ("length", 2.0),
        ("length:unit=words", 2.0),
        ("length:unit=characters", 9.0),
    ],
)
def test_by_hand(spec, expected):
    row = Given([0, 1], student=[THIRDS, CERTAIN], teacher=[CERTAIN, [0.0] * 3])
    assert build_score(spec).value(row) == pytest.approx(expected, abs=1e-12)


def test_a_constant_on_the_logits_lowers_the_energy_by_it_and_changes_no_likelihood():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, raised = (Given([1, 2, 3, 4, 5], student=(logits + shift).tolist()) for shift in (0.0, 2.5))
    energy = build_score("energy")
    assert energy.value(raised) == pytest.approx(energy.value(plain) - 2.5, abs=1e-12)
    assert energy.value(plain) == pytest.approx(-logits.logsumexp(-1).mean().item(), abs=1e-12)
    for spec in ("nll", "el2n"):
        assert build_score(spec).value(raised) == pytest.approx(build_score(spec).value(plain), abs=1e-12)


class Unigram(Stub):
    """A model that does not read: the same distribution everywhere."""

    def __init__(self):
        weight = torch.randn(len(tiny.WORDS), 3, generator=torch.Generator().manual_seed(0))
        ends = EndTokens((2,))
        super().__init__(
            model=nn.Linear(1, 1), tokenizer=tiny.tokenizer(), ends=ends, head=Head(weight), vocab=len(weight)
        )

    def hidden(self, ids, mask):
        return torch.ones(*ids.shape, 3)

    def logits(self, hidden):
        return self.head.logits(hidden, self.vocab)


def test_difficulty_of_following_is_one_for_a_model_that_ignores_the_prompt():
    stub = ScoreContext({"student": Unigram()})
    values = [build_score("ifd").value(ScoredRow(one, stub)) for one in running.dataset(8).examples]
    assert values == pytest.approx([1.0] * 8, abs=1e-12)
    read = ScoreContext({"student": running.model("student", seed=1)})
    assert any(abs(build_score("ifd").value(ScoredRow(one, read)) - 1) > 1e-3 for one in running.dataset(8).examples)


def test_difficulty_of_following_is_the_ratio_of_two_perplexities():
    model, example = running.model("student", seed=1), Example((1, 5, 6, 7, 8, 9, 2), 4, "", (), "")
    logits = model.model(torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
    behind = sum(logits[at - 1, example.ids[at]] for at in range(4, 7)) / 3
    alone = model.model(torch.tensor([[1, 8, 9, 2]])).logits[0].double().log_softmax(-1)
    by_itself = (alone[0, 8] + alone[1, 9] + alone[2, 2]) / 3
    found = build_score("ifd").value(ScoredRow(example, ScoreContext({"student": model})))
    assert found == pytest.approx(torch.exp(by_itself - behind).item(), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_influence_is_the_product_of_the_gradients_of_the_last_layer(family):
    off = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0} if family == "gpt2" else {}
    model = running.model("student", seed=1, family=family, **off)
    model.model.double()
    rows, held_out = running.dataset(5).examples, running.dataset(4, seed=3).examples
    context = ScoreContext({"student": model}, held_out)

    def gradient(examples, reduction):
        readings = [context.read(one, "student") for one in examples]
        weight = model.head.weight.detach().clone().requires_grad_()
        logits = torch.cat([one.hidden for one in readings]) @ weight.T
        labels = torch.cat([one.labels for one in readings])
        loss = nn.functional.cross_entropy(logits, labels, reduction=reduction)
        return torch.autograd.grad(loss, weight)[0]

    wanted = gradient(held_out, "mean")
    for example in rows:
        row = ScoredRow(example, context)
        expected = (gradient([example], "sum") * wanted).sum().item()
        assert build_score("tracin").value(row) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert build_score("tracin:per=token").value(row) == pytest.approx(expected / row.targets, rel=1e-9, abs=1e-12)


def test_a_head_with_scale_and_soft_cap_has_its_own_gradient():
    generator = torch.Generator().manual_seed(4)
    weight, hidden = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((6, 3), (4, 3)))
    labels, head = torch.tensor([0, 5, 2, 1]), Head(weight.requires_grad_(), scale=1.7, softcap=2.0)
    model = Stub(vocab=6, logits=lambda hidden: head.logits(hidden, 6), head=head)
    loss = nn.functional.cross_entropy(head.logits(hidden, 6), labels, reduction="sum")
    expected = torch.autograd.grad(loss, weight)[0]
    context = ScoreContext()
    context.once(type(build_score("tracin")), lambda: Reading(model, hidden, labels))
    row = ScoredRow(Example((1, 0, 5, 2, 1), 1, "", (), ""), context)
    row._readings["student"] = Reading(model, hidden, labels)
    assert build_score("tracin").value(row) == pytest.approx((expected**2).sum().item() / 4, rel=1e-9)


def regression(features, labels, strength):
    """Weights of a multinomial logistic regression, by Newton's method to machine precision."""
    width = features.shape[1]
    classes = int(labels.max()) + 1
    weights = np.zeros((classes, width))
    onehot = np.eye(classes)[labels]
    for _ in range(50):
        logits = features @ weights.T
        q = np.exp(logits - logits.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        slope = (q - onehot).T @ features + strength * weights
        curve = np.zeros((classes * width, classes * width))
        for row, x in zip(q, features, strict=True):
            curve += np.kron(np.diag(row) - np.outer(row, row), np.outer(x, x))
        step = np.linalg.solve(curve + strength * np.eye(len(curve)), slope.ravel()).reshape(slope.shape)
        weights -= step
        if np.abs(step).max() < 1e-13:
            break
    return weights


def test_influence_ranks_rows_as_leaving_each_out_and_training_anew_does():
    random = np.random.default_rng(0)
    truth = random.normal(size=(3, 4))

    def draw(count):
        return random.normal(size=(count, 4))

    features, held_out = draw(60), draw(200)
    labels, right = (
        np.array([np.argmax(truth @ x + random.gumbel(size=3)) for x in rows]) for rows in (features, held_out)
    )

    def held_out_loss(weights):
        logits = held_out @ weights.T
        return (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(right)), right]).mean()

    strength = 20.0
    weights = regression(features, labels, strength)
    whole = held_out_loss(weights)
    changes = []
    for at in range(len(features)):
        rest = np.arange(len(features)) != at
        changes.append(held_out_loss(regression(features[rest], labels[rest], strength)) - whole)
    table, there, theirs = (torch.tensor(rows) for rows in (weights, held_out, features))
    slopes = errors(there @ table.T, torch.tensor(right))
    found = [
        gradient_product(errors(one[None] @ table.T, torch.tensor([label])), one[None], slopes, there)
        for one, label in zip(theirs, labels.tolist(), strict=True)
    ]
    assert spearmanr(found, changes).statistic >= 0.9
