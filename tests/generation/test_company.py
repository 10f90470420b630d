"""An answer follows from seed and example alone: not from its company, nor from how products are rounded in it."""

import random

import pytest
import torch

import tiny
from kdcli.config.schema import GenerationConfig
from kdcli.generation import GenerationRequest, answers, batch, generate
from kdcli.generation import decoder as speaking
from kdcli.generation.decoder import Decoder
from kdcli.models.load import LanguageModel, assemble

torch.set_num_threads(1)


def model(family: str = "llama") -> LanguageModel:
    made = tiny.model(family, tie_word_embeddings=False)
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(20.0)
    return assemble(made, tiny.tokenizer(), "tiny", "", device=torch.device("cpu"), role="student")


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(5)
    return [[1, *draw.choices(range(4, len(tiny.WORDS)), k=draw.randint(0, 20))] for _ in range(count)]


def config(**options) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 24, "batch_tokens": 600, **options})


SETTINGS = [{}, {"top_p": 0.8}, {"temperature": 0.0}]


@pytest.mark.parametrize("options", SETTINGS)
def test_any_batch_size_order_and_subset_give_the_same_answers(options):
    one, given, seeds = model(), prompts(30), (1, 2, 3)
    asked = [GenerationRequest(prompt, number, seeds) for number, prompt in enumerate(given)]
    whole = {(p, s): a for p, s, a in answers(one, asked, config(**options))}
    draw = random.Random(1)
    for batch_tokens in (1, 130, 5000):
        part = draw.sample(range(30), 17)
        mixed = [GenerationRequest(given[number], number, tuple(draw.sample(seeds, 2))) for number in part]
        for place, seed, answer in answers(one, mixed, config(batch_tokens=batch_tokens, **options)):
            assert answer == whole[part[place], seed]


def shaken(monkeypatch, roundings, share):
    """Let every row's logits be off by a share of the tolerance, another way at every step, unless it is alone."""
    monkeypatch.setattr(speaking, "_ROUNDINGS", roundings)
    generator, plain = torch.Generator().manual_seed(0), Decoder.decode_step

    def step(self, tokens):
        logits = plain(self, tokens)
        noise = torch.rand(logits.shape, generator=generator) * 2.0 - 1.0
        return logits + noise * share * logits.abs().amax(-1, keepdim=True)

    monkeypatch.setattr(Decoder, "decode_step", step)


@pytest.mark.parametrize("options", SETTINGS)
def test_rounding_within_the_tolerance_changes_no_answer(options, monkeypatch):
    one, given = model(), prompts(40)
    whole = generate(one, given, config(batch_tokens=1, **options), seed=0)
    eps = torch.finfo(torch.float32).eps
    shaken(monkeypatch, 2**17, 2**16 * eps)
    assert generate(one, given, config(**options), seed=0) == whole


def test_without_the_check_such_rounding_would_change_answers(monkeypatch):
    one, given = model(), prompts(40)
    whole = generate(one, given, config(batch_tokens=1), seed=0)
    shaken(monkeypatch, 0, 2**16 * torch.finfo(torch.float32).eps)
    assert generate(one, given, config(), seed=0) != whole


def test_the_real_difference_to_a_row_alone_is_far_within_the_tolerance(monkeypatch):
    one, given = model("gpt2"), prompts(30)
    worst = [0.0]
    say = batch.RunningBatch._append_tokens

    def compare(self, rows, logits):
        for place, row in enumerate(rows):
            alone = self.decoder.forward_single([*row.prompt, *row.generated])
            apart = (alone[0] - logits[place]).abs().max() / self.decoder.tolerance(alone)[0]
            worst[0] = max(worst[0], apart.item())
        return say(self, rows, logits)

    monkeypatch.setattr(batch.RunningBatch, "_append_tokens", compare)
    generate(one, given, config(), seed=0)
    assert 0.0 < worst[0] < 0.25
