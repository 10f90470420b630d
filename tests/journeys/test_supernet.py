"""From a teacher to a supernet, and from it to a folder of one size."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

import sliced
import tiny
from kdcli.config.schema import SupernetConfig
from kdcli.config.sections import DataConfig, HardwareConfig, SupernetSettings, TrainConfig
from kdcli.distill.run import distill
from kdcli.events import silent
from kdcli.models.family_layout import form_of
from kdcli.models.load import load_model
from kdcli.students.palette import Size, palette_of
from kdcli.students.supernet import SharedSlice
from shell import kd

CPU = torch.device("cpu")
LINE = "supernet --teacher teacher --data train.jsonl --depths 0.333,1 --max-steps 3 --device cpu"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("supernet")
    sliced.folder(root / "teacher", "llama", seed=1)
    tiny.folder(root / "other", seed=1)
    tiny.rows(root / "train.jsonl", 12)
    tiny.rows(root / "test.jsonl", 4)
    for loss, name in (("fkl", "SN"), ("rkl", "second")):
        measured = ("--eval-data", "test.jsonl", "--metric", "perplexity", "--loss", loss, "-o", name)
        answer = kd(*LINE.split(), *measured, folder=root)
        assert answer.code == 0, answer.err
        assert answer.out.rstrip().endswith(f"{name}/model")
    return root


def test_a_picked_size_has_the_logits_of_the_supernet_in_that_size_bit_for_bit(home):
    whole = load_model(str(home / "SN" / "model"), device=CPU, role="student")
    palette, form = palette_of(whole.model.config, "SN"), form_of(whole.model.config, "SN")
    ids, mask = sliced.ids(), torch.ones_like(sliced.ids())
    weights = dict(whole.model.named_parameters())
    for number, size in enumerate(palette.sizes):
        answer = kd("student", "SN", "--pick", str(size).replace("333333", "333"), "-o", f"size{number}", folder=home)
        assert answer.code == 0, answer.err
        made = load_model(str(home / f"size{number}"), device=CPU, role="student")
        with torch.no_grad():
            shared = SharedSlice(whole, palette.kept(size, form))
            here = shared.run(weights, lambda model: model.current_head().logits(model.hidden(ids, mask), model.vocab))
            assert torch.equal(made.logits(made.hidden(ids, mask)), here)
            plain = AutoModelForCausalLM.from_pretrained(home / f"size{number}", dtype=torch.float32).eval()
            assert torch.allclose(plain(ids).logits[..., : made.vocab], here, atol=1e-5)
        assert f"parameters  {sum(one.numel() for one in plain.parameters()):,} of " in answer.out


def test_the_folder_of_a_size_says_where_it_comes_from(home):
    assert kd("student", "SN", "--pick", "params<=4000", "-o", "small", folder=home).code == 0
    origin = json.loads((home / "small" / "origin.json").read_text())
    assert origin["teacher"]["name"] == "SN"
    assert len(origin["teacher"]["sha256"]) == 64
    assert origin["parameters"][1] <= 4000
    card = (home / "small" / "README.md").read_text()
    assert "One size of a supernet that kd trained." in card
    assert "| supernet | SN |" in card
    settings = json.loads((home / "small" / "config.json").read_text())
    assert "kd_supernet" not in settings
    answer = kd("student", "SN", "--pick", "params<=4000", "-o", "small", folder=home)
    assert "it was there already: small" in answer.out
    assert kd("student", "SN", "--pick", "width=1", "-o", "small", folder=home).code == 3
    line = "distill --teacher teacher --student small --data train.jsonl --max-steps 1 --device cpu -o again"
    assert kd(*line.split(), folder=home).code == 0


def test_a_plan_of_a_pick_writes_nothing(home):
    found = json.loads(kd("student", "SN", "--pick", "width=0.5", "--dry-run", "--json", folder=home).out)
    assert found["folder"] is None
    assert found["student"] == "the size width=0.5,depth=1"
    assert found["parameters"][1] < found["parameters"][0]


def test_the_same_line_again_is_done_and_other_settings_are_refused(home):
    again = [*LINE.split(), "--eval-data", "test.jsonl", "--metric", "perplexity", "-o", "SN"]
    assert kd(*again, folder=home).code == 0
    answer = kd(*again, "--gamma", "1", folder=home)
    assert answer.code == 8
    assert "RUN-08" in answer.err
    assert "student was 'supernet:widths=0.5+1,depths=0.333+1 of" in answer.err


WRONG = [
    (f"{LINE} --widths 0.5 -o x", 2, "SUP-01"),
    (f"{LINE} --widths 0.25,1 -o x", 2, "2 query heads share keys and values, and stay or go together"),
    (f"{LINE} --by influence -o x", 2, 'by="influence" is not known'),
    (f"{LINE} --rank 4 -o x", 2, "CLI-09]: --rank: has no effect where all weights are trained"),
    (f"{LINE} --metric ece -o x", 2, "CLI-09]: --metric: has no effect without held-out rows"),
    (f"{LINE} --update low-rank --set train.keep_zeros=true -o x", 2, "low-rank pairs are added to weights that are 0"),
    (f"{LINE} --loss ce -o x", 2, "SUP-06"),
    (f"{LINE} --loss atkd -o x", 2, "atkd looks at the largest size's logits twice"),
    (f"{LINE} --loss hidden -o x", 2, "hidden compares layers of two models"),
    (f"{LINE} --loss jsd@student -o x", 2, "jsd@student trains on sequences that models write"),
    (f"{LINE} --set hardware.gpus=2 -o x", 2, "one process trains all sizes"),
    (f"{LINE} --set hardware.compile=true -o x", 2, "compiled layers have one size"),
    (f"{LINE} --set train.gradient_checkpointing=true -o x", 2, "a smaller size has no weights any more when"),
    ("supernet --data train.jsonl -o x", 2, "CLI-20]: --teacher is missing"),
    ("supernet --teacher teacher -o x", 2, "CLI-20]: --data is missing"),
    (f"{LINE}", 2, "CLI-20]: --output is missing"),
    (f"{LINE} --teacher nowhere -o x", 3, "MOD-01"),
    ("student SN --pick params<=10 -o x", 2, "SUP-03]: SN: no size has at most 10 parameters; the smallest has"),
    ("student SN --pick width=0.9 -o x", 2, "the supernet has no such size"),
    ("student SN --pick heads=1 -o x", 2, '"heads=1" is not params<=N, width=X or depth=X'),
    ("student SN --pick width=1 --teacher teacher -o x", 2, "CLI-09]: --teacher: has no effect on a size"),
    ("student teacher --pick width=1 -o x", 3, "SUP-04]: teacher: the model has one size alone"),
    ("student --pick width=1 -o x", 2, "CLI-20]: --pick: a size is picked from a supernet that was trained"),
    ("student cut:layers=1 --pick width=1 -o x", 2, "CLI-20]: --pick: a size is picked from a supernet"),
    ("student supernet:widths=0.5+1 --teacher teacher -o x", 2, "SUP-05"),
    ("plan --teacher teacher --student supernet:widths=0.5+1 --data train.jsonl", 2, "a plan knows the cost of one"),
    (
        "compare fkl rkl --teacher teacher --student supernet:widths=0.5+1 --data train.jsonl --eval-data test.jsonl "
        "-o x", 2, "SUP-05",
    ),
    ("compare SN second", 2, "the run trained several sizes, whose cost is not that of one"),
    ("distill --student supernet:widths=0.5+1 --data train.jsonl --loss ce -o x", 2, "a supernet student takes its"),
    ("distill --teacher teacher+other --student supernet:widths=0.5+1 --data train.jsonl -o x", 2, "of one teacher"),
    (
        "distill --teacher teacher --student supernet:widths=0.5+1 --data train.jsonl --lora 2 -o x",
        2, "an adapter has the form of one size",
    ),
    (
        "distill --teacher teacher --student supernet:widths=0.5+1,update=low-rank --data train.jsonl -o x "
        "--set data.dev_share=0.3 --set monitor.every=1 --set monitor.metrics=perplexity",
        2, "an evaluation while training would not see the low-rank pairs",
    ),
]  # fmt: skip


@pytest.mark.parametrize("line,code,message", WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_lines_end_in_one_line(home, line, code, message):
    answer = kd(*line.split(), folder=home)
    (said,) = answer.error_lines
    assert message in said
    assert ". Fix: " in said
    assert answer.code == code
    assert not (home / "x").exists()


def settings(home, name, update="full"):
    return SupernetConfig(
        teacher=str(home / "teacher"), supernet=SupernetSettings(depths=(0.333, 1.0), update=update),
        data=DataConfig(train=str(home / "train.jsonl")), train=TrainConfig(max_steps=4, save_every=1),
        hardware=HardwareConfig(device="cpu"), output=str(home / name),
    ).training  # fmt: skip


class Cut(BaseException):
    pass


@pytest.mark.parametrize("update", ["full", pytest.param("low-rank", marks=pytest.mark.full)])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(home, update):
    def stop(event):
        if event.kind == "saved" and event.done == 2:
            raise Cut

    distill(settings(home, f"whole-{update}", update), silent)
    with pytest.raises(Cut):
        distill(settings(home, f"cut-{update}", update), stop)
    distill(settings(home, f"cut-{update}", update), silent)
    weights = [home / f"{name}-{update}" / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert weights[0].read_bytes() != (home / "teacher" / "model.safetensors").read_bytes()


@pytest.mark.full
def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(home):
    line = [*shlex.split(LINE.replace("--max-steps 3", "--max-steps 6")), "--set", "train.save_every=1"]
    assert kd(*line, "-o", "never-killed", folder=home).code == 0
    command = [sys.executable, "-m", "kdcli", *line, "-o", "killed"]
    marks = [home / "killed" / name for name in ("manifest.json", "checkpoint-00000001", "checkpoint-00000004")]
    for mark in marks:
        process = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not mark.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (home / "killed" / "model").exists() or process.returncode == 0
    assert subprocess.run(command, cwd=home, env=os.environ, check=False).returncode == 0
    names = [{path.name for path in (home / name).iterdir()} for name in ("never-killed", "killed")]
    assert names[0] == names[1]
    weights = [(home / name / "model" / "model.safetensors").read_bytes() for name in ("never-killed", "killed")]
    assert weights[0] == weights[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdcli", "student", "killed", "--pick", "width=0.5", "-o", "picked"], cwd=home,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not any(home.glob(".tmp-*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (home / "picked").exists():
        assert kd("student", "killed", "--pick", "width=0.5", "-o", "picked", folder=home).code == 0
    assert not any(home.glob(".tmp-*"))
    assert palette_of(load_model(str(home / "killed" / "model"), device=CPU, role="student").model.config, "SN")
    with pytest.raises(Exception, match="SUP-04"):
        palette_of(load_model(str(home / "picked"), device=CPU, role="student").model.config, "S")


def test_sizes_are_the_shares_that_were_asked_for(home):
    whole = load_model(str(home / "SN" / "model"), device=CPU, role="student")
    assert palette_of(whole.model.config, "SN").sizes == (
        Size(0.5, 1 / 3), Size(0.5, 1.0), Size(1.0, 1 / 3), Size(1.0, 1.0)
    )  # fmt: skip
