"""ONNX graphs: logits, greedy text and cached decoding of ONNX Runtime against torch."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import exported
import tiny
from kdcli.errors import InputError, IntegrityError
from kdcli.evaluation.results import read_results
from kdcli.exports.folder import load_export
from kdcli.exports.onnx_graph import read_onnx, write_onnx
from kdcli.models.load import load_model
from shell import kd

ROWS = ("--data", "test.jsonl")
LINE = ("--data", "test.jsonl", "--teacher", "llama", "--metric", "perplexity,kl_to_teacher,rougeL", "--edge",
        "--max-new-tokens", "6", "--set", "edge.new_tokens=4", "--set", "edge.prompt_tokens=8",
        "--set", "edge.repeats=1", "--device", "cpu")  # fmt: skip
FAMILIES = ["llama", pytest.param("qwen2", marks=pytest.mark.full), pytest.param("gpt2", marks=pytest.mark.full)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("onnx")
    tiny.rows(root / "test.jsonl", 32)
    return root


def made(home, family, quantizer=""):
    """A model folder's name and that of its export, both made once."""
    name = f"{family}-{quantizer or 'whole'}"
    if not (home / family).exists():
        exported.folder(home / family, family, initializer_range=0.2)
    if not (home / name).exists():
        target = f"onnx:{quantizer}" if quantizer else "onnx"
        answer = kd("export", family, "--to", target, *ROWS, "-o", name, folder=home)
        assert answer.code == 0, answer.err
        assert answer.out.rstrip().endswith(name)
    return home / family, home / name


