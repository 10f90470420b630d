"""One form of a finished comparison's table, where it is wanted."""

from pathlib import Path

from kdcli import durable
from kdcli.errors import UsageError
from kdcli.runs.conclude import read_comparison
from kdcli.runs.seal import seal_again
from kdcli.runs.tables import FORMS, render
from kdcli.runs.tidy import RESULTS
from kdcli.text import one_line


def export(study: Path, target: Path, *, caption: str = "", label: str = "", digits: int | None = None) -> Path:
    """Write a comparison's table in the form that the target's name asks for.

    Args:
        study: a folder that ``kd compare`` wrote.
        target: file to write; its ending is one of md, csv, json, tex, html, parquet.
        caption: of a LaTeX or HTML table.
        label: of a LaTeX table.
        digits: decimals of the printed numbers; by default what the intervals support.

    Returns:
        the file.

    Raises:
        UsageError: an ending that is none of these, or something the form cannot hold.
        InputError: the folder holds no comparison.
        MachineError: the file cannot be written.
    """
    form = check(target, caption=caption, label=label, digits=digits)
    if form == "parquet":
        read_comparison(study)
        durable.write_file(target, (study / RESULTS).read_bytes())
        seal_again(target)
        return target
    text = render(read_comparison(study), form, digits=digits, caption=caption, label=label)
    durable.write_file(target, text)
    seal_again(target)
    return target


def check(target: Path, *, caption: str = "", label: str = "", digits: int | None = None) -> str:
    """Return the form a target's name asks for, before anything is read.

    Raises:
        UsageError: as ``export`` does.
    """
    form, known = target.suffix.removeprefix("."), (*FORMS, "parquet")
    if form not in known:
        what = f'"{one_line(target.name, 60)}" has no form that is known'
        raise UsageError("CLI-21", what, where="--to", fix=f"end it in one of .{', .'.join(known)}")
    if label and form != "tex":
        raise UsageError("CLI-09", "has no effect on this form", where="--label", fix="give --to table.tex")
    if caption and form not in ("tex", "html"):
        raise UsageError("CLI-09", "has no effect on this form", where="--caption", fix="give --to table.tex")
    if digits is not None and (form == "parquet" or not 0 <= digits <= 9):
        what = "has no effect on parquet" if form == "parquet" else f"{digits} decimals"
        raise UsageError("CLI-21", what, where="--digits", fix="leave it out, or give 0 to 9 for a printed table")
    return form
