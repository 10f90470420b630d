"""Scores against a few lines of numpy each."""

import numpy as np
import pytest
import torch

import sliced
from kdcli.models.family_layout import FAMILIES, form_of
from kdcli.students.cut import Kept, slice_model
from kdcli.students.made import choose
from kdcli.students.scores import batches_of, highest, mean_loss, score
from kdcli.students.spec import choose_sizes, parse_cut
from sliced import rows

CPU = torch.device("cpu")


def batches(count=6):
    return batches_of(rows(), count, 0, CPU)


def scores_of(model, text):
    return score(model, parse_cut(text), batches())


def weights(model, layer):
    prefix = f"model.layers.{layer}."
    return {
        name.removeprefix(prefix).removesuffix(".weight"): value.detach().double().numpy()
        for name, value in model.named_parameters()
        if name.startswith(prefix) and value.dim() == 2
    }


@pytest.fixture(scope="module")
def llama():
    return sliced.model("llama")


def test_magnitude_against_numpy(llama):
    found = scores_of(llama, "cut:layers=1,heads=2,ffn=1,width=1")
    for layer in range(3):
        w = weights(llama, layer)
        up, gate, down = w["mlp.up_proj"], w["mlp.gate_proj"], w["mlp.down_proj"]
        assert np.allclose(found.ffn[layer], np.sqrt((up**2).sum(1) + (gate**2).sum(1) + (down**2).sum(0)))
        q = (w["self_attn.q_proj"] ** 2).reshape(2, 8, 16).sum((1, 2))
        k, v = ((w[f"self_attn.{one}_proj"] ** 2).reshape(2, 4, 16).sum((1, 2)) for one in "kv")
        o = (w["self_attn.o_proj"] ** 2).reshape(16, 2, 8).sum((0, 2))
        assert np.allclose(found.groups[layer], np.sqrt(q + k + v + o))
        assert np.isclose(found.layers[layer], np.sqrt(sum((one**2).sum() for one in w.values())))
    total = sum((w**2).sum(0) for w in (llama.model.embed_tokens.weight.detach().double().numpy(),
                                        llama.lm_head.weight.detach().double().numpy()))  # fmt: skip
    for layer in range(3):
        for name, one in weights(llama, layer).items():
            total = total + (one**2).sum(1 if name.endswith(("o_proj", "down_proj")) else 0)
    assert np.allclose(found.width, np.sqrt(total))


@torch.no_grad()
def test_activation_against_numpy(llama):
    """Each row alone and unpadded: the mean size over its tokens, then the root of the sum of squares over rows."""
    found, seen = scores_of(llama, "cut:ffn=1,heads=2,width=1,by=activation"), []
    layer = llama.model.layers[1]
    read = (layer.mlp.down_proj, layer.self_attn.o_proj)
    hooks = [one.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].numpy())) for one in read]
    norms = [module for name, module in llama.named_modules() if name.endswith("norm")]
    hooks += [one.register_forward_hook(lambda _m, _a, out: seen.append(out[0].numpy())) for one in norms]
    units, heads, width = np.zeros(24), np.zeros(2), np.zeros((len(norms), 16))
    order = {}
    for example in rows().examples:
        seen.clear()
        llama.model(torch.tensor([example.ids[:-1]]))
        units += np.abs(next(one for one in seen if one.shape[-1] == 24)).mean(0) ** 2
        order[example] = [one for one in seen if one.shape[-1] == 16]
    for hook in hooks:
        hook.remove()
    for (
        outputs
    ) in order.values():  # the heads' output stands among those of the norms, after two of layer 0 and one of layer 1
        given = outputs.pop(3)
        heads += np.linalg.norm(given.reshape(-1, 2, 8), axis=-1).mean(0) ** 2
        width += np.stack([np.abs(one).mean(0) for one in outputs]) ** 2
    assert np.allclose(found.ffn[1], np.sqrt(units), rtol=1e-5)
    assert np.allclose(found.groups[1], np.sqrt(heads), rtol=1e-5)
    assert np.allclose(found.width, np.sqrt(width).sum(0), rtol=1e-5)


def test_taylor_against_numpy(llama):
    found = scores_of(llama, "cut:layers=1,ffn=1,heads=2,width=1,by=taylor")
    assert all(one.grad is None for one in llama.parameters())
    total = 0.0
    examples = rows().examples
    for example in examples:
        ids, start = torch.tensor([example.ids]), example.prompt_length
        logits = llama(ids[:, :-1]).logits[0, start - 1 :]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum")
    (total / sum(len(one.ids) - one.prompt_length for one in examples)).backward()
    layer = llama.model.layers[2]
    mlp, attention = layer.mlp, layer.self_attn
    matrices = (mlp.up_proj, mlp.gate_proj, mlp.down_proj, *(getattr(attention, f"{one}_proj") for one in "oqkv"))
    up, gate, down, o, q, k, v = ((one.weight * one.weight.grad).detach().double().numpy() for one in matrices)
    llama.zero_grad()
    assert np.allclose(found.ffn[2], np.abs(up.sum(1) + gate.sum(1) + down.sum(0)), rtol=1e-3, atol=1e-7)
    by_group = q.reshape(2, -1).sum(1) + (k + v).reshape(2, -1).sum(1) + o.reshape(16, 2, 8).sum((0, 2))
    assert np.allclose(found.groups[2], np.abs(by_group), rtol=1e-3, atol=1e-7)
    whole = sum(one.sum() for one in (up, gate, down, o, q, k, v))
    assert np.isclose(found.layers[2], abs(whole), rtol=1e-3, atol=1e-7)


