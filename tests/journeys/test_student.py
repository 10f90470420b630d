"""From a teacher to a student that is cut out of it, alone and as a contender."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sliced
import tiny
from kdcli.config.schema import DataConfig, DistillConfig, EvalSettings, HardwareConfig, TrainConfig
from kdcli.distill.make_student import ORIGIN
from kdcli.distill.run import distill
from kdcli.events import Event, silent
from kdcli.models.checks import model_digest, open_folder
from kdcli.models.load import load_model
from kdcli.text import markdown_cell
from shell import kd


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("student")
    sliced.folder(root / "teacher", "llama", seed=1)
    sliced.folder(root / "gpt2", "gpt2", seed=1)
    tiny.rows(root / "train.jsonl", 12)
    tiny.rows(root / "test.jsonl", 4)
    return root


SPEC = "cut:layers=2,heads=2,ffn=16,width=12,by=taylor"


@pytest.fixture(scope="module")
def made(home):
    answer = kd("student", SPEC, "--teacher", "teacher", "--data", "train.jsonl", "-o", "student", folder=home)
    assert answer.code == 0, answer.err
    return home / "student", answer


def test_it_says_what_was_made(made):
    folder, answer = made
    assert "layers      2 of 3" in answer.out
    assert "KV heads    1 of 2" in answer.out
    assert answer.out.rstrip().endswith("student")
    origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    teacher = model_digest(open_folder(str(folder.parent / "teacher")))
    assert origin["teacher"] == {"name": "teacher", "sha256": teacher}
    assert origin["student"] == SPEC
    assert [len(one) for one in origin["kept"]["ffn"]] == [16, 16]
    assert len(origin["scores"]["ffn"]["values"]) == 3
    assert origin["scores"]["layers"]["by"] == "taylor"
    assert origin["parameters"][1] == sum(one.numel() for one in load_file(folder / "model.safetensors").values())
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert teacher in card
    assert "| layer | score (taylor) |" in card
    assert "| ffn, layer " in card
    assert f"Layers that stayed: {', '.join(map(str, origin['kept']['layers']))}." in card


def test_it_loads_where_there_is_no_kd(made, home, tmp_path):
    """In a process that cannot import kdcli, with plain transformers: the same logits, the same tokens."""
    folder, _ = made
    other = kd("student", "cut:width=8,ffn=10", "--teacher", "gpt2", "-o", "small", folder=home)
    assert other.code == 0, other.err
    code = """
        import sys
        sys.modules["kdcli"] = None
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer
        found = {}
        for name in sys.argv[2:]:
            model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
            assert not any(info.values()), info
            ids = torch.tensor([AutoTokenizer.from_pretrained(name)("say a: aaaa.")["input_ids"]])
            with torch.no_grad():
                found[name.rpartition("/")[2]] = model.eval()(ids).logits
        save_file(found, sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "logits"), str(folder), str(home / "small")]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)
    there = load_file(tmp_path / "logits")
    for name in ("student", "small"):
        model = load_model(str(home / name), device=torch.device("cpu"), role="teacher")
        ids = torch.tensor([model.tokenizer("say a: aaaa.")["input_ids"]])
        with torch.no_grad():
            assert torch.allclose(there[name], model.model(ids).logits, atol=1e-5)
    assert load_file(home / "small" / "model.safetensors")["transformer.wte.weight"].shape == (len(tiny.WORDS), 8)


def test_the_same_line_gives_the_same_bytes_and_leaves_what_is_there(made, home):
    folder, _ = made
    before = (folder / "manifest.json").read_bytes()
    line = ("student", SPEC, "--teacher", "teacher", "--data", "train.jsonl")
    again = kd(*line, "-o", "student", folder=home)
    assert again.code == 0
    assert "it was there already" in again.out
    assert kd(*line, "-o", "twin", folder=home).code == 0
    assert (home / "twin" / "manifest.json").read_bytes() == before == (folder / "manifest.json").read_bytes()


