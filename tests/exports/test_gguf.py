"""GGUF files: equal weights where nothing is rounded, errors within their bounds where something is."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import exported
import tiny
from kdcli.errors import InputError, IntegrityError
from kdcli.exports.gguf_file import KINDS, check_family, read_gguf, special_tokens, write_gguf
from kdcli.exports.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, vocabulary_of
from kdcli.models.load import load_model


def written(path, family="llama", quantizer="", *, tokenizer=None, **options):
    """A model folder, the model in it, and its file."""
    folder = exported.folder(path / "model", family, tokenizer=tokenizer, **options)
    model = load_model(str(folder), device=torch.device("cpu"), role="teacher")
    config = model.model.config
    vocabulary = vocabulary_of(model.tokenizer, model.head.rows, str(folder))
    found = write_gguf(
        path / "model.gguf", model.model.state_dict(), config, vocabulary, special_tokens(model.tokenizer, model.ends),
        name="tiny", quantizer=quantizer,
    )  # fmt: skip
    return model, path / "model.gguf", found


@pytest.mark.parametrize(
    "family, options",
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 32}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("gpt2", {"n_inner": 96}),
        ("gpt2", {"tie_word_embeddings": False}),
    ],
)
def test_transformers_reads_the_same_bits(tmp_path, family, options):
    model, path, _ = written(tmp_path, family, **options)
    there = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=model.model.config, dtype=torch.float32
    )
    own, read = model.model.state_dict(), there.state_dict()
    assert own.keys() == read.keys()
    assert [name for name in own if not torch.equal(own[name], read[name])] == []
    back = read_gguf(path, model.model.config)
    assert all(torch.equal(own[name], value) for name, value in back.items())
    assert own.keys() - back.keys() == ({"lm_head.weight"} if model.model.config.tie_word_embeddings else set())
    plain, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32), torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(there(ids).logits, plain(ids).logits)


def test_what_the_file_says_of_itself_is_enough_for_a_llama(tmp_path):
    """Nothing but the file: config, weights and tokenizer."""
    model, path, _ = written(tmp_path, rope_theta=50_000.0, rms_norm_eps=1e-4)
    there = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    ids = torch.arange(20)[None] + 3
    with torch.no_grad():
        assert torch.equal(there(ids).logits, model.model(ids).logits)
    tokens = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in ("the cat sat at the mat", "Ägypten, 日本 🙂\n  12 34", ""):
        assert tokens(text)["input_ids"] == model.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("quantizer, outer", [("q8_0", "Q8_0"), ("q4_0", "Q8_0")])
def test_rounded_weights_are_within_the_bound_of_their_block(tmp_path, family, quantizer, outer):
    """The bound is computed here from the blocks alone: half a step, or a whole one at Q4_0's open end."""
    model, path, found = written(tmp_path, family, quantizer)
    own, read = model.model.state_dict(), read_gguf(path, model.model.config)
    types = {one.name: one.tensor_type.name for one in gguf.GGUFReader(str(path)).tensors}
    kind = quantizer.upper()
    assert types["token_embd.weight"] == outer
    assert types["blk.0.attn_output.weight"] == types["blk.1.ffn_up.weight"] == kind
    assert types["output_norm.weight"] == types.get("position_embd.weight", "F32") == "F32"
    name = "model.layers.1.mlp.up_proj.weight" if family == "llama" else "transformer.h.1.mlp.c_fc.weight"
    before, after = own[name].double(), read[name].double()
    if family == "gpt2":
        before, after = before.T, after.T
    before, after = before.reshape(-1, 32), after.reshape(-1, 32)
    top = before.abs().argmax(1, keepdim=True)
    signed = before.gather(1, top)
    if kind == "Q8_0":
        step = signed.abs() / 127
        bound = step / 2 + 127 * step * 2.0**-11
    else:
        step = signed.abs() / 8
        far = (before / (-signed / 8) > 7.5).double()  # the levels are -8..7: what lies opposite the largest is cut
        bound = step / 2 + far * step / 2 + 8 * step * 2.0**-11
    error = (before - after).abs()
    assert (error <= bound).all()
    assert error.max() > step.mean() / 4
    for kind_found, rounding in found.items():
        assert rounding.bound == (KINDS[kind_found].bound if kind_found in KINDS else 0)
        assert rounding.largest <= rounding.bound
    assert found[kind].tensors == list(types.values()).count(kind)


def test_rows_that_are_no_whole_blocks_stay_in_16_bits(tmp_path):
    model, path, found = written(tmp_path, quantizer="q4_0", intermediate_size=80)
    types = {one.name: one.tensor_type.name for one in gguf.GGUFReader(str(path)).tensors}
    assert {name for name, kind in types.items() if kind == "F16"} == {
        f"blk.{layer}.ffn_down.weight" for layer in (0, 1)
    }
    assert found["F16"].tensors == 2
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(read_gguf(path, model.model.config)[name], model.model.state_dict()[name].half().float())


def test_the_tokenizer_in_the_file_reads_text_as_the_model_does(tmp_path):
    texts = ["the cat sat", "a cat, the cat.", "two  spaces", "über 日本\n", "thethe catat", ""]
    for kind in (exported.byte_level(), exported.sentence_piece()):
        place = tmp_path / type(kind.backend_tokenizer.decoder).__name__
        place.mkdir()
        model, path, _ = written(place, tokenizer=kind, vocab=400)
        there = AutoTokenizer.from_pretrained(place, gguf_file=path.name)
        assert [there(text)["input_ids"] for text in texts] == [model.tokenizer(text)["input_ids"] for text in texts]


