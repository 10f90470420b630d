"""``kd data``: look at files of rows, score, rank and cut them."""

from typing import TYPE_CHECKING, Any

import typer

from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed
from kdcli.text import one_line

if TYPE_CHECKING:
    from kdcli.rows.balance import BalanceRecord
    from kdcli.rows.check import Checked, Lengths, TokensFound
    from kdcli.rows.rationales import RationalesRecord
    from kdcli.rows.score import ScoreRecord
    from kdcli.rows.split import SplitRecord

EPILOG_CHECK = "Example: kd data check train.jsonl --student ./S --max-length 512"
EPILOG_SCORE = """Example: kd data score --student ./S --data train.jsonl --by ifd --by nll --keep 0.7 -o scored

The numbers go to a column of scored/rows.jsonl; kd scores lists the scores."""
EPILOG_SPLIT = """Example: kd data split --data train.jsonl --parts 0.9,0.1 -o parts

Example: kd data split --data train.jsonl --parts 8 --by dirichlet:alpha=.3,by=category -o clients"""

EPILOG_BALANCE = "Example: kd data balance --data rows.jsonl --by category --stage 1/3 --budget 600 -o stage1"

EPILOG_RATIONALES = "Example: kd data rationales --teacher ./T --data train.jsonl --by ig:steps=32 --words 5 -o reasons"


