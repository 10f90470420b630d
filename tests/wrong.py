"""Builds wrong inputs: each function spoils a folder that holds a teacher, a student and rows."""

import contextlib
import json
import os
import pickle
import shlex
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kdcli.config.resolve import resolve
from kdcli.config.schema import DistillConfig
from kdcli.distill.run import distill
from kdcli.errors import InterruptedRunError
from kdcli.events import Event
from shell import kd
from tiny import WORDS, folder, tokenizer

BUILDERS: dict[str, Callable[[Path], None]] = {}
TRAIN = shlex.split("distill --teacher teacher --student student --data train.jsonl --max-steps 2 --device cpu -o run")


def builder(make: Callable[[Path], None]) -> Callable[[Path], None]:
    BUILDERS[make.__name__] = make
    return make


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def weights(home: Path) -> Path:
    return home / "teacher" / "model.safetensors"


def config(home: Path) -> Path:
    return home / "teacher" / "config.json"


# ---- files


@builder
def strangers_folder(home: Path) -> None:
    (home / "strange").mkdir()
    (home / "strange" / "trainer_state.json").write_text("{}")


@builder
def fifo(home: Path) -> None:
    os.mkfifo(home / "fifo")


@builder
def utf16_config(home: Path) -> None:
    (home / "run.yaml").write_text("loss: fkl", encoding="utf-16")


@builder
def huge_config(home: Path) -> None:
    (home / "run.yaml").write_text("#" * 2_000_000)


@builder
def deep_config(home: Path) -> None:
    (home / "run.yaml").write_text("[" * 100_000)


# ---- rows


@builder
def rows_with_bad_utf8(home: Path) -> None:
    (home / "rows.jsonl").write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff", "completion": "b"}\n')


@builder
def row_of_17_mebibytes(home: Path) -> None:
    (home / "rows.jsonl").write_text(json.dumps({"prompt": "a" * 17 * 2**20, "completion": "b"}) + "\n")


@builder
def zip_archive(home: Path) -> None:
    with zipfile.ZipFile(home / "rows.zip", "w") as archive:
        archive.writestr("rows.jsonl", '{"prompt": "a", "completion": "b"}\n')


@builder
def pickle_file(home: Path) -> None:
    (home / "rows.pkl").write_bytes(pickle.dumps([{"prompt": "a", "completion": "b"}]))


@builder
def folder_with_script(home: Path) -> None:
    (home / "scripted").mkdir()
    (home / "scripted" / "scripted.py").write_text("raise SystemExit('executed')")


@builder
def link_loop(home: Path) -> None:
    (home / "loop.jsonl").symlink_to("loop.jsonl")


@builder
def long_rows(home: Path) -> None:
    (home / "long.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b" * 300}) + "\n")


