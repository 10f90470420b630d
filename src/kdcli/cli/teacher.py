"""``kd cache``, ``kd generate``, ``kd student``: what a teacher gives before a training: outputs, text, a student."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed
from kdcli.errors import UsageError
from kdcli.text import one_line
from kdcli.text import typed as quoted

if TYPE_CHECKING:
    from kdcli.distill.make_student import StudentRecord
    from kdcli.sources.teacher_text.rows import TextPlan, TextRecord
    from kdcli.teachers.cached import CachePlan, CacheRecord


EPILOG = (
    "Example: kd cache --teacher ./T --data train.jsonl --eval-data test.jsonl -o cache; "
    "then kd distill ... --teacher-cache cache"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("cache", epilog=EPILOG, short_help="Run a teacher once and store its outputs, for any objective.")(
        options.cache(cache)
    )


def cache(typed: Typed, *, config: Texts, sets: Texts, dry_run: bool, json: bool, quiet: bool) -> None:
    """Run a teacher over rows once and store its last hidden states, or its top tokens, for any number of runs.

    The same line again adds what is missing.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import CacheConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(CacheConfig, config, sets, typed)
    load_config.require(teacher=settings.teacher, data=settings.data.train)
    if settings.student is not None and settings.student.startswith(("random:", "cut:", "supernet:")):
        settings = settings.model_copy(update={"student": None})
    if settings.kind == "exact":
        load_config.refuse_unused(
            typed, ("top_k",), "has no effect on an exact cache", "add --kind compact, or leave it out"
        )
    if settings.data.eval is None:
        load_config.refuse_unused(typed, ("eval_limit",), "has no effect without held-out rows", "add --eval-data")
    load_config.output_folder(settings.output, needed=not dry_run)
    load_config.check_inputs(settings)
    with terminal.progress() as report:
        from kdcli.teachers import load as teachers

        if dry_run:
            found: Any = teachers.plan_cache(settings)
        else:
            found = teachers.cache(settings, report, command=load_config.command_line())
    terminal.result(found, _planned if dry_run else _built)


def _planned(plan: "CachePlan") -> str:
    from kdcli.data.readers import size_text

    shown = vars(plan) | {"bytes": size_text(plan.bytes)}
    return "\n".join(
        f"{name.replace('_', ' '):16} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' '):16} {value}"
        for name, value in shown.items()
    )


def _built(record: "CacheRecord") -> str:
    from kdcli.cli.render import duration
    from kdcli.data.readers import size_text

    return (
        f"{record.sequences:,} sequences ({record.added:,} new), {size_text(record.bytes)}, {record.holds}; "
        f"the teacher has read {record.teacher_tokens:,} tokens; {duration(record.seconds)}\n{record.folder}"
    )


# ``kd generate``: let a teacher answer prompts once, and keep what it says as rows.


EPILOG_TEXT = """Example: kd generate --teacher ./T --data prompts.jsonl --source teacher:answers=4,max_nll=2 -o text

Example: kd generate --teacher ./T --source teacher:prompts=bos --count 10000 -o text"""


def register_generate(app: typer.Typer) -> None:
    """Add the command."""
    text = "Generate a teacher's answers to prompts; store them as rows."
    app.command("generate", epilog=EPILOG_TEXT, short_help=text)(options.generate(generate))


