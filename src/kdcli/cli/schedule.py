"""``kd schedule``: how many requests an edge node answers in time, by the rule that fills its batches."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcli.cli import switches
from kdcli.cli.switches import flag
from kdcli.config.names import HARDWARE, OUTPUT
from kdcli.errors import UsageError
from kdcli.text import one_line

if TYPE_CHECKING:
    from rich.console import Group

    from kdcli.diagnostics.schedule import ScheduleReport

EPILOG = """Example: kd schedule runs/akl --device edge.yaml --arrivals poisson:8 -o plan

Example: kd schedule config.json --device edge.yaml --requests trace.jsonl --policy dftsp,static:8,edf,none

dftsp finds the largest batch that every deadline allows, by a tree search; the other rules search nothing. \
Formulas: docs/evaluation/edge.md"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Say how many requests an edge node answers in time, by rule of batching."
    app.command("schedule", epilog=EPILOG, short_help=text)(schedule)


def schedule(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Run, model folder, hub id or a config.json.", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        flag("--device", "FILE", "YAML: memory, flops, links, quantisers.", HARDWARE, completes=False),
    ] = None,
    requests: Annotated[str | None, flag("--requests", "FILE", "Requests as JSON lines.", HARDWARE)] = None,
    arrivals: Annotated[str | None, flag("--arrivals", "poisson:N", "Draw N requests per second.", HARDWARE)] = None,
    seconds: Annotated[str, flag("--seconds", "N", "How long requests arrive. Default 20.", HARDWARE)] = "20",
    seed: Annotated[str, flag("--seed", "N", "Of the draws, from 1. Default 1.", HARDWARE)] = "1",
    policy: Annotated[
        str,
        flag("--policy", "RULE,..", "dftsp, static:N, edf, sjf, none. Default dftsp,static:8,edf,none.", HARDWARE),
    ] = "dftsp,static:8,edf,none",
    output: Annotated[str | None, flag("--output -o", "FOLDER", "Write numbers and pictures.", OUTPUT)] = None,
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Compare rules that choose which waiting requests an edge node answers next; no weight is read."""
    from kdcli.cli import load_config
    from kdcli.cli.quantities import count
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    place = "kd schedule"
    if model is None:
        raise UsageError("CLI-20", "no model is given", where=place, fix="give a folder or a config.json")
    if device is None:
        raise UsageError("CLI-20", "no device is given", where=place, fix="give --device edge.yaml")
    if (requests is None) == (arrivals is None):
        what = "both --requests and --arrivals are given" if requests else "no requests are given"
        raise UsageError("CLI-20", what, where=place, fix="give --requests trace.jsonl or --arrivals poisson:8")
    rate = _rate(arrivals) if arrivals is not None else 1.0
    rules = list(dict.fromkeys(name for name in policy.split(",") if name))
    if not rules:
        raise UsageError("SCH-03", "no rule is named", where="--policy", fix="name some, such as dftsp,edf")
    length, number = count(seconds, "--seconds"), count(seed, "--seed")
    load_config.output_folder(output, needed=False)
    with terminal.progress() as report:
        from kdcli.diagnostics.schedule import (
            Traffic,
            compare_rules,
            read_node,
            read_requests,
            rule_of,
            write_schedule,
        )

        for name in rules:
            rule_of(name)
        node, lengths = read_node(Path(device))
        given = read_requests(Path(requests)) if requests is not None else None
        traffic = Traffic(given, rate, float(length), lengths, number)
        found = compare_rules(model, node, traffic, rules, report, figures=output is not None)
        if output is not None:
            write_schedule(Path(output), found)
    terminal.result(found, _drawn)


def _rate(text: str) -> float:
    name, _, number = text.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if name != "poisson" or not 0 < value <= 1e6:
        what = f'must be poisson:N, N requests per second, got "{one_line(text, 40)}"'
        raise UsageError("CLI-06", what, where="--arrivals", fix="write --arrivals poisson:8")
    return value


def _drawn(found: "ScheduleReport") -> "Group":
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rule")
    for name in ("requests", "in time", "share", "mean batch", "batch time", "nodes searched"):
        table.add_column(name, justify="right")
    for one in found.rules:
        table.add_row(
            one.rule, f"{one.requests:,}", f"{one.served:,}", f"{one.share:.1%}", f"{one.batch:.2f}",
            f"{1e3 * one.seconds:.3g} ms", f"{one.nodes:,}" if one.nodes else "–",
        )  # fmt: skip
    kinds = ", ".join(f"{one_line(kind.name, 40)} (quality {kind.quality:g})" for kind in found.kinds)
    notes = [Text(f"weights to choose from: {kinds}", style="dim"), *(Text(note, style="dim") for note in found.notes)]
    return Group(table, *notes)