def session_of(folder):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def feeds(session, ids, mask, positions, past=None):
    found = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for one in session.get_inputs():
        if one.name.startswith("past."):
            empty = np.zeros((len(ids), one.shape[1], 0, one.shape[3]), np.float32)
            found[one.name] = empty if past is None else past[one.name.replace("past", "present")]
    return {one.name: found[one.name] for one in session.get_inputs()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_runtime_gives_torch_s_logits_and_text(home, family):
    """Without kd: a padded batch to 1e-4, and 12 greedy tokens behind 32 prompts with the cache in the graph."""
    source, folder = made(home, family)
    model, session = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval(), session_of(folder)
    names = [one.name for one in session.get_outputs()]
    ids = torch.randint(3, 200, (4, 13), generator=torch.Generator().manual_seed(0))
    mask, positions = torch.ones_like(ids), torch.arange(13).expand(4, 13).contiguous()
    mask[1, 7:] = mask[3, 1:] = 0
    found = session.run(["logits"], feeds(session, ids.numpy(), mask.numpy(), positions.numpy()))[0]
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask).logits
    assert (torch.from_numpy(found) - theirs)[mask.bool()].abs().max() < 1e-4
    tokenizer = exported.byte_level()
    for line in (home / "test.jsonl").read_text().splitlines():
        prompt = tokenizer(json.loads(line)["prompt"])["input_ids"]
        with torch.no_grad():
            text = model.generate(
                torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0
            )[0, len(prompt) :].tolist()
        said, new, seen, past = [], prompt, 0, None
        while len(said) < 12:
            ids, span = np.array([new]), np.arange(seen, seen + len(new))[None]
            answer = session.run(None, feeds(session, ids, np.ones((1, seen + len(new)), np.int64), span, past))
            past = dict(zip(names, answer, strict=True))
            logits = past["logits"][0, -1].copy()
            logits[model.generation_config.eos_token_id] = -np.inf
            seen, new = seen + len(new), [int(logits.argmax())]
            said += new
        assert said == text
    assert len(set(text)) >= 2
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize("quantizer", ["", pytest.param("int4", marks=pytest.mark.full)])
def test_kd_measures_what_the_runtime_computes(home, quantizer):
    """Perplexity and KL from the graph's own logits, a row at a time; answers with the cache; bytes of the file."""
    source, folder = made(home, "llama", quantizer)
    answer = kd("eval", folder.name, *LINE, "-o", f"eval-{folder.name}", folder=home)
    assert answer.code == 0, answer.err
    found, session = read_results(home / f"eval-{folder.name}"), session_of(folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval(), exported.byte_level()
    losses, kls = [], []
    for line in (home / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = [*prompt, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        given = np.array([ids])
        logits = session.run(["logits"], feeds(session, given, np.ones_like(given), np.arange(len(ids))[None]))[0][0]
        q = torch.from_numpy(logits).double().log_softmax(-1)
        with torch.no_grad():
            p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(len(prompt) - 1, len(ids) - 1):
            losses.append(-q[place, ids[place + 1]].item())
            kls.append((p[place].exp() * (p[place] - q[place])).sum().item())
    assert found.estimates["perplexity"].mean == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    measured = json.loads((folder / "about.json").read_text())
    assert measured["difference"]["kl"] == pytest.approx(np.mean(kls), rel=1e-3, abs=1e-9)
    assert (measured["difference"]["kl"] > 1e-6) == bool(quantizer)
    assert found.edge.disk_bytes == measured["bytes"] == (folder / "model.onnx").stat().st_size
    assert "ONNX Runtime" in found.edge.hardware
    assert ("UINT8" in found.edge.bytes_by_dtype) == bool(quantizer)
    assert found.estimates["rougeL"].mean >= 0
    if not quantizer:
        plain = kd("eval", "llama", *LINE[:2], "--metric", "rougeL", "--max-new-tokens", "6", "--device", "cpu", "-o",
                   "eval-plain", folder=home)  # fmt: skip
        assert plain.code == 0, plain.err
        assert read_results(home / "eval-plain").estimates["rougeL"] == found.estimates["rougeL"]


@pytest.mark.parametrize("quantizer, bits", [pytest.param("int8", 8, marks=pytest.mark.full), ("int4", 4)])
def test_rounded_matrices_are_within_a_step_of_their_block_and_the_head_stays(home, quantizer, bits):
    """Half a step, or a whole one opposite to the largest number: the levels end one earlier there."""
    import onnx_ir

    source, whole = made(home, "llama")
    _, rounded = made(home, "llama", quantizer)
    before, after = (
        {name: one.const_value.numpy() for name, one in onnx_ir.load(folder / "model.onnx").graph.initializers.items()}
        for folder in (whole, rounded)
    )
    places = [name.removesuffix(f"_Q{bits}") for name in after if name.endswith(f"_Q{bits}")]
    assert len(places) == 2 * 7
    for place in places:
        levels, steps = after[f"{place}_Q{bits}"], np.abs(after[f"{place}_scales"].astype(np.float64))[..., None]
        if bits == 4:
            levels = np.stack([levels & 15, levels >> 4], -1).reshape(*levels.shape[:2], 32)
        signed = levels.astype(np.float64) - (1 << bits - 1)
        there = (signed * after[f"{place}_scales"][..., None]).reshape(len(levels), -1)
        own = before[place].T.astype(np.float64)
        error = np.abs(own - there).reshape(*levels.shape) / steps
        ends = signed == (1 << bits - 1) - 1
        assert error.max() <= 1 + 1e-3
        assert error[~ends].max() <= 0.5 + 1e-3
    sizes = [json.loads((folder / "about.json").read_text())["bytes_by_type"] for folder in (whole, rounded)]
    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3)
    assert sizes[1]["UINT8"] == matrices * bits // 8
    head = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).lm_head.weight
    assert torch.equal(read_onnx(rounded / "model.onnx", AutoConfig.from_pretrained(source)).lm_head.weight, head)


def test_rows_that_share_a_batch_give_their_own_answers(home):
    """Prompts of other lengths, with padding before them and a cache, as kd decodes them."""
    from kdcli.generation.decoder import Decoder

    source, folder = made(home, "llama")
    prompts = [[5, 6, 7], [9] * 9, [11]]
    first, second = (
        Decoder(one, 200)
        for one in (load_model(str(source), device=torch.device("cpu"), role="teacher"),
                    load_export(str(folder), torch.device("cpu")))
    )  # fmt: skip
    for decoder in (first, second):
        decoder.check(prompts)
        decoder.cache.reserve(3, 20)
        for prompt in sorted(prompts, key=len, reverse=True):
            decoder.cache.add(decoder.prefill(prompt).kept, len(prompt))
    for tokens in ([3, 4, 5], [6, 7, 8]):
        ours, theirs = second.decode_step(tokens), first.decode_step(tokens)
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_what_cannot_be_traced_and_what_is_damaged_are_one_line(home, tmp_path):
    _, folder = made(home, "llama")
    config = load_model(str(home / "llama"), device=torch.device("cpu"), role="teacher").model.config
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:2000])
    with pytest.raises(IntegrityError, match="EXPORT-05"):
        read_onnx(tmp_path / "model.onnx", config)
    mamba = tiny.model("mamba", hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(InputError, match=r"EXPORT-03.*cannot be traced: its cache.*Fix: give --to safetensors:int8"):
        write_onnx(tmp_path / "x.onnx", mamba, "")
