"""Models of many families are trained, cached, measured, generate, are cut, exported and loaded by transformers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from kdcli.models.family_layout import FAMILIES
from shell import kd

COMMON = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 2,
}  # fmt: skip
SIZES = {
    "qwen3": COMMON | {"head_dim": 8},
    "llama": COMMON | {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }},
    "gemma2": COMMON | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": COMMON | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "phi3": COMMON,
    "mistral": COMMON | {"sliding_window": 8},
    "olmo2": COMMON,
    "gpt_neox": {name: size for name, size in COMMON.items() if name != "num_key_value_heads"},
    "opt": {
        "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16,
        "max_position_embeddings": 128,
    },
    "smollm3": COMMON,
    "granite": COMMON | {"logits_scaling": 2.0, "residual_multiplier": 0.5},
    "deepseek_v3": COMMON | LATENT,
    "mixtral": COMMON | EXPERTS,
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128},
    "stablelm": COMMON,
}  # fmt: skip
OFTEN = ("gemma2", "mixtral")
"""What ``make test`` tries; the others are for ``make test-full``."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    home = tmp_path_factory.mktemp("rows")
    tiny.rows(home / "train.jsonl", 6)
    tiny.rows(home / "test.jsonl", 3)
    return home


def run(home, line):
    answer = kd(*line.split(), folder=home)
    assert answer.code == 0, f"kd {line}\n{answer.err}"
    return answer


def plain_nll(model, tokenizer, rows):
    """Mean of -log p over all response tokens and their end, by a plain forward pass over each row."""
    lost, count = 0.0, 0
    for row in rows:
        prompt, response = tokenizer(row["prompt"]).input_ids, tokenizer(row["completion"]).input_ids
        ids = torch.tensor([[*prompt, *response, 2]])
        with torch.no_grad():
            log_probs = model(ids).logits[0].double().log_softmax(-1)
        for at in range(len(prompt), ids.shape[1]):
            lost, count = lost - log_probs[at - 1, ids[0, at]].item(), count + 1
    return lost / count


def nll(answer):
    return json.loads(answer.out)["estimates"]["nll"]["mean"]


@pytest.mark.parametrize(
    "family", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.full) for name in SIZES]
)
def test_a_family(tmp_path, rows, family):
    home = tmp_path
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(rows / name, home)
    tiny.folder(home / "teacher", family, seed=1, **SIZES[family])
    tiny.folder(home / "student", family, seed=2, **SIZES[family])

    # trained with a live teacher, and with a cache of its answers: the same weights
    line = "distill --teacher teacher --student student --data train.jsonl --max-steps 2 --batch-size 2 --lr 0.01"
    run(home, "cache --teacher teacher --data train.jsonl -o cache")
    run(home, f"{line} -o live")
    run(home, f"{line} --teacher-cache cache -o cached")
    trained, other = (load_file(home / name / "model" / "model.safetensors") for name in ("live", "cached"))
    assert all(torch.equal(trained[name], other[name]) for name in trained)
    before = load_file(home / "student" / "model.safetensors")
    assert any(not torch.equal(trained[name], before[name]) for name in before)

    # saved and loaded by transformers; measured as a plain forward pass measures it
    model = AutoModelForCausalLM.from_pretrained(home / "live" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(home / "live" / "model")
    measured = nll(run(home, "eval live/model --data test.jsonl --metric perplexity --json -o measured"))
    held = [json.loads(line) for line in (home / "test.jsonl").read_text().splitlines()]
    assert measured == pytest.approx(plain_nll(model, tokenizer, held), rel=1e-4)

    # generates what transformers generates
    run(home, "eval live/model --data test.jsonl --metric rougeL --protocol greedy --max-new-tokens 6 -o answers")
    answers = [json.loads(line) for line in (home / "answers" / "answers.jsonl").read_text().splitlines()]
    for row, answer in zip(held, answers, strict=True):
        ids = torch.tensor([tokenizer(row["prompt"]).input_ids])
        wanted = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        assert answer["ids"] == (wanted[: wanted.index(2)] if 2 in wanted else wanted)

    # cut and exported, or refused by name
    cut = kd("student", "cut:layers=1", "--teacher", "live/model", "-o", "cut", folder=home)
    if family in FAMILIES:
        assert cut.code == 0, cut.err
        assert AutoModelForCausalLM.from_pretrained(home / "cut").config.num_hidden_layers == 1
    else:
        assert cut.code == 3
        assert "CUT-01" in cut.err
    line = "export live/model --to safetensors:int8 --data test.jsonl -o int8"
    if family == "falcon":  # its linear layers are of a class of their own, which torchao leaves as it is
        refused = kd(*line.split(), folder=home)
        assert refused.code == 3
        assert "EXPORT-03" in refused.err
        return
    run(home, line)
    rounded = nll(run(home, "eval int8 --data test.jsonl --metric perplexity --json -o measured-int8"))
    assert rounded == pytest.approx(measured, rel=0.05)
    assert rounded != measured
