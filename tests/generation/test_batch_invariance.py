"""Answers in bf16: the batch proposes, and what a row says alone, in blocks of fixed widths, decides."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import tiny
from kdcli.config.schema import GenerationConfig
from kdcli.end_tokens import EndTokens
from kdcli.errors import NumericsError
from kdcli.generation import Completion, GenerationRequest, answers, generate
from kdcli.generation.batch_invariance import BatchInvariance
from kdcli.generation.decoder import Decoder
from kdcli.generation.mixture import mixed_answers
from kdcli.generation.sampling import choose, exponential_noise, stream
from kdcli.models.load import LanguageModel, assemble

torch.set_num_threads(1)

PLAIN = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {
    "llama": {**PLAIN, "num_key_value_heads": 2, "num_hidden_layers": 4, "initializer_range": 0.3},
    "gpt2": {"n_embd": 32},
    "opt": {**PLAIN, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "mistral": {**PLAIN, "num_key_value_heads": 1, "sliding_window": 9},
    "gemma2": {**PLAIN, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 9},
    "mixtral": {**PLAIN, "num_key_value_heads": 1, "num_local_experts": 4},
}
SETTINGS = [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}]


def model(family: str = "llama", dtype: torch.dtype = torch.bfloat16, seed: int = 0, **options) -> LanguageModel:
    made = tiny.model(family, seed=seed, **{"tie_word_embeddings": False, **SIZES[family], **options})
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(2.0 if family == "llama" else 20.0)
    return assemble(made.to(dtype), tiny.tokenizer(), "tiny", "", device=torch.device("cpu"), role="student")


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(5)
    return [[1, *draw.choices(range(4, len(tiny.WORDS)), k=draw.randint(0, 20))] for _ in range(count)]


def config(**options) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 24, "batch_tokens": 600, **options})


def in_batches_of(rows: int, **options) -> GenerationConfig:
    return config(batch_tokens=rows * (21 + 24), **options)


@pytest.fixture
def repaired(monkeypatch):
    """How many tokens were put right, one number for each time a row was read again."""
    seen: list[int] = []
    plain = BatchInvariance.verify

    def watch(self, row, place):
        before = self.repaired
        plain(self, row, place)
        seen.append(self.repaired - before)

    monkeypatch.setattr(BatchInvariance, "verify", watch)
    return seen


def shake(monkeypatch, share: float) -> None:
    """Let what the batch proposes be far off."""
    generator, plain = torch.Generator().manual_seed(0), Decoder.decode_step

    def step(self, tokens):
        logits = plain(self, tokens)
        return logits + torch.randn(logits.shape, generator=generator) * share * logits.abs().amax(-1, keepdim=True)

    monkeypatch.setattr(Decoder, "decode_step", step)


def leave_unread(monkeypatch) -> None:
    """Break the promise: what was proposed stays."""

    def settle(self, row, place):
        if self.is_due(row):
            row.block += self.width(row)

    monkeypatch.setattr(BatchInvariance, "verify", settle)


@pytest.mark.parametrize("options", SETTINGS)
def test_any_batch_size_order_and_subset_give_the_same_answers(options, repaired):
    one, given = model(), prompts(32)
    whole = generate(one, given, in_batches_of(32, **options), seed=3)
    draw = random.Random(1)
    for rows, count in ((1, 3), (2, 5), (7, 9)):
        part = draw.sample(range(32), count)
        found = generate(one, [given[i] for i in part], in_batches_of(rows, **options), seed=3, examples=part)
        assert found == [whole[i] for i in part]
    assert sum(repaired) > 0, "rounding must matter somewhere"
    assert len(set(whole)) > 16


def test_without_reading_again_batches_would_change_answers(monkeypatch):
    one, given = model(), prompts(32)
    leave_unread(monkeypatch)
    many, one_by_one = (generate(one, given, in_batches_of(rows, temperature=0.7), seed=3) for rows in (32, 1))
    assert many != one_by_one


@pytest.mark.parametrize("family", list(SIZES))
def test_answers_are_the_same_whatever_is_proposed(family, monkeypatch, repaired):
    one, given = model(family), prompts(9)
    settings = SETTINGS[list(SIZES).index(family) % 3]
    whole = generate(one, given, in_batches_of(1, **settings), seed=3)
    shake(monkeypatch, 0.1)
    repaired.clear()
    assert generate(one, given, in_batches_of(5, **settings), seed=3) == whole
    assert sum(repaired) > 9
    leave_unread(monkeypatch)
    assert generate(one, given, in_batches_of(5, **settings), seed=3) != whole


def block_widths(answer: int) -> list[int]:
    widths = [8, 8, 16]
    while sum(widths) < answer:
        widths.append(32)
    return widths


@torch.no_grad()
def by_hand(one: LanguageModel, prompt: list[int], setting: GenerationConfig, seed: int, example: int) -> Completion:
    """One answer by transformers' own cache, one token at a time, the rest of its block filled with anything."""
    draw, bits, said = random.Random(example), stream(seed, example), []
    while len(said) < setting.max_new_tokens:
        cache, rest = DynamicCache(), list(said)
        pieces = [prompt]
        for width in block_widths(len(said)):
            piece, rest = rest[:width], rest[width:]
            if piece:
                pieces.append([*piece, *draw.choices(range(4, 40), k=width - len(piece))])
        for piece in pieces:
            logits = one.model(input_ids=torch.tensor([piece]), past_key_values=cache, use_cache=True).logits[0]
        last = len(prompt) - 1 if len(pieces) == 1 else len(said) - sum(map(len, pieces[1:-1])) - 1
        times = torch.from_numpy(exponential_noise([bits], one.vocab)) if setting.temperature else None
        token = int(choose(logits[last : last + 1], times, setting).tokens)
        if token in one.ends:
            return Completion(tuple(said), token)
        said.append(token)
    return Completion(tuple(said), None)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("options", SETTINGS)