@torch.no_grad()
def test_influence_against_numpy(llama):
    found = scores_of(llama, "cut:layers=1,by=influence").layers
    states = []
    for example in rows().examples:
        told = llama.model(torch.tensor([example.ids[:-1]]), output_hidden_states=True).hidden_states
        states.append([one[0].double().numpy() for one in told])
    for layer in range(2):  # what transformers returns for the last one has been through the final norm
        before, after = (np.concatenate([one[number] for one in states]) for number in (layer, layer + 1))
        cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        assert np.isclose(found[layer], 1 - cosine.mean(), rtol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gpt_neox", "llama", "opt"])
def test_loss_is_what_leaving_a_layer_out_costs(family):
    """Brute force: a model without the layer, cut out."""
    model = sliced.model(family)
    form = form_of(model.config, family)
    whole, found = Kept.everything(form), scores_of(model, "cut:layers=1,by=loss").layers
    before = mean_loss(model, batches())
    for gone in range(3):
        layers = tuple(layer for layer in range(3) if layer != gone)
        without = slice_model(model, Kept(layers, whole.groups[:2], whole.ffn[:2], whole.width))
        if family == "gemma2":  # the kinds of attention must stay with their layers
            assert without.config.layer_types == [model.config.layer_types[layer] for layer in layers]
        assert mean_loss(without, batches()) - before == pytest.approx(found[gone].item(), abs=1e-6)
    best = highest(found, 2)
    assert best == tuple(sorted(np.argsort(found.numpy())[1:].tolist()))


@pytest.mark.parametrize("by", ["magnitude", "activation", "taylor"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bitnet"])
@torch.no_grad()
def test_units_without_weight_go_first_and_are_not_missed(family, by):
    model = sliced.model(family)
    form, layout = form_of(model.config, family), FAMILIES[family]
    gone = [1, 8, 20]
    for name, value in model.named_parameters():
        layer = name.removeprefix(layout.layers).partition(".")[0] if name.startswith(layout.layers) else None
        axes = layout.inside[name.removeprefix(f"{layout.layers}{layer}.")] if layer is not None else ()
        if "ffn" in axes:
            value.index_fill_(axes.index("ffn"), torch.tensor(gone), 0.0)
    spec = parse_cut(f"cut:ffn=21,by={by}")
    with torch.enable_grad():
        found = score(model, spec, batches())
    after = choose_sizes(spec, form, layout, lambda form: 0)
    kept = choose(spec, form, after, found)
    assert kept.ffn == (tuple(one for one in range(24) if one not in gone),) * 3
    assert torch.allclose(slice_model(model, kept)(sliced.ids()).logits, model(sliced.ids()).logits, atol=1e-5)


def test_first_random_and_spaced(llama):
    def kept(text):
        spec, form = parse_cut(text), form_of(llama.config, "")
        after = choose_sizes(spec, form, FAMILIES["llama"], lambda form: 0)
        return choose(spec, form, after, score(llama, spec, batches()))

    first = kept("cut:layers=2,ffn=3,heads=2,width=4,by=first")
    assert first == Kept((0, 1), ((0,),) * 2, ((0, 1, 2),) * 2, (0, 1, 2, 3))
    assert kept("cut:layers=2,by=spaced").layers == (0, 1)
    assert kept("cut:layers=1,by=first,keep_last=1").layers == (2,)
    assert kept("cut:layers=0-2").layers == (0, 2)
    drawn = [kept(f"cut:ffn=8,by=random,seed={seed}").ffn for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({*drawn[0]}) > 1, "every layer draws for itself"


def test_padding_and_the_size_of_batches_change_no_score(llama, monkeypatch):
    texts = ("cut:layers=1,by=influence", "cut:layers=1,by=loss", "cut:ffn=1,heads=2,width=1,by=activation")
    together = [score(llama, parse_cut(text), batches()) for text in texts]
    monkeypatch.setattr("kdcli.students.scores.BUDGET", 1)
    assert len(batches()) == 6
    alone = [score(llama, parse_cut(text), batches()) for text in texts]
    for one, other in zip(together, alone, strict=True):
        for name in ("layers", "groups", "ffn", "width"):
            assert torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-6)
