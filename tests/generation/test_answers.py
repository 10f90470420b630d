import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from kdcli.config.schema import GenerationConfig
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, NumericsError
from kdcli.generation import Completion, GenerationRequest, answers, generate, uniforms
from kdcli.models.load import LanguageModel, assemble

torch.set_num_threads(1)


def decoder(family: str = "llama", **options) -> LanguageModel:
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
    return decoder(family, **SIZES.get(family, {}))


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
        assert answer == Completion(tuple(token for token in theirs if token != 2), 2 if theirs[-1] == 2 else None)


def test_answers_differ_in_length_so_that_rows_leave_the_batch():
    answers = generate(decoder(), prompts(40), config(), seed=0)
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
    model, given = decoder(), prompts(20, seed=2)
    order = random.Random(0).sample(range(20), 20)
    straight = generate(model, given, config(), seed=3)
    shuffled = generate(model, [given[i] for i in order], config(), seed=3, examples=order)
    assert shuffled == [straight[i] for i in order]


def test_answers_are_reproducible_and_leave_the_global_generators_alone():
    model, given = decoder(), prompts(8)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = generate(model, given, config(), seed=10)
    torch.manual_seed(5)
    torch.set_rng_state(state)
    assert generate(model, given, config(), seed=10) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert generate(model, given, config(), seed=20) != first


def test_the_same_prompt_twice_gets_two_draws():
    answers = generate(decoder(), [[1, 5, 6]] * 6, config(), seed=0)
    assert len(set(answers)) > 1


def test_a_shorter_limit_gives_the_beginning_of_the_same_answer():
    model, given = decoder(), prompts(12)
    long, short = (generate(model, given, config(max_new_tokens=n), seed=0) for n in (24, 5))
    assert [answer.ids[:5] for answer in long] == [answer.ids for answer in short]


def test_every_end_token_ends_and_none_is_part_of_the_answer():
    model, given = decoder(), prompts(30)
    answers = generate(replace(model, ends=EndTokens((2, 7, 9))), given, config(), seed=0)
    assert all(not set(answer.ids) & {2, 7, 9} for answer in answers)
    alone = generate(model, given, config(), seed=0)
    cut = [next((i for i, token in enumerate(answer.ids) if token in (7, 9)), len(answer.ids)) for answer in alone]
    assert [answer.ids for answer in answers] == [answer.ids[:at] for answer, at in zip(alone, cut, strict=True)]
    assert sum(answer.ended for answer in answers) > sum(answer.ended for answer in alone)


