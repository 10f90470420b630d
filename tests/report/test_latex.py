"""Tables for papers: layouts, titles, digits, captions, and that what is printed fits a column or a page."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from kdcli.comparison.records import Comparison, ComparisonRow, ReferenceRow, Setup
from kdcli.evaluation.records import ScoreInfo
from kdcli.metrics.describe import cards
from kdcli.metrics.titles import TITLES
from kdcli.report.latex import COLUMN, PAGE, SIZES, latex, text_width, width
from kdcli.report.table_view import LAYOUTS, TableStyle, blocks, make_table_view
from kdcli.report.tables import render
from kdcli.statistics import Estimate

SCORES = {
    "perplexity": ("lower", 4.97, 0.21),
    "kl_from_teacher": ("lower", 0.447, 0.018),
    "agreement": ("higher", 73.85, 0.85),
    "nll": ("lower", 1.604, 0.042),
    "ece": ("lower", 0.0097, 0.0011),
    "brier": ("lower", 0.5430, 0.0105),
    "rougeL": ("higher", 31.2, 1.4),
    "truncation_rate": ("lower", 98.0, 2.0),
}
LABELS = ("fkl", "rkl", "0.5*ce+0.5*akl:mu=0.6@student:rate=0.5", "./my_losses.py:MyDivergence")
ENGINE = next((found for name in ("pdflatex", "xelatex", "lualatex") if (found := shutil.which(name))), None)


def comparison(scores=tuple(SCORES), labels=LABELS):
    infos = tuple(ScoreInfo(name, SCORES[name][0], name, f"{name}|protocol:mine-1|n:200") for name in scores)
    rows = []
    for number, label in enumerate(labels):
        values, changes = {}, {}
        for name in scores:
            _, mean, half = SCORES[name]
            mean *= 1 + 0.1 * number
            values[name] = Estimate(mean, mean - 0.8 * half, mean + 1.2 * half, 3, "seeds and examples", half, None)
            changes[name] = Estimate(
                number * mean / 9, number * mean / 9 - half, number * mean / 9 + half, 3, "seeds", half, 0.01
            )
        if number == 0:
            changes = dict.fromkeys(scores)
        rows.append(
            ComparisonRow(
                label, (0, 1, 2), values, changes, 600, 608_727, 1.0, 1, best=scores if number == 0 else (),
                tied=scores[:2] if number < 2 else (), parameters=919_808, teacher_parameters=3_321_000,
            )
        )  # fmt: skip
    before = {name: Estimate(18767.4, 16915.6, 20822.0, 200, "examples", 900.0, None) for name in scores}
    lines = (ReferenceRow("before", "student, before", before, 919_808),)
    setup = Setup("stories-3M", "slice", "train.jsonl", 3000, 8, "valid", 200, "mine-1", (0.0015,), tuned=True)
    return Comparison(labels[0], tuple(rows), infos, (), None, references=lines, setup=setup)


def test_every_score_of_a_built_in_metric_has_a_title():
    names = {name for card in cards() for name in card.scores if not name.startswith("rougeL_")}
    assert names == set(TITLES)
    assert {unit for _, unit in TITLES.values()} == {"", "%", "nats"}


def test_people_read_titles_and_programs_names():
    found = comparison(("kl_from_teacher", "rougeL"))
    for form in ("md", "html", "tex"):
        text = render(found, form)
        assert "KL from teacher (nats)" in text or "KL from & " in text
        assert "Rouge-L" in text.replace("{-}", "-")
        assert "kl_from_teacher" not in text.replace("\\", "").replace("`kl_from_teacher|", "")
    assert "kl_from_teacher" in render(found, "csv")
    assert '"kl_from_teacher"' in render(found, "json")


def test_a_table_holds_the_scores_asked_for_in_their_order():
    found, style = comparison(), TableStyle(("agreement", "ece"), "wide")
    assert render(found, "md", style).splitlines()[0] == "| objective | agreement (%) ↑ | ECE ↓ |"
    assert [line.split(",")[2] for line in render(found, "csv", TableStyle(("agreement",))).splitlines()[1:3]] == [
        "agreement"
    ] * 2


def test_own_titles_stand_in_place_of_names_of_scores_and_lines():
    style = TableStyle(("rougeL",), "two-rows", {"rougeL": "R-L", "fkl": "Forward KL"})
    lines = render(comparison(), "md", style).splitlines()
    assert lines[0] == "| objective | R-L ↑ |"
    assert lines[3].startswith("| Forward KL |")
    assert "| Δ to Forward KL |" in lines[5]


def test_digits_are_those_of_the_interval():
    found = comparison(("ece", "agreement"))
    shown = {
        digits: render(found, "md", TableStyle(digits=digits, layout="wide")).splitlines()[3].replace("\\", "")
        for digits in (1, 2, 3)
    }
    assert shown[1] == "| fkl | **0.010** [0.009, 0.011] | **73.8** [73.2, 74.9] |"
    assert shown[2] == "| fkl | **0.0097** [0.0088, 0.0110] | **73.85** [73.17, 74.87] |"
    assert shown[3] == "| fkl | **0.00970** [0.00882, 0.01102] | **73.850** [73.170, 74.870] |"


def test_a_difference_stands_below_or_beside_its_value():
    found = comparison(("rougeL",))
    below = render(found, "md", TableStyle(layout="two-rows")).replace("\\[", "[").replace("\\]", "]").splitlines()
    beside = render(found, "md", TableStyle(layout="value-delta")).replace("\\[", "[").replace("\\]", "]").splitlines()
    assert below[4:6] == ["| rkl | <u>34.3</u> [33.2, 36.0] |", "| Δ to fkl | +3.8 [+2.4, +5.2] \\* |"]
    assert beside[0] == "| objective | Rouge-L ↑ | Δ to fkl |"
    assert beside[4] == "| rkl | <u>34.3</u> [33.2, 36.0] | [+2.4, +5.2] \\* |"


def test_a_caption_says_models_rows_steps_rate_seeds_and_protocol():
    text = render(comparison(), "md", TableStyle(layout="wide")).splitlines()[-1].replace("\\", "")
    assert text == (
        "stories-3M (3.3 M) → slice (920 K): trained on train.jsonl (3,000 rows); 600 steps of 8 rows, 608,727 "
        "response tokens; learning rate 0.0015, chosen on development rows; training seeds 0, 1, 2; measured on valid "
        "(200 rows), protocol mine-1. ± and [ ] are 95 % intervals over seeds and examples; bold is best, underlined "
        "does not differ significantly from it; differences are paired, and * marks p &lt; 0.05 after Holm's "
        "correction."
    )
    assert render(comparison(), "md", TableStyle(layout="wide", caption="Mine")).splitlines()[-1] == "Mine"


def parts(found, layout):
    sheet = make_table_view(found, TableStyle(layout=layout))
    return sheet, blocks(sheet, layout)


CASES = [(layout, count) for layout in ("", *LAYOUTS) for count in (1, 2, 3, 8)]


@pytest.mark.parametrize(("layout", "count"), CASES)
def test_no_table_is_estimated_wider_than_its_column_or_page(layout, count):
    found = comparison(tuple(SCORES)[-count:])
    text = latex(found, make_table_view(found, TableStyle(layout=layout)), TableStyle(layout=layout))
    size = next(size for name, size in SIZES.items() if name + "\n" in text)
    sheet, whole = parts(found, layout)
    most = PAGE if "table*" in text else COLUMN
    columns = [spec.count("r") for spec in re.findall(r"\\begin\{tabular\}\{@\{\}l(r+)@\{\}\}", text)]
    assert sum(columns) == len(whole[0].columns)
    first = 0
    for number in columns:
        alone = number == (2 if layout == "value-delta" else 1)
        assert width(sheet, whole, range(first, first + number), size) <= most or alone
        first += number


def test_a_narrow_table_stays_in_its_column_and_a_wide_one_does_not():
    assert render(comparison(("agreement",), ("fkl", "rkl")), "tex").startswith("\\begin{table}")
    assert render(comparison(), "tex").startswith("\\begin{table*}")


def test_widths_grow_with_the_text_and_bold_is_wider():
    assert text_width("0.1234", 9.0) > text_width("0.123", 9.0) > 0
    assert text_width("0.123", 9.0, bold=True) > text_width("0.123", 9.0) > text_width("0.123", 7.0)


DOCUMENT = r"""\documentclass[10pt]{article}
\usepackage{booktabs}
\newsavebox{\measured}
\let\plaintabular\tabular \let\endplaintabular\endtabular
\renewenvironment{tabular}[1]{\setbox\measured\hbox\bgroup\plaintabular{#1}}
{\endplaintabular\egroup\typeout{MEASURED \the\wd\measured}\usebox\measured}
\begin{document}
%s
\end{document}
"""


@pytest.mark.skipif(ENGINE is None, reason="no LaTeX engine is installed")
@pytest.mark.parametrize("layout", ["", *LAYOUTS])
def test_a_latex_engine_sets_every_table_as_narrow_as_was_estimated(layout, tmp_path):
    made = []
    for count in (1, 2, 3, 8):
        found, style = comparison(tuple(SCORES)[-count:]), TableStyle(layout=layout, label="tab:x")
        made.append(latex(found, make_table_view(found, style), replace(style, label=f"tab:{count}")))
    (tmp_path / "tables.tex").write_text(DOCUMENT.replace("%s", "\\clearpage\n".join(made)), encoding="utf-8")
    command = [ENGINE, "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    log = (tmp_path / "tables.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull" not in log
    widths = iter(float(number) for number in re.findall(r"MEASURED ([\d.]+)pt", log))
    for text, count in zip(made, (1, 2, 3, 8), strict=True):
        sheet, whole = parts(comparison(tuple(SCORES)[-count:]), layout)
        size = next(size for name, size in SIZES.items() if name + "\n" in text)
        first = 0
        for spec in re.findall(r"\\begin\{tabular\}\{@\{\}l(r+)@\{\}\}", text):
            found = next(widths)
            estimated = width(sheet, whole, range(first, first + len(spec)), size)
            assert 0.85 * estimated <= found <= 1.01 * estimated
            assert found <= (PAGE if "table*" in text else COLUMN)
            first += len(spec)
    assert next(widths, None) is None