def test_a_random_student_can_be_written_too(home):
    answer = kd("student", "random:layers=1,width=8,heads=2", "--teacher", "teacher", "--seed", "3", "-o", "random",
                folder=home)  # fmt: skip
    assert answer.code == 0, answer.err
    assert "Weights are random, of seed 3." in (home / "random" / "README.md").read_text(encoding="utf-8")
    assert (
        kd("student", "random:layers=1,width=8,heads=2", "--teacher", "teacher", "-o", "random", folder=home).code == 3
    )


@pytest.mark.parametrize("teacher, method", [("teacher", "sparsegpt"), ("gpt2", "wanda"), ("gpt2", "magnitude")])
def test_a_sparse_student_says_how_it_was_pruned(home, teacher, method):
    """The share is in the file, in origin.json, on the card and on the screen; cuts of sizes come first."""
    name, rows = f"{teacher}-{method}", () if method == "magnitude" else ("--data", "train.jsonl")
    line = ("student", f"cut:layers=2,ffn=16,sparse=0.5,method={method},pattern=2:4", "--teacher", teacher, *rows)
    answer = kd(*line, "-o", name, folder=home)
    assert answer.code == 0, answer.err
    origin = json.loads((home / name / ORIGIN).read_text(encoding="utf-8"))
    told, state = origin["sparsity"], load_file(home / name / "model.safetensors")
    assert (told["share"], told["method"], told["pattern"], told["zeros"]) == (0.5, method, "2:4", 0.5)
    assert len(told["layers"]) == (14 if teacher == "teacher" else 8)
    for one in told["layers"]:
        weight = state[f"{one['name']}.weight"]
        assert one["zeros"] == int((weight == 0).sum()) == one["weights"] // 2
        assert 0 < one["error"] < 1
    pruned = {f"{one['name']}.weight" for one in told["layers"]}
    assert all(value.all() for key, value in state.items() if key not in pruned)
    file = (home / name / "model.safetensors").read_bytes()
    assert told["disk_bytes"] == len(file)
    assert told["compressed_bytes"] == len(zlib.compress(file, 6))
    assert told["error_of"] == ("weights" if method == "magnitude" else "outputs")
    assert "zeros       50.0% of the weights of its linear layers" in answer.out
    assert f"on disk     {len(file):,} bytes, {told['compressed_bytes']:,} after zlib" in answer.out
    card = (home / name / "README.md").read_text(encoding="utf-8")
    assert f"Pruned by {method}, 2:4: 50.0% of the weights of these linear layers are 0." in card
    assert f"| {markdown_cell(told['layers'][0]['name'])} |" in card
    again = json.loads(kd(*line, "-o", name, "--json", folder=home).out)
    assert (again["already"], again["zeros"], again["compressed_bytes"]) == (True, 0.5, told["compressed_bytes"])
    assert kd(*line, "-o", f"{name}-twin", folder=home).code == 0
    assert (home / f"{name}-twin" / "manifest.json").read_bytes() == (home / name / "manifest.json").read_bytes()


def test_a_dry_run_writes_nothing(home):
    found = kd("student", "cut:params=0.5", "--teacher", "teacher", "--dry-run", "--json", folder=home)
    plan = json.loads(found.out)
    assert plan["folder"] is None
    before, after = plan["parameters"]
    assert 0.3 * before < after <= 0.5 * before


