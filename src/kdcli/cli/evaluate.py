"""``kd eval``: measure a model folder, or answers made elsewhere."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcli.cli import flags
from kdcli.errors import UsageError

if TYPE_CHECKING:
    from kdcli.config import EvalConfig

EPILOG = """Example: kd eval runs/akl --data test.jsonl --metric rougeL,ece

Example: kd eval --predictions answers.jsonl --protocol minillm --metric rougeL

Example: kd eval runs/akl --edge --tasks arc_easy"""


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
    dev_data: flags.FitData = None,
    predictions: flags.Predictions = None,
    server_url: flags.ServerUrl = None,
    server_model: flags.ServerModel = None,
    columns: flags.Columns = None,
    template: flags.Template = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    skip_bad: flags.SkipBad = False,
    protocol: flags.Protocol = None,
    metric: flags.Metric = None,
    tasks: flags.Tasks = None,
    edge: flags.EdgeCosts = False,
    rouge_tokenizer: flags.RougeTokenizer = None,
    sampling_seeds: flags.SamplingSeeds = None,
    max_new_tokens: flags.MaxNewTokens = None,
    output: flags.Output = None,
    config: flags.Config = None,
    sets: flags.Sets = None,
    plugin: flags.MorePlugin = None,
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
    _check_sources(settings)
    _refuse_unused(settings, typed)
    settle.output_folder(settings.output, needed=False)
    with terminal.work() as report:
        from kdcli.cli import render
        from kdcli.runs.evaluation.evaluate import evaluate_run

        record = evaluate_run(settings, report)
    terminal.result(record, render.evaluation)


_OF_MODELS = ("teacher", "dev_data", "device", "dtype", "threads", "matmul_precision")
_OF_ROWS = ("data", "columns", "template", "max_length", "limit", "skip_bad", "sampling_seeds", "max_new_tokens")


def _refuse_unused(settings: "EvalConfig", typed: Mapping[str, Any]) -> None:
    """Refuse flags that would change nothing."""
    from kdcli.cli.settle import refuse_unused

    if settings.predictions is not None:
        refuse_unused(typed, (*_OF_MODELS, *_OF_ROWS), "has no effect on answers made elsewhere", "leave it out")
    if settings.model is None:
        refuse_unused(typed, _OF_MODELS, "has no effect without a model here", "leave it out, or give its folder")
    if settings.server.url is None:
        refuse_unused(typed, ("server_model",), "has no effect without a server", "add --server-url")
    if settings.model is not None and settings.data.eval is None:
        names = ("dev_data", "metric", "protocol", *_OF_ROWS[1:])
        refuse_unused(typed, names, "has no effect without rows", "add --data")


def _check_sources(settings: "EvalConfig") -> None:
    """Refuse two sources of answers, none, and rows left out where they are needed."""
    beside = settings.edge.measure or bool(settings.benchmarks.tasks)
    sources = {"a model": settings.model, "--predictions": settings.predictions, "--server-url": settings.server.url}
    given = [name for name, value in sources.items() if value is not None]
    if settings.predictions is not None and len(given) > 1:
        what = f"{given[0]} and {given[1]} are given"
        raise UsageError("CLI-20", what, where="kd eval", fix="give one of them")
    if not given:
        fix = "give a folder, --predictions FILE or --server-url URL"
        raise UsageError("CLI-20", "no model is given", where="kd eval", fix=fix)
    if beside and settings.model is None:
        what = "--tasks and --edge need the model itself"
        raise UsageError("CLI-20", what, where="kd eval", fix="give its folder")
    if settings.predictions is None and not beside and settings.data.eval is None:
        raise UsageError("CLI-20", "--data is missing", fix="give --data, or set it in a file read with -c")
