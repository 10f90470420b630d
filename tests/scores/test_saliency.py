"""Attributions against closed forms, finite differences, completeness, and a word that was planted."""

import pytest
import torch

import running
from kdcli.rows.rationales import build_attribution
from kdcli.scores.saliency import AnswerScore, WordsOfPrompt, integrated, slopes

EVERY_GRADIENT = ("grad", "grad_x_input", "ig", "occlusion")


class Toy(AnswerScore):
    """A score in closed form of embedded prompts ``[b, n, d]``."""

    at_once = 3

    def __init__(self, embedded, formula):
        self.embedded, self._formula = embedded, formula

    def __call__(self, embedded):
        return self._formula(embedded)

    def baseline(self, kind):
        return torch.zeros_like(self.embedded[0])


class Row(WordsOfPrompt):
    """A row of one token a word whose score is given."""

    toy = None

    @property
    def score(self):
        return self.toy


def measured(spec, embedded, formula):
    count = len(embedded)
    row = Row([f"w{at}" for at in range(count)], [[at] for at in range(count)], range(count), [0], "key")
    row.toy = Toy(embedded, formula)
    return torch.tensor(build_attribution(spec).measure(row), dtype=torch.float64), row


@pytest.fixture
def bag():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 4, dtype=torch.float64, generator=generator), torch.randn(
        4, dtype=torch.float64, generator=generator
    )


def test_a_linear_bag_of_embeddings_in_closed_form(bag):
    embedded, w = bag

    def linear(e):
        return (e @ w).sum(1)

    each = embedded @ w
    torch.testing.assert_close(measured("grad_x_input", *(embedded, linear))[0], each.abs())
    torch.testing.assert_close(measured("grad_x_input:sign=positive", embedded, linear)[0], each.clamp_min(0))
    torch.testing.assert_close(measured("grad", embedded, linear)[0], w.norm().expand(6))
    torch.testing.assert_close(measured("occlusion", embedded, linear)[0], each)
    for steps in (1, 2, 7):
        found, row = measured(f"ig:steps={steps}", embedded, linear)
        torch.testing.assert_close(found, each.abs())
        assert row.gap == pytest.approx(0.0, abs=1e-12)
    signed, gap = integrated(Toy(embedded, linear), torch.zeros(4, dtype=torch.float64), 5)
    torch.testing.assert_close(signed, each)
    assert gap == pytest.approx(0.0, abs=1e-12)


def test_a_quadratic_score_is_exact_for_every_number_of_steps(bag):
    embedded, w = bag

    def square(e):
        return (e @ w).sum(1) ** 2

    expected = (embedded @ w) * (embedded @ w).sum()
    for steps in (1, 2, 7, 32):
        found, gap = integrated(Toy(embedded, square), torch.zeros(4, dtype=torch.float64), steps)
        torch.testing.assert_close(found, expected)
        assert gap == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(measured("grad_x_input", embedded, square)[0], 2 * expected.abs())


@pytest.fixture(scope="module")
def llama():
    model = running.model("teacher", seed=3)
    model.model.double()
    return model


@pytest.fixture(scope="module")
def exact():
    """A model whose arithmetic is float64 throughout; norms of the Llama family compute in fp32."""
    return running.exact_pair()[1]


PROMPT, ANSWER = [1, 5, 9, 12, 7, 20, 11], [6, 14, 8]


def test_the_score_is_the_log_probability_of_the_answer(llama):
    score = AnswerScore(llama, PROMPT, ANSWER)
    logits = llama.model(torch.tensor([[*PROMPT, *ANSWER]])).logits[0].log_softmax(-1)
    expected = sum(logits[len(PROMPT) - 1 + at, token] for at, token in enumerate(ANSWER))
    torch.testing.assert_close(score(score.embedded[None])[0], expected.detach())
    together = score(score.embedded.expand(3, -1, -1))
    torch.testing.assert_close(together, expected.detach().expand(3))


def test_integrated_gradients_are_complete(llama, exact):
    for model in (llama, exact):
        score = AnswerScore(model, PROMPT, ANSWER)
        found, gap = integrated(score, score.baseline("mean"), 64)
        assert gap < 1e-3
        assert found.abs().max() > 1e-4
        assert integrated(score, score.baseline("mean"), 2)[1] > gap


