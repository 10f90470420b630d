"""Random students: the teacher's family and vocabulary, other sizes, one seed."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from kdcli.errors import UsageError
from kdcli.models.kernels import fuse_activations
from kdcli.models.load import load_model, save_student
from kdcli.models.random_init import is_random, parse_random, random_student
from kdcli.models.tokenizer import shared_vocabulary

CPU = torch.device("cpu")
SPEC = "random:layers=3,width=24,heads=3"
COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "llama": {},
    "gpt2": {},
    "opt": {**COMMON, "ffn_dim": 32, "word_embed_proj_dim": 8},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "gemma2": {**COMMON, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 8, "n_positions": 128},
    "mpt": {"d_model": 16, "n_layers": 1, "n_heads": 2},
}


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "teacher"
    return tiny.folder(path, request.param, vocab=len(tiny.WORDS) + 5, **FAMILIES[request.param])


@torch.no_grad()
def test_sizes_vocabulary_and_saving(teacher, tmp_path):
    source = load_model(str(teacher), device=CPU, role="teacher")
    student = random_student(SPEC, str(teacher), seed=0, device=CPU)
    config = student.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 24, 3)
    assert type(student.model) is type(source.model)
    assert student.vocab == source.vocab
    assert student.positions == source.positions
    assert student.ends == source.ends
    assert config.tie_word_embeddings == source.model.config.tie_word_embeddings
    assert shared_vocabulary(student.tokenizer, source.tokenizer, student.vocab, source.vocab) == len(tiny.WORDS)
    save_student(student, tmp_path / "saved")
    ids = torch.randint(0, 40, (2, 9))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    fuse_activations(again)
    assert torch.equal(again(ids).logits, student.model(ids).logits)
    for name, value in again.state_dict().items():
        assert torch.equal(value, student.model.state_dict()[name])
    assert load_model(str(tmp_path / "saved"), device=CPU, role="student").ends == source.ends
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == source.tokenizer.get_vocab()


def test_the_seed_alone_decides(good):
    def weights(seed):
        model = random_student(SPEC, str(good), seed=seed, device=CPU)
        return model.digest, model.head.weight.detach().clone()

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = weights(0), weights(1)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert first[0] != other[0]
    assert not torch.equal(first[1], other[1])


def test_feed_forward_and_key_heads(good):
    config = random_student(f"{SPEC},kv_heads=1,ffn=40", str(good), seed=0, device=CPU).model.config
    assert (config.num_key_value_heads, config.intermediate_size, config.head_dim) == (1, 40, 8)
    config = random_student(SPEC, str(good), seed=0, device=CPU).model.config
    # The teacher is 16 wide with 32 inside.
    assert (config.num_key_value_heads, config.intermediate_size) == (3, 48)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_another_family(good, family):
    student = random_student(f"{SPEC},family={family}", str(good), seed=0, device=CPU)
    assert student.model.config.model_type == family
    assert student.vocab == len(tiny.WORDS)
    assert student.positions == 128
    assert student.ends.ids == (2,)


@pytest.mark.parametrize(
    "spec,word",
    [
        ("random:", "layers is missing"),
        ("random:layers", "option=value"),
        ("random:layers=,width=8,heads=1", "option=value"),
        ("random:layers=2,width=64", "heads is missing"),
        ("random:layers=2,widht=64,heads=4", "did you mean width?"),
        ("random:layers=2,colour=1,width=64,heads=4", "use layers, width"),
        ("random:layers=2,layers=3,width=64,heads=4", "given twice"),
        ("random:layers=2,width=64,heads=5", "not divisible by 5 heads"),
        ("random:layers=2,width=64,heads=4,kv_heads=3", "kv_heads"),
        ("random:layers=0,width=64,heads=4", "layers must be a whole number >= 1"),
        ("random:layers=-2,width=64,heads=4", "layers must be"),
        ("random:layers=2.5,width=64,heads=4", "layers must be"),
        ("random:layers=9999999999,width=64,heads=4", "layers must be"),
        ("random:layers=2,width=64,heads=4,family=lama", "did you mean llama?"),
        ("random:layers=2,width=64,heads=4,family=t5", "unknown family"),
        ("random:layers=2,width=64,heads=4,family=mamba", "family=llama"),
        ("random:layers=1,width=6,heads=2,family=codegen", "add family=llama"),
    ],
)
def test_specs_that_cannot_be_used(good, spec, word):
    with pytest.raises(UsageError) as caught:
        random_student(spec, str(good), seed=0, device=CPU)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert word in message
    assert "\n" not in message


def test_spec_or_folder():
    assert is_random(SPEC)
    assert not is_random("./random")
    assert parse_random(SPEC) == {"layers": 3, "width": 24, "heads": 3}
