"""What a cut asks for: read, refused in one line, and turned into sizes."""

from dataclasses import replace

import pytest

import sliced
import tiny
from kdcli.errors import InputError, KDError, UsageError
from kdcli.models.family_layout import FAMILIES, form_of
from kdcli.students.cut import config_of, counter, refused_by_config
from kdcli.students.made import is_made, made_config
from kdcli.students.spec import choose_sizes, parse_cut


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    named = {family: sliced.folder(root / family, family) for family in ("llama", "gpt2", "bitnet", "opt")}
    return named | {"bloom": tiny.folder(root / "bloom", "bloom", hidden_size=16, n_layer=2, n_head=2)}


WRONG = [
    ("llama", "cut:", "it cuts nothing"),
    ("llama", "cut:by=magnitude", "it cuts nothing"),
    ("llama", "cut:layers", '"layers" is not option=value'),
    ("llama", "cut:layers=2,depth=3", 'unknown option "depth"'),
    ("llama", "cut:layer=2", "did you mean layers?"),
    ("llama", "cut:layers=2,layers=3", '"layers" is given twice'),
    ("llama", "cut:layers=0", 'layers must be a whole number >= 1, got "0"'),
    ("llama", "cut:layers=-1", 'layers must be a whole number >= 1, got "-1"'),
    ("llama", "cut:layers=1.5", "layers must be a whole number"),
    ("llama", "cut:layers=2-1", "layers=2-1 are not in order, each once"),
    ("llama", "cut:layers=0-x", "layers must name layers as in 0-2-5"),
    ("llama", "cut:layers=0-3", "layers=0-3, and the teacher has 3"),
    ("llama", "cut:layers=4", "layers=4, and the teacher has 3. Fix: give layers at most 3"),
    ("llama", "cut:ffn=25", "ffn=25, and the teacher has 24"),
    ("llama", "cut:width=17", "width=17, and the teacher has 16"),
    ("llama", "cut:heads=8", "heads=8, and the teacher has 4"),
    ("llama", "cut:heads=3", "2 query heads share keys and values, and stay or go together. Fix: give a multiple of 2"),
    ("llama", "cut:params=0", "params must be a share above 0"),
    ("llama", "cut:params=1.5", "params must be a share above 0, at most 1"),
    ("llama", "cut:params=nan", "params must be a share"),
    ("llama", "cut:params=0.01", "params=0.01 cannot be reached over ffn+heads+width; the least is"),
    ("llama", "cut:params=0.5,over=depth", "over must name some of layers, heads, ffn, width"),
    ("llama", "cut:layers=2,over=ffn", "over has no effect without params"),
    ("llama", "cut:params=0.5,over=ffn,ffn=8", "ffn is given, and over leaves it to params"),
    ("llama", "cut:params=0.5,ffn=8,heads=2,width=8", "params has nothing left to choose"),
    ("llama", "cut:ffn=8,by=influence", "influence scores layers alone, and ffn is cut, too"),
    ("llama", "cut:ffn=8,by=magnitud", "did you mean magnitude?"),
    ("llama", "cut:layers=2,by=activation", "activation scores no layers"),
    ("llama", "cut:layers=2,layers_by=activation", "is no score of layers"),
    ("llama", "cut:layers=0-1,by=loss", "by=loss has no effect"),
    ("llama", "cut:layers=2,layers_by=loss,by=taylor", "by=taylor has no effect"),
    ("llama", "cut:ffn=8,keep_first=1", "keep_first has no effect where layers are not counted"),
    ("llama", "cut:layers=1,keep_first=1,keep_last=1", "keep_first=1 and keep_last=1 are more than layers=1"),
    ("llama", "cut:layers=2,rows=8", "rows has no effect"),
    ("llama", "cut:layers=2,seed=1", "seed has no effect"),
    ("llama", "cut:sparse=0", 'sparse must be the share of zeros, above 0 and below 1, got "0"'),
    ("llama", "cut:sparse=1", "sparse must be the share of zeros"),
    ("llama", "cut:sparse=half", "sparse must be the share of zeros"),
    ("llama", "cut:sparse=nan", "sparse must be the share of zeros"),
    ("llama", "cut:sparse=50%", "sparse must be the share of zeros"),
    ("llama", "cut:sparse=0.5,method=sparse", 'method="sparse" is not known. Fix: did you mean sparsegpt?'),
    ("llama", "cut:sparse=0.5,method=random", "choose one of magnitude, wanda, sparsegpt"),
    ("llama", "cut:sparse=0.5,pattern=4:8", 'pattern="4:8" is not known. Fix: choose one of unstructured, 2:4'),
    ("llama", "cut:sparse=0.7,pattern=2:4", "2:4 makes half of the weights 0, and sparse=0.7 asks for another share"),
    ("llama", "cut:layers=1,method=wanda", "method has no effect without sparse"),
    ("llama", "cut:layers=1,pattern=2:4", "pattern has no effect without sparse"),
    ("llama", "cut:sparse=0.5,by=taylor", "by=taylor has no effect"),
    (
        "llama",
        "cut:sparse=0.5,rows=8",
        "rows has no effect: nothing is measured on rows. Fix: leave it out, or choose meth",
    ),
    ("llama", "cut:sparse=0.5,ffn=22,pattern=2:4", "a linear layer of the student has 22 inputs, which 4 does not div"),
    (
        "llama",
        "cut:sparse=0.01",
        "sparse=0.01 of 16 inputs is 0 of each output's weights. Fix: give a share nearer to 0",
    ),
    ("llama", "cut:sparse=0.99,method=wanda", "sparse=0.99 of 16 inputs is 16 of each output's weights"),
    ("bloom", "cut:sparse=0.5", "no student can be cut out of the family bloom"),
    ("gpt2", "cut:heads=2", "the heads span the width, and cannot be cut alone. Fix: give width=8"),
    ("gpt2", "cut:width=10", "width=10 is no multiple of the 4 numbers of a head. Fix: give a multiple of 4, such as"),
    ("gpt2", "cut:width=8,heads=3", "heads=3 of 4 numbers do not span width=8"),
    ("bitnet", "cut:width=12", "no multiple of the 8 numbers of 2 heads that share keys and values"),
    ("opt", "cut:width=12", "width=12 is the size of its embedding"),
    ("bloom", "cut:layers=1", "no student can be cut out of the family bloom"),
]


