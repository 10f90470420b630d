"""``kd eval``: measure a model folder, or answers made elsewhere."""

from typing import Annotated

import typer

from kdcli.cli import flags
from kdcli.errors import UsageError

EPILOG = """Example: kd eval runs/akl --data test.jsonl --metric rougeL,ece

Example: kd eval --predictions answers.jsonl --metric rougeL"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", epilog=EPILOG, short_help="Measure a run, a model folder, or answers made elsewhere.")(evaluate)


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, model folder or hub id.", show_default=False),
    ] = None,
    teacher: flags.Teacher = None,
    data: flags.TestData = None,
    predictions: flags.Predictions = None,
    columns: flags.Columns = None,
    template: flags.Template = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    metric: flags.Metric = None,
    sampling_seeds: flags.SamplingSeeds = None,
    max_new_tokens: flags.MaxNewTokens = None,
    output: flags.Output = None,
    config: flags.Config = None,
    sets: flags.Sets = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    threads: flags.Threads = None,
    matmul_precision: flags.MatmulPrecision = None,
) -> None:
    """Measure a run, a model folder, or answers made elsewhere, on held-out rows."""
    typed = locals()
    from kdcli.cli import settle
    from kdcli.cli.terminal import Terminal
    from kdcli.config import EvalConfig

    terminal = Terminal(json, quiet)
    settings = settle.settle(EvalConfig, config, sets, typed)
    if settings.predictions and settings.model:
        what = "a model and --predictions are given"
        raise UsageError("CLI-20", what, where="kd eval", fix="give one of them")
    if not settings.predictions:
        if settings.model is None:
            raise UsageError("CLI-20", "no model is given", where="kd eval", fix="give a folder, or --predictions FILE")
        settle.require(data=settings.data.eval)
    settle.output_folder(settings.output, needed=False)
    with terminal.work() as report:
        from kdcli.cli import render
        from kdcli.runs.evaluation.evaluate import evaluate_run

        record = evaluate_run(settings, report)
    terminal.result(record, render.evaluation)