def test_the_tables_of_a_tokenizer():
    found = vocabulary_of(exported.sentence_piece(), 300, "x")
    assert found.model, found.split == ("llama", "default")
    assert found.types[:3] == (UNKNOWN, CONTROL, CONTROL)
    assert found.types[3] == BYTE
    assert found.tokens[3] == "<0x00>"
    assert found.types[259 + 4] == NORMAL
    assert found.tokens[-1] == "[PAD299]"
    assert found.types[-1] == UNUSED
    assert found.space_first is True
    assert found.merges == ()
    assert found.scores[found.tokens.index("th")] == -1
    assert found.scores[found.tokens.index("the")] == -2
    assert found.scores[found.tokens.index("t")] == 0
    assert found.notes == ()
    level = vocabulary_of(exported.byte_level(), 266, "x")
    assert (level.model, level.split, level.space_first) == ("gpt2", "gpt-2", None)
    assert level.merges[:2] == ("t h", "th e")
    assert level.scores == ()


def changed(**parts):
    """A byte-level tokenizer with other parts."""
    tokenizer = exported.byte_level()
    for name, value in parts.items():
        setattr(tokenizer.backend_tokenizer, name, value)
    return tokenizer


def odd_tokenizers():
    from tokenizers import Regex, models, normalizers, pre_tokenizers

    level = pre_tokenizers.ByteLevel
    yield "WordLevel", tiny.tokenizer()
    yield "puts a space", changed(pre_tokenizer=level(add_prefix_space=True))
    split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    yield (
        "a way of its own",
        changed(pre_tokenizer=pre_tokenizers.Sequence([split, level(add_prefix_space=False, use_regex=False)])),
    )
    yield "changes the text", changed(normalizer=normalizers.Lowercase())
    yield "without byte-level", changed(pre_tokenizer=None)
    yield "marks at the ends", changed(model=models.BPE(vocab={"a": 0}, merges=[], end_of_word_suffix="</w>"))
    piece = exported.sentence_piece()
    piece.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    yield "splits text by Whitespace", piece
    other = exported.sentence_piece()
    other.backend_tokenizer.normalizer = normalizers.Prepend("▁")
    yield "write a space as", other


@pytest.mark.parametrize("says, tokenizer", odd_tokenizers(), ids=lambda one: one if isinstance(one, str) else "")
def test_a_tokenizer_that_the_format_has_no_name_for_is_refused(says, tokenizer):
    with pytest.raises(InputError, match=rf"EXPORT-04.*{says}.*Fix: give --to safetensors:int8"):
        vocabulary_of(tokenizer, 400, "x")


def test_the_splits_of_llama_3_and_qwen_2_have_their_names():
    from tokenizers import Regex, normalizers, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as THEIRS

    for name in ("llama-bpe", "qwen2"):
        split = pre_tokenizers.Split(Regex(THEIRS[name]), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer = changed(pre_tokenizer=pre_tokenizers.Sequence([split, level]), normalizer=normalizers.NFC())
        assert vocabulary_of(tokenizer, 400, "x").split == name


def test_a_text_that_the_tokenizer_changes_first_is_told():
    from tokenizers import Regex, normalizers

    found = vocabulary_of(exported.sentence_piece(normalizers.Replace(Regex(" {2,}"), " ")), 400, "x")
    assert found.notes == (
        "the tokenizer changes text first (Replace), which GGUF cannot say: such texts get other tokens there",
    )


@pytest.mark.parametrize(
    "family, options, says",
    [
        ("mistral", {"hidden_size": 16, "num_attention_heads": 2}, "this is mistral"),
        ("llama", {"attention_bias": True}, "attention_bias = True has no place"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = gelu"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type = linear"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_a_model_that_the_format_cannot_hold_is_refused(family, options, says):
    config = tiny.AutoConfig.for_model(family, **options)
    with pytest.raises(InputError, match=rf"EXPORT-03.*{says}"):
        check_family(config, "x")


def test_a_damaged_file_is_one_line(tmp_path):
    model, path, _ = written(tmp_path)
    whole = path.read_bytes()
    for broken in (b"no file of that kind", whole[: len(whole) // 3], whole[:40]):
        path.write_bytes(broken)
        with pytest.raises(IntegrityError, match="EXPORT-05"):
            read_gguf(path, model.model.config)


def test_llama_rows_are_interleaved_in_the_file(tmp_path):
    """Rotary halves alternate: row 2i of a head is the model's row i, row 2i + 1 its row i + half."""
    model, path, _ = written(tmp_path)
    found = next(one for one in gguf.GGUFReader(str(path)).tensors if one.name == "blk.0.attn_k.weight")
    own = model.model.state_dict()["model.layers.0.self_attn.k_proj.weight"].numpy()
    heads, size = 2, 16
    for head in range(heads):
        rows = own[head * size : (head + 1) * size]
        assert np.array_equal(found.data[head * size : (head + 1) * size : 2], rows[: size // 2])
        assert np.array_equal(found.data[head * size + 1 : (head + 1) * size : 2], rows[size // 2 :])
