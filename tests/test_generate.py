import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import tiny
from kdcli.config import GenerationConfig
from kdcli.errors import InputError, NumericsError
from kdcli.generate import Answer, generate, sample, uniforms
from kdcli.models.cache import roomy_cache
from kdcli.models.load import LanguageModel, assemble

torch.set_num_threads(1)


def speaker(family: str = "llama", **options) -> LanguageModel:
    """A tiny model whose logits are spread out, so that answers differ and some end early."""
    model = tiny.model(family, tie_word_embeddings=False, **options)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)
    return assemble(model, tiny.tokenizer(), "tiny", "", device=torch.device("cpu"), role="student")


def prompts(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    draw = random.Random(seed)
    return [[1, *draw.choices(range(4, len(tiny.WORDS)), k=draw.randint(0, longest))] for _ in range(count)]


def config(**options) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 24, "batch_tokens": 600, **options})


FAMILIES = ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "mistral"]
PLAIN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {
    "opt": {**PLAIN, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "gpt_neox": {**PLAIN, "intermediate_size": 32},
    "mistral": {**PLAIN, "intermediate_size": 32, "num_key_value_heads": 1, "sliding_window": 9},
    "qwen2": {**PLAIN, "intermediate_size": 32, "num_key_value_heads": 1},
}


def of_family(family: str) -> LanguageModel:
    return speaker(family, **SIZES.get(family, {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family):
    model = of_family(family)
    given = prompts(8)
    answers = generate(model, given, config(temperature=0.0), seed=0)
    for prompt, answer in zip(given, answers, strict=True):
        theirs = model.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=2,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert answer == Answer(tuple(token for token in theirs if token != 2), theirs[-1] == 2)


def test_answers_differ_in_length_so_that_rows_leave_the_batch():
    answers = generate(speaker(), prompts(40), config(), seed=0)
    assert len({len(answer.ids) for answer in answers if answer.ended}) > 3
    assert any(not answer.ended and len(answer.ids) == 24 for answer in answers)


@pytest.mark.parametrize(
    "family, options",
    [(family, {}) for family in FAMILIES]
    + [("llama", {"temperature": 0.0}), ("gpt2", {"temperature": 0.7, "top_p": 0.9})],
)
def test_batches_of_one_and_of_many_give_the_same_answers(family, options):
    model, given = of_family(family), prompts(10, seed=1)
    many = generate(model, given, config(batch_tokens=100_000, **options), seed=7)
    one = generate(model, given, config(batch_tokens=1, **options), seed=7)
    assert many == one
    assert len(set(many)) > 3


def test_answers_do_not_depend_on_the_order_of_prompts():
    model, given = speaker(), prompts(20, seed=2)
    order = random.Random(0).sample(range(20), 20)
    straight = generate(model, given, config(), seed=3)
    shuffled = generate(model, [given[i] for i in order], config(), seed=3, examples=order)
    assert shuffled == [straight[i] for i in order]


def test_answers_are_reproducible_and_leave_the_global_generators_alone():
    model, given = speaker(), prompts(8)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = generate(model, given, config(), seed=10)
    torch.manual_seed(5)
    torch.set_rng_state(state)
    assert generate(model, given, config(), seed=10) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert generate(model, given, config(), seed=20) != first


def test_the_same_prompt_twice_gets_two_draws():
    answers = generate(speaker(), [[1, 5, 6]] * 6, config(), seed=0)
    assert len(set(answers)) > 1


def test_a_shorter_limit_gives_the_beginning_of_the_same_answer():
    model, given = speaker(), prompts(12)
    long, short = (generate(model, given, config(max_new_tokens=n), seed=0) for n in (24, 5))
    assert [answer.ids[:5] for answer in long] == [answer.ids for answer in short]


def test_every_end_token_ends_and_none_is_part_of_the_answer():
    model, given = speaker(), prompts(30)
    answers = generate(replace(model, end_ids=(2, 7, 9)), given, config(), seed=0)
    assert all(not set(answer.ids) & {2, 7, 9} for answer in answers)
    alone = generate(model, given, config(), seed=0)
    cut = [next((i for i, token in enumerate(answer.ids) if token in (7, 9)), len(answer.ids)) for answer in alone]
    assert [answer.ids for answer in answers] == [answer.ids[:at] for answer, at in zip(alone, cut, strict=True)]
    assert sum(answer.ended for answer in answers) > sum(answer.ended for answer in alone)


def test_padding_rows_of_the_head_are_never_generated():
    model, real = speaker(vocab=64), len(tiny.WORDS)
    highest = [
        max(max(answer.ids, default=0) for answer in generate(model, prompts(30), config(), seed=0, rows=rows))
        for rows in (real, None)
    ]
    assert highest[0] < real <= highest[1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_models_context_is_never_exceeded(family):
    limit = {"max_position_embeddings": 12} if family == "llama" else {"n_positions": 12}
    model = replace(speaker(family, **limit), end_ids=())
    given = [[1] * length for length in (3, 11, 8)]
    answers = generate(model, given, config(), seed=0)
    assert [len(answer.ids) for answer in answers] == [9, 1, 4]
    assert not any(answer.ended for answer in answers)
    with pytest.raises(InputError, match=r"prompt 1.*context of 12"):
        generate(model, [[1], [1] * 12], config(), seed=0)


def test_recurrent_models_are_refused_by_name():
    model = speaker("mamba", hidden_size=16, state_size=4, num_hidden_layers=2, conv_kernel=3)
    with pytest.raises(InputError, match="MambaForCausalLM"):
        generate(model, [[1]], config(), seed=0)


def test_an_empty_prompt_is_refused_by_its_number():
    with pytest.raises(InputError, match="prompt 1"):
        generate(speaker(), [[1], []], config(), seed=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_model_stops_with_exit_7(temperature):
    model = speaker()
    with torch.no_grad():
        model.head.weight[5] = torch.nan
    with pytest.raises(NumericsError, match="not finite") as caught:
        generate(model, [[1]], config(temperature=temperature), seed=0)
    assert caught.value.exit_code == 7


def test_no_prompts_no_answers():
    assert generate(speaker(), [], config(), seed=0) == []


def test_progress_counts_every_generated_token_end_tokens_included():
    counts: list[int] = []
    answers = generate(speaker(), prompts(20), config(), seed=0, report=counts.append)
    assert sum(counts) == sum(len(answer.ids) + answer.ended for answer in answers)


def test_dropout_is_off_while_generating_and_back_on_afterwards():
    model = speaker("gpt2", resid_pdrop=0.9, embd_pdrop=0.9)
    still = generate(model, prompts(5), config(), seed=0)
    model.model.train()
    assert generate(model, prompts(5), config(), seed=0) == still
    assert model.model.training


def test_batches_hold_no_more_than_their_tokens():
    model, seen, counts = speaker(), [], []

    def watch(module, positional, inputs):
        seen.append(tuple(inputs["input_ids"].shape))

    model.model.model.register_forward_pre_hook(watch, with_kwargs=True)
    generate(model, prompts(30), config(batch_tokens=300), seed=0, report=counts.append)
    first = [shape for shape in seen if shape[1] > 1]
    assert max(rows * (width + 24) for rows, width in first) <= 300
    assert [width for _, width in first] == sorted((width for _, width in first), reverse=True)
    assert sum(rows for rows, _ in seen) == sum(counts), "a row that has ended must not be computed"


def test_the_cache_holds_what_transformers_own_cache_holds():
    model = speaker()
    ours, theirs = roomy_cache(model.model.config, 9), DynamicCache(config=model.model.config)
    for ids in (
        torch.tensor([[1, 5, 6], [1, 7, 8], [1, 9, 4]]),
        torch.tensor([[10], [11]]),
        torch.tensor([[12], [13]]),
    ):
        for cache in (ours, theirs):
            if cache.get_seq_length() == 3:
                cache.batch_select_indices(torch.tensor([2, 0]))
            model.model(ids, past_key_values=cache)
        for mine, plain in zip(ours.layers, theirs.layers, strict=True):
            assert torch.equal(mine.keys, plain.keys)
            assert torch.equal(mine.values, plain.values)
    assert ours.get_seq_length() == 5


def test_uniforms_depend_on_seed_example_and_step_alone():
    whole = uniforms(3, range(50), 40)
    assert np.array_equal(uniforms(3, [49, 7], 10), whole[[49, 7], :10])
    assert not np.array_equal(uniforms(4, [7], 40), whole[[7]])
    assert len(np.unique(whole)) == whole.size
    assert whole.min() >= 0.0
    assert whole.max() < 1.0
    assert abs(whole.mean() - 0.5) < 0.03
    assert uniforms(2**63 - 1, [2**40], 1).shape == (1, 1)


def test_samples_follow_the_distribution_at_a_temperature():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    draws = torch.from_numpy(uniforms(0, range(100), 1000).ravel())
    for tau in (0.5, 1.0, 3.0):
        picked = sample(logits.expand(len(draws), 4), draws, temperature=tau)
        shares = torch.bincount(picked, minlength=4) / len(draws)
        torch.testing.assert_close(shares, torch.softmax(logits / tau, -1), atol=6e-3, rtol=0)


def test_inverse_of_the_cumulative_distribution_by_hand():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(5, 4)
    draws = torch.tensor([0.0, 0.09, 0.11, 0.59, 0.61], dtype=torch.float64)
    assert sample(logits, draws, temperature=1.0).tolist() == [0, 0, 1, 2, 3]


def test_tokens_without_mass_are_never_drawn():
    logits = torch.tensor([[-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")]])
    for draw in (0.0, 0.5, 1.0 - 2.0**-53):
        picked = sample(logits, torch.tensor([draw], dtype=torch.float64), temperature=1.0).item()
        assert picked in (1, 3)


@pytest.mark.parametrize("top_p, kept", [(0.39, {3}), (0.41, {3, 2}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})])
def test_the_nucleus_is_the_smallest_set_with_enough_mass(top_p, kept):
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(2000, 4)
    draws = torch.from_numpy(uniforms(1, range(2000), 1).ravel())
    picked = sample(logits, draws, temperature=1.0, top_p=top_p)
    assert set(picked.tolist()) == kept


def test_a_tiny_temperature_is_greedy():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    draws = torch.from_numpy(uniforms(1, range(50), 1).ravel())
    assert torch.equal(sample(logits, draws, temperature=1e-5), logits.argmax(-1))
