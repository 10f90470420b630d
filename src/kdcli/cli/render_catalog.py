"""Prints the cards of objectives, metrics, sources, scores and presets."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcli.text import one_line, visible

# The cards come from packages that load slowly; they are recognised by their fields alone.


def loss_list(cards: Sequence[Any]) -> Group:
    """Return the table of all objectives.

    Args:
        cards: losses.describe.LossCard of each.
    """
    table = _table("name", "formula", "options")
    for card in cards:
        names = ", ".join(option.name for option in card.options if option.name not in ("temperature", "scale_tau2"))
        table.add_row(_cell(card.name), _cell(card.formula), _cell(names))
    legend = "p teacher, q student, z logits. Most also take temperature and scale_tau2. More: kd losses show NAME"
    return Group(table, Text(legend, style="dim"))


def loss_card(card: Any) -> Group:
    """Return everything about one objective.

    Args:
        card: its losses.describe.LossCard.
    """
    facts = [("formula", card.formula), ("reference", card.reference), ("cost", card.cost)]
    if card.aliases:
        facts.append(("also", ", ".join(card.aliases)))
    parts: list[RenderableType] = [Text(card.name, style="bold"), _facts(facts), *_option_table(card.options)]
    return Group(*parts, Text("\n" + prose(card.doc)))


def source_list(cards: Sequence[Any]) -> Group:
    """Return the table of all sources.

    Args:
        cards: sources.describe.SourceCard of each.
    """
    table = _table("name", "what", "needs", "options")
    for card in cards:
        names = ", ".join(option.name for option in card.options)
        table.add_row(*map(_cell, (card.name, card.what, ", ".join(card.needs), names)))
    legend = "An objective names one behind @, as in jsd@student:rate=0.5. More: kd sources show NAME"
    return Group(table, Text(legend, style="dim"))


def source_card(card: Any) -> Group:
    """Return everything about one source.

    Args:
        card: its sources.describe.SourceCard.
    """
    facts = [("what", card.what), ("reference", card.reference), ("needs", ", ".join(card.needs))]
    facts.append(("supplies", ", ".join(card.facts)))
    parts: list[RenderableType] = [Text(card.name, style="bold"), _facts(facts), *_option_table(card.options)]
    return Group(*parts, Text("\n" + prose(card.doc)))


def score_list(cards: Sequence[Any]) -> Group:
    """Return the table of all scores.

    Args:
        cards: scores.build.ScoreCard of each.
    """
    table = _table("name", "what", "formula", "measured with", "options")
    for card in cards:
        names = ", ".join(option.name for option in card.options)
        table.add_row(*map(_cell, (card.name, card.what, card.formula, ", ".join(card.needs), names)))
    legend = "p teacher, q student, z logits, y response, x prompt. More: kd scores show NAME"
    return Group(table, Text(legend, style="dim"))


def score_card(card: Any) -> Group:
    """Return everything about one score.

    Args:
        card: its scores.build.ScoreCard.
    """
    facts = [("what", card.what), ("formula", card.formula), ("reference", card.reference)]
    facts.append(("measured with", ", ".join(card.needs)))
    parts: list[RenderableType] = [Text(card.name, style="bold"), _facts(facts), *_option_table(card.options)]
    return Group(*parts, Text("\n" + prose(card.doc)))


def _option_table(options: Sequence[Any]) -> list[Table]:
    if not options:
        return []
    table = _table("option", "default", "type", "bounds", "")
    for option in options:
        table.add_row(*map(_cell, (option.name, option.default, option.type, option.bounds, option.text)))
    return [table]


def preset_list(cards: Sequence[Any]) -> Group:
    """Return the table of all training presets.

    Args:
        cards: training_presets.PresetCard of each.
    """
    table = _table("name", "objective", "")
    for card in cards:
        table.add_row(*map(_cell, (card.name, card.objective, card.summary)))
    return Group(table, Text("Use: kd distill --config NAME. Header and settings: kd presets show NAME", style="dim"))


def preset_card(card: Any) -> Text:
    """Return a preset as it stands in its file.

    Args:
        card: its training_presets.PresetCard.
    """
    return Text(card.text.rstrip("\n"), no_wrap=True, overflow="ignore")


def findings(found: Sequence[Any]) -> Group:
    """Return the checks of the contract suite, one a line.

    Args:
        found: losses.contract.Finding of each.
    """
    table = _table("", "check", "")
    for one in found:
        mark = Text("ok", style="green") if one.passed else Text("FAILED", style="bold red")
        table.add_row(mark, _cell(one.name), _cell(one.detail))
    return Group(table)


def conformance(rows: Iterable[Any]) -> Group:
    """Return our values and the published variants'.

    Args:
        rows: losses.conformance.Row of each.
    """
    table = _table("objective", "published variant", "ours", "published", "note")
    table.columns[0].no_wrap, table.columns[0].max_width = False, 26
    table.columns[2].no_wrap = table.columns[3].no_wrap = True
    for row in rows:
        table.add_row(
            _cell(row.objective), _cell(row.variant), _value(row.ours), _value(row.published), _cell(row.note)
        )
    return Group(table)


def metric_list(cards: Sequence[Any]) -> Group:
    """Return the table of all metrics.

    Args:
        cards: metrics.describe.MetricCard of each.
    """
    table = _table("name", "reads", "scores", "what it is")
    for card in cards:
        reads = card.input_kind + (", teacher" if card.needs_teacher else "")
        table.add_row(_cell(card.name), _cell(reads), _cell(_scores(card)), _cell(card.description))
    return Group(table, Text("↑ higher is better, ↓ lower is better", style="dim"))


def metric_card(card: Any) -> Group:
    """Return everything about one metric.

    Args:
        card: its metrics.describe.MetricCard.
    """
    reads = _READS[card.input_kind]
    facts = [("reads", reads + (" and the teacher" if card.needs_teacher else "")), ("scores", _scores(card))]
    facts.append(("settings", card.settings))
    if card.aliases:
        facts.append(("also", ", ".join(card.aliases)))
    return Group(Text(card.name, style="bold"), _facts(facts), Text("\n" + prose(card.doc or card.description)))


_READS = {
    "texts": "generated answers",
    "tokens": "held-out tokens",
    "own": "the tokens of sampled answers",
    "choices": "the probabilities of given choices",
}


def prose(doc: str) -> str:
    r"""Return a docstring without its doctests.

    >>> prose("Mass.\n\n>>> 1 + 1\n2\n\nMore.")
    'Mass.\n\nMore.'
    """
    paragraphs = doc.split("\n\n")
    return visible("\n\n".join(part for part in paragraphs if not part.lstrip().startswith(">>>")))


def _scores(card: Any) -> str:
    arrows = {"higher": " ↑", "lower": " ↓"}
    return ", ".join(name + arrows.get(better, "") for name, better in card.scores.items())


def _facts(pairs: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            table.add_row(_cell(name), _cell(value))
    return table


def _value(value: Any) -> Text:
    number = isinstance(value, float) and math.isfinite(value)
    return Text(f"{value:.6g}" if number else "-" if value is None else one_line(str(value)), justify="right")


def _cell(text: str) -> Text:
    return Text(one_line(text, 300), overflow="fold")


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    return table
