"""Writes the commands' flags, and the generated parts of the pages here: help texts, settings, objectives, metrics.

A generated part stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; all else is
written by hand and stays as it is. NAME is ``help`` with a command, or one of ``PARTS`` below.

    python docs/generate.py            bring flags and pages up to date
    python docs/generate.py --check    say what is stale, change nothing
"""

import argparse
import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from kdcli import errors
from kdcli.cli.app import run
from kdcli.cli.generate_options import source as options_source
from kdcli.cli.render_catalog import prose
from kdcli.config.names import ALIASES
from kdcli.config.presets import cards as preset_cards
from kdcli.config.resolve import Setting, iter_settings
from kdcli.config.resolve import describe as describe_type
from kdcli.config.schema import KINDS
from kdcli.errors import KDError
from kdcli.losses.build import LossCard, describe
from kdcli.metrics.describe import cards
from kdcli.registry.catalog import LOSSES
from kdcli.registry.options import Option
from kdcli.scores.build import cards as score_cards
from kdcli.sources.build import cards as source_cards
from kdcli.text import markdown_cell

HERE = Path(__file__).resolve().parent
OPTIONS = HERE.parent / "src" / "kdcli" / "cli" / "options.py"
COLOURS = ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH", "CLICOLOR_FORCE")
PART = re.compile(r"<!-- begin (?P<name>[\w -]+) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)


def main() -> int:
    """Bring flags and pages up to date, or check that they are."""
    arguments = argparse.ArgumentParser(description="Bring flags and the generated parts of the pages up to date.")
    arguments.add_argument("--check", action="store_true", help="say what is stale, change nothing")
    check = arguments.parse_args().check
    stale = []
    flags = options_source()
    if OPTIONS.read_text(encoding="utf-8") != flags:
        stale.append(str(OPTIONS.relative_to(HERE.parent)))
        if not check:
            OPTIONS.write_text(flags, encoding="utf-8")
    for page in (HERE.parent / "README.md", *sorted(HERE.rglob("*.md"))):
        old = page.read_text(encoding="utf-8")
        new, names = refreshed(old)
        if names:
            stale += [f"{page.relative_to(HERE.parent)}: {name}" for name in names]
            if not check:
                page.write_text(new, encoding="utf-8")
    for line in stale:
        print(("stale    " if check else "written  ") + line)
    if check and stale:
        print("run: python docs/generate.py")
    return int(check and bool(stale))


def refreshed(text: str) -> tuple[str, list[str]]:
    """Return a page with its generated parts up to date, and the names of those that were not."""
    changed = []

    def part(found: re.Match[str]) -> str:
        name = found["name"]
        command = re.fullmatch(r"help( [\w ]+)?", name)
        if not command and name not in PARTS:
            raise SystemExit(f"no part is called {name}; there are: help, {', '.join(PARTS)}")
        body = help_text((command[1] or "").strip()) if command else PARTS[name]()
        fresh = f"<!-- begin {name} -->\n{body}\n<!-- end {name} -->"
        if fresh != found[0]:
            changed.append(name)
        return fresh

    return PART.sub(part, text), changed


def packages() -> str:
    """The packages from top to bottom, as the import linter's layers list them."""
    home = Path(__file__).parents[1]
    rules = tomllib.loads((home / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(rule for rule in rules["tool"]["importlinter"]["contracts"] if rule["type"] == "layers")["layers"]
    rows = []
    for layer in layers:
        for place, name in enumerate(layer.replace("kdcli.", "").split(" | ")):
            folder = home / "src" / "kdcli" / name
            file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[0]
            rows.append(
                [
                    str(len(layers) - layers.index(layer)) if not place else "",
                    code(file.name if not folder.is_dir() else f"{name}/"),
                    first,
                ]
            )
    return table(["layer", "package", "what it holds"], rows)


HELP = """
import contextlib, io, json, sys
from kdcli.cli.app import run
found = {}
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run([*command.split(), "--help"])
    assert code == 0, command
    found[command] = out.getvalue()
print(json.dumps(found))
"""


@cache
def help_texts() -> dict[str, str]:
    """Return what ``kd COMMAND --help`` prints, 80 columns wide, for each command that a page shows."""
    pages = [page.read_text(encoding="utf-8") for page in (HERE.parent / "README.md", *HERE.rglob("*.md"))]
    commands = {name for page in pages for name in re.findall(r"<!-- begin help ?([\w ]*?) -->", page)}
    environ = {name: value for name, value in os.environ.items() if name not in COLOURS}
    done = subprocess.run(
        [sys.executable, "-c", HELP, *sorted(commands)],
        env={**environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def help_text(command: str) -> str:
    """Return a command's help as a block of text."""
    lines = help_texts()[command].strip("\n").splitlines()
    return "```text\n" + "\n".join(line.rstrip() for line in lines) + "\n```"


STORIES = (
    "compare docs/recorded/stories --to table.md --layout value-delta --columns perplexity,kl_from_teacher,agreement"
)


def stories() -> str:
    """Return a command and the table that it makes of the recorded numbers of a study."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "table.md"
        words = STORIES.replace("docs/", f"{HERE}/", 1).replace("table.md", str(target), 1).split()
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            failed = run(words)
        if failed:
            raise SystemExit(stderr.getvalue())
        return f"```sh\nkd {STORIES}\n```\n\n{target.read_text(encoding='utf-8').strip()}"


def settings() -> str:
    """Return the table of every setting."""
    rows = []
    found: dict[str, tuple[Setting, list[str]]] = {}
    for kind in KINDS:
        for path, setting in iter_settings(kind).items():
            found.setdefault(path, (setting, []))[1].append(kind.command)
    for path, (setting, commands) in found.items():
        flags = [flag.spelling.split()[0] for flag in setting.flags if not flag.positional]
        flag = f"`{flags[0]}`" if flags else ""
        default = setting.adapter.dump_python(setting.info.default, mode="json")
        shown = (
            ",".join(map(str, default)) if isinstance(default, list) else "" if default in (None, {}) else str(default)
        )
        where = "all" if len(commands) == len(KINDS) else ", ".join(commands).replace("-", " ")
        takes = describe_type(setting.schema)
        what = (setting.info.description or "").rstrip(".")
        rows.append([f"`{path}`", flag, code(shown), markdown_cell(takes), markdown_cell(what), where])
    return table(["setting", "flag", "default", "takes", "what it is", "commands"], rows)


BUG = "BUG-00"
CODE = re.compile(r"[A-Z]+-\d\d")
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KDError)]
KINDS_OF_ERRORS = {kind.__name__: kind.exit_code for kind in CLASSES}


def error_codes() -> str:
    """Return every code with what is said and what to do, as they stand in the source; ... stands for a value."""
    found: dict[str, dict[tuple[str, str], None]] = {}
    exits: dict[str, set[int]] = {}
    for path in sorted((HERE.parent / "src" / "kdcli").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call, scope in calls(tree):
            known = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            name = next((word for word in known if CODE.fullmatch(word)), None)
            if name is None or name == BUG:
                continue
            place = next(i for i, one in enumerate(call.args) if isinstance(one, ast.Constant) and one.value == name)
            what = wording(call.args[place + 1], scope) if len(call.args) > place + 1 else ""
            fix = next((wording(word.value, scope) for word in call.keywords if word.arg == "fix"), "")
            fix = fix or (wording(call.args[place + 2], scope) if len(call.args) > place + 2 else "")
            found.setdefault(name, {})[what, fix] = None
            kind = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            exits.setdefault(name, set()).update({KINDS_OF_ERRORS[kind]} if kind in KINDS_OF_ERRORS else set())
    parts = []
    for name in sorted(found):
        lines = [one for one in found[name] if one[0] not in ("", "...") or one[1] not in ("", "...")]
        codes = f"Exit code {' or '.join(map(str, sorted(exits[name])))}.\n\n" if exits[name] else ""
        said = [[one or "as the line says" for one in line] for line in lines or [("", "")]]
        rows = [[markdown_cell(one, 300) for one in line] for line in said]
        parts.append(f"### {name}\n\n{codes}" + table(["cause", "fix"], rows))
    return "\n\n".join(parts)


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Yield every call with the function that it stands in."""
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node): scope for scope in scopes for node in ast.walk(scope)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, inside.get(id(node), tree)


def wording(value: ast.expr, scope: ast.AST) -> str:
    """Return a sentence of the source as text, with ... for what is filled in."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.JoinedStr):
        return re.sub(r"(\.\.\.)+", "...", "".join(wording(part, scope) for part in value.values))
    if isinstance(value, ast.IfExp):
        return " or ".join(dict.fromkeys(filter(None, (wording(value.body, scope), wording(value.orelse, scope)))))
    if isinstance(value, ast.BinOp):
        return wording(value.left, scope) + wording(value.right, scope)
    if isinstance(value, ast.Name):
        given = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and node.lineno <= value.lineno:
                for target in node.targets:
                    names, values = ([target], [node.value])
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        names, values = target.elts, node.value.elts
                    for one, said in zip(names, values, strict=False):
                        if isinstance(one, ast.Name) and one.id == value.id and said is not value:
                            given[node.lineno] = said
        if given:
            return wording(given[max(given)], ast.Module([], []))
    return "..."


def aliases() -> str:
    """Return the table of other tools' spellings."""
    flags: dict[str, list[str]] = {}
    for alias, flag in ALIASES.items():
        flags.setdefault(flag, []).append(f"`--{alias.replace('_', '-')}`")
    rows = [[f"`--{flag.replace('_', '-')}`", ", ".join(names)] for flag, names in flags.items()]
    return table(["flag", "also understood"], rows)


def objectives() -> str:
    """Return the overview of all objectives."""
    rows = [
        [f"[`{card.name}`](#{card.name})", code(card.formula), markdown_cell(card.reference)] for card in loss_cards()
    ]
    return table(["objective", "per token", "reference"], rows)


def objective_details() -> str:
    """Return a section for each objective: formula, options, cost."""
    return "\n\n".join(detail(card) for card in loss_cards())


def detail(card: LossCard) -> str:
    """Return one objective's section."""
    lines = [f"### {card.name}", "", card.summary, "", f"* per token: {code(card.formula)}"]
    lines += [f"* reference: {markdown_cell(card.reference, 400)}", f"* cost: {markdown_cell(card.cost, 400)}"]
    if card.aliases:
        lines.append(f"* also understood: {', '.join(f'`{alias}`' for alias in card.aliases)}")
    return "\n".join([*lines, "", option_table(card.options)])


def option_table(options: Iterable[Option]) -> str:
    """Return the table of a part's options."""
    rows = [
        [
            f"`{option.name}`",
            code(option.default),
            option.type.replace("|", ", "),
            option.bounds,
            markdown_cell(option.text),
        ]
        for option in options
    ]
    return table(["option", "default", "type", "bounds", "what it does"], rows)


def sources() -> str:
    """Return the overview of all sources."""
    rows = [
        [
            f"[`{card.name}`](#{card.name})",
            markdown_cell(card.what),
            ", ".join(f"`{option.name}`" for option in card.options),
            ", ".join(card.needs),
            ", ".join(f"`{fact}`" for fact in card.facts),
        ]
        for card in source_cards()
    ]
    return table(["source", "what", "options", "needs", "facts"], rows)


def source_details() -> str:
    """Return a section for each source."""
    return "\n\n".join(
        "\n".join(
            [
                f"### {card.name}", "", prose(card.doc), "", f"* reference: {markdown_cell(card.reference, 400)}",
                *(["", option_table(card.options)] if card.options else []),
            ]
        )
        for card in source_cards()
    )  # fmt: skip


def scores() -> str:
    """Return the overview of all scores of rows."""
    rows = [
        [
            f"[`{card.name}`](#{card.name})",
            markdown_cell(card.what),
            code(card.formula),
            ", ".join(card.needs),
            ", ".join(f"`{option.name}`" for option in card.options),
        ]
        for card in score_cards()
    ]
    return table(["score", "what", "formula", "measured with", "options"], rows)


def score_details() -> str:
    """Return a section for each score."""
    return "\n\n".join(
        "\n".join(
            [
                f"### {card.name}", "", prose(card.doc), "", f"* reference: {markdown_cell(card.reference, 400)}",
                *(["", option_table(card.options)] if card.options else []),
            ]
        )
        for card in score_cards()
    )  # fmt: skip


def presets() -> str:
    """Return the table of all training presets."""
    rows = [[code(card.name), code(card.objective), markdown_cell(card.summary)] for card in preset_cards()]
    return table(["preset", "objective", "what"], rows)


def metrics() -> str:
    """Return the table of all metrics."""
    arrows = {"higher": " ↑", "lower": " ↓"}
    rows = [
        [
            f"`{card.name}`",
            ", ".join(f"`{name}`{arrows.get(better, '')}" for name, better in card.scores.items()),
            {"texts": "answers", "own": "sampled answers"}.get(card.input_kind, card.input_kind)
            + ", teacher" * card.needs_teacher,
            markdown_cell(card.description),
        ]
        for card in cards()
    ]
    return table(["metric", "scores", "reads", "what it is"], rows)


def loss_cards() -> list[LossCard]:
    """Return the card of every built-in objective."""
    return [describe(name) for name in LOSSES]


def table(headings: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def code(text: str) -> str:
    """Return text in a code span that may stand in a table."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


PARTS: dict[str, Callable[[], str]] = {
    "packages": packages,
    "stories": stories,
    "settings": settings,
    "aliases": aliases,
    "objectives": objectives,
    "objective details": objective_details,
    "metrics": metrics,
    "presets": presets,
    "sources": sources,
    "source details": source_details,
    "scores": scores,
    "score details": score_details,
    "error codes": error_codes,
}

if __name__ == "__main__":
    sys.exit(main())
