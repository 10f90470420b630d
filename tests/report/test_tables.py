"""The five forms of a table: the same numbers in each, and nothing in a name can do harm in any."""

import csv
import html.parser
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from rich.console import Console

from kdcli.cli import render
from kdcli.comparison.records import Comparison, ComparisonRow, Failure
from kdcli.evaluation.records import ScoreInfo
from kdcli.report import tables
from kdcli.report.table_view import TableStyle, make_table_view
from kdcli.statistics import Detectable, Estimate, VarianceShares, rounding
from kdcli.study.cells import slug

INFO = ScoreInfo("rougeL", "higher", "rougeL", "rougeL|stem:yes", "texts")
NLL = ScoreInfo("nll", "lower", "perplexity", "perplexity|x")
HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "[/]",
    "[bold]x[/bold]",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(A1)",
    r"\input{/etc/passwd}",
    r"\\*[3cm]$x$ 100% #1 & ~^_{}",
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "a|b\n| c | `code` ![x](y)",
    "\u202egnp.exe\u200b",
    "\ud800",
    "*" * 50,
    "数学",
)


def comparison(label="akl", failed=(), notes=("a | b",)):
    one = Estimate(20.123, 19.133, 21.113, 3, "seeds and examples", 0.23, None)
    nll = Estimate(2.5, 2.4, 2.6, 3, "seeds and examples", 0.023, None)
    change = Estimate(-1.5, -2.1, -1.0, 40, "examples", 0.1, 0.01)
    rows = (
        ComparisonRow(
            "fkl", (0, 1, 2), {"rougeL": one, "nll": nll}, {"rougeL": None, "nll": None}, 10, 1000, 1.25, 2**20,
            best=("rougeL",), tied=("rougeL", "nll"), student_tokens=4000, teacher_tokens=1000, flops=1.5e15,
        ),
        ComparisonRow(
            label, (0, 1, 2), {"rougeL": one, "nll": nll}, {"rougeL": change, "nll": None}, 10, 1000, 1.25, 2**20,
            best=("nll",), tied=("nll",), parameters=124_000_000,
        ),
    )  # fmt: skip
    return Comparison(
        "fkl", rows, (INFO, NLL), notes, None, failed,
        detectable={"rougeL": Detectable(0.5, 0.4, 0.9)}, variance={"rougeL": VarianceShares(0.5, None, 0.3, 0.2)},
        pareto={"rougeL": {"seconds": ("fkl",), "flops": ("fkl", label)}, "nll": {"seconds": ("fkl",)}},
    )  # fmt: skip


