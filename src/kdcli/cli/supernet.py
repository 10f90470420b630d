"""``kd supernet``: train several sizes of a network at once."""

import typer

from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed

EPILOG = """Example: kd supernet --teacher ./T --widths 0.5,0.75,1 --depths 0.5,1 --data train.jsonl --loss fkl -o SN

Then kd student SN --pick "params<=1e6" -o small. Sizes, stages and defaults: docs/supernet.md."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Train several sizes of a teacher at once, on shared weights."
    app.command("supernet", epilog=EPILOG, short_help=text)(options.supernet(supernet))


def supernet(typed: Typed, *, resume: str | None, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Train several sizes of a teacher at once: the largest learns from the rows and teaches its own slices.

    Writes a run folder, whose model is the largest size. The same line again goes on where it stopped.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import SupernetConfig

    terminal = Terminal(json, quiet)
    again = load_config.resuming(resume)
    settings = load_config.load_config(SupernetConfig, config, sets, typed)
    load_config.require(teacher=settings.teacher, data=settings.data.train)
    if settings.data.eval is None and settings.evaluation.split == "test":
        names = ("eval_limit", "metric", "sampling_seeds", "max_new_tokens")
        what, fix = "has no effect without held-out rows", "add --eval-data, or use kd eval afterwards"
        load_config.refuse_unused(typed, names, what, fix)
    if settings.supernet.update == "full":
        load_config.refuse_unused(
            typed, ("rank",), "has no effect where all weights are trained", "add --update low-rank"
        )
    load_config.output_folder(settings.output, needed=True)
    load_config.check_inputs(settings)
    with terminal.progress() as report:
        from kdcli import interface
        from kdcli.cli import render

        found = interface.distill(settings.training, report=report, resume=again, command=load_config.command_line())
    terminal.result(found.record, render.run)
    if not json:
        terminal.show(str(found.model))