@pytest.mark.parametrize("family,spec,message", WRONG, ids=[f"{family} {spec}" for family, spec, _ in WRONG])
def test_what_cannot_be_cut_is_refused_in_one_line(folders, family, spec, message):
    with pytest.raises(KDError) as caught:
        made_config(spec, str(folders[family]))
    line = str(caught.value)
    assert message in line
    assert ". Fix: " in line
    assert "\n" not in line
    assert isinstance(caught.value, InputError if family == "bloom" else UsageError)


def test_one_spelling_for_one_cut():
    assert str(parse_cut("cut: by=magnitude , ffn=8,layers=0-2")) == "cut:layers=0-2,ffn=8"
    assert str(parse_cut("cut:params=0.50,over=width+ffn")) == "cut:params=0.5,over=ffn+width"
    assert parse_cut("cut:layers=2,ffn=8,by=activation").scores == ("influence", "activation")
    assert parse_cut("cut:layers=0-1").scores == ()
    assert str(parse_cut("cut:pattern=unstructured,method=wanda,sparse=.50")) == "cut:sparse=0.5,method=wanda"
    assert is_made("cut:layers=1")
    assert not is_made("./cut")


@pytest.mark.parametrize(
    "spec, on_rows, instead",
    [
        ("cut:sparse=0.5", (), ""),
        ("cut:sparse=0.5,method=wanda", ("method=wanda",), "method=magnitude"),
        ("cut:ffn=8,by=taylor,sparse=0.5,method=sparsegpt", ("by=taylor", "method=sparsegpt"),
         "by=magnitude and method=magnitude"),
        ("cut:layers=2,by=taylor,ffn=8", ("by=taylor",), "by=magnitude"),
        ("cut:layers=2,by=activation,ffn=8", ("layers_by=influence", "by=activation"),
         "layers_by=magnitude and by=magnitude"),
        ("cut:layers=1,skip_mlp=score:1", ("skip_mlp=score:1",), "skip_mlp=last:1"),
    ],
)  # fmt: skip
def test_what_is_measured_on_rows_has_another_that_is_not(spec, on_rows, instead):
    found = parse_cut(spec)
    assert found.read_on_rows == on_rows
    assert found.needs_rows == bool(on_rows)
    assert found.without_rows == instead
    assert not parse_cut(f"cut:layers=2,ffn=8,sparse=0.5,{instead.replace(' and ', ',')}").needs_rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 1.0])
def test_a_share_of_the_parameters_is_met_as_closely_as_sizes_allow(family, share):
    config = sliced.model(family).config
    form, count = form_of(config, family), counter(config)
    found = choose_sizes(parse_cut(f"cut:params={share},over=layers+heads+ffn+width"), form, FAMILIES[family], count)
    assert count(found) <= share * count(form)
    assert (found == form) == (share == 1.0)
    specs = [parse_cut(f"cut:params={value},over=layers+ffn") for value in (0.55, 0.75, 1.0)]
    counts = [count(choose_sizes(spec, form, FAMILIES[family], count)) for spec in specs]
    assert counts == sorted(counts)


def test_what_is_given_is_kept_and_the_rest_is_shared_out():
    config = sliced.model("llama").config
    form, count = form_of(config, ""), counter(config)
    found = choose_sizes(parse_cut("cut:params=0.6,layers=2,over=ffn"), form, FAMILIES["llama"], count)
    assert (found.layers, found.groups, found.width) == (2, 2, 16)
    assert count(found) <= 0.6 * count(form) < count(replace(found, ffn=found.ffn + 8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", [4, 8])
def test_only_sizes_that_the_family_takes_are_chosen(family, heads):
    """Some configurations want a width that the heads divide, though heads have a size of their own."""
    config = sliced.model(family).config
    config.num_attention_heads = heads
    if "num_key_value_heads" in config.to_dict():
        config.num_key_value_heads = heads
    form, count = form_of(config, family), counter(config)
    for share in (0.4, 0.5, 0.65, 0.8):
        spec = parse_cut(f"cut:params={share},over=heads+width")
        found = choose_sizes(spec, form, FAMILIES[family], count, lambda sizes: refused_by_config(config, sizes))
        assert config_of(config, found).num_attention_heads == found.heads
        assert count(found) <= share * count(form)


def test_sizes_that_the_family_does_not_take_are_refused():
    config = sliced.model("llama").config
    config.num_attention_heads = config.num_key_value_heads = 4
    form, sizes = form_of(config, ""), lambda sizes: refused_by_config(config, sizes)
    with pytest.raises(UsageError, match="not a multiple of the number of attention heads") as caught:
        choose_sizes(parse_cut("cut:width=16,heads=3"), form, FAMILIES["llama"], counter(config), sizes)
    assert caught.value.code == "CUT-03"
    assert caught.value.fix == "give other heads, or width=15"
    assert choose_sizes(parse_cut("cut:width=15,heads=3"), form, FAMILIES["llama"], counter(config), sizes).width == 15