def test_a_way_from_zero_through_a_norm_is_not_complete_and_says_so(llama):
    """A norm that divides by the length of an embedding makes all of the way but its beginning flat."""
    score = AnswerScore(llama, PROMPT, ANSWER)
    assert integrated(score, score.baseline("zero"), 64)[1] > 0.05
    row = WordsOfPrompt(["a"], [[2]], PROMPT, ANSWER, "key", llama)
    build_attribution("ig:baseline=zero,steps=64").measure(row)
    assert row.gap is not None
    assert row.gap > 0.05


def test_a_gradient_is_what_finite_differences_say(exact):
    score = AnswerScore(exact, PROMPT, ANSWER)
    slope, step = slopes(score, score.embedded[None])[0], 1e-6
    for token, place in ((0, 0), (3, 5), (6, 15)):
        ends = []
        for sign in (1, -1):
            moved = score.embedded.clone()
            moved[token, place] += sign * step
            ends.append(score(moved[None]).item())
        assert slope[token, place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-8)
    assert all(parameter.grad is None for parameter in exact.model.parameters())


@pytest.mark.parametrize("spec", EVERY_GRADIENT)
def test_a_word_that_the_teacher_copies_is_the_heaviest_in_every_row(spec):
    generator, right = torch.Generator().manual_seed(0), 0
    for _ in range(40):
        embedded = torch.randn(12, 8, dtype=torch.float64, generator=generator)
        table = torch.randn(30, 8, dtype=torch.float64, generator=generator)
        marker = torch.nn.functional.normalize(torch.randn(8, dtype=torch.float64, generator=generator), dim=0)
        embedded -= (embedded @ marker)[:, None] * marker
        embedded[7] += 3 * marker
        table[4] = 2 * embedded[7]

        def copied(e, marker=marker, table=table):
            """Attention to whatever has the marker, and the word that it holds."""
            seen = (torch.softmax(8 * (e @ marker), -1)[..., None] * e).sum(1)
            return (seen @ table.T).log_softmax(-1)[:, 4]

        weights, _ = measured(spec, embedded, copied)
        right += int(weights.argmax()) == 7
    assert right == 40


def test_words_are_the_sum_of_their_tokens_and_rows_do_not_touch_each_other(llama):
    def of(prompt):
        row = WordsOfPrompt(["a", "b"], [[1, 2], [4]], prompt, ANSWER, "key", llama)
        return build_attribution("grad_x_input").measure(row)

    score = AnswerScore(llama, PROMPT, ANSWER)
    each = (slopes(score, score.embedded[None])[0] * score.embedded).sum(-1).abs()
    assert of(PROMPT) == pytest.approx([(each[1] + each[2]).item(), each[4].item()])
    first = of(PROMPT)
    of([3, 4, 5, 6, 7, 8])
    assert of(PROMPT) == first


def test_integrated_gradients_are_those_of_captum(exact):
    attr = pytest.importorskip("captum.attr")
    score = AnswerScore(exact, PROMPT, ANSWER)
    baseline = score.baseline("mean")
    theirs = attr.IntegratedGradients(score, multiply_by_inputs=True).attribute(
        score.embedded[None], baselines=baseline.expand_as(score.embedded)[None], n_steps=16, method="riemann_middle"
    )
    torch.testing.assert_close(integrated(score, baseline, 16)[0], theirs[0].sum(-1), rtol=1e-6, atol=1e-9)
    plain = attr.InputXGradient(score).attribute(score.embedded[None].clone().requires_grad_())[0].sum(-1)
    torch.testing.assert_close((slopes(score, score.embedded[None])[0] * score.embedded).sum(-1), plain.detach())


def test_controls_follow_from_the_row_alone():
    row = WordsOfPrompt(
        ["the", "odd", "word"], [[0], [1], [2]], [1, 2, 3], [4], "key", frequency={"the": 9, "odd": 2, "word": 5}
    )
    assert build_attribution("first").measure(row) == [0.0, -1.0, -2.0]
    assert build_attribution("rare").measure(row) == [-9.0, -2.0, -5.0]
    drawn = build_attribution("random").measure(row)
    assert drawn == build_attribution("random").measure(row)
    assert drawn != build_attribution("random:seed=1").measure(row)
    assert all(0 <= value < 1 for value in drawn)
