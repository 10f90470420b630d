"""What a run would do: steps, tokens, examples with the learnt part marked; nothing is written."""

from collections.abc import Sequence
from pathlib import Path

from kdcli.config import DistillConfig
from kdcli.data.preview import Preview, preview
from kdcli.engine.devices import imagined, memory_of
from kdcli.metrics.describe import describe
from kdcli.runs.estimate import Estimate, estimate
from kdcli.runs.folder import RunFolder
from kdcli.runs.gpu_memory import CACHE, needed, way_to_fit
from kdcli.runs.memory import CONTEXT, MARGIN
from kdcli.runs.model_facts import Pair
from kdcli.runs.prepare import Prepared, prepare_run
from kdcli.runs.records import Plan, Shown
from kdcli.runs.splits import leaves_answers_out
from kdcli.runs.teaching import share_met
from kdcli.runs.workshop import Workshop

_EXAMPLES = 3
_SAMPLED = 100


def plan_distill(config: DistillConfig, gpu_memory: int | None = None) -> Plan:
    """Check a run's settings and say what it would do.

    Args:
        config: its settings.
        gpu_memory: plan for GPUs of so many bytes, which need not be here, and neither need the models' weights;
            None plans for this machine.

    Raises:
        KDError: what training would stop at before its first step, weights aside.
    """
    device = None if gpu_memory is None else imagined(config.hardware, gpu_memory)
    prepared = prepare_run(config, Workshop(planning=device is not None), device)
    facts, cost = describe_run(prepared), estimate(prepared)
    facts |= cost_facts(cost) | gpu_facts(prepared, cost)
    if config.output is not None:
        facts["run folder"] = f"{config.output} ({folder_state(RunFolder(Path(config.output)), prepared)})"
    notes = (*prepared.notes, *prepared.warnings)
    return Plan(
        facts, (), shown_examples(prepared), notes, cost_numbers([cost], prepared.steps) | _gpu_numbers(prepared, cost)
    )


def _gpu_numbers(prepared: Prepared, cost: Estimate) -> dict[str, float]:
    memory = memory_of(prepared.device)
    return {} if memory is None else {"gpu_bytes": float(needed(cost.peak_bytes)), "gpu_memory": float(memory)}


def cost_facts(cost: Estimate) -> dict[str, str]:
    """Return what one run will cost, in words."""
    named = ", ".join(f"{name} {_mebibytes(value)}" for name, value in _sorted(cost) if value >= cost.peak_bytes / 100)
    each = f" in each of {cost.setup.processes} processes" if cost.setup.processes > 1 else ""
    facts = {"peak memory": f"about {_mebibytes(cost.peak_bytes)}{each}, in {cost.peak.moment}: {named}"}
    if cost.rate is None or cost.seconds is None:
        return facts | {"arithmetic": f"{cost.flops:.3g} operations; what these GPUs do in a second is not known here"}
    return facts | {
        "arithmetic": f"{cost.flops:.3g} operations; this machine does about {cost.rate:.2g} a second",
        "training time": f"about {duration(cost.seconds)}, an estimate from one matrix product",
    }


def gpu_facts(prepared: Prepared, cost: Estimate) -> dict[str, str]:
    """Return what a run takes of each GPU, one part a line, whether it fits, and what would make it fit.

    Empty where no GPU computes. No part of it was measured on a GPU.
    """
    memory = memory_of(prepared.device)
    if memory is None:
        return {}
    total = needed(cost.peak_bytes)
    fits = total <= memory
    facts = {
        "memory per GPU": f"about {_gibibytes(total)} of {_gibibytes(memory)}: {'it fits' if fits else 'too much'}"
    }
    facts |= {f"  {name}": _gibibytes(value) for name, value in _sorted(cost) if value}
    facts["  CUDA, NCCL"] = f"{_gibibytes(CONTEXT)}, assumed"
    facts["  the allocator's margin"] = f"{_gibibytes(total - CONTEXT - cost.peak_bytes)}, {MARGIN:.0%} assumed"
    if not fits:
        facts["to make it fit"] = _way(prepared, cost, memory)
    loaded = (cost.student.parameters + (0 if cost.teacher is None else cost.teacher.parameters)) * 4
    facts["main memory"] = f"about {_gibibytes(loaded * cost.setup.processes)} while loading: every process reads fp32"
    return facts


