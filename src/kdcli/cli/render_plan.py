"""Draws the plan of a dry run, with decoded examples and the part that is learnt."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcli.runs.records import Plan, Shown
from kdcli.text import one_line, visible

OPEN, CLOSE = "⟦", "⟧"
LONGEST = 600


def plan(found: Plan) -> Group:
    """Return what a command would do.

    Args:
        found: the plan.
    """
    facts = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in found.facts.items():
        facts.add_row(Text(one_line(name, 40)), Text(one_line(value, 400)))
    parts: list[RenderableType] = [facts]
    if found.cells:
        cells = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        cells.add_column("run", overflow="fold")
        cells.add_column("state", no_wrap=True)
        for name, state in found.cells:
            cells.add_row(Text(one_line(name)), Text(one_line(state)))
        parts.append(cells)
    if found.examples:
        parts.append(Text(f"\nexamples; what stands in {OPEN} {CLOSE} is learnt", style="dim"))
        parts += [example(shown) for shown in found.examples]
    parts += [Text(f"· {one_line(note, 500)}") for note in found.notes]
    parts.append(Text("nothing was written", style="dim"))
    return Group(*parts)


def example(shown: Shown) -> Text:
    r"""Return one decoded example, the learnt part in brackets and highlighted.

    Args:
        shown: the example.

    >>> example(Shown("a.jsonl line 1", (("say a:", False), (" a.</s>", True)), 9, 3)).plain
    'a.jsonl line 1: 9 tokens, 3 learnt\nsay a:⟦ a.</s>⟧\n'
    """
    text = Text(f"{one_line(shown.where)}: {shown.tokens} tokens, {shown.targets} learnt\n", style="", overflow="fold")
    for segment, learnt in shown.segments:
        safe = visible(segment)
        safe = safe if len(safe) <= LONGEST else f"{safe[: LONGEST // 2]} … {safe[-LONGEST // 2 :]}"
        text.append(f"{OPEN}{safe}{CLOSE}" if learnt else safe, style="bold green" if learnt else "dim")
    return text.append("\n")
