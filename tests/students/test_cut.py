"""The slicing operator: a whole slice is the model, an order is a symmetry, what has no weight is not missed."""

import pytest
import torch

import sliced
import tiny
from kdcli.errors import InputError
from kdcli.models.family_layout import FAMILIES, axes_of, family_of, form_of
from kdcli.students.cut import Kept, config_of, counter, slice_model

families = pytest.mark.parametrize("family", FAMILIES)


def shuffled(form, seed=0):
    """Everything, in another order."""
    generator = torch.Generator().manual_seed(seed)

    def order(count):
        return tuple(torch.randperm(count, generator=generator).tolist())

    layers = range(form.layers)
    return Kept(
        tuple(layers), tuple(order(form.groups) for _ in layers), tuple(order(form.ffn) for _ in layers),
        order(form.width),
    )  # fmt: skip


def half(form):
    """The first part of everything."""
    layers, width = form.layers - 1, form.width // 2
    return Kept(
        (0, form.layers - 1), (tuple(range(form.groups // 2)),) * layers, (tuple(range(form.ffn // 3)),) * layers,
        tuple(range(width)),
    )  # fmt: skip


def test_there_is_a_model_for_every_family():
    assert set(sliced.FAMILIES) == set(FAMILIES)


@families
def test_every_tensor_and_module_is_where_the_layout_says(family):
    model = sliced.model(family)
    layout, form = family_of(model.config, family), form_of(model.config, family)
    for name, value in model.state_dict().items():
        layer, axes = axes_of(layout, name, family)
        assert len(axes) == value.dim(), name
        for axis, length in zip(axes, value.shape, strict=True):
            assert form.length(axis) in (None, length), name
        assert layer is None or 0 <= layer < form.layers
    seen = {}
    layer = model.get_submodule(f"{layout.layers}1")
    for name in (layout.attention, layout.attends, layout.heads, *layout.mlp, layout.mlp_output, layout.units):
        module = layer.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args}))
    model(sliced.ids())
    assert seen[layout.units][0].shape[-1] == form.ffn
    assert seen[layout.heads][0].shape[-1] == form.heads * form.head_size


@families
@torch.no_grad()
def test_a_whole_slice_is_the_model_bit_for_bit(family):
    model = sliced.model(family)
    made = slice_model(model, Kept.everything(form_of(model.config, family)))
    assert torch.equal(made(sliced.ids()).logits, model(sliced.ids()).logits)
    told = dict.fromkeys(("head_dim", "_name_or_path"), 0)
    assert made.config.to_dict() | told == model.config.to_dict() | told
    assert [*made.state_dict()] == [*model.state_dict()]


@families
@torch.no_grad()
def test_an_order_is_a_symmetry(family):
    model = sliced.model(family).double()
    kept = shuffled(form_of(model.config, family))
    made = slice_model(model, kept)
    pairs = zip(made.state_dict().values(), model.state_dict().values(), strict=True)
    assert sum(torch.equal(*pair) for pair in pairs) <= 8, "all but the sizes of heads was reordered"
    there, here = (sliced.exact(one)(sliced.ids()).logits for one in (model, made))
    assert (there - here).abs().max() < 1e-12 * there.abs().max().clamp(min=1.0)


@families
@torch.no_grad()
def test_what_has_no_outgoing_weight_is_not_missed(family):
    """Units and heads whose output is multiplied by 0 go; where a norm over them follows, they are 0 before it, too."""
    model = sliced.exact(sliced.model(family))
    layout, form = family_of(model.config, family), form_of(model.config, family)
    gone_units, gone_group = torch.tensor([0, 5, 7]), 1
    for name, value in model.named_parameters():
        layer, axes = axes_of(layout, name, family)
        if layer is None or name.endswith("sub_norm.weight"):
            continue
        outgoing = any(name.endswith(f"{one}.weight") for one in (layout.units, layout.heads))
        for dimension, axis in enumerate(axes):
            if axis == "ffn" and (outgoing or family == "bitnet"):
                value.index_fill_(dimension, gone_units, 0.0)
            if axis in ("query", "key", "query-key-value") and (outgoing or family == "bitnet"):
                value.index_fill_(dimension, form.entries(axis, [gone_group]), 0.0)
    before = model(sliced.ids()).logits
    groups = tuple(one for one in range(form.groups) if one != gone_group)
    units = tuple(one for one in range(form.ffn) if one not in gone_units.tolist())
    width = tuple(range(form.width))
    if layout.spans:  # the width must go with the heads
        groups = tuple(range(form.groups))
    made = sliced.exact(slice_model(model, Kept((0, 1, 2), (groups,) * 3, (units,) * 3, width)))
    if family == "bitnet":  # its norm over the units takes its mean over those that are left
        return
    assert (made(sliced.ids()).logits - before).abs().max() < 1e-12


@families
@torch.no_grad()
def test_numbers_of_parameters_follow_from_the_sizes(family):
    model = sliced.model(family)
    form, count = form_of(model.config, family), counter(model.config)
    assert count(form) == sum(one.numel() for one in model.parameters())
    kept = half(form)
    made = slice_model(model, kept)
    assert form_of(made.config, family) == kept.form(form)
    assert count(kept.form(form)) == sum(one.numel() for one in made.parameters()) < count(form)
    assert torch.isfinite(made(sliced.ids()).logits).all()


@torch.no_grad()
def test_kinds_of_attention_stay_with_their_layers():
    model = sliced.model("gemma2", layer_types=["sliding_attention", "full_attention", "full_attention"])
    form = form_of(model.config, "gemma2")
    whole = Kept.everything(form)
    kept = Kept((1, 2), whole.groups[:2], whole.ffn[:2], whole.width)
    assert slice_model(model, kept).config.layer_types == ["full_attention", "full_attention"]
    assert config_of(model.config, kept.form(form), kept.layers).layer_types == ["full_attention", "full_attention"]


def test_other_families_are_refused_by_name():
    model = tiny.model("bloom", hidden_size=16, n_layer=2, n_head=2)
    with pytest.raises(InputError, match=r"CUT-01\]: T: no student can be cut out of the family bloom\. Fix: .*llama"):
        form_of(model.config, "T")
    with pytest.raises(InputError, match="with scale_attn_by_inverse_layer_idx"):
        form_of(tiny.model("gpt2", scale_attn_by_inverse_layer_idx=True).config, "T")


def test_a_tensor_that_nobody_knows_is_refused():
    with pytest.raises(InputError, match=r"it holds model\.layers\.0\.mystery\.weight, which kd does not know"):
        axes_of(FAMILIES["llama"], "model.layers.0.mystery.weight", "T")