WRONG = [
    ("student", 2, "CLI-20]: --teacher is missing"),
    ("student --teacher teacher -o x", 2, "CLI-20]: kd student: no student"),
    ("student teacher --teacher teacher -o x", 2, "says nothing to make"),
    ("student cut:layers=2 --teacher teacher", 2, "--output is missing"),
    ("student cut:layers=2 --teacher nowhere -o x", 3, "MOD-01"),
    ("student cut:layers=2,by=influence --teacher teacher -o x", 2, "CUT-04"),
    ("student cut:sparse=0.5,method=wanda --teacher teacher -o x", 2, "CUT-04]"),
    ("student cut:sparse=0.5 --teacher teacher --data train.jsonl -o x", 2, "leave it out, or choose method=wanda"),
    ("student cut:layers=2,skip_mlp=score:1 --teacher teacher -o x", 2, "skip_mlp=score:1 is measured on rows"),
    ("student cut:sparse=2 --teacher teacher -o x", 2, "CUT-02"),
    ("student cut:sparse=0.5,pattern=2:4,ffn=10 --teacher gpt2 -o x", 2, "CUT-03"),
    ("student cut:layers=2 --teacher teacher --data train.jsonl -o x", 2, "CLI-09]: --data: has no effect"),
    ("student cut:layers=2 --teacher teacher -o teacher", 3, "CUT-05]: teacher: the folder holds something else"),
    ("student cut:layers=2 --teacher teacher -o student", 3, "the folder holds another student"),
    ("student cut:layers=2 --teacher teacher+gpt2 -o x", 2, "a cut student has the weights of one teacher"),
    ("student cut:layers=2 --teacher http://localhost:1/v1 -o x", 2, "a server shows none"),
    ("student cut:heads=3 --teacher teacher -o x", 2, "CUT-03"),
    ("distill --student cut:layers=2 --data train.jsonl --loss ce -o x", 2, "a cut student takes its family"),
]


