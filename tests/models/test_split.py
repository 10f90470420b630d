"""Trunk and head apart give the model's own logits, for every family tried."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from kdcli.errors import InputError
from kdcli.models.head import Head, rows_by_positions, split_head, trunk_of, trunk_output, verify_split

torch.set_num_threads(1)

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD_DIM = {"head_dim": 8}
FAMILIES = {
    "gpt2": {},
    "llama": {},
    "qwen2": {},
    "qwen3": HEAD_DIM,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt_neox": {},
    "bitnet": {},
    "mistral": {},
    "phi": {},
    "gemma": HEAD_DIM,
    "gemma2": HEAD_DIM,
    "gemma3_text": {**HEAD_DIM, "final_logit_softcapping": 7.0},
    "granite": {"logits_scaling": 3.0},
    "hyperclovax": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "stablelm": {},
    "falcon": {},
    "bloom": {},
    "mpt": {},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "nanochat": {},
}
SCALED = {"granite": 1 / 3, "hyperclovax": 3.0, "cohere": 0.3}
CAPPED = {"gemma2": 30.0, "gemma3_text": 7.0, "nanochat": 15.0}
# These two turn their logits into float32 whatever the model's type.
FLOAT_LOGITS = ("gptj", "codegen")


def build(family: str, dtype: torch.dtype = torch.float32, **own):
    blank = AutoConfig.for_model(family)
    named = {blank.attribute_map.get(key, key): value for key, value in COMMON.items()}
    sizes = {key: value for key, value in named.items() if hasattr(blank, key)} | FAMILIES.get(family, {}) | own
    config = AutoConfig.for_model(family, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Far from initialisation, so that scale, cap and bias are seen.
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval().to(dtype)


def probe(rows: int = 61):
    ids = torch.randint(0, rows, (3, 13), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 12:] = 0
    return ids, mask


@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_head_on_trunk_is_the_model(family, dtype, bound):
    model = build(family, dtype)
    head = split_head(model)
    verify_split(model, head)
    ids, mask = probe()
    whole = model(input_ids=ids, attention_mask=mask).logits
    ours = head.logits(trunk_output(trunk_of(model), ids, mask), head.rows)
    if family in FLOAT_LOGITS:
        bound = max(bound, 1e-6)
    valid = mask.bool()
    scale = max(1.0, whole[valid].abs().max().item())
    assert (ours[valid].double() - whole[valid].double()).abs().max().item() <= bound * scale
    assert head.scale == pytest.approx(SCALED.get(family, 1.0))
    assert head.softcap == CAPPED.get(family)
    assert (head.bias is not None) == (family in ("phi", "gptj", "codegen"))


@pytest.mark.parametrize(
    "family,wrong", [("gemma2", {"softcap": None}), ("granite", {"scale": 3.0}), ("phi", {"bias": None})]
)
def test_a_wrong_rule_is_refused_with_the_difference(family, wrong):
    model = build(family)
    head = split_head(model)
    parts = {"weight": head.weight, "bias": head.bias, "scale": head.scale, "softcap": head.softcap}
    with pytest.raises(InputError, match=r"differ from the model by [\d.e-]+") as caught:
        verify_split(model, Head(**{**parts, **wrong}))
    assert caught.value.code == "MOD-20"
    assert type(model).__name__ in str(caught.value)


def test_a_head_of_several_layers_is_refused_by_name():
    model = build("bert", is_decoder=True)
    with pytest.raises(InputError, match="BertLMHeadModel"):
        verify_split(model, split_head(model))


def test_a_head_that_is_no_dense_matrix_is_refused_by_name():
    class Packed(nn.Module):
        weight = torch.zeros(4, dtype=torch.uint8)

    model = tiny.model()
    model.set_output_embeddings(Packed())
    with pytest.raises(InputError, match="Packed"):
        split_head(model)
    model = tiny.model(tie_word_embeddings=False)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="quantised"):
        split_head(model)


def test_a_model_that_looks_ahead_is_no_causal_lm():
    class Ahead(nn.Module):
        def __init__(self, trunk):
            super().__init__()
            self.trunk = trunk

        def forward(self, **given):
            output = self.trunk(**given)
            output.last_hidden_state = output.last_hidden_state + output.last_hidden_state[:, -1:]
            return output

    model = tiny.model()
    head = split_head(model)
    model.model = Ahead(model.model)
    with pytest.raises(InputError) as caught:
        verify_split(model, head)
    assert caught.value.code == "MOD-17"


def test_the_probe_leaves_mode_and_random_state_alone():
    model = tiny.model().train()
    state = torch.get_rng_state()
    verify_split(model, split_head(model))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("scale,softcap", [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
@pytest.mark.parametrize("biased", [False, True])
def test_in_place_forms_agree_with_autograd(scale, softcap, biased):
    torch.manual_seed(0)
    weight, hidden = torch.randn(7, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    head = Head(weight, torch.randn(7, dtype=torch.float64) if biased else None, scale, softcap)
    raw = nn.functional.linear(hidden, weight, head.bias).requires_grad_()
    final = raw * scale
    final = final if softcap is None else softcap * torch.tanh(final / softcap)
    ours = head.apply_scale_and_cap_(raw.detach().clone())
    torch.testing.assert_close(ours, head.logits(hidden, head.rows), rtol=0, atol=1e-14)
    torch.testing.assert_close(ours, final.detach(), rtol=0, atol=1e-14)
    grad = torch.randn_like(final)
    (wanted,) = torch.autograd.grad(final, raw, grad)
    kept = ours.clone()
    torch.testing.assert_close(head.grad_through_(grad.clone(), ours), wanted, rtol=0, atol=1e-13)
    assert torch.equal(kept, ours)


def test_rows_cut_the_vocabulary_and_the_dtype_follows_hidden():
    head = Head(torch.randn(7, 5), torch.randn(7), 2.0, 3.0)
    hidden = torch.randn(2, 3, 5)
    assert head.rows == 7
    torch.testing.assert_close(head.logits(hidden, 4), head.logits(hidden, head.rows)[..., :4])
    assert head.logits(hidden.bfloat16(), head.rows).dtype == torch.bfloat16


def test_a_tied_head_is_the_embedding_itself():
    model = tiny.model("gpt2")
    assert split_head(model).weight is model.get_input_embeddings().weight


def longrope(**more):
    """A model of two sets of frequencies; more than 8 tokens in a forward pass choose the second one for all rows."""
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    sizes = {"original_max_position_embeddings": 8, **more}
    return build("phi3", rope_parameters=rope | sizes, original_max_position_embeddings=8)


@torch.no_grad()
def test_a_row_is_read_as_if_alone_whatever_is_the_longest_of_its_batch():
    trunk = trunk_of(longrope())
    ids, mask = probe()  # rows of 13, 6 and 12 tokens
    together = trunk_output(trunk, ids, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        span = slice(row, row + 1), slice(0, length)
        alone = trunk(input_ids=ids[span], attention_mask=mask[span], use_cache=False).last_hidden_state
        torch.testing.assert_close(together[span], alone, rtol=1e-4, atol=1e-5)
    mixed = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert (mixed[1, :6] - together[1, :6]).abs().max() > 0.1, "positions matter here"


def test_rows_apart_learn_what_rows_alone_learn():
    model, (ids, mask) = longrope().double(), probe()
    trunk = trunk_of(model)

    def gradient(hidden):
        (found,) = torch.autograd.grad(hidden, trunk.embed_tokens.weight)
        return found

    weights = torch.randn(*ids.shape, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights *= mask[:, :, None]
    together = gradient((trunk_output(trunk, ids, mask) * weights).sum())
    alone = sum(
        gradient((trunk_output(trunk, ids[span], mask[span]) * weights[span]).sum())
        for row, length in enumerate(mask.sum(1).tolist())
        if (span := (slice(row, row + 1), slice(0, length)))
    )
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_rows_are_parted_only_where_they_must_be():
    trunk, mask = trunk_of(longrope()), torch.ones(3, 12, dtype=torch.int64)
    assert rows_by_positions(trunk, mask) == []
    assert rows_by_positions(trunk, mask[:, :8]) == []
    mask[1, 8:] = 0
    assert [(rows.tolist(), length) for rows, length in rows_by_positions(trunk, mask)] == [([1], 8), ([0, 2], 12)]
    mask[:, 5:] = 0
    assert [(rows.tolist(), length) for rows, length in rows_by_positions(trunk, mask)] == [([0, 1, 2], 5)]
    assert rows_by_positions(trunk_of(build("llama")), mask) == []
