"""The names of other people's code that this project cannot do without: each one here, with what it must do.

A library that renames one of them fails here, by its name, and not in a run.
"""

import ast
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache

import tiny
from kdcli.errors import InputError
from kdcli.generation.decoder import Decoder
from kdcli.generation.kv_cache import RowCache
from kdcli.models import internals
from kdcli.models.head import trunk_of
from kdcli.models.internals import (
    attention_of,
    cache_in,
    cache_interface_of,
    forward_with_cache,
    layers_of,
    prompt_cache,
)
from kdcli.models.layers import eager_attention
from kdcli.models.load import assemble

SOURCES = Path(internals.__file__).parents[1]
CPU = torch.device("cpu")
PLAIN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MAMBA = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "conv_kernel": 3}
HYBRID = {
    **PLAIN, "intermediate_size": 32, "num_key_value_heads": 1, "block_auto_adjust_ff_dim": False,
    "layer_types": ["conv", "full_attention"],
}  # fmt: skip

PRIVATE = {
    ("kdcli/training/compile.py", "torch._dynamo.exc"): "test_private_names_of_torch_do_what_they_are_used_for",
    ("kdcli/training/compile.py", "torch._dynamo"): "test_private_names_of_torch_do_what_they_are_used_for",
    ("kdcli/models/pointwise.py", "torch._dynamo"): "test_the_number_of_tokens_is_left_open_to_the_compiler",
    ("kdcli/losses/testing/contract.py", "torch.utils._python_dispatch"): "test_every_operation_inside_a_mode_is_seen",
    ("kdcli/distill/memory.py", "torch.utils._python_dispatch"): "test_every_operation_inside_a_mode_is_seen",
    ("kdcli/distill/memory.py", "torch.utils._pytree"): "test_every_operation_inside_a_mode_is_seen",
    ("kdcli/models/sizes.py", "torch._subclasses.fake_tensor"): "tests/models/test_footprint.py",
    ("kdcli/models/sizes.py", "._cdata"): "tests/models/test_footprint.py",
    ("kdcli/models/internals.py", "config._attn_implementation"): "test_the_attention_has_a_name",
    ("kdcli/models/kernels.py", "torch.ops.mkldnn._linear_pointwise"): "tests/models/test_matmul.py",
}
"""(file, private name of a library) -> the test that fails when it is gone."""


def trunk(family: str = "llama", **sizes):
    model = tiny.model(family, **sizes)
    return trunk_of(model), model.config


def loaded(family: str = "llama", **sizes):
    return assemble(tiny.model(family, **sizes), tiny.tokenizer(), "tiny", "", device=CPU, role="student")