class Shown(html.parser.HTMLParser):
    """Collects what a browser would show, and which elements it would make."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href", "style")]

    def handle_data(self, data):
        self.text.append(data)


def test_every_form_holds_the_same_numbers():
    found = comparison()
    sheet = make_table_view(found)
    cells = [cell for line in (*sheet.means, *sheet.differences) for cell in line.cells if cell.mean != "–"]
    assert [cell.text for cell in cells] == [
        "20.12 ± 0.99", "2.50 ± 0.10", "20.12 ± 0.99", "2.50 ± 0.10", "-1.50 [-2.10, -1.00] *",
    ]  # fmt: skip
    forms = {form: tables.render(found, form) for form in tables.FORMS}
    forms["html"] = "".join(Shown(forms["html"]).text)
    forms["md"] = re.sub(r"\*\*|</?u>|\\", "", forms["md"])
    forms["tex"] = re.sub(r"\\textbf|\\underline|[${}]", "", forms["tex"]).replace(r"\pm", "±").replace(r"\ast", "*")
    forms["json"] = json.dumps(json.loads(forms["json"]), ensure_ascii=False)
    for form, text in forms.items():
        for cell in cells:
            assert cell.text in text, (form, cell.text)


def test_lopsided_intervals_have_both_ends_in_every_form():
    found = comparison()
    lopsided = replace(found.rows[1].scores["rougeL"], mean=0.341, low=0.203, high=0.538)
    change = replace(found.rows[1].differences["rougeL"], mean=0.341, low=0.203, high=0.538)
    row = replace(found.rows[1], scores={"rougeL": lopsided}, differences={"rougeL": change}, best=(), tied=())
    found = replace(found, rows=(row,), baseline="other", scores=(INFO,))
    assert "0.34 [0.20, 0.54]" in tables.render(found, "md").replace("\\", "")
    assert "0.34 [0.20, 0.54]" in "".join(Shown(tables.render(found, "html")).text)
    assert "0.34 {[}0.20, 0.54{]}" in tables.render(found, "tex")
    assert json.loads(tables.render(found, "json"))["rows"][0]["shown"]["rougeL"] == "0.34 [0.20, 0.54]"
    assert next(csv.DictReader(io.StringIO(tables.render(found, "csv"))))["shown"] == "0.34 [0.20, 0.54]"
    assert rounding.number(lopsided) == "0.34 [0.20, 0.54]"
    assert rounding.number(change, signed=True) == "+0.34 [+0.20, +0.54]"
    screen = io.StringIO()
    Console(file=screen, width=80).print(render.comparison(found, 80))
    assert "0.34 [0.20, 0.54]" in screen.getvalue()
    assert "+0.34 [+0.20, +0.54] ▼" not in screen.getvalue()
    assert "+0.34 [+0.20, +0.54] ▲" in screen.getvalue()
    assert "±" not in screen.getvalue().replace("± or [ ]", "")


def test_best_is_bold_and_ties_are_underlined():
    found = comparison()
    tex, markdown, page = (tables.render(found, form) for form in ("tex", "md", "html"))
    assert r"fkl & \textbf{20.12} $\pm$ 0.99 & \underline{2.50} $\pm$ 0.10 \\" in tex
    assert r"akl & 20.12 $\pm$ 0.99 & \textbf{2.50} $\pm$ 0.10 \\" in tex
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert "| fkl | **20.12** ± 0.99 | <u>2.50</u> ± 0.10 |" in markdown
    assert "<td><strong>20.12</strong> ± 0.99</td><td><u>2.50</u> ± 0.10</td>" in page


def test_digits_are_the_same_in_every_printed_form():
    found = comparison()
    assert r"\textbf{20.1} $\pm$ 1.0" in tables.render(found, "tex", TableStyle(digits=1))
    assert "**20.1** ± 1.0" in tables.render(found, "md", TableStyle(digits=1))
    rows = list(csv.DictReader(io.StringIO(tables.render(found, "csv", TableStyle(digits=1)))))
    assert (rows[0]["mean"], rows[0]["shown"]) == ("20.123", "20.1 ± 1.0")


def test_csv_holds_full_numbers():
    rows = list(csv.DictReader(io.StringIO(tables.render(comparison(), "csv"))))
    assert [float(rows[2][name]) for name in ("mean", "difference", "difference_low", "p")] == [
        20.123,
        -1.5,
        -2.1,
        0.01,
    ]
    assert rows[0]["difference"] == ""
    assert (rows[0]["best"], rows[1]["best"], rows[1]["tied"]) == ("1", "0", "1")
    assert (rows[0]["teacher_passes"], rows[0]["flops"], rows[2]["parameters"]) == (
        "0.25",
        "1500000000000000.0",
        "124000000",
    )


def test_no_form_depends_on_the_machine():
    found = comparison()
    slow = replace(found, rows=tuple(replace(row, seconds=9.0, peak_bytes=1) for row in found.rows))
    slow = replace(slow, pareto={"rougeL": {"flops": ("fkl", "akl")}})
    for form in tables.FORMS:
        assert tables.render(found, form) == tables.render(slow, form)
    document = json.loads(tables.render(found, "json"))
    assert document["pareto"] == {"rougeL": {"flops": ["fkl", "akl"]}}
    assert "seconds" not in document["rows"][0]


def test_failures_are_named_in_every_text():
    found = comparison(failed=(Failure("akl", 1, "no disk", Path("run/error.log"), 4),))
    assert json.loads(tables.render(found, "json"))["failed"][0]["log"] == "run/error.log"
    assert "- failed: akl seed 1: no disk" in tables.render(found, "md")
    assert "<li>failed: akl seed 1: no disk</li>" in tables.render(found, "html")


def test_json_has_no_nan():
    nan = Estimate(float("nan"), None, None, 1, "none")
    row = ComparisonRow("fkl", (0,), {"rougeL": nan}, {"rougeL": None}, 1, 1, 1.0, 1)
    alone = Comparison("fkl", (row,), (INFO,), (), None)
    assert "NaN" not in tables.render(alone, "json")
    for form in tables.FORMS:
        assert tables.render(alone, form)


def hostile(text):
    failed = (Failure(text, 0, text, Path("x"), 3),)
    found = comparison(text, failed, notes=(text,))
    return replace(found, scores=(replace(INFO, settings=text), NLL))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_harmless_everywhere(text):
    found = hostile(text)
    for form in tables.FORMS:
        made = tables.render(found, form, TableStyle(caption=text, label=text))
        made.encode("utf-8")
        assert not [letter for letter in made if ord(letter) < 32 and letter != "\n"]
        assert not {"\x1b", "\x7f", "\u202e", "\u200b"} & set(made)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_browser_makes_only_our_elements(text):
    shown = Shown(tables.render(hostile(text), "html", TableStyle(caption=text)))
    ours = {"style", "table", "caption", "thead", "tbody", "tr", "th", "td", "strong", "u", "ul", "li"}
    assert shown.elements <= ours


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_latex_has_only_our_commands(text):
    made = tables.render(hostile(text), "tex", TableStyle(caption=text, label=text))
    ours = (
        "begin end centering caption label toprule midrule bottomrule multicolumn emph textbf underline uparrow "
        "downarrow rightarrow pm ast Delta cdot textbackslash textasciitilde textasciicircum textless textgreater "
        "textbar ldots infty par medskip small footnotesize scriptsize setlength tabcolsep parbox raggedright "
        "allowbreak quad cmidrule"
    )
    assert set(re.findall(r"\\([A-Za-z]+)", made)) <= set(ours.split())
    assert made.isascii()
    bare = re.sub(r"\\[{}$&#_%]", "", made)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert "%" not in bare
    assert "#" not in bare
    rows = re.findall(r"^(.*) \\\\$", bare, re.MULTILINE)
    assert {row.count("&") for row in rows if "multicolumn" not in row} == {2}
    assert not re.search(r"\\\\\s*[\[*]", made)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_spreadsheet_finds_no_formula(text):
    rows = list(csv.reader(io.StringIO(tables.render(hostile(text), "csv"))))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not [cell for row in rows for cell in row if cell.startswith(FORMULA) and not is_number(cell)]
    assert any(cell.startswith("'-1.5") for cell in rows[3])
    frame = pandas.read_csv(io.StringIO(tables.render(hostile(text), "csv")))
    assert frame["difference"].dropna().tolist() == [-1.5]
    assert frame["mean"].tolist() == [20.123, 2.5, 20.123, 2.5]


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def is_number(cell):
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_stays_a_table(text):
    lines = [line for line in tables.render(hostile(text), "md").splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in lines[:4]] == [4] * 4
    joined = "\n".join(lines)
    assert "<script" not in joined
    assert not re.search(r"(?<!\\)!?\[[^\]]*(?<!\\)\]\(", joined)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_json_gives_the_name_back(text):
    made = tables.render(hostile(text), "json")
    assert made.isascii()
    assert json.loads(made)["rows"][1]["label"] == text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.5, None, None, 1, "none"), "0.5000"),
        (Estimate(1234.5678, None, None, 1, "none"), "1,235"),
        (Estimate(float("inf"), None, None, 3, "seeds"), "inf"),
        (None, "–"),
    ],
)
def test_numbers(estimate, text):
    assert rounding.number(estimate) == text


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("akl:mu=0.6", "akl-mu0.6"),
        ("./my loss.py:Mine", "my-loss.py-Mine"),
        ("../../etc", "etc"),
        ("*" * 99, "objective"),
    ],
)
def test_slugs_are_plain_names(label, name):
    assert slug(label) == name
