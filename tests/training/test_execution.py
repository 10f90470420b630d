"""The pass as an accelerator runs it, on a CPU: large blocks, no host reads, compiled formulas, wide products."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch

import running
from kdcli.data.batching import collate
from kdcli.errors import MachineError
from kdcli.losses.base import DistillLoss
from kdcli.losses.build import build_objective
from kdcli.losses.samples import sample, tokens_of, values_and_grad, with_facts
from kdcli.models import execution
from kdcli.models.execution import OnAccelerator, OnCPU, execution_on
from kdcli.models.head import Head
from kdcli.models.packing import Workspace
from kdcli.registry.registry import LOSSES
from kdcli.teachers.base import LiveTeacher
from kdcli.training.fused_loss import FusedInputs, fused_sum
from kdcli.training.step import DistillStep
from two_sides import SEQUENCE, SPECS, VOCAB, gradients, reference, sides, supplied

CPU = torch.device("cpu")
GUEST = f"{Path(__file__).with_name('guests.py')}:Overlap"
NESTED = ["0.5*ce+0.5*akl:mu=0.6", "atkd:hard=jsd,easy=rkl", "ab:alpha=1,beta=-0.5", "truncated:top_k=5,top_p=0.9"]


class Wide(OnAccelerator):
    """Products as CUDA gives them: of bf16 matrices, added up and kept in fp32."""

    def logits_dtype(self, compute):
        return torch.float32 if compute == torch.bfloat16 else compute

    def product_into(self, out, hidden, weight, bias):
        assert hidden.dtype == weight.dtype
        torch.mm(hidden.to(out.dtype), weight.to(out.dtype).T, out=out)
        if bias is not None:
            out += bias

    def add_outer(self, total, grad, hidden):
        assert grad.dtype == torch.bfloat16
        total.addmm_(grad.to(total.dtype).T, hidden.to(grad.dtype).to(total.dtype))


def passed(spec, run, data, *, chunk=4, compute=None):
    loss, (student, teacher, labels, weights) = build_objective(spec), data
    seen = teacher if loss.needs().teacher else None
    space = Workspace(chunk, run)
    work = FusedInputs(
        loss, labels, weights, SEQUENCE, seen, VOCAB, compute or student.hidden.dtype, space, supplied(loss)
    )
    return fused_sum(student, work)


@pytest.mark.parametrize("spec", SPECS)
def test_an_accelerator_s_pass_gives_the_full_logits_sum_and_gradients(spec):
    data = sides(bias=True, softcap=6.0)
    expected = reference(spec, *data)
    total, _ = passed(spec, OnAccelerator(CPU, compiles=False), data)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(gradients(total, data[0]), gradients(expected, data[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def narrow(side):
    hidden, weight = (value.detach().bfloat16().float().requires_grad_() for value in (side.hidden, side.head.weight))
    return type(side)(hidden, Head(weight))


def test_wide_products_of_narrow_matrices_are_not_rounded_before_the_formulas():
    data = student, teacher, labels, weights = sides(torch.float32)
    rounded = narrow(student)
    expected = reference("jsd", rounded, narrow(teacher), labels, weights)
    wide, _ = passed("jsd", Wide(CPU, compiles=False), data, compute=torch.bfloat16)
    once, _ = passed("jsd", OnCPU(), data, compute=torch.bfloat16)
    assert wide.item() == pytest.approx(expected.item(), rel=1e-6)
    assert abs(once.item() - expected.item()) > 1e-4 * expected.item()
    for ours, theirs in zip(gradients(wide, student), gradients(expected, rounded), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 2**-8 * theirs.norm()  # what is multiplied is rounded to bf16


def compiled(spec, tokens=(9, 5, 20)):
    run, loss, head = OnAccelerator(CPU, compiles=True), build_objective(spec), Head(torch.zeros(70, 1))
    for count in tokens:
        data = sample(loss, tokens=count, entries=70)
        tok = tokens_of(loss, with_facts(loss, data))
        parts = run.gradient(loss, tok, head, tok.student)
        expected, slope = values_and_grad(loss, with_facts(loss, data.to(torch.float64)))
        value = torch.stack(list(parts.values())).sum(0).double()
        assert (value - expected).norm() <= 1e-6 * expected.norm()
        assert (tok.student.double() - slope).norm() <= 1e-6 * slope.norm()
    return run


def made_by(run):
    """The compiled code by key."""
    assert run._pointwise is not None
    return run._pointwise._code


def every():
    return [name for name in LOSSES.names() if build_objective(name).needs().logits]


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["fkl", *(pytest.param(spec, marks=pytest.mark.full) for spec in ("akl", "atkd"))])
def test_compiled_formulas_agree_with_float64_at_several_sizes(spec):
    assert compiled(spec).notes == []


@pytest.mark.full
@pytest.mark.parametrize("spec", [*every(), *NESTED, GUEST])
def test_every_compiled_objective_agrees_with_float64(spec):
    changes = spec.startswith(("annealed", "ramp"))
    run = compiled(spec, tokens=(9, 5))
    assert len(run.notes) == (1 if changes else 0), run.notes


@pytest.fixture
def uncompiled(monkeypatch):
    """The road up to the compiler: code is traced with the number of tokens left open, and run as it is."""
    monkeypatch.setattr(torch, "compile", lambda graph, backend: graph)


@pytest.mark.parametrize(
    "spec",
    ["route", GUEST, *(pytest.param(spec, marks=pytest.mark.full) for spec in every() if spec != "route")],
)
def test_traced_code_holds_for_any_number_of_tokens(spec, uncompiled):
    run = compiled(spec)
    if run.notes:
        assert run.notes == [f"{spec} changes over the run, so its pointwise part is not compiled"]
    else:
        assert len(made_by(run)) == 1


class Counting(DistillLoss):
    """A guest whose code holds for one number of tokens: it asks how many there are."""

    name: ClassVar[str] = "counting"

    def token_loss(self, tok):
        return tok.student.square().mean(-1) + torch.zeros(len(tok.labels), device=tok.labels.device)


def test_code_that_asks_for_the_number_of_tokens_is_made_for_each(uncompiled):
    run, loss = OnAccelerator(CPU, compiles=True), Counting()
    for count in (5, 9, 5):
        data = sample(loss, tokens=count)
        tok = tokens_of(loss, data)
        parts = run.gradient(loss, tok, Head(torch.zeros(13, 1)), tok.student)
        value, slope = values_and_grad(loss, data)
        torch.testing.assert_close(parts["counting"], value)
        torch.testing.assert_close(tok.student, slope)
    assert len([code for code in made_by(run).values() if code is not None]) == 2
    assert run.notes == []


@pytest.mark.parametrize("spec", ["jsd", "0.5*ce+0.5*atkd"])
def test_code_is_made_before_the_first_step(spec, uncompiled):
    student, teacher = (running.model(side, seed=seed) for seed, side in enumerate(("student", "teacher")))
    step = DistillStep(student, LiveTeacher(teacher), build_objective(spec), vocab=running.VOCAB, chunk_tokens=7)
    step.workspace.execution = run = OnAccelerator(CPU, compiles=True)
    step.warm(CPU)
    made = list(made_by(run))
    batch = collate(running.dataset(4).examples, [0, 1, 2, 3], 0)
    total, _ = step(batch, 20)
    total.backward()
    assert len(made) == 1
    assert list(made_by(run)) == made
    plain = DistillStep(student, LiveTeacher(teacher), build_objective(spec), vocab=running.VOCAB)
    assert total.item() == pytest.approx(plain(batch, 20)[0].item(), rel=1e-6)


class Curious(DistillLoss):
    """A guest that reads a number on the host."""

    name: ClassVar[str] = "curious"

    def token_loss(self, tok):
        return tok.student.square().mean(-1) * (2.0 if tok.student.max().item() > 1e9 else 1.0)


class Impatient(DistillLoss):
    """A guest that asks how far the run is."""

    name: ClassVar[str] = "impatient"

    def token_loss(self, tok):
        return tok.student.square().mean(-1) * tok.progress


@pytest.mark.parametrize("loss, said", [(Curious(), "curious is not compiled"), (Impatient(), "changes over the run")])
def test_what_cannot_be_compiled_runs_as_it_is_and_one_line_says_so(loss, said):
    run = OnAccelerator(CPU, compiles=True)
    for _ in range(2):
        data = sample(loss, tokens=5)
        tok = tokens_of(loss, data)
        parts = run.gradient(loss, tok, Head(torch.zeros(13, 1)), tok.student)
        value, slope = values_and_grad(loss, data)
        torch.testing.assert_close(parts[loss.name], value)
        torch.testing.assert_close(tok.student, slope)
    assert len(run.notes) == 1
    assert said in run.notes[0]


def test_without_a_compiler_formulas_run_as_they_are_and_one_line_says_so(monkeypatch):
    def refuse(device):
        raise MachineError("COMPILE-01", "triton is not installed", where="hardware.compile", fix="install it")

    monkeypatch.setattr(execution, "check_toolchain", refuse)
    execution_on.cache_clear()
    try:
        run = execution_on(torch.device("meta"))
        assert not run.compiles
        assert run.notes == ["objectives run uncompiled on this META device: triton is not installed"]
        assert execution_on(torch.device("meta")) is run
        assert isinstance(execution_on(CPU), OnCPU)
    finally:
        execution_on.cache_clear()


@pytest.mark.parametrize(
    "free, compiles, expected", [(None, True, 1024), (139 * 2**30, True, 1024), (2**30, True, 64), (2**30, False, 32)]
)
def test_chunks_follow_from_the_free_memory_once(monkeypatch, free, compiles, expected):
    monkeypatch.setattr(execution, "free_memory", lambda device: free)
    run = OnAccelerator(CPU, compiles=compiles)
    assert run.chunk(152_000) == expected
    monkeypatch.setattr(execution, "free_memory", lambda device: 0)
    assert run.chunk(152_000) == expected
    assert run.chunk(10**9) == 32


def test_a_gpu_that_is_planned_for_is_asked_nothing():
    run = OnAccelerator(torch.device("cuda"), compiles=True, planned=80 * 2**30)
    assert run.chunk(152_000) == 1024
    assert OnAccelerator(torch.device("cuda"), compiles=True, planned=2**30).chunk(152_000) == 64
    assert run.logits_dtype(torch.bfloat16) == torch.float32
