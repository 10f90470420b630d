import pytest
import torch

from kdcli.config.schema import HardwareConfig
from kdcli.generation.scoring import LogProbScorer
from kdcli.models.devices import prepare
from running import VOCAB, model

CPU = prepare(HardwareConfig(device="cpu"))
PROMPT = [1, 9, 7, 12, 5, 30]
CONTINUATIONS = [[4], [4, 5, 6], [8, 8], [20, 21, 22, 23, 24], [9]]
SMALL = {
    "mistral": {"sliding_window": 4, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "phi3": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "original_max_position_embeddings": 8,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 8,
        },
    },
}  # fmt: skip


def apart(side, prompt, tokens) -> float:
    """Read prompt and continuation together, in float64, with nothing remembered."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        logp = side.model.double()(ids, use_cache=False).logits[0].log_softmax(-1)
    side.model.float()
    return sum(logp[len(prompt) - 1 + k, token].item() for k, token in enumerate(tokens))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "mamba", "phi3"])
@pytest.mark.parametrize("tokens", [1, 8192])
def test_they_are_as_likely_as_when_each_is_read_with_its_prompt(family, tokens):
    side = model("student", seed=3, family=family, **SMALL.get(family, {}))
    found = LogProbScorer(side, CPU, tokens).logp(PROMPT, CONTINUATIONS)
    expected = [apart(side, PROMPT, one) for one in CONTINUATIONS]
    assert found == pytest.approx(expected, abs=2e-4)


def test_a_continuations_score_does_not_depend_on_its_company():
    reader = LogProbScorer(model("student", seed=3), CPU)
    together = reader.logp(PROMPT, CONTINUATIONS)
    for one, score in zip(CONTINUATIONS, together, strict=True):
        assert reader.logp(PROMPT, [one]) == pytest.approx([score], abs=1e-5)


def test_a_prompt_is_read_once():
    side, lengths = model("student", seed=3), []
    reader = LogProbScorer(side, CPU)
    side.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    reader.logp(PROMPT, CONTINUATIONS)
    assert lengths == [(1, 6), (3, 4)]
    lengths.clear()
    reader.logp(PROMPT, [[4], [5], [6]])
    assert lengths == [(1, 6)]


def test_ids_beyond_the_shared_vocabulary_have_no_probability():
    side = model("student", seed=3)
    found = LogProbScorer(side, CPU).logp(PROMPT, [[token] for token in range(VOCAB)])
    assert torch.tensor(found).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
