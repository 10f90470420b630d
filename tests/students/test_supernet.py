"""A supernet's sizes: the teacher reordered, and slices that have no weights of their own."""

import json

import pytest
import torch

import sliced
import tiny
from kdcli.errors import InputError, UsageError
from kdcli.models.family_layout import FAMILIES, form_of
from kdcli.models.load import load_model, save_student
from kdcli.students.cut import PALETTE, counter, slice_model
from kdcli.students.palette import Palette, Size, count_sizes, palette_of, parse_pick, pick_size
from kdcli.students.supernet import SharedSlice, make_supernet
from kdcli.students.supernet_spec import parse_supernet

CPU = torch.device("cpu")
SAMPLE = ("llama", "gpt2", "gemma2")
families = pytest.mark.parametrize(
    "family", [one if one in SAMPLE else pytest.param(one, marks=pytest.mark.full) for one in FAMILIES]
)


def supernet(tmp_path, family="llama", spec="widths=0.5+1,depths=0.333+1", **sizes):
    """The supernet of a small teacher, and the teacher's folder."""
    teacher = sliced.folder(tmp_path / "teacher", family, **sizes)
    return make_supernet(f"supernet:{spec}", str(teacher), rows=None, device=CPU), teacher


SMALL = Size(0.5, 1 / 3)


def shared(whole, size=SMALL):
    """A slice of a supernet, and the same as a model of its own."""
    kept = palette_of(whole.model.config, "T").kept(size, form_of(whole.model.config, "T"))
    return SharedSlice(whole, kept), slice_model(whole.model, kept)


def weights(whole):
    return dict(whole.model.named_parameters())


@torch.no_grad()
def logits(model, batch):
    return model(batch).logits


@families
@torch.no_grad()
def test_the_order_of_a_supernet_changes_no_logit(tmp_path, family):
    whole, teacher = supernet(tmp_path, family)
    before, after = (
        sliced.exact(one) for one in (load_model(str(teacher), device=CPU, role="teacher").model, whole.model)
    )
    there, here = (logits(one, sliced.ids()) for one in (before, after))
    moved = [one for name, one in after.named_parameters() if not torch.equal(one, before.get_parameter(name))]
    assert moved, "something was reordered"
    assert (there - here).abs().max() < 1e-12 * there.abs().max().clamp(min=1.0)


@torch.no_grad()
def test_in_single_precision_the_logits_stay_too(tmp_path):
    whole, teacher = supernet(tmp_path)
    there = logits(load_model(str(teacher), device=CPU, role="teacher").model, sliced.ids())
    assert (logits(whole.model, sliced.ids()) - there).abs().max() < 1e-5


@families
@torch.no_grad()
def test_a_slice_gives_the_bits_of_the_same_slice_as_a_folder(tmp_path, family):
    whole, _ = supernet(tmp_path, family)
    one, own = shared(whole)
    save_student(whole, tmp_path / "whole")
    opened = load_model(str(tmp_path / "whole"), device=CPU, role="student")
    palette = palette_of(opened.model.config, "T")
    made = slice_model(opened.model, palette.kept(Size(0.5, 1 / 3), form_of(opened.model.config, "T")))
    made.save_pretrained(tmp_path / "small")
    sliced_tokenizer = tiny.tokenizer()
    sliced_tokenizer.save_pretrained(tmp_path / "small")
    stored = load_model(str(tmp_path / "small"), device=CPU, role="student")
    ids, mask = sliced.ids(), torch.ones_like(sliced.ids())
    here = one.run(weights(whole), lambda model: model.current_head().logits(model.hidden(ids, mask), model.vocab))
    assert torch.equal(here, stored.logits(stored.hidden(ids, mask)))
    assert not hasattr(stored.model.config, PALETTE)
    assert sum(value.numel() for value in own.parameters()) == sum(value.numel() for value in made.parameters())


@families
@torch.no_grad()
def test_the_whole_size_is_the_supernet_bit_for_bit(tmp_path, family):
    whole, _ = supernet(tmp_path, family)
    one, _ = shared(whole, Size(1.0, 1.0))
    ids, mask = sliced.ids(), torch.ones_like(sliced.ids())
    here = one.run(weights(whole), lambda model: model.hidden(ids, mask))
    assert torch.equal(here, whole.hidden(ids, mask))
    held = one.weights(weights(whole))
    assert all(held[name] is value for name, value in weights(whole).items()), "nothing is copied"


