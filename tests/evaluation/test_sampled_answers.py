"""From models to scores of their own samples, on chains whose answers are known in closed form."""

import numpy as np
import pytest
import torch

import chains
import running
from kdcli.config.schema import GenerationConfig, HardwareConfig
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.errors import InputError
from kdcli.evaluation.on_policy import (
    DecoderPair,
    check_on_policy,
    facts_of_answers,
    facts_of_drafting,
    sample_answers,
    score_on_policy,
)
from kdcli.events import silent
from kdcli.generation import Completion
from kdcli.metrics.exposure_bias import ExposureBias
from kdcli.metrics.on_policy import OnPolicyKL
from kdcli.metrics.speculative import Speculative
from kdcli.models.devices import prepare
from kdcli.statistics import over_examples

ENDING = {
    chains.START: {chains.A: 0.5, chains.B: 0.3, chains.END: 0.2},
    chains.A: {chains.A: 0.6, chains.B: 0.1, chains.END: 0.3},
    chains.B: {chains.A: 0.2, chains.B: 0.7, chains.END: 0.1},
}
ENDING_STUDENT = {
    chains.START: {chains.A: 0.2, chains.B: 0.7, chains.END: 0.1},
    chains.A: {chains.A: 0.3, chains.B: 0.4, chains.END: 0.3},
    chains.B: {chains.A: 0.3, chains.B: 0.3, chains.END: 0.4},
}


def prompts(count: int) -> TokenDataset:
    return TokenDataset(tuple(Example((chains.START, chains.A), 1, "", ("a",), f"row {n}") for n in range(count)))


def decoders(student, teacher, **config) -> DecoderPair:
    settings = GenerationConfig(**{"max_new_tokens": 5, "seeds": (1, 2), **config})
    return DecoderPair(student, teacher, settings, 3, prepare(HardwareConfig(device="cpu")), silent)


@pytest.fixture(scope="module")
def golden():
    pair = decoders(chains.chain(chains.GOLDEN_STUDENT), chains.chain(chains.GOLDEN_TEACHER))
    return score_on_policy([ExposureBias(exposure_lengths=(1, 3, 5)), OnPolicyKL()], prompts(300), pair)


def test_sampled_exposure_bias_converges_to_the_exact_chain(golden):
    scores = {score.name: score for score, _ in golden.pairs}
    assert scores["ex_acc_err_1"].value == pytest.approx(0.0, abs=1e-9)
    for length in (3, 5):
        found, exact = over_examples(scores[f"ex_acc_err_{length}"]), chains.GOLDEN_EXCESS[length - 1]
        assert found.error < 4
        assert abs(found.mean - exact) < 3 * found.error
    assert scores["ex_acc_err"].value == scores["ex_acc_err_5"].value


def test_accumulated_errors_lie_in_their_bands(golden):
    curve = next(curve for curve in golden.curves if curve.name == "accumulated_error")
    for line, exact in zip(curve.series, (chains.GOLDEN_R, chains.GOLDEN_L_EPS), strict=True):
        assert line.y[0] == pytest.approx(exact[0], abs=1e-6)
        width = (np.array(line.high) - np.array(line.low)) / 2
        assert (np.abs(np.array(line.y) - exact) <= 2 * width + 1e-6).all()


def test_answers_that_end_add_nothing_more():
    student, teacher = chains.chain(ENDING_STUDENT), chains.chain(ENDING)
    scored = score_on_policy([ExposureBias()], prompts(300), decoders(student, teacher, max_new_tokens=4))
    found = over_examples(scored.pairs[0][0])
    ours = chains.accumulated(ENDING_STUDENT, ENDING, ENDING_STUDENT, 4)[-1]
    theirs = chains.accumulated(ENDING, ENDING, ENDING_STUDENT, 4)[-1]
    assert abs(found.mean - 100 * (ours - theirs) / theirs) < 3 * found.error
    assert found.error < 5


