from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch

import chains
import running
from kdcli.config.schema import GenerationConfig
from kdcli.errors import InputError, NumericsError
from kdcli.generation import generate
from kdcli.generation.speculative import as_columns, speculate

TEACHER = {
    chains.START: {chains.A: 0.6, chains.B: 0.3, chains.END: 0.1},
    chains.A: {chains.A: 0.2, chains.B: 0.5, chains.END: 0.3},
    chains.B: {chains.A: 0.7, chains.B: 0.2, chains.END: 0.1},
}
STUDENT = {
    chains.START: {chains.A: 0.3, chains.B: 0.6, chains.END: 0.1},
    chains.A: {chains.A: 0.5, chains.B: 0.4, chains.END: 0.1},
    chains.B: {chains.A: 0.3, chains.B: 0.3, chains.END: 0.4},
}
LENGTH, ANSWERS = 3, 1200


def answer_odds() -> dict[tuple[tuple[int, ...], bool], float]:
    """The probability of every answer of the teacher of at most three tokens."""
    odds: dict[tuple[tuple[int, ...], bool], float] = {}

    def follow(said: tuple[int, ...], last: int, mass: float) -> None:
        if len(said) == LENGTH:
            odds[said, False] = mass
            return
        for token, probability in TEACHER[last].items():
            if token == chains.END:
                odds[said, True] = mass * probability
            else:
                follow((*said, token), token, mass * probability)

    follow((), chains.START, 1.0)
    return odds


@pytest.fixture(scope="module")
def pair():
    return chains.chain(STUDENT, "student"), chains.chain(TEACHER, "teacher")


@pytest.fixture(scope="module")
def runs(pair):
    config = GenerationConfig(max_new_tokens=LENGTH)
    return [
        speculate(*pair, [chains.START], config, draft_tokens=2, seed=5, example=number) for number in range(ANSWERS)
    ]


def test_answers_have_the_teachers_distribution(runs):
    odds = answer_odds()
    assert sum(odds.values()) == pytest.approx(1.0)
    seen = Counter((answer.ids, answer.ended) for answer, _ in runs)
    assert seen.keys() <= odds.keys()
    expected = np.array(list(odds.values())) * ANSWERS
    observed = np.array([seen[key] for key in odds])
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.01


def test_acceptance_is_what_total_variation_says(runs):
    tests = [one for _, found in runs for one in found]
    likely = np.array([1.0 - one.apart for one in tests])
    taken = np.array([one.accepted for one in tests])
    error = np.sqrt((likely * (1.0 - likely)).sum())
    assert abs(taken.sum() - likely.sum()) < 3 * error
    distances = {round(one.apart, 5) for one in tests}
    assert distances == {0.3, 0.4}  # of the three rows of the tables


def test_every_call_adds_what_it_says(runs):
    for answer, found in runs:
        assert sum(one.emitted for one in found) == len(answer.ids) + answer.ended
        assert all((one.emitted > 0) == one.opens for one in found)
        assert [one.position for one in found] == sorted({one.position for one in found})


def test_columns_keep_the_order_of_answers_and_tests(runs):
    facts, answer, position = as_columns([found for _, found in runs])
    assert facts.keys() == {"accepted", "total_variation", "opens", "emitted"}
    assert answer.tolist() == [number for number, (_, found) in enumerate(runs) for _ in found]
    assert position.tolist() == [one.position for _, found in runs for one in found]
    assert facts["accepted"].tolist() == [float(one.accepted) for _, found in runs for one in found]


def test_an_answer_follows_from_seed_and_number_alone(pair, runs):
    config = GenerationConfig(max_new_tokens=LENGTH)
    again = speculate(*pair, [chains.START], config, draft_tokens=2, seed=5, example=17)
    assert again == runs[17]
    others = [speculate(*pair, [chains.START], config, draft_tokens=2, seed=6, example=n)[0] for n in range(12)]
    assert others != [answer for answer, _ in runs[:12]]


def test_a_student_that_is_the_teacher_is_always_accepted(pair):
    config = GenerationConfig(max_new_tokens=12)
    endless = chains.chain(chains.GOLDEN_TEACHER)
    answer, found = speculate(endless, endless, [chains.START], config, draft_tokens=3, seed=1, example=0)
    assert len(answer.ids) == 12
    assert [one.emitted for one in found if one.opens] == [4, 4, 4]
    assert all(one.accepted and one.apart == 0.0 for one in found)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("mistral", {**running.tiny.SIZES["llama"], "sliding_window": 5}),
    ],
)
@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_greedy_answers_are_the_teachers_own(family, sizes, draft_tokens):
    """Wherever a draft is taken back, the caches must be as if it had never been read."""
    student, teacher = (running.model(role, seed, family, **sizes) for role, seed in (("student", 1), ("teacher", 2)))
    half = dict(teacher.model.named_parameters())
    with torch.no_grad():
        for name, value in student.model.named_parameters():
            value.lerp_(half[name], 0.8)  # alike enough that some drafts are taken
    config = GenerationConfig(max_new_tokens=24, temperature=0.0)
    prompts = [[1, 5 + index, 9, 20 - index] for index in range(6)]
    tests = []
    for number, (prompt, own) in enumerate(zip(prompts, generate(teacher, prompts, config, seed=0), strict=True)):
        answer, found = speculate(student, teacher, prompt, config, draft_tokens=draft_tokens, seed=0, example=number)
        assert answer == own
        tests += found
    assert 0 < sum(one.accepted for one in tests) < len(tests)


def test_an_empty_prompt_is_refused(pair):
    config = GenerationConfig(max_new_tokens=4)
    with pytest.raises(InputError, match="no tokens"):
        speculate(*pair, [], config, draft_tokens=2, seed=0, example=0)


def test_logits_that_are_not_finite_are_refused(pair):
    broken = chains.chain(TEACHER, "broken")
    with torch.no_grad():
        broken.model.lm_head.weight[chains.A] = torch.nan
    with pytest.raises(NumericsError, match="not finite"):
        speculate(pair[0], broken, [chains.START], GenerationConfig(), draft_tokens=2, seed=0, example=0)


def test_drafts_that_cross_into_other_positions_are_refused():
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 16}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    one = running.model("student", rope_parameters=rope)
    config = GenerationConfig(max_new_tokens=8, temperature=0.0)
    with pytest.raises(InputError, match=r"GEN-05.*cross 16 tokens"):
        speculate(one, one, [1] * 12, config, draft_tokens=2, seed=0, example=0)
    answer, _ = speculate(one, one, [1] * 8, config, draft_tokens=2, seed=0, example=0)
    assert answer == generate(one, [[1] * 8], config, seed=0)[0]