def test_padding_rows_of_the_head_are_never_generated():
    model, real = decoder(vocab=64), len(tiny.WORDS)
    highest = [
        max(max(answer.ids, default=0) for answer in generate(model, prompts(30), config(), seed=0, rows=rows))
        for rows in (None, 64)
    ]
    assert highest[0] < real <= highest[1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_models_context_is_never_exceeded(family):
    limit = {"max_position_embeddings": 12} if family == "llama" else {"n_positions": 12}
    model = replace(decoder(family, **limit), ends=EndTokens())
    given = [[1] * length for length in (3, 11, 8)]
    answers = generate(model, given, config(), seed=0)
    assert [len(answer.ids) for answer in answers] == [9, 1, 4]
    assert not any(answer.ended for answer in answers)
    with pytest.raises(InputError, match=r"prompt 1.*context of 12"):
        generate(model, [[1], [1] * 12], config(), seed=0)


def test_recurrent_models_are_refused_by_name():
    model = decoder("mamba", hidden_size=16, state_size=4, num_hidden_layers=2, conv_kernel=3)
    with pytest.raises(InputError, match="MambaForCausalLM"):
        generate(model, [[1]], config(), seed=0)


def test_an_empty_prompt_is_refused_by_its_number():
    with pytest.raises(InputError, match="prompt 1"):
        generate(decoder(), [[1], []], config(), seed=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_model_stops_with_exit_7(temperature):
    model = decoder()
    with torch.no_grad():
        model.head.weight[5] = torch.nan
    with pytest.raises(NumericsError, match="not finite") as caught:
        generate(model, [[1]], config(temperature=temperature), seed=0)
    assert caught.value.exit_code == 7


def test_no_prompts_no_answers():
    assert generate(decoder(), [], config(), seed=0) == []


def test_progress_counts_every_generated_token_end_tokens_included():
    counts: list[int] = []
    answers = generate(decoder(), prompts(20), config(), seed=0, report=counts.append)
    assert sum(counts) == sum(len(answer.ids) + answer.ended for answer in answers)


def test_dropout_is_off_while_generating_and_back_on_afterwards():
    model = decoder("gpt2", resid_pdrop=0.9, embd_pdrop=0.9)
    still = generate(model, prompts(5), config(), seed=0)
    model.model.train()
    assert generate(model, prompts(5), config(), seed=0) == still
    assert model.model.training


def test_batches_hold_no_more_than_their_tokens():
    model, seen, counts = decoder(), [], []

    def watch(module, positional, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        seen.append((*ids.shape, mask.shape[1]))

    model.model.model.register_forward_pre_hook(watch, with_kwargs=True)
    generate(model, prompts(60), config(batch_tokens=300), seed=0, report=counts.append)
    read = [columns for rows, new, columns in seen if new == columns]
    steps = [(rows, columns) for rows, new, columns in seen if new != columns]
    assert read == sorted(read, reverse=True)
    assert all(rows == 1 or rows * columns <= 300 for rows, columns in steps)
    assert max(rows for rows, _ in steps) > 300 // 45, "shorter prompts leave room for more rows"
    assert sum(rows for rows, *_ in seen) == sum(counts), "a row that has ended must not be computed"


def test_a_row_joins_as_soon_as_another_leaves():
    model, seen = decoder(), []
    model.model.model.register_forward_pre_hook(
        lambda module, positional, inputs: seen.append(inputs["input_ids"].shape), with_kwargs=True
    )
    generate(model, [[1, 5, 6]] * 60, config(batch_tokens=27 * 6), seed=0)
    steps = [rows for rows, new in seen if new == 1]
    assert steps[:-24] == [6] * (len(steps) - 24)


def test_a_prompt_is_read_once_for_all_its_seeds():
    model, given, read = decoder(), prompts(12), []
    model.model.model.register_forward_pre_hook(
        lambda module, positional, inputs: read.append(inputs["input_ids"].tolist()[0]), with_kwargs=True
    )
    asked = [GenerationRequest(prompt, number, (10, 20, 30)) for number, prompt in enumerate(given)]
    found = {(place, seed): answer for place, seed, answer in answers(model, asked, config(batch_tokens=200))}
    assert sorted(ids for ids in read if len(ids) > 1) == sorted(prompt for prompt in given if len(prompt) > 1)
    for seed in (10, 20, 30):
        assert [found[place, seed] for place in range(12)] == generate(model, given, config(), seed=seed)


def test_answers_come_as_they_end():
    model = decoder()
    asked = [GenerationRequest(prompt, number, (0,)) for number, prompt in enumerate(prompts(40))]
    counts: list[int] = []
    stream = answers(model, asked, config(batch_tokens=200), report=counts.append)
    next(stream)
    early = sum(counts)
    assert len(list(stream)) == 39
    assert early < sum(counts) / 4


def test_the_columns_of_a_long_answer_are_moved_to_the_left():
    model = replace(decoder(max_position_embeddings=600), ends=EndTokens())
    long = generate(model, prompts(3), config(max_new_tokens=400, batch_tokens=1200), seed=0)
    assert [len(answer.ids) for answer in long] == [400] * 3
    alone = [
        generate(model, [prompt], config(max_new_tokens=400), seed=0, examples=[number])[0]
        for number, prompt in enumerate(prompts(3))
    ]
    assert alone == long


def test_uniforms_depend_on_seed_example_and_step_alone():
    whole = uniforms(3, range(50), 40)
    assert np.array_equal(uniforms(3, [49, 7], 10), whole[[49, 7], :10])
    assert not np.array_equal(uniforms(4, [7], 40), whole[[7]])
    assert len(np.unique(whole)) == whole.size
    assert whole.min() >= 0.0
    assert whole.max() < 1.0
    assert abs(whole.mean() - 0.5) < 0.03
    assert uniforms(2**63 - 1, [2**40], 1).shape == (1, 1)


def test_a_prompt_is_read_for_itself_whatever_its_number_in_the_draws():
    """The second one's number is the first one's place."""
    model, asked = decoder(), [[1, 5, 6, 7], [1, 8, 9, 10]]
    together = generate(model, asked, config(), seed=3, examples=[7, 0])
    alone = [
        generate(model, [prompt], config(), seed=3, examples=[n])[0] for prompt, n in zip(asked, (7, 0), strict=True)
    ]
    assert together == alone
