import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import FastGELUActivation, NewGELUActivation

from kdcli.models.kernels import fuse_activations


@pytest.mark.parametrize("kind", [NewGELUActivation, FastGELUActivation])
def test_the_function_and_its_gradient_stay(kind):
    values = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    model = nn.Sequential(kind())
    results = []
    for _ in range(2):
        x = values.clone().requires_grad_()
        model(x).sum().backward()
        results.append((model(x).detach(), x.grad))
        fuse_activations(model)
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_every_layer_of_a_gpt2_is_changed_and_nothing_saved_is():
    model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=11, n_positions=8))
    names, activation = list(model.state_dict()), model.config.activation_function
    assert fuse_activations(model) == 3
    assert fuse_activations(model) == 0
    assert list(model.state_dict()) == names
    assert model.config.activation_function == activation