def gradients(model, batch):
    """Those of a number that depends on every logit."""
    out = model(batch).logits.double()
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_the_gradient_of_shared_weights_is_the_sum_of_those_of_the_slices(tmp_path, family):
    whole, _ = supernet(tmp_path, family)
    whole.model.double()
    ids, sizes = sliced.ids(), (Size(0.5, 1 / 3), Size(0.5, 1.0))
    form = form_of(whole.model.config, "T")
    palette = palette_of(whole.model.config, "T")
    expected = {name: torch.zeros_like(value) for name, value in whole.model.named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for size in sizes:
        one, own = shared(whole, size)
        own.requires_grad_()
        found = gradients(own, ids)
        for part in _parts(whole, palette.kept(size, form)):
            index = [torch.arange(length) for length in expected[part.source].shape]
            index = [part.entries.get(place, every) for place, every in enumerate(index)]
            expected[part.source][torch.meshgrid(*index, indexing="ij")] += found[part.name]

        def weighed(model):
            out = model.model(ids).logits.double()
            return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum()

        total = total + one.run(weights(whole), weighed)
    total.backward()
    for name, value in whole.model.named_parameters():
        apart = (value.grad - expected[name]).abs().max()
        assert apart <= (0 if family in ("llama", "gpt_neox") else 1e-14 * expected[name].abs().max()), name
    assert sum(bool(value.grad.abs().sum()) for value in weights(whole).values()) > 20


def _parts(whole, kept):
    from kdcli.students.cut import slice_parts

    return slice_parts(weights(whole), whole.model.config, kept)


@families
def test_numbers_of_parameters_of_all_sizes(tmp_path, family):
    whole, _ = supernet(tmp_path, family)
    config = whole.model.config
    form, palette = form_of(config, "T"), palette_of(config, "T")
    for size, number in count_sizes(palette, config, "T").items():
        made = slice_model(whole.model, palette.kept(size, form))
        assert number == sum(value.numel() for value in made.parameters()) == counter(config)(form_of(made.config, "T"))
    assert len(palette.sizes) == 4
    assert palette.sizes[-1] == Size(1.0, 1.0)


def refusal(text, folder, **teacher):
    with pytest.raises((UsageError, InputError)) as caught:
        make_supernet(text, str(sliced.folder(folder, **teacher)), rows=None, device=CPU)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("supernet:widths=0.5", "widths lack 1, the size that teaches the others. Fix: give --widths 0.5,1"),
        ("supernet:widths=1,depths=0.5", "depths lack 1, the size that teaches the others. Fix: give --depths 0.5,1"),
        ("supernet:widths=1", "widths and depths name one size alone. Fix: give --widths 0.5,1"),
        ("supernet:widths=0.25+1", "leaves 0.5 of 2 groups of heads (2 query heads share keys and values, and stay"),
        ("supernet:widths=0.3+1", "Fix: choose --widths among 0.5,1"),
        (
            "supernet:widths=1,depths=0.5+1",
            "depth 0.5 leaves 1.5 of 3 layers. Fix: choose --depths among 0.333,0.667,1",
        ),
        ("supernet:widths=0.5+1,stages=1+0+0", "stages leave the smaller sizes no steps. Fix: give --set supernet.sta"),
        ("supernet:widths=0.5+1,stages=1+0", "stages are three shares of the steps, none below 0. Fix: give --set sup"),
        ("supernet:widths=0.5+2", "widths are shares above 0, at most 1. Fix: give --widths 0.5,1"),
        ("supernet:widths=0.5+x", 'widths="x" is no number. Fix: write supernet:widths=0.5+1,depths=0.5+1'),
        ("supernet:widths=0.5+1,width=1", 'unknown option "width". Fix: did you mean widths?'),
        ("supernet:widths=0.5+1,rank", '"rank" is not option=value. Fix: write supernet:widths'),
        ("supernet:widths=0.5+1,rank=0", 'rank="0" is no whole number from 1 on. Fix: give rank=1'),
        ("supernet:widths=0.5+1,rank=2,rank=3", '"rank" is given twice. Fix: keep one'),
        ("supernet:widths=0.5+1,alpha=2", "alpha=2 is outside 0 to 1. Fix: give alpha between the two"),
        ("supernet:widths=0.5+1,by=influence", 'by="influence" is not known. Fix: use magnitude or activation or tay'),
        ("supernet:widths=0.5+1,update=lowrank", 'update="lowrank" is not known. Fix: use low-rank'),
        ("supernet:widths=0.5+1,by=taylor", "by=taylor is measured on rows, and there are none"),
    ],
)
def test_what_cannot_be_a_supernet_is_refused_in_one_line(tmp_path, text, said):
    assert said in refusal(text, tmp_path)


def test_a_family_that_cannot_be_cut_is_refused(tmp_path):
    tiny.folder(tmp_path / "bloom", "bloom", hidden_size=16, n_layer=2, n_head=2)
    with pytest.raises(InputError, match="CUT-01"):
        make_supernet("supernet:widths=0.5+1", str(tmp_path / "bloom"), rows=None, device=CPU)