def _way(prepared: Prepared, cost: Estimate, memory: int) -> str:
    blended = prepared.pair.teacher is not None and bool(prepared.pair.teacher.members)
    found = way_to_fit(
        cost.student, cost.teacher, cost.setup, memory,
        whole=blended or bool(prepared.loss.needs().features),
        adapts=not prepared.pair.student_is_random,
        keeps=prepared.source.needs().fixed and not blended and not prepared.loss.needs().features,
    )  # fmt: skip
    if found is None:
        return "nothing that was tried; take more GPUs or larger ones, or a smaller student"
    made = "; kd cache makes CACHE before" if CACHE in found.flags else ""
    return f"add {found.flags} (then about {_gibibytes(found.total)}{made})"


def _sorted(cost: Estimate) -> list[tuple[str, int]]:
    return sorted(cost.peak.parts.items(), key=lambda part: -part[1])


def cost_numbers(costs: Sequence[Estimate], steps: int) -> dict[str, float]:
    """Return the same for programs.

    Args:
        costs: one estimate per run.
        steps: optimizer steps of one run.
    """
    seconds = [one.seconds for one in costs]
    return {
        "cells": float(len(costs)),
        "steps": float(steps * len(costs)),
        "flops": sum(one.flops for one in costs),
        "peak_bytes": float(max(one.peak_bytes for one in costs)),
    } | ({} if None in seconds else {"seconds": sum(one for one in seconds if one is not None)})


def duration(seconds: float) -> str:
    """Return a length of time in the unit that fits.

    >>> duration(0.5), duration(90.0), duration(7800.0)
    ('1 s', '2 min', '2 h 10 min')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _gibibytes(size: int) -> str:
    """Return a size in GiB, with two digits behind the point below 10.

    >>> _gibibytes(2**29), _gibibytes(80 * 2**30)
    ('0.50 GiB', '80.0 GiB')
    """
    value = size / 2**30
    return f"{value:,.2f} GiB" if value < 9.995 else f"{value:,.1f} GiB"


def describe_run(prepared: Prepared) -> dict[str, str]:
    """Return the facts of a run in reading order."""
    config, data = prepared.config, prepared.dataset
    learnt, total = data.targets, sum(data.lengths)
    passes = prepared.steps / prepared.windows().steps_per_epoch
    facts = {
        "device": prepared.device.description,
        "objective": f"{prepared.label}: {prepared.loss.formula}",
        "teacher": _model(prepared.pair, teacher=True),
        "student": _model(prepared.pair, teacher=False),
        "vocabulary": _vocabulary(prepared.pair),
        "training rows": f"{len(data):,} rows, {total:,} tokens, {learnt:,} of them learnt ({learnt / total:.0%})",
        "steps": f"{prepared.steps:,} of {config.train.batch_size} sequences ({passes:.1f} passes)",
        "response tokens": f"about {round(learnt * passes):,} in all",
    }
    if prepared.teacher_rows is not None:
        met, seen = share_met(prepared, _SAMPLED), min(_SAMPLED, len(data))
        facts["alignment"] = f"the teacher speaks of {met:.1%} of the response tokens (first {seen} rows)"
    if prepared.test is not None:
        bare = leaves_answers_out(config.evaluation, prepared.test)
        names = [name for name in config.evaluation.metrics if not (bare and describe(name).eats == "texts")]
        metrics = ", ".join(names)
        facts["held-out rows"] = f"{len(prepared.test):,} rows; {metrics}"
    return facts


def _vocabulary(pair: Pair) -> str:
    """Return how many tokens there are to choose from."""
    if pair.teacher_vocab is None:
        return f"{pair.vocab:,} real ids"
    return f"student {pair.vocab:,} real ids, teacher {pair.teacher_vocab:,} of its own"


def folder_state(folder: RunFolder, prepared: Prepared) -> str:
    """Say what is in a run folder: nothing, a part of this run, or all of it.

    Raises:
        KDError: it holds something else.
    """
    if not folder.check(prepared.identity, resume=True):
        return "to run"
    if folder.is_done:
        return "done"
    steps = sorted(path.name for path in folder.path.glob("checkpoint-*"))
    return f"to resume at step {int(steps[-1].removeprefix('checkpoint-')):,}" if steps else "to run"


def shown_examples(prepared: Prepared) -> tuple[Shown, ...]:
    """Return the first training examples, decoded."""
    return tuple(_shown(item) for item in preview(prepared.dataset, prepared.pair.reader.tokenizer, _EXAMPLES))


def _shown(item: Preview) -> Shown:
    return Shown(item.where, item.segments, item.tokens, item.targets)


def _model(pair: Pair, *, teacher: bool) -> str:
    if not teacher and pair.student_is_random:
        return pair.student
    facts = pair.teacher if teacher else pair.reader
    return "none" if facts is None else f"{facts.path}, {facts.parameters:,} parameters"