def register(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    data = typer.Typer(help="Look at files of rows, score them, and cut them into parts.", rich_markup_mode="rich")
    add = data.command
    add("check", epilog=EPILOG_CHECK, short_help="Say what is in a file of rows.")(options.data_check(check))
    add("score", epilog=EPILOG_SCORE, short_help="Score rows, keep some ranks.")(options.data_score(score))
    add("split", epilog=EPILOG_SPLIT, short_help="Cut rows into several files.")(options.data_split(split))
    text = "Choose a stage's rows within quotas."
    add("balance", epilog=EPILOG_BALANCE, short_help=text)(options.data_balance(balance))
    text = "Write rows with the words that moved a teacher's answer."
    add("rationales", epilog=EPILOG_RATIONALES, short_help=text)(options.data_rationales(rationales))
    app.add_typer(data, name="data", cls=group)


def check(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Say what is in a file of rows: form, columns, bad rows, lengths; with a model, its tokens and template too.

    Nothing is written, and no weight is read. Bad rows are counted, not refused.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import CheckConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(CheckConfig, config, sets, typed)
    with terminal.progress():
        from kdcli.rows import check as rows

        found = rows.check(settings)
    terminal.result(found, _checked)


def score(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Measure numbers of each row, and write the rows with them; only ranks of the first score, if asked for.

    The same line again measures what is missing. Other ranks measure nothing anew.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import ScoreConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(ScoreConfig, config, sets, typed)
    load_config.require(data=settings.data.train)
    load_config.output_folder(settings.output, needed=True)
    with terminal.progress() as report:
        from kdcli.rows import score as rows

        found = rows.score(settings, report, command=load_config.command_line())
    terminal.result(found, _scored)


def split(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Cut the rows of a file into several: at random, by a column, or by mixtures of a column's values.

    Every row goes to one part and keeps its columns. The same line gives the same parts.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import SplitConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(SplitConfig, config, sets, typed)
    load_config.require(data=settings.data.train)
    load_config.output_folder(settings.output, needed=True)
    with terminal.progress() as report:
        from kdcli.rows import split as rows

        found = rows.split(settings, report)
    terminal.result(found, _split)


def balance(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Choose the rows of one stage: each value of a column has a quota, that goes from natural to equal.

    union.jsonl holds the rows of this and all earlier stages, to train on. With --tail write a teacher writes the
    rows that a value lacks; the same line goes on where it was stopped.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import BalanceConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(BalanceConfig, config, sets, typed)
    load_config.require(data=settings.data.train)
    if settings.tail != "write":
        names = ("teacher", "student", "source", "shots", "tries", "device", "dtype")
        load_config.refuse_unused(typed, names, "has an effect with --tail write alone", "leave it out")
    load_config.output_folder(settings.output, needed=True)
    with terminal.progress() as report:
        from kdcli.rows import balance as rows

        found = rows.balance(settings, report, command=load_config.command_line())
    terminal.result(found, _balanced)


def _balanced(record: "BalanceRecord") -> str:
    lines = []
    for one in record.taken:
        told = {"repeated": one.repeated, "written": one.written, "lacking": one.lacking}
        more = "".join(f", {count:,} {name}" for name, count in told.items() if count)
        lines.append(f"{one_line(one.value, 30):30} quota {one.quota:>8,} of {one.there:,}: {one.fresh:,} new{more}")
    lines.append(f"{record.rows:,} rows; with the earlier stages {record.rows_in_all:,}: {record.union}")
    return "\n".join([*lines, str(record.file)])


def rationales(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Weigh the words of each prompt by how they move the teacher's answer; write rows with the heaviest of each.

    The hit rate says how often one of them occurs in the answer; the chance level is that of words drawn at random.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import RationalesConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(RationalesConfig, config, sets, typed)
    load_config.require(teacher=settings.teacher, data=settings.data.train)
    load_config.output_folder(settings.output, needed=True)
    with terminal.progress() as report:
        from kdcli.rows import rationales as rows

        found = rows.rationales(settings, report, command=load_config.command_line())
    terminal.result(found, _explained)


def _explained(record: "RationalesRecord") -> str:
    gap = f"; completeness missed by {100 * record.gap:.2g} % in the median row" if record.gap is not None else ""
    return "\n".join(
        [
            f"{record.asked:,} prompts, {record.fresh:,} weighed now; {record.rows:,} rows written{gap}",
            f"a word of {100 * record.hit_rate:.1f} % of the rationales occurs in the answer, "
            f"by chance {100 * record.chance:.1f} %",
            *([f"{record.wordless:,} prompts have no word to choose"] if record.wordless else []),
            str(record.file),
        ]
    )


def _checked(found: "Checked") -> str:
    lines = [
        _line("rows", f"{found.rows:,}, form {found.form}"),
        _line("columns", ", ".join(f"{field}: {one_line(name, 40)}" for field, name in found.used.items())),
    ]
    for name, values in found.unused.items():
        counts = ", ".join(f"{one_line(value, 30)} {count:,}" for value, count in list(values.items())[:8])
        more = f" and {len(values) - 8} more" if len(values) > 8 else ""
        lines.append(_line("not read", f"{one_line(name, 40)}{': ' if values else ''}{counts}{more}"))
    lines.append(_line("bad rows", f"{found.bad_rows:,}"))
    lines += [f"{'':14} {one_line(bad, 300)}" for bad in found.bad]
    if found.bad_rows > len(found.bad):
        lines.append(f"{'':14} and {found.bad_rows - len(found.bad):,} more")
    if found.prompt is not None:
        lines.append(_line("prompts", f"{_lengths(found.prompt)} characters"))
    if found.response is not None:
        what = "responses" if found.prompt is not None else "texts"
        lines.append(_line(what, f"{_lengths(found.response)} characters"))
    lines += [_line(*one) for one in _remarks(found)]
    return "\n".join([*lines, *(_tokens(found.tokens) if found.tokens is not None else [])])


def _remarks(found: "Checked") -> list[tuple[str, str]]:
    from kdcli.data.readers import counted

    told = (
        ("unanswered", found.unanswered, "no column that is read holds answers: name one, as in "
         "--columns response=NAME, or let a teacher write them, by kd generate"),
        ("twice", found.same_row, f"{counted(found.same_row, 'row')} with prompt and response of an earlier one"),
        ("same prompt", found.same_prompt, f"{counted(found.same_prompt, 'row')} with the prompt, or text, of an "
         "earlier one"),
        ("references", found.references, f"{counted(found.references, 'row')} with several; training takes the first"),
        ("control", found.control, f"{counted(found.control, 'row')} with control characters"),
    )  # fmt: skip
    return [(name, text) for name, count, text in told if count]


def _tokens(found: "TokensFound") -> list[str]:
    total = found.rows + found.dropped
    cut, dropped = (f"{count:,} ({100 * count / total:.1f} %)" for count in (found.cut, found.dropped))
    lines = [
        _line("tokenizer", one_line(found.model, 200)),
        _line("prompts", f"{_lengths(found.prompt)} tokens"),
        _line("responses", f"{_lengths(found.response)} tokens, end token included"),
        _line("cut", f"{cut} of the responses, at {found.longest:,} tokens of a row (--max-length)"),
    ]
    if found.dropped:
        lines.append(_line("dropped", f"{dropped} of the rows: the prompt alone is as long"))
    if found.cut or found.dropped:
        lines.append(_line("would do", f"--max-length {found.needed}"))
    lines += [
        _line("end tokens", ", ".join(f"{name} ({token})" for name, token in found.ends)),
        _line("template", found.template),
        _line("first row", one_line(found.start, 400)),
        _line("ends", one_line(found.end, 200)),
    ]
    return [*lines, *(_line("note", one_line(note, 300)) for note in found.notes)]


def _lengths(found: "Lengths") -> str:
    return (
        f"median {found.median:,}, mean {found.mean:,.1f}, 95 % up to {found.most_of_all:,}, "
        f"from {found.least:,} to {found.most:,}"
    )


def _line(name: str, text: str) -> str:
    return f"{name:14} {text}"


def _scored(record: "ScoreRecord") -> str:
    lines = []
    for one in record.scores:
        least, few, median, most_of_all, most = one.quantiles
        lines.append(
            f"{one_line(one.score, 60)}: mean {one.mean:.4g}, median {median:.4g}, 5 % up to {few:.4g}, "
            f"95 % up to {most_of_all:.4g}, from {least:.4g} to {most:.4g}; {one.fresh:,} of {one.rows:,} measured now"
        )
    if record.rows < record.scored:
        what = "rows trust the teacher" if record.marked else "rows kept"
        lines.append(f"{record.rows:,} of {record.scored:,} {what}, by {one_line(record.scores[0].score, 60)}")
    if record.dropped:
        lines.append(f"{record.dropped:,} rows have no score: no training reads them")
    return "\n".join([*lines, str(record.file)])


def _split(record: "SplitRecord") -> str:
    lines = []
    for part in record.parts:
        values = ", ".join(f"{one_line(name, 30)} {count:,}" for name, count in list(part.values.items())[:8])
        lines.append(f"{part.file.name:24} {part.rows:>10,} rows{'   ' if values else ''}{values}")
    return "\n".join([*lines, str(record.folder)])