def test_every_token_knows_its_example_answer_and_position():
    student, teacher = running.model("student", seed=1), running.model("teacher", seed=2)
    rows = running.dataset(3)
    said = [[Completion((7, 8), 2), Completion((9, 10, 11), None)], [Completion((), 2), Completion((5,), 2)]]
    said.append([Completion((6,), 2), Completion((4,), 2)])
    own = facts_of_answers(said, rows, decoders(student, teacher), {"label_logp", "kl_from_teacher", "jsd"})
    assert own.facts.keys() == {"label_logp", "kl_from_teacher", "jsd"}
    assert own.example.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert own.answer.tolist() == [0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1]
    assert own.position.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 0, 1, 0, 1]
    expected, divergence = [], []
    for example, answers in zip(rows.examples, said, strict=True):
        for answer in answers:
            prompt = example.ids[: example.prompt_length]
            ids = torch.tensor([[*prompt, *answer.ids, *([2] if answer.ended else [])]])
            with torch.no_grad():
                q, p = (torch.log_softmax(one.model(ids).logits[0].double(), -1) for one in (student, teacher))
            for at in range(len(prompt), ids.shape[1]):
                expected.append(q[at - 1, ids[0, at]].item())
                divergence.append((p[at - 1].exp() * (p[at - 1] - q[at - 1])).sum().item())
    np.testing.assert_allclose(own.facts["label_logp"], expected, rtol=1e-5)
    np.testing.assert_allclose(own.facts["kl_from_teacher"], divergence, rtol=1e-4)


def test_known_answers_are_not_sampled_again(monkeypatch):
    student, teacher = chains.chain(chains.GOLDEN_STUDENT), chains.chain(chains.GOLDEN_TEACHER)
    both = decoders(student, teacher)
    known = sample_answers(student, prompts(4), both, "student")
    first = score_on_policy([OnPolicyKL()], prompts(4), both)
    monkeypatch.setattr("kdcli.evaluation.on_policy.sample_answers", None)
    again = score_on_policy([OnPolicyKL()], prompts(4), both, known)
    assert [score.value for score, _ in again.pairs] == [score.value for score, _ in first.pairs]


def test_greedy_answers_are_given_once():
    student, teacher = chains.chain(chains.GOLDEN_STUDENT), chains.chain(chains.GOLDEN_TEACHER)
    assert len(sample_answers(student, prompts(2), decoders(student, teacher, temperature=0.0), "student")[0]) == 1


def test_drafting_is_recorded_by_example_and_seed():
    student, teacher = chains.chain(ENDING_STUDENT), chains.chain(ENDING)
    own = facts_of_drafting(prompts(40), decoders(student, teacher))
    assert (own.examples, own.answers, own.length) == (40, 2, 5)
    scores = {score.name: score.value for score in Speculative(draft_tokens=3).scores_from_own({"speculative": own})}
    assert scores["spec_tokens_per_call"] <= 1 + scores["spec_accepted_length"]
    assert abs(scores["spec_acceptance"] - scores["spec_expected"]) < 10


@pytest.mark.parametrize(
    ("positions", "fix"), [(8, "set data.max_prompt_length=3"), (5, "set a smaller --max-new-tokens")]
)
def test_a_context_too_short_for_whole_answers_is_refused(positions, fix):
    rows = TokenDataset((Example((1, 5, 6, 7, 8), 4, "", ("a",), "row"),))
    with pytest.raises(InputError, match=f"4 prompt and 5 answer tokens exceed {positions} positions") as caught:
        check_on_policy([OnPolicyKL()], rows, 5, {"student": None, "short": positions})
    assert (caught.value.where, caught.value.fix) == ("short", fix)
    check_on_policy([OnPolicyKL()], rows, 5, {"student": None, "long": 9})


def test_greedy_answers_are_all_the_same_so_each_row_is_drafted_for_once():
    student, teacher = chains.chain(chains.GOLDEN_STUDENT), chains.chain(chains.GOLDEN_TEACHER)
    for temperature, answers in ((0.0, 1), (1.0, 2)):
        found = facts_of_drafting(prompts(3), decoders(student, teacher, temperature=temperature))
        assert (found.examples, found.answers) == (3, answers)
        assert set(found.answer.tolist()) == set(range(answers))
