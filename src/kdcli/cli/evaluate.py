"""``kd eval`` and ``kd judge``: measure a model folder or answers made elsewhere."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed
from kdcli.errors import UsageError

if TYPE_CHECKING:
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import EvalConfig


EPILOG = """Example: kd eval runs/akl --data test.jsonl --metric rougeL,ece

Example: kd eval --predictions answers.jsonl --protocol minillm --metric rougeL

Example: kd eval runs/akl --edge --tasks arc_easy"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", epilog=EPILOG, short_help="Measure a run, a model folder, or answers made elsewhere.")(
        options.eval(evaluate)
    )


def evaluate(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Measure a run, a model folder, or answers made elsewhere, on held-out rows."""
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import EvalConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(EvalConfig, config, sets, typed)
    _check_sources(settings)
    _refuse_unused(settings, typed)
    load_config.output_folder(settings.output, needed=False)
    load_config.check_inputs(settings)
    if settings.palette is not None:
        _palette(settings, typed, terminal)
        return
    with terminal.progress() as report:
        from kdcli import interface
        from kdcli.cli import render

        record = interface.evaluate(settings, report=report).record
    terminal.result(record, render.evaluation)


def _palette(settings: "EvalConfig", typed: Mapping[str, Any], terminal: "Terminal") -> None:
    """Measure sizes of a supernet."""
    from kdcli.cli.load_config import refuse_unused

    names = ("teacher", "dev_data", "predictions", "server_url", "protocol", "metric", "tasks", "edge")
    names += ("rouge_tokenizer", "sampling_seeds", "max_new_tokens")
    refuse_unused(typed, names, "has no effect with --palette", "leave one of the two out")
    with terminal.progress() as report:
        from kdcli.cli import render
        from kdcli.evaluation.palette import evaluate_palette

        record = evaluate_palette(settings, report)
    terminal.result(record, render.palette)


_OF_MODELS = ("teacher", "dev_data", "device", "dtype", "threads", "matmul_precision")
_OF_ROWS = ("data", "columns", "template", "max_length", "limit", "skip_bad", "sampling_seeds", "max_new_tokens")


def _refuse_unused(settings: "EvalConfig", typed: Mapping[str, Any]) -> None:
    """Refuse flags that would change nothing."""
    from kdcli.cli.load_config import refuse_unused

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


# ``kd judge``: let a strong model, or scores given elsewhere, judge answers.


EPILOG_JUDGE = """Example: kd judge runs/akl/eval/test --server-url http://localhost:8000/v1 -o judged

Example: kd judge answers.jsonl --scores scores.jsonl"""


def register_judge(app: typer.Typer) -> None:
    """Add the command."""
    app.command("judge", epilog=EPILOG_JUDGE, short_help="Let a strong model judge answers, or import its scores.")(
        options.judge(judge)
    )


def judge(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Compare answers with references: scores from 1 to 10 in both orders, their ratio in %, and the win rate.

    The judge is an OpenAI-compatible server, or a file of scores.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import JudgeConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(JudgeConfig, config, sets, typed)
    if settings.scores is not None:
        load_config.refuse_unused(typed, ("server_model",), "has no effect on scores given elsewhere", "leave it out")
    load_config.output_folder(settings.output, needed=settings.server.url is not None)
    load_config.check_inputs(settings, computes=False)
    with terminal.progress() as report:
        from kdcli.cli import render
        from kdcli.evaluation.judge.judge import judge as judge_answers

        record = judge_answers(settings, report)
    terminal.result(record, render.evaluation)
