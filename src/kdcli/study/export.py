"""One form of a comparison's table, where it is wanted."""

from pathlib import Path

from kdcli.comparison.answer import chosen_scores
from kdcli.comparison.records import RESULTS, Comparison
from kdcli.errors import UsageError
from kdcli.report.table_view import PLAIN, TableStyle
from kdcli.report.tables import FORMS, render
from kdcli.storage import atomic
from kdcli.storage.digests import update_digest
from kdcli.study import stored_comparison
from kdcli.text import one_line


def export(study: Path, target: Path, style: TableStyle = PLAIN, *, baseline: str | None = None) -> Path:
    """Write a comparison's table in the form that the target's name asks for.

    Args:
        study: a folder that ``kd compare`` wrote.
        target: file to write; its ending is one of md, csv, json, tex, html, parquet.
        style: which scores, laid out and worded how.
        baseline: label that differences are taken to; by default the study's own.

    Returns:
        the file.

    Raises:
        UsageError: an ending that is none of these, something the form cannot hold, or a score or line that is not
            there.
        InputError: the folder holds no comparison.
        MachineError: the file cannot be written.
    """
    form = check(target, style, baseline=baseline)
    if form == "parquet":
        _comparison(study)
        atomic.write_file(target, (study / RESULTS).read_bytes())
    else:
        found = _comparison(study, baseline)
        chosen_scores(found, style.columns, "--columns")
        atomic.write_file(target, render(found, form, style))
    update_digest(target)
    return target


def _comparison(study: Path, baseline: str | None = None) -> Comparison:
    """Return the comparison as it is stored, which takes no statistics; else computed from the study's files."""
    found = stored_comparison.read(study, baseline)
    if found is None:
        from kdcli.study.finished import comparison_of

        found = comparison_of(study, baseline)
    return found


def check(target: Path, style: TableStyle = PLAIN, *, baseline: str | None = None) -> str:
    """Return the form a target's name asks for, before anything is read.

    Raises:
        UsageError: as ``export`` does.
    """
    form, known = target.suffix.removeprefix("."), (*FORMS, "parquet")
    if form not in known:
        what = f'"{one_line(target.name, 60)}" has no form that is known'
        raise UsageError("CLI-21", what, where="--to", fix=f"end it in one of .{', .'.join(known)}")
    if style.label and form != "tex":
        raise UsageError("CLI-09", "has no effect on this form", where="--label", fix="give --to table.tex")
    for flag, value in (("--layout", style.layout), ("--titles", style.titles), ("--caption", style.caption)):
        if value and form not in ("tex", "html", "md"):
            raise UsageError("CLI-09", "has no effect on this form", where=flag, fix="give --to table.tex")
    if form == "parquet":
        for flag, value in (("--columns", style.columns), ("--digits", style.digits), ("--baseline", baseline)):
            if value:
                raise UsageError("CLI-09", "has no effect on this form", where=flag, fix="give --to table.tex")
    return form
