"""Small models of every family that a student can be cut out of, with no two weights alike."""

import torch

import tiny
from kdcli.data.tokenize import Example, TokenDataset

_COMMON = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 24}
FAMILIES = {
    "bitnet": _GROUPED,
    "gemma2": {**_GROUPED, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_inner": 24, "n_positions": 64},
    "gpt_neox": {**_COMMON, "intermediate_size": 24},
    "llama": {**_GROUPED, "attention_bias": True, "mlp_bias": True},
    "mistral": _GROUPED,
    "opt": {**_COMMON, "ffn_dim": 24, "word_embed_proj_dim": 12, "activation_function": "gelu"},
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
}


def model(family: str, *, seed: int = 0, **sizes):
    """A causal LM of a family whose norms and biases are random too."""
    made = tiny.model(family, seed=seed, **{**FAMILIES[family], **sizes})
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return made


def folder(path, family: str = "llama", **options):
    """A saved model folder with tokenizer."""
    model(family, **options).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def ids(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(4, len(tiny.WORDS), (rows, length), generator=torch.Generator().manual_seed(7))


def exact(model):
    """The model in fp64, norms included, which transformers computes in fp32."""
    model = model.double()
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            one = 1.0 if "Gemma" in type(module).__name__ else 0.0
            eps = getattr(module, "variance_epsilon", None) or module.eps

            def forward(h, weight=module.weight, eps=eps, one=one):
                return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * (weight + one)

            module.forward = forward
    return model


def rows(count=6):
    generator = torch.Generator().manual_seed(3)
    made = []
    for index in range(count):
        ids = torch.randint(4, len(tiny.WORDS), (5 + index,), generator=generator).tolist()
        made.append(Example((1, *ids, 2), 2, "", ("",), str(index)))
    return TokenDataset(tuple(made))