@pytest.mark.parametrize("line,code,message", WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_lines_end_in_one_line(made, home, line, code, message):
    answer = kd(*line.split(), "--device", "cpu", folder=home)
    (said,) = answer.error_lines
    assert message in said
    assert ". Fix: " in said
    assert answer.code == code
    assert answer.out == ""
    assert not (home / "x").exists()


def test_a_run_that_is_killed_goes_on_with_the_same_student(home):
    """Scores are taken on the training rows, again after a stop; the weights end the same, bit for bit."""
    common = DistillConfig(
        teacher=str(home / "teacher"), student="cut:layers=2,by=influence", loss="akl",
        data=DataConfig(train=str(home / "train.jsonl"), eval=str(home / "test.jsonl")),
        train=TrainConfig(max_steps=3, save_every=1), hardware=HardwareConfig(device="cpu"),
        evaluation=EvalSettings(metrics=("perplexity",)),
    )  # fmt: skip

    class Cut(BaseException):
        pass

    def stop(event: Event) -> None:
        if event.kind == "checkpoint" or event.done == 2:
            raise Cut

    def settings(name):
        return common.model_copy(update={"output": str(home / name)})

    distill(settings("whole"), silent)
    with pytest.raises(Cut):
        distill(settings("stopped"), stop)
    assert not (home / "stopped" / "model").exists()
    distill(settings("stopped"), silent)
    whole, again = (load_file(home / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    identity = json.loads((home / "whole" / "manifest.json").read_text(encoding="utf-8"))["identity"]
    assert identity["student"].startswith("cut:layers=2,by=influence of ")
    assert " on " in identity["student"]
    assert "cut:layers=2,by=influence" in (home / "whole" / "model" / "README.md").read_text(encoding="utf-8")


def test_a_sparse_student_is_trained_with_its_zeros_and_says_so(home):
    """On the spot and from a folder; without the setting the zeros go, and nothing of it is in the run's identity."""
    common = DistillConfig(
        teacher=str(home / "teacher"), student="cut:sparse=0.6,method=wanda,rows=8", loss="fkl",
        data=DataConfig(train=str(home / "train.jsonl")), hardware=HardwareConfig(device="cpu"),
        train=TrainConfig(max_steps=2, keep_zeros=True),
    )  # fmt: skip
    free = common.train.model_copy(update={"keep_zeros": False})
    found = {}
    for name, changed in {"kept": {}, "free": {"train": free}}.items():
        distill(common.model_copy(update={"output": str(home / name), **changed}), silent)
        manifest = json.loads((home / name / "manifest.json").read_text(encoding="utf-8"))
        status = json.loads((home / name / "status.json").read_text(encoding="utf-8"))
        found[name] = manifest["identity"].get("train.keep_zeros"), status["zeros"], "compressed_bytes" in status
    assert found["kept"] == (True, pytest.approx(0.6, abs=0.05), True)
    assert found["free"] == (None, pytest.approx(0.0, abs=0.01), False)
    line = ("--teacher", "teacher", "--student", "kept", "--data", "train.jsonl", "--device", "cpu", "--loss", "fkl")
    refused = kd("distill", *line, "--keep-zeros", "--lora", "2", "-o", "x", folder=home)
    assert "LORA-04]: --keep-zeros: an adapter is added to every weight of a matrix" in refused.error_lines[0]
    planned = kd("plan", *line, "--keep-zeros", "--max-steps", "1", "--json", folder=home)
    assert planned.code == 0, planned.err


def test_zeros_are_costs_where_a_student_has_some(home):
    """In the table of a comparison, in its files, and in what a model costs on this machine."""
    line = ("compare", "fkl", "--seeds", "0", "--teacher", "teacher", "--data", "train.jsonl", "--keep-zeros")
    rest = ("--eval-data", "test.jsonl", "--metric", "perplexity", "--max-steps", "1", "--device", "cpu", "-o", "zeros")
    made = kd(*line, "--vary", "student=cut:sparse=0.5,cut:ffn=16", *rest, "--verbose", folder=home)
    assert made.code == 0, made.err
    rows = json.loads((home / "zeros" / "table.json").read_text(encoding="utf-8"))["rows"]
    assert sorted(row["zeros"] for row in rows) == [0.0, pytest.approx(0.5, abs=0.01)]
    assert all(row["compressed_bytes"] > 1000 for row in rows)
    table = (home / "zeros" / "table.md").read_text(encoding="utf-8")
    assert "zeros | bytes after zlib" in table
    assert "50.0%" in table
    assert "zlib: weights after compression" in made.out
    with (home / "zeros" / "table.csv").open(encoding="utf-8") as file:
        assert {line["zeros"] for line in csv.DictReader(file) if line["role"] == "contender"} >= {"0.0"}
    runs = list((home / "zeros" / "cells").iterdir())
    cells = {json.loads((one / "status.json").read_text(encoding="utf-8"))["zeros"]: one for one in runs}
    short = [f"--set=edge.{name}" for name in ("prompt_tokens=8", "new_tokens=4", "repeats=1")]
    line = ("--edge", "--data", "test.jsonl", "--metric", "perplexity", "--device", "cpu", *short)
    cost = kd("eval", str(cells[max(cells)]), *line, "-o", "edge", folder=home)
    assert cost.code == 0, cost.err
    assert "after zlib" in cost.out
    assert re.search(r"zeros +50\.\d%", cost.out)
    dense = kd("eval", "teacher", *line, "-o", "dense", folder=home)
    assert "zlib" not in dense.out


@pytest.mark.full
def test_the_page_can_be_followed(home, tmp_path):
    """Every command of docs/students.md, in order, on a small teacher."""
    page = (Path(__file__).parents[2] / "docs" / "students.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("kd ")]
    assert len(commands) >= 3
    (tmp_path / "T").symlink_to(home / "teacher")
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).symlink_to(home / name)
    short = {"distill": ("--max-steps", "1", "--device", "cpu", "--metric", "perplexity")}
    for words in commands:
        answer = kd(*words, *short.get(words[0], ()), folder=tmp_path)
        assert answer.code == 0, (words, answer.err)


def test_plan_and_doctor_and_adapters_know_a_cut_student(home):
    spec = "cut:ffn=8,by=activation,sparse=0.5,method=wanda"
    line = ("--teacher", "teacher", "--student", spec, "--data", "train.jsonl", "--device", "cpu")
    planned = kd("plan", *line, "--max-steps", "3", "--lora", "2", "--json", folder=home)
    assert planned.code == 0, planned.err
    facts = json.loads(planned.out)["facts"]
    assert facts["student"]["values"]["model"] == spec
    looked = kd("doctor", *line, folder=home)
    assert "split into layers and head verified" in looked.out
    assert not [text for text in looked.out.splitlines() if text.startswith("fail")]