# ---- how a decoder is called


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "bloom", "mistral", "falcon"])
@torch.no_grad()
def test_a_decoder_reads_on_behind_a_cache(family):
    heads = {"num_key_value_heads": 1} if family == "mistral" else {}
    below, config = trunk(family, **({} if family in tiny.SIZES else PLAIN | heads))
    reading = cache_interface_of(below, config)
    assert reading.cache is not None, reading.seen
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = below(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    cache = prompt_cache(config)
    for end in range(1, 5):
        new = ids[:, end - 1 : end]
        hidden = forward_with_cache(below, reading, new, torch.ones(1, end), cache, torch.tensor([[end - 1]]))
        assert cache.get_seq_length() == end
        torch.testing.assert_close(hidden, whole[:, end - 1 : end], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_positions_are_heard(family):
    """Not by the name of a parameter: moving a token away from another one changes what it reads."""
    below, config = trunk(family)
    reading = cache_interface_of(below, config)
    assert reading.positions
    ids, mask = torch.tensor([[5, 6]]), torch.ones(1, 2)
    near, far = (
        forward_with_cache(below, reading, ids, mask, prompt_cache(config), torch.tensor([[0, place]]))
        for place in (1, 9)
    )
    assert not torch.allclose(near, far)


@torch.no_grad()
def test_padding_is_not_read():
    below, config = trunk()
    reading = cache_interface_of(below, config)
    hidden = [
        forward_with_cache(below, reading, torch.tensor([[first, 6]]), torch.tensor([[0, 1]]), prompt_cache(config))[
            :, 1
        ]
        for first in (4, 9)
    ]
    assert torch.equal(*hidden)


def test_the_cache_goes_under_the_name_it_comes_back_by():
    """Whatever transformers calls it; the name is looked up nowhere but in what a decoder hands back."""
    below, config = trunk()
    name, cache = cache_in(below(input_ids=torch.tensor([[5]]), use_cache=True))
    assert isinstance(cache, Cache)
    assert cache_interface_of(below, config).cache == name
    assert cache_in(below(input_ids=torch.tensor([[5]]), use_cache=False)) is None


class Renamed(torch.nn.Module):
    """A decoder of a later version, whose argument for the cache is called something else."""

    def __init__(self, inner: torch.nn.Module, *, silent: bool = False, forgetful: bool = False) -> None:
        super().__init__()
        self.inner, self.silent, self.forgetful = inner, silent, forgetful
        self.name = cache_in(inner(input_ids=torch.tensor([[5]]), use_cache=True))[0]

    def forward(self, memory=None, position_ids=None, **given):
        given |= {} if memory is None or self.forgetful else {self.name: memory}
        out = self.inner(**given, position_ids=position_ids)
        return type("Output", (dict,), {"last_hidden_state": out.last_hidden_state})(
            {} if self.silent else {"memory": out[self.name]}
        )


def test_another_name_is_found():
    below, config = trunk()
    reading = cache_interface_of(Renamed(below), config)
    assert (reading.cache, reading.positions) == ("memory", True)


@pytest.mark.parametrize(
    "how,seen", [({"silent": True}, "hands back no cache"), ({"forgetful": True}, "holds 0 tokens after one was read")]
)
def test_what_was_seen_is_said_where_no_cache_is_kept(how, seen):
    below, config = trunk()
    reading = cache_interface_of(Renamed(below, **how), config)
    assert reading.cache is None
    assert seen in reading.seen
    model = replace(loaded(), reading=reading)
    with pytest.raises(InputError, match=seen) as caught:
        Decoder(model, model.vocab).check([[5]])
    assert caught.value.code == "GEN-04"


@pytest.mark.parametrize("family,sizes,held", [("mamba", MAMBA, "2 of the 2"), ("lfm2", HYBRID, "1 of the 2")])
def test_states_are_seen_in_the_cache(family, sizes, held):
    reading = loaded(family, **sizes).reading
    assert reading.cache is None
    assert f"{held} layers hold something else" in reading.seen


def test_a_decoder_that_fails_is_told_with_its_own_words():
    below, config = trunk()

    def broken(*_, **__):
        raise ValueError("no such thing")

    below.forward = broken
    assert cache_interface_of(below, config).seen == "reading a token with a cache fails: no such thing"


def test_finding_out_draws_nothing_and_leaves_the_mode():
    below, config = trunk("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    below.train()
    before = torch.get_rng_state()
    assert cache_interface_of(below, config).cache is not None
    assert below.training
    assert torch.equal(torch.get_rng_state(), before)


# ---- the cache's own methods


def test_caches_can_be_repeated_and_cut():
    keys = torch.arange(12.0).reshape(1, 1, 6, 2)
    cache = DynamicCache(config=tiny.model("mistral", **PLAIN, intermediate_size=32, sliding_window=4).config)
    cache.activate_past_recording()
    for layer in range(2):
        cache.update(keys, keys + 1, layer)
    cache.crop(-1)
    assert cache.get_seq_length() == 5
    whole = prompt_cache(tiny.model().config)
    for layer in range(2):
        whole.update(keys, keys + 1, layer)
    whole.batch_repeat_interleave(3)
    assert whole.layers[0].keys.shape == (3, 1, 6, 2)
    assert torch.equal(whole.layers[1].values[2], keys[0] + 1)


def test_layers_of_our_own_stand_in_for_the_librarys():
    cache = RowCache(tiny.model().config)
    cache.reserve(2, 8)
    keys = torch.ones(2, 3, 8)
    cache.add([(keys, keys)] * 2, 3)
    cache.make_column()
    seen, _ = cache.cache.update(2 * torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8), 0)
    assert seen[0, 0, :, 0].tolist() == [1.0, 1.0, 1.0, 2.0]
    assert cache.cache.get_seq_length() == 3
    assert cache.cache.get_mask_sizes(1, 0) == (4, 0)


# ---- layers and attention


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "bloom", "falcon", "mixtral"])
def test_layers_are_found_in_order(family):
    model = tiny.model(family, **({} if family in tiny.SIZES else {**PLAIN, "num_hidden_layers": 3}))
    found = layers_of(model, trunk_of(model))
    assert found is not None
    assert len(found) == model.config.num_hidden_layers
    assert len({type(layer) for layer in found}) == 1
    assert "Layer" in type(found[0]).__name__ or "Block" in type(found[0]).__name__


def test_no_layers_are_made_up():
    model = tiny.model(num_hidden_layers=3)
    trunk_of(model).layers = torch.nn.ModuleList([*trunk_of(model).layers][:2])
    assert layers_of(model, trunk_of(model)) is None