@builder
def chat_rows(home: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (home / "chat.jsonl").write_text(json.dumps(talk) + "\n")


@builder
def changed_rows(home: Path) -> None:
    with (home / "train.jsonl").open("a") as rows:
        rows.write('{"prompt": "one more", "completion": "b"}\n')


# ---- tokenizers


@builder
def teacher_without_tokenizer(home: Path) -> None:
    for path in (home / "teacher").glob("*token*"):
        path.unlink()


@builder
def truncated_tokenizer(home: Path) -> None:
    path = home / "teacher" / "tokenizer.json"
    path.write_text(path.read_text()[:100])


@builder
def other_tokenizer(home: Path) -> None:
    words = [*WORDS[:4], *reversed(WORDS[4:])]
    tokenizer(words).save_pretrained(home / "student")


@builder
def more_tokens_than_rows(home: Path) -> None:
    for name in ("teacher", "student"):
        tokenizer([*WORDS, "@", "&", "%"]).save_pretrained(home / name)


def chat_template(home: Path, text: str) -> None:
    for name in ("teacher", "student"):
        core = tokenizer()
        core.chat_template = text
        core.save_pretrained(home / name)


@builder
def template_that_reaches_out(home: Path) -> None:
    chat_template(home, "{{ messages.__class__.__mro__[1].__subclasses__() }}")


@builder
def template_that_raises(home: Path) -> None:
    chat_template(home, "{{ raise_exception('roles must alternate') }}")


# ---- model folders


@builder
def no_model_config(home: Path) -> None:
    config(home).unlink()


@builder
def broken_model_config(home: Path) -> None:
    config(home).write_text('{"model_type": ')


@builder
def unknown_model_type(home: Path) -> None:
    edit_json(config(home), model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    (home / "teacher" / "evil.py").write_text("raise SystemExit('executed')")


@builder
def only_pickle_weights(home: Path) -> None:
    weights(home).unlink()
    (home / "teacher" / "pytorch_model.bin").write_bytes(pickle.dumps({}))


@builder
def truncated_weights(home: Path) -> None:
    raw = weights(home).read_bytes()
    weights(home).write_bytes(raw[: len(raw) // 2])


@builder
def nan_weights(home: Path) -> None:
    edit_weights(weights(home), lambda tensors: tensors["model.embed_tokens.weight"][3].fill_(float("nan")))


@builder
def missing_tensor(home: Path) -> None:
    edit_weights(weights(home), lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"))


@builder
def wrong_vocabulary_size(home: Path) -> None:
    edit_json(config(home), vocab_size=len(WORDS) + 1)


@builder
def ten_million_layers(home: Path) -> None:
    edit_json(config(home), num_hidden_layers=10**7)


@builder
def negative_size(home: Path) -> None:
    edit_json(config(home), vocab_size=-5)


@builder
def shard_outside(home: Path) -> None:
    raw = weights(home)
    names = list(load_file(raw))
    raw.rename(home / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (home / "teacher" / "model.safetensors.index.json").write_text(json.dumps(index))


@builder
def quantised(home: Path) -> None:
    edit_json(config(home), quantization_config={"quant_method": "evil"})


@builder
def encoder_decoder(home: Path) -> None:
    edit_json(config(home), model_type="t5", architectures=["T5ForConditionalGeneration"])


# ---- runs


def train(home: Path, *more: str) -> None:
    answer = kd(*TRAIN, "--quiet", *more, folder=home)
    assert answer.code == 0, answer.err


@builder
def finished_run(home: Path) -> None:
    train(home, "--eval-data", "test.jsonl", "--metric", "perplexity")


@builder
def second_run(home: Path) -> None:
    train(home, "--eval-data", "test.jsonl", "--metric", "perplexity", "-o", "other")


@builder
def stopped_run(home: Path) -> None:
    """Stop a run of six steps by a signal after its third, with checkpoints at 2 and 3."""

    def stop(event: Event) -> None:
        if event.kind == "progress" and event.message == "training" and event.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = ["train.max_steps=6", "train.save_every=2", "train.log_every=1", "hardware.device=cpu", "output=run"]
    paths = ["teacher=teacher", "student=student", "data.train=train.jsonl"]
    with contextlib.chdir(home), contextlib.suppress(InterruptedRunError):
        distill(resolve(DistillConfig, sets=[*paths, *settings]), stop)
    assert (home / "run" / "checkpoint-00000003").is_dir()


def cache(home: Path, *more: str) -> None:
    answer = kd("cache", "--teacher", "teacher", "--data", "train.jsonl", "-o", "cache", *more, "--quiet", folder=home)
    assert answer.code == 0, answer.err


@builder
def teacher_cache(home: Path) -> None:
    cache(home, "--device", "cpu")


@builder
def compact_cache(home: Path) -> None:
    cache(home, "--device", "cpu", "--kind", "compact", "--top-k", "4")


@builder
def cache_key_that_is_no_json(home: Path) -> None:
    (home / "cache" / "cache.json").write_text("{")


@builder
def damaged_cache(home: Path) -> None:
    for path in home.glob("cache/shard-*/tokens.safetensors"):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(bytes(raw))


@builder
def other_rows(home: Path) -> None:
    (home / "other.jsonl").write_text('{"prompt": "never", "completion": "seen"}\n' * 3)


@builder
def newer_manifest(home: Path) -> None:
    edit_json(home / "run" / "manifest.json", schema=99)


@builder
def damaged_checkpoints(home: Path) -> None:
    for path in home.glob("run/checkpoint-*/weights.safetensors"):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(bytes(raw))


@builder
def linked_checkpoints(home: Path) -> None:
    (home / "moved").mkdir()
    for path in home.glob("run/checkpoint-*"):
        path.rename(home / "moved" / path.name)
        path.symlink_to(home / "moved" / path.name)


# ---- guests

GUESTS = """
import torch
from kdcli.losses.base import DistillLoss
from kdcli.losses.divergences.base import Divergence

class NotALoss:
    pass

class Scalar(DistillLoss):
    name = "scalar"
    def token_loss(self, tok):
        return tok.student.sum()

class NotFinite(DistillLoss):
    name = "not_finite"
    def token_loss(self, tok):
        return tok.student.sum(-1) * float("nan")
"""


@builder
def guests(home: Path) -> None:
    (home / "guests.py").write_text(GUESTS)


@builder
def broken_guest(home: Path) -> None:
    (home / "broken.py").write_text("import a_package_that_is_not_there")


@builder
def leaving_guest(home: Path) -> None:
    (home / "leaving.py").write_text("import sys; sys.exit(0)")


# ---- evaluation


@builder
def exploding_student(home: Path) -> None:
    """Weights are finite, and so are the logits until the model reads one certain token."""
    shutil.rmtree(home / "student")
    folder(home / "student", "gpt2", seed=2, tie_word_embeddings=False)
    huge = torch.tensor([3e38, -3e38] * 8)
    path = home / "student" / "model.safetensors"
    name, row = "transformer.wte.weight", WORDS.index(":")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][row] = huge

    edit_weights(path, change)


@builder
def other_length(home: Path) -> None:
    (home / "lab.yaml").write_text("data:\n  max_length: 16\ntrain:\n  lr: 1.0\n")