def test_a_width_of_the_embedding_is_refused(tmp_path):
    said = refusal("supernet:widths=0.5+1", tmp_path, family="opt", word_embed_proj_dim=8)
    assert "width 0.5 is the size of its embedding, and the projection between the two would go" in said
    assert "Fix: leave that width out" in said


def test_layers_that_are_left_out_are_refused(tmp_path):
    folder = sliced.folder(tmp_path / "T")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "kd_left_out": {"attention": [1], "mlp": []}}))
    with pytest.raises(
        UsageError, match=r"halves of its layers are left out\. Fix: give a teacher whose layers are whole"
    ):
        make_supernet("supernet:widths=0.5+1", str(folder), rows=None, device=CPU)


def test_a_spec_reads_back_as_it_is_written():
    text = "supernet:widths=0.5+0.75+1,depths=0.5+1,by=taylor,update=low-rank,rank=4,stages=0.1+0.4+0.5,gamma=0"
    assert str(parse_supernet(text)) == text
    assert str(parse_supernet("supernet:widths=1+0.5+0.5")) == "supernet:widths=0.5+1"
    assert parse_supernet("supernet:by=activation").scoring.needs_rows


def test_layers_follow_their_score(tmp_path):
    teacher = sliced.folder(tmp_path / "T")
    found = {}
    for by in ("spaced", "magnitude", "first"):
        text = f"supernet:widths=1,depths=0.667+1,layers_by={by}"
        whole = make_supernet(text, str(teacher), rows=None, device=CPU)
        found[by] = palette_of(whole.model.config, "T").layers
    assert found["spaced"] == ((0, 1), (0, 1, 2))
    assert found["first"] == ((0, 1), (0, 1, 2))
    assert len(found["magnitude"][0]) == 2


# Which size is wanted.


def picked(text, whole):
    config = whole.model.config
    return pick_size(parse_pick(text), palette_of(config, "SN"), config, "SN")


def test_the_largest_size_that_fits_is_picked(tmp_path):
    whole, _ = supernet(tmp_path)
    counted = count_sizes(palette_of(whole.model.config, "SN"), whole.model.config, "SN")
    ranked = sorted(counted, key=lambda size: counted[size])
    assert picked(f"params<={counted[ranked[2]]}", whole) == (ranked[2], counted[ranked[2]])
    assert picked(f"params<={counted[ranked[2]] - 1}", whole)[0] == ranked[1]
    assert picked("width=0.5,depth=0.33", whole)[0] == Size(0.5, 1 / 3)
    assert picked("width=0.5", whole)[0] == Size(0.5, 1.0)
    assert picked("params<=1e9,depth=0.333", whole)[0] == Size(1.0, 1 / 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("params<=100", r"no size has at most 100 parameters; the smallest has \d.*\. Fix: give --pick \"params<=\d+"),
        (
            "width=0.25",
            r"the supernet has no such size; it has width 0.5, 1 and depth 0.333, 1\. Fix: pick one of these",
        ),
        ("params<=many", 'many" is no number. Fix: write --pick "params<=1e6"'),
        ("heads=2", '"heads=2" is not params<=N, width=X or depth=X, each once. Fix: write --pick'),
        ("width=1,width=1", "each once. Fix: write --pick"),
        (" , ", "nothing is picked"),
        ("width=0", "a size is above 0"),
    ],
)
def test_a_pick_that_nothing_satisfies_is_refused_in_one_line(tmp_path, text, said):
    whole, _ = supernet(tmp_path)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        picked(text, whole)


def test_a_config_that_names_no_sizes_is_refused():
    config = sliced.model("llama").config
    with pytest.raises(InputError, match=r"the model has one size alone\. Fix: give the folder that kd supernet wrote"):
        palette_of(config, "T")
    for bad in (
        [], {}, {"widths": [0.5, 1.0]}, {"widths": [0.5], "layers": [[0, 1, 2]]},
        {"widths": [1.0, 0.5], "layers": [[0, 1, 2]]}, {"widths": [1.0], "layers": [[0, 9]]},
        {"widths": [1.0], "layers": [[0, 1]]}, {"widths": [True], "layers": [[0, 1, 2]]}, {"widths": 1, "layers": 2},
        {"widths": [1.0], "layers": [[0, 1, 2], [0, 1, 2]]}, {"widths": [1.0], "layers": [[], [0, 1, 2]]},
    ):  # fmt: skip
        setattr(config, PALETTE, bad)
        with pytest.raises(InputError, match=r"kd_supernet names no sizes of it: .*Fix: restore config\.json"):
            palette_of(config, "T")
    setattr(config, PALETTE, {"widths": [0.5, 1.0], "layers": [[0, 2], [0, 1, 2]]})
    assert palette_of(config, "T") == Palette((0.5, 1.0), ((0, 2), (0, 1, 2)))
