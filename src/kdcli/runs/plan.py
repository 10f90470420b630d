"""What a run would do: steps, tokens, examples with the learnt part marked; nothing is written."""

from pathlib import Path

from kdcli.config import DistillConfig
from kdcli.data.preview import Preview, preview
from kdcli.runs.folder import RunFolder
from kdcli.runs.prepare import Prepared, prepare_run
from kdcli.runs.records import Plan, Shown
from kdcli.runs.workshop import Pair, Workshop

_EXAMPLES = 3


def plan_distill(config: DistillConfig) -> Plan:
    """Check a run's settings and say what it would do.

    Raises:
        KDError: what training would stop at before its first step, weights aside.
    """
    prepared = prepare_run(config, Workshop())
    facts = describe_run(prepared)
    if config.output is not None:
        facts["run folder"] = f"{config.output} ({folder_state(RunFolder(Path(config.output)), prepared)})"
    return Plan(facts, (), shown_examples(prepared), (*prepared.notes, *prepared.warnings))


def describe_run(prepared: Prepared) -> dict[str, str]:
    """Return the facts of a run in reading order."""
    config, data = prepared.config, prepared.dataset
    learnt, total = data.targets, sum(data.lengths)
    source = prepared.source(pad_id=0)
    passes = prepared.steps / source.steps_per_epoch
    facts = {
        "device": prepared.device.description,
        "objective": f"{prepared.label}: {prepared.loss.formula}",
        "teacher": _model(prepared.pair, teacher=True),
        "student": _model(prepared.pair, teacher=False),
        "vocabulary": f"{prepared.pair.vocab:,} real ids",
        "training rows": f"{len(data):,} rows, {total:,} tokens, {learnt:,} of them learnt ({learnt / total:.0%})",
        "steps": f"{prepared.steps:,} of {config.train.batch_size} sequences ({passes:.1f} passes)",
        "response tokens": f"about {round(learnt * passes):,} in all",
    }
    if prepared.test is not None:
        metrics = ", ".join(config.evaluation.metrics)
        facts["held-out rows"] = f"{len(prepared.test):,} rows; {metrics}"
    return facts


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