def test_answers_are_those_of_a_row_read_in_blocks_by_hand(family, options):
    one, given, setting = model(family), prompts(4), config(**options)
    found = generate(one, given, setting, seed=3)
    for number, (prompt, answer) in enumerate(zip(given, found, strict=True)):
        assert answer == by_hand(one, prompt, setting, 3, number)


@pytest.mark.parametrize("family", [family for family in SIZES if family != "mixtral"])
@pytest.mark.parametrize("options", SETTINGS)
def test_in_float64_both_ways_to_be_exact_agree(family, options, monkeypatch, repaired):
    one, given = model(family, torch.float64), prompts(9)
    plain = generate(one, given, config(**options), seed=3)
    assert not repaired
    monkeypatch.setattr("kdcli.generation.decoder.is_batch_invariant", lambda model: False)
    assert generate(one, given, config(**options), seed=3) == plain
    assert len(repaired) > 9
    assert sum(repaired) == 0


def test_all_seeds_of_a_prompt_are_settled_on_one_reading_of_it():
    one, given = model(), prompts(6)
    asked = [GenerationRequest(prompt, number, (1, 2, 3)) for number, prompt in enumerate(given)]
    found = {(place, seed): answer for place, seed, answer in answers(one, asked, config())}
    for seed in (1, 2, 3):
        assert [found[place, seed] for place in range(6)] == generate(one, given, in_batches_of(1), seed=seed)


def test_half_precision_is_settled_too():
    one, given = model(dtype=torch.float16), prompts(12)
    assert generate(one, given, in_batches_of(12), seed=0) == generate(one, given, in_batches_of(1), seed=0)
    assert not Decoder(one, one.vocab).is_exact


