"""From a model or a run to an exported folder, and to its numbers beside those of the model it was made from."""

import hashlib
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import exported
import tiny
from damage import flip
from kdcli.cli.settings import output_schema
from kdcli.errors import MachineError
from kdcli.evaluation.results import read_results
from kdcli.exports import targets
from kdcli.models.checks import model_digest, open_folder
from kdcli.models.load import load_model
from shell import kd

ROWS = ("--data", "test.jsonl")
TARGETS = {"whole": "gguf", "eight": "gguf:q8_0", "four": "gguf:q4_0", "int8": "safetensors:int8"}
LIBRARY = {"gguf": "gguf", "onnx": "onnxruntime", "safetensors": "torchao"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    exported.folder(root / "model", initializer_range=0.3)
    exported.folder(root / "gpt2", "gpt2")
    tiny.folder(root / "words")
    tiny.folder(root / "mistral", "mistral", **tiny.SIZES["llama"])
    tiny.rows(root / "test.jsonl", 40)
    for name, target in TARGETS.items():
        answer = kd("export", "model", "--to", target, *ROWS, "-o", name, folder=root)
        assert answer.code == 0, answer.err
        (root / f"{name}.txt").write_text(answer.out)
    return root


def about(folder):
    return json.loads((folder / "about.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TARGETS)
def test_the_folder_says_what_it_holds_and_what_changed(home, name):
    found, folder = about(home / name), home / name
    assert found["target"] == TARGETS[name]
    assert found["source"] == {"name": "model", "sha256": model_digest(open_folder(str(home / "model")))}
    for file, digest in found["files"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    assert found["bytes"] == sum((folder / file).stat().st_size for file in found["files"])
    assert found["source_bytes"] == (home / "model" / "model.safetensors").stat().st_size
    assert found["libraries"].keys() >= {"torch", "transformers", LIBRARY[TARGETS[name].partition(":")[0]]}
    for rounding in found["weights"].values():
        assert rounding["largest"] <= rounding["bound"]
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    data = card.data.to_dict()
    assert data["base_model_relation"] == "quantized"
    assert data["quantization"] == TARGETS[name]
    assert f"{found['difference']['kl']:.4g} nats" in card.content
    assert found["source"]["sha256"] in card.content
    said = (home / f"{name}.txt").read_text()
    assert f"{found['bytes']:,} of {found['source_bytes']:,}" in said
    assert said.rstrip().endswith(name)


def weights_as_written(home, name):
    """The source with the exported folder's weights, by way of other programs' readers."""
    if name == "int8":
        there = AutoModelForCausalLM.from_pretrained(home / name, dtype=torch.float32)  # plain transformers and torchao
        plain = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
        state = {
            key: one.dequantize() if hasattr(one, "dequantize") else one for key, one in there.state_dict().items()
        }
        plain.load_state_dict({key: torch.as_tensor(value).float() for key, value in state.items()})
        return plain.eval()
    return AutoModelForCausalLM.from_pretrained(home / name, gguf_file="model.gguf", dtype=torch.float32).eval()


def sequences(home, count):
    """Ids and length of the prompt of the first rows."""
    tokenizer = exported.byte_level()
    for line in (home / "test.jsonl").read_text().splitlines()[:count]:
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        yield [*prompt, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id], len(prompt)


@pytest.mark.parametrize("name", TARGETS)
def test_the_measured_difference_is_that_of_other_programs_readers(home, name):
    """KL, largest gap and agreement over the response tokens of 32 rows, a token at a time, without kd."""
    source = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32).eval()
    other, found = weights_as_written(home, name), about(home / name)["difference"]
    gaps, kls, same = [], [], []
    for ids, start in sequences(home, 32):
        with torch.no_grad():
            p, q = (model(torch.tensor([ids])).logits[0].double() for model in (source, other))
        for place in range(start - 1, len(ids) - 1):
            gaps.append((p[place] - q[place]).abs().max().item())
            log_p, log_q = (one[place] - torch.logsumexp(one[place], 0) for one in (p, q))
            kls.append(math.fsum((log_p.exp() * (log_p - log_q)).tolist()))
            same.append(p[place].argmax().item() == q[place].argmax().item())
    assert (found["rows"], found["tokens"]) == (32, len(kls))
    assert found["largest_logit_gap"] == pytest.approx(max(gaps), abs=2e-4)
    assert found["kl"] == pytest.approx(math.fsum(kls) / len(kls), rel=1e-3, abs=1e-9)
    assert found["agreement"] == pytest.approx(sum(same) / len(same), abs=1.5 / len(same))
    assert (found["kl"] > 1e-7) == (name != "whole")


def test_int8_weights_are_within_half_a_step_of_their_row(home):
    own, written = load_file(home / "model" / "model.safetensors"), load_file(home / "int8" / "model.safetensors")
    places = [name.removesuffix("_weight_qdata") for name in written if name.endswith("_weight_qdata")]
    assert len(places) == 2 * 7
    for place in places:
        before = own[f"{place}weight"].double()
        step = before.abs().amax(1, keepdim=True) / 127.5  # levels -128..127
        assert torch.allclose(written[f"{place}_weight_scale"].double(), step, rtol=1e-6)
        after = written[f"{place}_weight_qdata"].double() * written[f"{place}_weight_scale"].double()
        assert ((before - after).abs() <= step * (0.5 + 2**-16)).all()
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(own[name], written[name])


def test_int8_is_loaded_as_it_was_written(home):
    """What kd computes with are the numbers in the file; rounding what they stand for anew would give others."""
    from kdcli.exports.folder import load_export

    written = load_file(home / "int8" / "model.safetensors")
    model = load_export(str(home / "int8"), torch.device("cpu")).model
    seen = 0
    for name, module in model.named_modules():
        if f"{name}._weight_qdata" in written:
            assert torch.equal(module.weight.qdata, written[f"{name}._weight_qdata"])
            assert torch.equal(module.weight.scale, written[f"{name}._weight_scale"])
            seen += 1
    assert seen == 14


@pytest.mark.parametrize("name", [pytest.param("four", marks=pytest.mark.full), "int8"])
def test_kd_eval_measures_an_exported_folder_as_any_model(home, name):
    """Perplexity, KL to the teacher, Rouge-L of its own answers, bytes and speed."""
    line = ("--data", "test.jsonl", "--teacher", "model", "--metric", "perplexity,kl_to_teacher,rougeL", "--edge",
            "--max-new-tokens", "4", "--set", "edge.new_tokens=4", "--set", "edge.prompt_tokens=8",
            "--set", "edge.repeats=1", "--device", "cpu")  # fmt: skip
    answer = kd("eval", name, *line, "-o", f"eval-{name}", folder=home)
    assert answer.code == 0, answer.err
    found = read_results(home / f"eval-{name}")
    other, losses = weights_as_written(home, name), []
    for ids, start in sequences(home, 40):
        with torch.no_grad():
            logs = other(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses += [-logs[place, ids[place + 1]].item() for place in range(start - 1, len(ids) - 1)]
    assert found.estimates["perplexity"].mean == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)
    assert found.estimates["kl_to_teacher"].mean > 0
    assert 0 <= found.estimates["rougeL"].mean <= 100
    assert found.edge.disk_bytes == about(home / name)["bytes"]
    assert found.edge.bytes_by_dtype == about(home / name)["bytes_by_type"]
    assert found.edge.tokens_per_second > 0
    assert TARGETS[name] in found.edge.hardware


def test_an_export_is_a_line_beside_the_run_it_was_made_of(home):
    """A run is exported on its own held-out rows, and compared with its exports."""
    run = ("distill", "--teacher", "model", "--student", "random:layers=1,width=32,heads=2", "--data", "test.jsonl",
           "--eval-data", "test.jsonl", "--loss", "fkl", "--max-steps", "2", "--metric", "perplexity,kl_to_teacher",
           "--device", "cpu", "-o", "run")  # fmt: skip
    assert kd(*run, folder=home).code == 0
    made = kd("export", "run", "--to", "gguf:q4_0", "-o", "run-q4", folder=home)
    assert made.code == 0, made.err
    assert about(home / "run-q4")["difference"]["rows"] == 32
    found = kd("compare", "run", "run-q4", "--json", folder=home)
    assert found.code == 0, found.err
    table = json.loads(found.out)
    lines = {one["label"]: one for one in table["references"]}
    assert {"student, before", "teacher", "run-q4"} <= lines.keys()
    assert "perplexity" in lines["run-q4"]["scores"]


def test_the_same_line_gives_the_same_bytes_and_leaves_what_is_there(home):
    before = (home / "eight" / "manifest.json").read_bytes()
    again = kd("export", "model", "--to", "gguf:q8_0", *ROWS, "-o", "eight", folder=home)
    assert "it was there already: eight" in again.out
    assert kd("export", "model", "--to", "gguf:q8_0", *ROWS, "-o", "twin", folder=home).code == 0
    assert before == (home / "eight" / "manifest.json").read_bytes() == (home / "twin" / "manifest.json").read_bytes()


def test_damage_is_found_before_a_number_is_given(home, tmp_path):
    shutil.copytree(home / "eight", tmp_path / "eight")
    flip(tmp_path / "eight" / "model.gguf", 80_000)
    for name in ("model", "test.jsonl"):
        (tmp_path / name).symlink_to(home / name)
    measured = kd("eval", "eight", *ROWS, "--metric", "perplexity", "--device", "cpu", folder=tmp_path)
    assert measured.code == 6
    assert "model.gguf" in measured.error_lines[0]
    assert kd("export", "model", "--to", "gguf:q8_0", *ROWS, "-o", "eight", folder=tmp_path).code == 6


def test_a_dry_run_writes_nothing_and_json_is_of_its_schema(home):
    jsonschema = pytest.importorskip("jsonschema")
    for more in (("--dry-run",), ("-o", "eight")):
        found = json.loads(kd("export", "model", "--to", "gguf:q8_0", *ROWS, *more, "--json", folder=home).out)
        assert found["kind"] == "export"
        jsonschema.Draft202012Validator(output_schema()).validate(found)
        assert (found["folder"], found["difference"] is None) == (
            (None, True) if more[0] == "--dry-run" else ("eight", False)
        )


def test_a_half_of_a_layer_that_is_left_out_is_zero_in_the_file(home):
    made = kd("student", "cut:skip_mlp=last:1", "--teacher", "model", "-o", "cut", folder=home)
    assert made.code == 0, made.err
    for target, name in (("gguf", "cut-gguf"), ("safetensors:int8", "cut-int8")):
        answer = kd("export", "cut", "--to", target, *ROWS, "-o", name, folder=home)
        assert answer.code == 0, answer.err
    assert about(home / "cut-gguf")["difference"]["largest_logit_gap"] == 0
    plain = AutoModelForCausalLM.from_pretrained(home / "cut-gguf", gguf_file="model.gguf")
    assert not plain.state_dict()["model.layers.1.mlp.down_proj.weight"].any()


WRONG = [
    ("export model -o x", 2, "CLI-20]: --to is missing"),
    ("export --to gguf --data test.jsonl -o x", 2, "CLI-20"),
    ("export model --to gguf --data test.jsonl", 2, "--output is missing"),
    ("export model --to tflite --data test.jsonl -o x", 2, 'EXPORT-01]: --to: "tflite" is no format'),
    ("export model --to gguf:q5_k --data test.jsonl -o x", 2, "EXPORT-01]: --to: gguf has no quantizer q5_k"),
    ("export model --to onnx:q8_0 --data test.jsonl -o x", 2, "EXPORT-01]: --to: onnx has no quantizer q8_0"),
    ("export model --to safetensors --data test.jsonl -o x", 2, "names no quantizer"),
    ("export model --to gguf: --data test.jsonl -o x", 2, "names no quantizer"),
    ("export nowhere --to gguf --data test.jsonl -o x", 3, "MOD-01"),
    ("export . --to gguf --data test.jsonl -o x", 3, "MOD-01"),
    ("export model --to gguf -o x", 2, "EXPORT-07]: --data: no rows to measure"),
    ("export model --to gguf --data none.jsonl -o x", 3, "none.jsonl"),
    ("export mistral --to gguf --data test.jsonl -o x", 3, "EXPORT-03"),
    ("export words --to gguf --data test.jsonl -o x", 3, "EXPORT-04"),
    ("export gpt2 --to safetensors:int8 --data test.jsonl -o x", 3, "EXPORT-03"),
    ("export eight --to gguf --data test.jsonl -o x", 3, "EXPORT-06]: eight: the folder holds an export, gguf:q8_0"),
    ("export model --to gguf:q8_0 --data test.jsonl -o model", 3, "EXPORT-08]: model: the folder holds something else"),
    ("export model --to gguf:q8_0 --data test.jsonl -o four", 3, "EXPORT-08]: four: the folder holds another export"),
    ("export adapter --to gguf --data test.jsonl -o x", 3, "MOD-23"),
    ("distill --student eight --data test.jsonl --loss ce -o x", 3, "EXPORT-06"),
    ("distill --student model --teacher eight --data test.jsonl --loss fkl -o x", 3, "EXPORT-06"),
    ("student cut:layers=1 --teacher int8 -o x", 3, "EXPORT-06"),
]


@pytest.mark.parametrize("line, code, says", WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_lines_end_in_one_line(home, line, code, says):
    if "adapter" in line and not (home / "adapter").exists():
        (home / "adapter").mkdir()
        (home / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    answer = kd(*line.split(), folder=home)
    (said,) = answer.error_lines
    assert says in said
    assert ". Fix: " in said
    assert answer.code == code
    assert answer.out == ""
    assert not (home / "x").exists()


@pytest.mark.parametrize(
    "target, module, extra", [("gguf:q4_0", "gguf", "gguf"), ("safetensors:int8", "torchao", "quant")]
)
def test_a_missing_library_is_told_before_a_model_is_looked_at(home, monkeypatch, target, module, extra):
    real = targets.importlib.util.find_spec
    monkeypatch.setattr(
        targets.importlib.util, "find_spec", lambda name, *rest: None if name == module else real(name, *rest)
    )
    name = next(name for name, one in TARGETS.items() if one == target)
    lines = (["export", "words", "--to", target, "-o", "x"], ["eval", name, "--metric", "perplexity"])
    for line in lines:
        found = kd(*line, *ROWS, folder=home)
        (said,) = found.error_lines
        assert f"EXPORT-02]: --to {target}: {module} is not installed" in said
        assert said.endswith(f"Fix: pip install 'kdcli[{extra}]'")
        assert found.code == 4


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_each_library_of_a_target_is_named(monkeypatch, module):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(
        MachineError, match=rf"EXPORT-02.*: {module} is not installed. Fix: pip install 'kdcli\[onnx\]'"
    ):
        targets.check_libraries(targets.parse_target("onnx:int4"))


def test_weights_that_are_not_numbers_are_refused(home, tmp_path):
    shutil.copytree(home / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "test.jsonl").symlink_to(home / "test.jsonl")
    answer = kd("export", "model", "--to", "gguf", *ROWS, "-o", "x", folder=tmp_path)
    assert (answer.code, "MOD-09" in answer.err) == (3, True)
    assert not (tmp_path / "x").exists()


def test_a_model_read_back_is_the_model(home):
    """What kd loads of an unrounded file is what it loads of the source, bit for bit."""
    from kdcli.exports.folder import load_export

    ids = torch.tensor([next(sequences(home, 1))[0]])
    first = load_model(str(home / "model"), device=torch.device("cpu"), role="teacher")
    second = load_export(str(home / "whole"), torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(first.model(ids).logits, second.model(ids).logits)
    assert about(home / "whole")["difference"]["largest_logit_gap"] == 0
    assert first.ends == second.ends


@pytest.mark.full
def test_the_page_can_be_followed(home, tmp_path):
    """Every command of docs/export.md, in order, on a small teacher."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("kd ")]
    assert len(commands) >= 4
    (tmp_path / "T").symlink_to(home / "model")
    exported.folder(tmp_path / "S", seed=3)
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).symlink_to(home / "test.jsonl")
    short = {"distill": ("--max-steps", "1", "--metric", "perplexity"), "eval": ("--max-new-tokens", "4")}
    edge = [word for name in ("new_tokens=4", "prompt_tokens=8", "repeats=1") for word in ("--set", f"edge.{name}")]
    for words in commands:
        device = () if words[0] == "compare" else ("--device", "cpu")
        answer = kd(*words, *short.get(words[0], ()), *device, *(edge if words[0] == "eval" else ()), folder=tmp_path)
        assert answer.code == 0, (words, answer.err)
    assert "akl-q8" in answer.out