def generate(typed: Typed, *, config: Texts, sets: Texts, dry_run: bool, json: bool, quiet: bool) -> None:
    """Generate a teacher's answers to prompts, or texts without prompts, filter them, and write them as rows.

    kd distill --data FOLDER/rows.jsonl trains on them. The same line again answers what is missing.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import GenerateConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(GenerateConfig, config, sets, typed)
    load_config.require(teacher=settings.teacher)
    _check_folder(settings.output)
    load_config.output_folder(settings.output, needed=not dry_run)
    load_config.check_inputs(settings)
    with terminal.progress() as report:
        from kdcli.distill import generate as runs

        if dry_run:
            found: Any = runs.plan_generate(settings)
        else:
            found = runs.generate(settings, report, command=load_config.command_line())
    terminal.result(found, _generate_planned if dry_run else _written)


def _check_folder(output: str | None) -> None:
    if output is None or Path(output).suffix not in (".jsonl", ".json"):
        return
    what = "-o is a folder; the rows are a file in it, rows.jsonl"
    raise UsageError(
        "CLI-10", what, where=f"-o {one_line(output, 80)}", fix=f"give -o {quoted(Path(output).with_suffix(''))}"
    )


def _generate_planned(plan: "TextPlan") -> str:
    return "\n".join(
        f"{name.replace('_', ' '):16} {f'{value:,}' if isinstance(value, int) else one_line(str(value), 200)}"
        for name, value in vars(plan).items()
    )


def _written(record: "TextRecord") -> str:
    from kdcli.cli.render import duration

    dropped = ", ".join(f"{count:,} {fault}" for fault, count in record.dropped.items())
    speed = f" in {duration(record.seconds)} ({record.speed:,.0f} tokens/s)" if record.written else ""
    lines = [
        f"{record.answers:,} answers, {record.tokens:,} tokens; {record.written:,} written now{speed}",
        f"{record.kept:,} rows" + (f"; left out: {dropped}" if dropped else ""),
    ]
    if record.same < record.kept:
        lines.append(f"{record.kept - record.same:,} rows read back as other tokens than were written")
    if record.open:
        lines.append(
            f"{record.open:,} rows were cut at a length; training adds an end token to each; ended=true drops them"
        )
    return "\n".join([*lines, str(record.rows)])


# ``kd student``: a student made from a teacher, as a model folder.


EPILOG_STUDENT = """Example: kd student cut:layers=4,by=influence --teacher ./T --data train.jsonl -o student

Example: kd student cut:params=0.5 --teacher ./T -o student

Example: kd student SN --pick "params<=1e6" -o small

Example: kd student cut:sparse=0.5,method=sparsegpt --teacher ./T --data train.jsonl -o student

Options of cut: and the scores: docs/students.md. --student of kd distill takes the same."""


def register_student(app: typer.Typer) -> None:
    """Add the command."""
    text = "Make a student from a teacher: cut out of it, or random in its form."
    app.command("student", epilog=EPILOG_STUDENT, short_help=text)(options.student(student))


def student(typed: Typed, *, config: Texts, sets: Texts, dry_run: bool, json: bool, quiet: bool) -> None:
    """Make a student from a teacher and write it as a model folder, to be distilled, or loaded anywhere."""
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import StudentConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(StudentConfig, config, sets, typed)
    if settings.pick is None:
        load_config.require(teacher=settings.teacher)
    else:
        names = ("teacher", "seed", "data", "columns", "template", "max_length")
        load_config.refuse_unused(typed, names, "has no effect on a size of a supernet", "leave it out")
    load_config.output_folder(settings.output, needed=not dry_run)
    load_config.check_inputs(settings)
    with terminal.progress() as report:
        from kdcli.distill import make_student as making

        found = making.plan_student(settings) if dry_run else making.make_student(settings, report)
    terminal.result(found, _student_lines)


def _student_lines(record: "StudentRecord") -> str:
    before, after = record.parameters
    lines = [f"{record.student} of {record.teacher}"]
    lines.append(f"parameters  {after:,} of {before:,} ({after / before:.1%})")
    for name, sizes in record.sizes.items():
        lines.append(f"{name:10}  {sizes[-1]:,}" + (f" of {sizes[0]:,}" if len(sizes) > 1 else ""))
    if record.layers:
        lines.append(f"stayed      layers {', '.join(map(str, record.layers))}")
    if record.rows:
        lines.append(f"scored on   {record.rows:,} rows")
    if record.zeros is not None:
        lines.append(f"zeros       {record.zeros:.1%} of the weights of its linear layers")
    if record.disk_bytes is not None and record.compressed_bytes is not None:
        lines.append(f"on disk     {record.disk_bytes:,} bytes, {record.compressed_bytes:,} after zlib")
    if record.folder is not None:
        lines.append(("it was there already: " if record.already else "") + str(record.folder))
    return "\n".join(lines)
