"""``kd judge``: let a strong model, or scores given elsewhere, judge answers."""

from typing import Annotated

import typer

from kdcli.cli import flags

EPILOG = """Example: kd judge runs/akl/eval/test --server-url http://localhost:8000/v1 -o judged

Example: kd judge answers.jsonl --scores scores.jsonl"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("judge", epilog=EPILOG, short_help="Let a strong model judge answers, or import its scores.")(judge)


def judge(
    answers: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_ANSWERS", help="Run, evaluation folder or JSONL of answers.", show_default=False
        ),
    ] = None,
    scores: flags.JudgeScores = None,
    server_url: flags.ServerUrl = None,
    server_model: flags.ServerModel = None,
    output: flags.Output = None,
    config: flags.Config = None,
    sets: flags.Sets = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Compare answers with references: scores from 1 to 10 in both orders, their ratio in %, and the win rate.

    The judge is a server that speaks the OpenAI protocol, or a file of scores.
    """
    typed = locals()
    from kdcli.cli import settle
    from kdcli.cli.terminal import Terminal
    from kdcli.config import JudgeConfig

    terminal = Terminal(json, quiet)
    settings = settle.settle(JudgeConfig, config, sets, typed)
    if settings.scores is not None:
        settle.refuse_unused(typed, ("server_model",), "has no effect on scores given elsewhere", "leave it out")
    settle.output_folder(settings.output, needed=settings.server.url is not None)
    with terminal.work() as report:
        from kdcli.cli import render
        from kdcli.runs.judging.judge import judge as judge_answers

        record = judge_answers(settings, report)
    terminal.result(record, render.evaluation)
