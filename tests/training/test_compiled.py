"""Compiled layers: the same gradients, the same run after a kill, and one line where it cannot be had.

Inductor's own code takes a C++ compiler and half a minute; here the road is the same up to the traced layers, which
then run as they are (traced) or differentiated ahead of time, as inductor's are (ahead).
"""

import itertools
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

import running
import tiny
from kdcli.config.schema import HardwareConfig, LoraConfig
from kdcli.data.batching import collate
from kdcli.errors import InterruptedRunError, MachineError
from kdcli.losses.build import build_objective
from kdcli.models.adapters import attach, quantize
from kdcli.models.load import assemble
from kdcli.models.toolchain import check_toolchain
from kdcli.teachers.base import LiveTeacher
from kdcli.training import compile
from kdcli.training.compile import CompiledLayers
from kdcli.training.step import DistillStep
from kdcli.training.trainer import train


class Counted:
    """A backend that counts how much code was made, and how often it ran."""

    def __init__(self) -> None:
        self.made = self.ran = 0
        self.ahead = False

    def __call__(self, graph, inputs, **options):
        self.made += 1
        code = aot_eager(graph, inputs, **options) if self.ahead else graph.forward

        def run(*given):
            self.ran += 1
            return code(*given)

        return run


@pytest.fixture
def backend(monkeypatch):
    torch.compiler.reset()
    found = Counted()
    monkeypatch.setattr(compile, "BACKEND", found)
    yield found
    torch.compiler.reset()


def exact(folder, on, **settings):
    student, teacher = running.exact_pair()
    made = running.training(folder, "0.5*ce+0.5*akl", student=student, teacher=teacher, **settings)
    return replace(made, hardware=HardwareConfig.model_validate({"device": "cpu", "compile": on}))


@pytest.mark.parametrize("ahead", [False, True], ids=["traced", "ahead"])
def test_a_compiled_run_is_the_run(tmp_path, backend, ahead):
    backend.ahead = ahead
    plain, other = (exact(tmp_path / str(on), on, max_steps=3) for on in (False, True))
    train(plain)
    assert backend.ran == 0
    train(other)
    assert backend.made >= 4
    for name, value in running.weights(plain).items():
        torch.testing.assert_close(running.weights(other)[name], value, rtol=0, atol=1e-10)


def test_every_step_runs_compiled_code_and_makes_none(tmp_path, backend):
    made = exact(tmp_path / "run", True, max_steps=8, batch_size=3, micro_tokens=16)
    windows, window = made.windows, made.windows.window
    counts, sizes = [], set()

    def asked(step):
        counts.append((backend.made, backend.ran))
        batches = window(step)
        sizes.update(tuple(batch.input_ids.shape) for batch in batches)
        return batches

    windows.window = asked
    train(made)
    assert len(sizes) > 3
    assert {one[0] for one in counts} == {counts[0][0]}
    layers = 2 * made.student.model.config.n_layer
    assert all(after[1] - before[1] >= layers for before, after in itertools.pairwise(counts))
    assert "forward" not in vars(made.student.model.transformer.h[0])


def test_a_compiled_run_goes_on_after_an_interruption_bit_for_bit(tmp_path, backend):
    settings = {"max_steps": 6, "save_every": 1, "batch_size": 3, "micro_tokens": 16}
    whole = exact(tmp_path / "whole", True, **settings)
    train(whole)

    def stopping(event):
        if event.kind == "progress" and event.done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError):
        train(exact(tmp_path / "cut", True, report=stopping, **settings))
    torch.compiler.reset()
    rest = exact(tmp_path / "cut", True, **settings)
    train(rest)
    assert running.same(running.weights(whole), running.weights(rest))
    assert running.metrics(tmp_path / "whole") == running.metrics(tmp_path / "cut")


def gradients(student, teacher, spec, on, *, checkpointing=False):
    """Gradients of one micro-batch with dropout drawn from a seed."""
    student.model.train()
    if checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    step = DistillStep(student, LiveTeacher(teacher), build_objective(spec), vocab=running.VOCAB)
    layers = CompiledLayers([student.model, teacher.model]) if on else None
    if layers:
        layers.prepare(lambda batch: step.rehearse(batch, teacher=True), 64, torch.device("cpu"))
        step.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    batch = collate(running.dataset(4).examples, [0, 1, 2, 3], 0)
    if layers is None:
        step(batch, 20)[0].backward()
    else:
        with layers.at_work():
            step(batch, 20)[0].backward()
    return {name: one.grad for name, one in step.named_parameters() if one.grad is not None}


def adapted(dropout):
    student = running.model("student", seed=1)
    wrapped = attach(student.model, LoraConfig(rank=2, dropout=dropout), seed=3, name="base")
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    return replace(student, adapter=wrapped)


def rounded():
    model = tiny.model("llama", seed=2)
    assert quantize(model, "int8", torch.device("cpu"))
    return assemble(model, tiny.tokenizer(), "teacher", "digest", device=torch.device("cpu"), role="teacher")


CASES = {
    "llama": lambda: (running.model("student", seed=1), running.model("teacher", seed=2), "fkl", False),
    "gpt2-recomputed": lambda: (
        running.model("student", seed=1, family="gpt2", embd_pdrop=0.1, resid_pdrop=0.1),
        running.model("teacher", seed=2), "fkl", True,
    ),
    "lora-recomputed": lambda: (adapted(0.2), running.model("teacher", seed=2), "fkl", True),
    "int8-teacher": lambda: (running.model("student", seed=1), rounded(), "fkl", False),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_compiled_layers_give_the_gradients_of_the_layers(backend, case):
    student, teacher, spec, checkpointing = CASES[case]()
    plain = gradients(student, teacher, spec, False, checkpointing=checkpointing)
    assert backend.ran == 0
    student, teacher, spec, checkpointing = CASES[case]()
    other = gradients(student, teacher, spec, True, checkpointing=checkpointing)
    assert backend.ran > 0
    assert plain.keys() == other.keys()
    assert any(one.abs().max() > 0 for one in plain.values())
    for name, one in plain.items():
        torch.testing.assert_close(other[name], one, rtol=1e-5, atol=1e-7)


def test_layers_that_cannot_be_compiled_are_refused_in_one_line(tmp_path, backend, monkeypatch):
    made = exact(tmp_path / "run", True, max_steps=2)
    block = type(made.student.model.transformer.h[0].mlp)
    monkeypatch.setattr(block, "forward", lambda self, x: x * os.getpid() * float(x.sum() > 0))
    with pytest.raises(MachineError, match=r"COMPILE-02.*GPT2Block cannot be compiled: [^\n]*$"):
        train(made)


def test_a_model_without_known_layers_is_refused(backend):
    model = tiny.model("llama")
    model.model.layers = model.model.layers[:1]
    with pytest.raises(MachineError, match=r"COMPILE-02.*LlamaForCausalLM cannot be compiled: its layers"):
        CompiledLayers([model])


def test_without_a_compiler_nothing_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(MachineError, match=r"COMPILE-01.*there is no C\+\+ compiler"):
        check_toolchain("cpu")


def test_a_compiler_that_fails_is_told_apart(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'probe.cpp:1:10: fatal error: Python.h: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(MachineError, match=r"COMPILE-01.*cannot compile: .*Python.h: No such file"):
        check_toolchain("cpu")


def test_a_gpu_asks_for_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"COMPILE-01.*triton is not installed"):
        check_toolchain("cuda")