def test_the_attention_has_a_name():
    model = tiny.model()
    assert attention_of(model) == "sdpa"
    with eager_attention(model, wanted=True):
        assert attention_of(model) == "eager"
    assert attention_of(model) == "sdpa"


@pytest.mark.parametrize("family,attention", [("llama", "sdpa"), ("bloom", "eager")])
def test_without_a_wish_a_family_computes_sdpa_where_it_can(family, attention):
    assert attention_of(tiny.model(family, **PLAIN)) == attention


# ---- torch


def test_private_names_of_torch_do_what_they_are_used_for():
    error = import_module("torch._dynamo.exc").TorchDynamoException
    assert issubclass(error, Exception)
    limits = torch._dynamo.config
    before = limits.recompile_limit
    with limits.patch(recompile_limit=17, accumulated_recompile_limit=18):
        assert (limits.recompile_limit, limits.accumulated_recompile_limit) == (17, 18)
    assert limits.recompile_limit == before


def test_every_operation_inside_a_mode_is_seen():
    class Seeing(import_module("torch.utils._python_dispatch").TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with Seeing():
        torch.ones(3).sum().item()
    assert any("sum" in name for name in seen)
    assert any("_local_scalar_dense" in name for name in seen)
    leaves = import_module("torch.utils._pytree").tree_leaves
    assert leaves({"a": [1, (2, None)]}) == [1, 2, None]


def test_the_number_of_tokens_is_left_open_to_the_compiler():
    counts = []

    def backend(graph, inputs):
        counts.append(inputs)
        return graph.forward

    mark = import_module("torch._dynamo").maybe_mark_dynamic
    compiled = torch.compile(lambda x: x * 2, backend=backend, fullgraph=True)
    for rows in (4, 9, 17):
        given = torch.ones(rows, 3)
        mark(given, 0)
        assert compiled(given).shape == (rows, 3)
    assert len(counts) == 1


# ---- no other


def _private(path: Path) -> set[str]:
    """Names with a leading underscore that are read from something other than ``self`` and defined nowhere here."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
            found.add(str(node.module))
    return found


def _own() -> set[str]:
    """Every private name that this project defines itself."""
    names: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return names


def test_private_names_of_libraries_are_these():
    own = _own()
    found = {
        (path.relative_to(SOURCES.parent).as_posix(), name)
        for path in SOURCES.rglob("*.py")
        for name in _private(path)
        if name.rpartition(".")[2] not in own and name != "os._exit"  # Python documents that one
    }
    listed = {(path, name) for path, full in found for (where, name) in PRIVATE if where == path and name in full}
    assert listed == set(PRIVATE), "the table names something that is not used any more"
    unlisted = {(path, full) for path, full in found if not any(w == path and n in full for w, n in PRIVATE)}
    assert not unlisted, "a private name of a library: use a public one, or name it here with its test"
    for test in PRIVATE.values():
        assert test in globals() or (SOURCES.parents[1] / test).is_file()


def test_the_inside_of_transformers_is_imported_in_one_place():
    found = {
        path.name
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers.")
    }
    assert found == {"internals.py"}


def test_nothing_is_found_by_the_signature_of_a_librarys_function():
    uses = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if "inspect.signature" in path.read_text(encoding="utf-8")
    }
    assert uses == set()


@pytest.mark.parametrize("name", ["past_key_values", "cache_params", "cache_position"])
def test_no_name_of_a_caches_argument_is_written_down(name):
    assert [path.name for path in SOURCES.rglob("*.py") if name in path.read_text(encoding="utf-8")] == []


def test_the_versions_that_were_tried_are_the_ones_allowed():
    pyproject = (SOURCES.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"transformers>=5.20,<5.25"' in pyproject


def test_transformers_still_makes_models_of_all_these_names():
    assert internals.tokenizer_class_from_name("LlamaTokenizer") is not None
    assert internals.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["llama"] == "LlamaForCausalLM"
    config = type(tiny.model().config)
    assert internals.MODEL_FOR_CAUSAL_LM_MAPPING[config].__name__ == "LlamaForCausalLM"
    classifier = internals.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config]
    assert classifier.__name__ == "LlamaForSequenceClassification"
    assert internals.SequenceClassifierOutput(logits=torch.ones(1, 2)).logits.shape == (1, 2)
    gpt2 = tiny.model("gpt2")
    assert any(type(module) is internals.Conv1D for module in gpt2.modules())
    assert any(isinstance(module, internals.NewGELUActivation) for module in gpt2.modules())
    assert AutoModelForCausalLM.from_config(gpt2.config).config.model_type == "gpt2"
