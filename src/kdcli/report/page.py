"""Renders the report: autoescaped, with a content security policy that allows only its own style and script."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from kdcli.comparison.aggregate import Group
from kdcli.comparison.answer import answer, circumstances, subject
from kdcli.comparison.records import Comparison
from kdcli.distill.records import Reference
from kdcli.report import answer_curves, examples, provenance, ranking, training_curves
from kdcli.report import ranking as pareto
from kdcli.report.sections import ReportData, Section
from kdcli.storage import atomic
from kdcli.text import visible
from kdcli.version import __version__

NAME = "report.html"

_TEMPLATES = resources.files("kdcli.report") / "templates"


def write_report(
    path: Path, comparison: Comparison, groups: Sequence[Group], references: Sequence[Reference] = ()
) -> None:
    """Write the report of a comparison; equal comparisons give equal bytes.

    Args:
        path: the file, ``report.html`` by habit.
        comparison: the tables.
        groups: the runs behind each line.
        references: the reference models' evaluations.
    """
    atomic.write_file(path, report(comparison, groups, references))


def report(comparison: Comparison, groups: Sequence[Group], references: Sequence[Reference] = ()) -> str:
    """Return the page; a section whose data do not exist is left out."""
    material = ReportData(comparison, tuple(groups), tuple(references))
    made = [
        _verdict(comparison),
        ranking.ranking(material) if material.scores else None,
        ranking.differences(material),
        ranking.since_start(material),
        _findings(comparison),
        training_curves.curves(material),
        training_curves.adaptive(material),
        answer_curves.reliability(material),
        answer_curves.quality_by_length(material),
        answer_curves.answer_curves(material),
        pareto.pareto(material),
        examples.side_by_side(material),
        provenance.configurations(material),
        provenance.manifest(material),
    ]
    sections = [section for section in made if section is not None]
    return render(_title(comparison), _facts(material), sections, _lead(comparison), provenance.commands(material)[:1])


def render(
    title: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    lead: str = "",
    commands: Sequence[str] = (),
) -> str:
    """Return sections as one page.

    Args:
        title: of the page.
        facts: names and values below the title.
        sections: in reading order.
        lead: the first paragraph.
        commands: command lines below it.
    """
    style, script = _read("report.css"), _read("report.js")
    template = _environment().get_template("report.html.j2")
    return template.render(
        title=title,
        lead=lead,
        commands=commands,
        facts=facts,
        sections=sections,
        version=__version__,
        style=Markup(style),
        script=Markup(script) if any(section.sheets for section in sections) else "",
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _verdict(comparison: Comparison) -> Section | None:
    said = list(answer(comparison))
    return Section("verdict", "Verdict", remarks=said) if said else None


def _lead(comparison: Comparison) -> str:
    """Say what was trained and measured, in one paragraph."""
    said = "; ".join(circumstances(comparison))
    return f"{said[:1].upper()}{said[1:]}."


def _findings(comparison: Comparison) -> Section:
    """What to type next is for whoever started the study, not for the readers of its report."""
    failed = [f"failed: {one.loss} seed {one.seed}: {one.message}" for one in comparison.failed]
    said = [note for note in comparison.notes if note not in comparison.suggestions]
    return Section("findings", "Conclusions", remarks=[*said, *failed])


def _title(comparison: Comparison) -> str:
    labels = [row.label for row in comparison.rows]
    compared = f"{len(labels)} objectives compared" if len(labels) > 1 else labels[0]
    about = subject(comparison)
    return f"{about}: {compared}" if about else compared


def _facts(material: ReportData) -> list[tuple[str, str]]:
    folder = material.comparison.folder
    facts = [
        ("study", folder.name if folder is not None else ""),
        ("baseline", material.comparison.baseline if len(material.comparison.rows) > 1 else ""),
        ("objectives", ", ".join(row.label for row in material.comparison.rows)),
    ]
    return [(name, value) for name, value in facts if value]


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True,
        loader=FunctionLoader(_read),
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _harmless(value: Any) -> Any:
    """Show control, bidirectional and zero-width characters instead of obeying them."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
