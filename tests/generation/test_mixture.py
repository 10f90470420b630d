import random

import pytest
import torch

import tiny
from kdcli.config.schema import GenerationConfig
from kdcli.errors import InputError
from kdcli.generation import GenerationRequest, answers
from kdcli.generation.mixture import MixtureDecoder, mixed_answers
from kdcli.generation.scoring import label_log_probs
from kdcli.models.load import LanguageModel, assemble

torch.set_num_threads(1)
IDS = len(tiny.WORDS)


def model(seed: int, family: str = "llama", **sizes) -> LanguageModel:
    made = tiny.model(family, seed=seed, **({"tie_word_embeddings": False} | sizes))
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(20.0)
    return assemble(made, tiny.tokenizer(), "tiny", "", device=torch.device("cpu"), role="student")


def pair(family: str = "llama") -> tuple[LanguageModel, LanguageModel]:
    other = {"n_layer": 3, "n_embd": 24} if family == "gpt2" else {"num_hidden_layers": 3, "hidden_size": 24}
    return model(1, family), model(2, family, **other)


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(5)
    return [[1, *draw.choices(range(4, IDS), k=draw.randint(0, 20))] for _ in range(count)]


def config(**options) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 12, "batch_tokens": 300, **options})


def said(one, other, alpha, asked, **options):
    return {p: a for p, _, a in mixed_answers(one, other, alpha, asked, config(**options), rows=IDS)}


@torch.no_grad()
def mixture(one, other, alpha, ids):
    tokens = torch.tensor([ids])
    q, p = (side.model(tokens).logits[0].softmax(-1) for side in (one, other))
    return alpha * p + (1 - alpha) * q


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_answers_are_the_likeliest_tokens_of_the_mixture(family):
    one, other = pair(family)
    asked = [GenerationRequest(prompt, number, (0,)) for number, prompt in enumerate(prompts(9))]
    for place, answer in said(one, other, 0.4, asked, temperature=0.0).items():
        ids = list(asked[place].prompt)
        for token in answer.ids:
            assert mixture(one, other, 0.4, ids)[-1].argmax().item() == token
            ids.append(token)
        if answer.ended:
            assert mixture(one, other, 0.4, ids)[-1].argmax().item() in one.ends


def test_log_probabilities_at_every_step_are_those_of_the_mixture():
    one, other = pair()
    decoder = MixtureDecoder(one, other, IDS, 0.2)
    prompt = prompts(3)[2]
    with torch.no_grad():
        read = decoder.prefill(prompt)
        expected = mixture(one, other, 0.2, prompt)[-1].log()
        torch.testing.assert_close(read.logits[0], expected, rtol=1e-4, atol=1e-4)
        decoder.cache.reserve(2, 64)
        decoder.cache.add(read.kept, len(prompt))
        after = decoder.decode_step([7])
        expected = mixture(one, other, 0.2, [*prompt, 7])[-1].log()
    torch.testing.assert_close(after[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder.forward_single([*prompt, 7])[0], after[0], rtol=1e-4, atol=1e-4)
    assert (decoder.tolerance(after) > 0).all()


@torch.no_grad()
def test_a_log_probability_may_be_off_by_twice_the_logits_of_the_coarser_side():
    """An unlikely token's falls by nearly 2 d where its logit falls by d and all others rise by d."""
    decoder = MixtureDecoder(*pair(), IDS, 0.2)
    sides = [side.tolerance(side.prefill([1, 5, 6]).logits) for side in decoder.sides]
    read = decoder.prefill([1, 5, 6])
    assert sides[0] != sides[1]
    assert decoder.tolerance(read.logits) == 2.0 * max(sides)


def test_tokens_are_drawn_with_the_mixtures_frequencies():
    one, other = pair()
    prompt, count, alpha = prompts(1)[0], 4000, 0.2
    asked = [GenerationRequest(prompt, 0, tuple(range(count)))]  # the prompt is read once for all seeds
    coming = mixed_answers(one, other, alpha, asked, config(max_new_tokens=1), rows=IDS)
    first = [answer.ids[0] if answer.ids else 2 for _, _, answer in coming]
    assert len(first) == count
    expected = mixture(one, other, alpha, prompt)[-1]
    found = torch.bincount(torch.tensor(first), minlength=IDS) / count
    sigma = (expected * (1 - expected) / count).sqrt()
    assert ((found - expected).abs() <= 4 * sigma + 1e-6).all()
    only_student = torch.softmax(one.model(torch.tensor([prompt])).logits[0, -1], -1)
    assert ((found - only_student).abs() > 4 * sigma + 1e-6).any()


def test_any_batch_size_order_and_subset_give_the_same_answers():
    one, other = pair()
    asked = [GenerationRequest(prompt, number, (1,)) for number, prompt in enumerate(prompts(20))]
    whole = said(one, other, 0.3, asked)
    draw = random.Random(1)
    for batch_tokens in (1, 90, 5000):
        part = draw.sample(range(20), 11)
        found = said(one, other, 0.3, [asked[number] for number in part], batch_tokens=batch_tokens)
        assert {part[place]: answer for place, answer in found.items()} == {n: whole[n] for n in part}


def test_a_teacher_alone_speaks_as_itself():
    one, other = pair()
    asked = [GenerationRequest(prompt, number, (1,)) for number, prompt in enumerate(prompts(8))]
    assert said(one, other, 1.0, asked) == {p: a for p, _, a in answers(other, asked, config(), rows=IDS)}


def test_the_shorter_context_of_the_two_ends_answers_and_refuses_prompts():
    one, other = model(1), model(2, max_position_embeddings=12)
    (answer,) = said(one, other, 1e-9, [GenerationRequest([1, 5, 6, 7], 0, (0,))], max_new_tokens=64).values()
    assert len(answer.ids) <= 8
    with pytest.raises(InputError, match="no room"):
        said(one, other, 0.5, [GenerationRequest([1] * 12, 0, (0,))])


def test_training_mode_is_put_back():
    one, other = pair()
    one.model.train()
    said(one, other, 0.5, [GenerationRequest([1, 5], 0, (0,))])
    assert one.model.training


def test_labels_are_scored_as_the_model_reads_them():
    one, _ = pair()
    ids = [1, 5, 6, 7, 8, 2]
    one.model.train()
    found = label_log_probs(one, ids, 3, IDS)
    assert one.model.training
    with torch.no_grad():
        log_q = one.model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [log_q[at - 1, ids[at]].item() for at in (3, 4, 5)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32