def test_a_shorter_limit_gives_the_beginning_of_the_same_answer():
    one, given = replace(model(), ends=EndTokens()), prompts(6)
    long = generate(one, given, config(max_new_tokens=60), seed=0)
    for most in (1, 2, 9, 33):
        asked = [GenerationRequest(prompt, number, (0,), most) for number, prompt in enumerate(given)]
        found = {place: answer for place, _, answer in answers(one, asked, config(max_new_tokens=60))}
        assert [found[place].ids for place in range(6)] == [answer.ids[:most] for answer in long]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_blocks_end_where_the_models_context_ends(family, monkeypatch):
    limit = "n_positions" if family == "gpt2" else "max_position_embeddings"
    one = replace(model(family, **{limit: 12}), ends=EndTokens())
    given = [[1] * length for length in (3, 11, 8)]
    whole = generate(one, given, in_batches_of(1), seed=0)
    assert [len(answer.ids) for answer in whole] == [9, 1, 4]
    shake(monkeypatch, 0.1)
    assert generate(one, given, config(), seed=0) == whole


def test_progress_counts_final_tokens_only(monkeypatch):
    counts: list[int] = []
    shake(monkeypatch, 0.1)
    found = generate(model(), prompts(20), config(), seed=0, report=counts.append)
    assert sum(counts) == sum(len(answer.ids) + answer.ended for answer in found)
    assert any(answer.ended for answer in found)
    assert min(counts) >= 0


def test_a_mixture_of_two_models_is_settled_alike(monkeypatch, repaired):
    one, other = model(), model(seed=1, hidden_size=16, num_hidden_layers=3)
    asked = [GenerationRequest(prompt, number, (1,)) for number, prompt in enumerate(prompts(9))]

    def said(setting):
        return {place: answer for place, _, answer in mixed_answers(one, other, 0.3, asked, setting)}

    whole = said(in_batches_of(1))
    shake(monkeypatch, 0.1)
    repaired.clear()
    assert said(in_batches_of(9)) == whole
    assert sum(repaired) > 10


def test_a_fine_model_beside_a_coarse_one_is_coarse():
    one, other = model(dtype=torch.float32), model(seed=1)
    asked = [GenerationRequest(prompt, number, (1,)) for number, prompt in enumerate(prompts(9))]
    found = [
        {place: answer for place, _, answer in mixed_answers(one, other, 0.3, asked, in_batches_of(rows))}
        for rows in (1, 9)
    ]
    assert found[0] == found[1]


def test_rows_that_stretch_each_others_positions_are_settled_in_fp32_as_well(monkeypatch):
    far = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 20}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **far}
    one, given = model(dtype=torch.float32, rope_parameters=rope), prompts(12)
    whole = generate(one, given, in_batches_of(1), seed=0)
    assert generate(one, given, in_batches_of(12), seed=0) == whole
    monkeypatch.setattr("kdcli.generation.decoder.is_batch_invariant", lambda model: True)
    assert generate(one, given, in_batches_of(12), seed=0) != whole


def test_what_makes_a_model_coarse(monkeypatch):
    fine = model(dtype=torch.float32)
    assert Decoder(fine, fine.vocab).is_exact
    experts = model("mixtral", torch.float32)
    assert not Decoder(experts, experts.vocab).is_exact
    assert not Decoder(experts, experts.vocab).reads_blocks
    half = model(dtype=torch.float32)
    half.model.model.layers[1].mlp.to(torch.bfloat16)
    assert not Decoder(half, half.vocab).is_exact
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert not Decoder(fine, fine.vocab).is_exact


def test_autocast_around_changes_no_answer():
    one, given = model(dtype=torch.float32), prompts(9)
    whole = generate(one, given, config(), seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(one, given, config(), seed=0) == whole


def test_a_broken_model_stops_with_exit_7():
    one = model()
    with torch.no_grad():
        one.head.weight[5] = torch.nan
    with pytest.raises(NumericsError, match="not finite"):
        generate(one, [[1]], config(), seed=0)
