"""``kd cache``: run a teacher over rows once, and keep what it says."""

from typing import TYPE_CHECKING, Any

import typer

from kdcli.cli import flags

if TYPE_CHECKING:
    from kdcli.runs.teacher_cache import CacheRecord

EPILOG = (
    "Example: kd cache --teacher ./T --data train.jsonl --eval-data test.jsonl -o cache; "
    "then kd distill ... --teacher-cache cache"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("cache", epilog=EPILOG, short_help="Run a teacher once and keep what it says, for any objective.")(
        cache
    )


def cache(
    teacher: flags.Teacher = None,
    student: flags.Student = None,
    data: flags.Data = None,
    eval_data: flags.EvalData = None,
    columns: flags.Columns = None,
    template: flags.Template = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    skip_bad: flags.SkipBad = False,
    eval_limit: flags.EvalLimit = None,
    kind: flags.Kind = None,
    store_dtype: flags.StoreDtype = None,
    top_k: flags.TopK = None,
    output: flags.Output = None,
    config: flags.Config = None,
    sets: flags.Sets = None,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    threads: flags.Threads = None,
    matmul_precision: flags.MatmulPrecision = None,
) -> None:
    """Run a teacher over rows once, and keep its last hidden states, or its likeliest tokens, for any number of runs.

    The same line again adds what is missing.
    """
    typed = locals()
    from kdcli.cli import settle
    from kdcli.cli.terminal import Terminal
    from kdcli.config import CacheConfig

    terminal = Terminal(json, quiet)
    settings = settle.settle(CacheConfig, config, sets, typed)
    settle.require(teacher=settings.teacher, data=settings.data.train)
    if settings.student is not None and settings.student.startswith("random:"):
        settings = settings.model_copy(update={"student": None})
    if settings.kind == "exact":
        settle.refuse_unused(
            typed, ("top_k",), "has no effect on an exact cache", "add --kind compact, or leave it out"
        )
    if settings.data.eval is None:
        settle.refuse_unused(typed, ("eval_limit",), "has no effect without held-out rows", "add --eval-data")
    settle.output_folder(settings.output, needed=not dry_run)
    with terminal.work() as report:
        from kdcli.runs import teachers

        if dry_run:
            found: Any = teachers.plan_cache(settings)
        else:
            found = teachers.cache(settings, report, command=settle.command_line())
    terminal.result(found, _planned if dry_run else _built)


def _planned(plan: dict[str, Any]) -> str:
    from kdcli.data.tables import size_text

    shown = plan | {"bytes": size_text(plan["bytes"])}
    return "\n".join(
        f"{name.replace('_', ' '):16} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' '):16} {value}"
        for name, value in shown.items()
    )


def _built(record: "CacheRecord") -> str:
    from kdcli.cli.numbers import duration
    from kdcli.data.tables import size_text

    return (
        f"{record.sequences:,} sequences ({record.added:,} new), {size_text(record.bytes)}, {record.kind}; "
        f"the teacher has read {record.teacher_tokens:,} tokens; {duration(record.seconds)}\n{record.folder}"
    )
