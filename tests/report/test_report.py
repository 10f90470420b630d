"""Strings and numbers that reach a report."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import study
from kdcli.comparison.aggregate import Group
from kdcli.comparison.records import Comparison, ComparisonRow, Failure, Setup
from kdcli.distill.run import distill
from kdcli.evaluation.records import ScoreInfo
from kdcli.events import silent
from kdcli.plots import panels, plot_style
from kdcli.report import answer_curves
from kdcli.report.answer_curves import make_buckets
from kdcli.report.examples import choose, shown
from kdcli.report.page import render, report
from kdcli.report.ranking import front
from kdcli.report.sections import AnswerExample, Section, Table
from kdcli.report.svg import inline
from kdcli.statistics import Estimate
from pages import Page

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\x1b[31mred\x07",
    "[/red][bold]",
    "=cmd|' /C calc'!A0",
    r"\input{/etc/passwd}$x^2$",
    "a\u202eb\u200bc\ud800",
    "{{ 7*7 }}{% raw %}",
    '" onload="alert(1)',
    "]]>--><!--",
    "漢字🙂" * 30,
)


def comparison(label):
    one = Estimate(20.0, 19.0, 21.0, 3, "seeds", 0.2)
    change = Estimate(-1.5, -2.0, -1.0, 3, "seeds", 0.1, 0.01)
    infos = (ScoreInfo(label, "lower", "x", label),)
    rows = tuple(
        ComparisonRow(
            name, (0, 1), {info.name: one for info in infos}, {info.name: delta for info in infos}, 1, 2, cost, 9
        )
        for name, delta, cost in (("fkl", None, 1.0), (f"x{label}", change, 2.0))
    )
    return Comparison(
        "fkl", rows, infos, (label,), None, (Failure(label, 0, label, __import__("pathlib").Path("x"), 1),)
    )


def bare_groups(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    parts = study.Parts(root)
    record = distill(parts.run(max_steps=2, save_every=2), silent)
    return root, record


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return bare_groups(tmp_path_factory)


@pytest.mark.parametrize("half", [0, 1])
def test_hostile_strings_are_only_text(one, half):
    _, record = one
    text = "".join(HOSTILE[half::2])
    groups = [Group(f"x{text}", {0: (record, record.evaluation)})]
    page = report(comparison(text), groups)
    page.encode("utf-8")
    parsed = Page(page)
    assert "img" not in parsed.tags
    assert parsed.tags.count("script") == ("sheet" in page.partition("</style>")[2])
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on") or name == "style"]
    assert parsed.open == []
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e\u200b]", page)
    assert page.count("<style>") == page.count("</style>") == 1
    assert "<!--" not in page


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_prompts_and_tables_are_only_text(text):
    sheet = AnswerExample(text, text, shown(text), (shown(text),), ((text, shown(text), text),))
    section = Section(
        "x",
        text,
        [text],
        remarks=[text],
        tables=[Table(text, (text, text), ((text, text),))],
        sheets=[sheet],
        texts=[text],
    )
    page = render(text, [(text, text)], [section])
    page.encode("utf-8")
    assert not {"img", "svg", "iframe", "bold"} & set(Page(page).tags)
    assert Page(page).tags.count("script") == page.count("<script>") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e\u200b]", page)


def test_hostile_records_of_a_run_are_only_text(one):
    """Names and command lines in a run's own files may be anybody's."""
    root, record = one
    folder = root / "evil"
    shutil.copytree(record.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    manifest["environment"] |= {"argv": ["kd", *HOSTILE], "kd": HOSTILE[0], "device": HOSTILE[1]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    moved = replace(record, folder=folder)
    page = report(comparison("fkl2"), [Group("fkl", {0: (moved, record.evaluation)})])
    assert page.count("<script") <= 1
    assert "<script>alert" not in page
    assert "alert(1)" in page
    assert "<img" not in page


def test_control_characters_in_answers_become_symbols():
    assert shown("a\x1b[31m\x00\x7f") == "a␛[31m␀␡"
    assert shown("x" * 3000, 10) == "x" * 9 + "…"


def test_pictures_are_the_same_bytes_and_keep_their_ids_apart():
    def draw(key):
        with plot_style():
            figure, (ax,) = panels(1)
            ax.plot([1, 2, 3], label="$x^2$ \\input{}")
            ax.legend()
            return inline(figure, key, 'a "title" <b>')

    first, again, other = draw("a"), draw("a"), draw("b")
    assert first == again
    names = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, other)]
    assert names[0]
    assert not names[0] & names[1]
    assert "style" not in first
    assert "<!--" not in first
    assert 'aria-label="a &quot;title&quot; &lt;b&gt;"' in first
    assert not re.search(r"<text|<metadata|<title", first)


def test_drawing_a_page_opens_no_window():
    assert plt.get_fignums() == []
    assert issubclass(Figure, object)


def test_the_front_has_whom_nobody_beats():
    points = [(1.0, 5.0), (1.0, 6.0), (2.0, 6.0), (3.0, 9.0), (4.0, 8.0)]
    assert front(points, higher=True) == [1, 3]
    assert front(points, higher=False) == [0]


def test_bars_of_a_score_with_a_range_stay_in_it():
    values = np.array([0.0, 0.0, 90.0, 100.0, 100.0, 100.0])
    buckets = answer_curves.Buckets(("short", "long"), np.array([0, 0, 0, 1, 1, 1]))
    info = ScoreInfo("rougeL", "higher", "rougeL", "rougeL|x", "texts")
    means, ends = answer_curves._means(values, buckets, answer_curves._bounds(info))
    assert means.tolist() == [30.0, 100.0]
    assert 0.0 < 30.0 - ends[0, 0] < 30.0 + ends[1, 0] < 100.0
    assert (100.0 - ends[0, 1] < 60.0, ends[1, 1]) == (True, 0.0)
    assert answer_curves._bounds(ScoreInfo("x", "higher", "./guest.py:X", "x")) == (-np.inf, np.inf)
    assert answer_curves._means(values, buckets, (-np.inf, np.inf))[1][0, 0] > 30.0


def test_equal_lengths_make_one_bucket():
    assert make_buckets(np.array([4] * 9)).names == ("4 words",)
    buckets = make_buckets(np.arange(40))
    assert len(buckets.names) == 4
    assert sum(buckets.counts) == 40
    assert buckets.member.tolist() == sorted(buckets.member.tolist())


def test_prompts_are_chosen_by_rule():
    rows = {
        name: [
            {"where": f"l{i}", "prompt": f"p{i}", "predictions": ["a"], "rougeL": float(value)}
            for i, value in enumerate(values)
        ]
        for name, values in {"x": [0, 9, 0, 1, 0, 0, 0, 0], "y": [0, 1, 0, 0, 5, 0, 0, 0]}.items()
    }
    chosen = choose(rows, "rougeL")
    assert [index for index, why in chosen if why == "widest disagreement"] == [1, 4, 3]
    assert len(chosen) == 8
    assert choose(rows, "rougeL") == choose(dict(reversed(rows.items())), "rougeL")
    drawn = [index for index, why in chosen if why == "drawn"]
    assert len(drawn) == 5
    assert not set(drawn) & {1, 4, 3}


def policy(page):
    return re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1].replace("&#39;", "'")


def hashed(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_allows_this_style_and_this_script_and_nothing_else():
    sheet = AnswerExample("a.jsonl:1", "drawn", "prompt", ("reference",), (("fkl", "answer", ""),), 2.5)
    page = render("title", [], [Section("answers", "Answers", sheets=[sheet])])
    (style,), (script,) = (re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL) for name in ("style", "script"))
    assert f"style-src '{hashed(style)}'" in policy(page)
    assert f"script-src '{hashed(script)}'" in policy(page)
    assert "default-src 'none'" in policy(page)
    assert 'data-apart="2.5"' in page
    assert not re.search(r"fetch|XMLHttp|import\(|innerHTML|eval|https?:", script)
    still = render("title", [], [Section("a", "b", ["words"])])
    assert "<script" not in still
    assert "script-src 'none'" in policy(still)


def test_without_its_script_a_page_shows_every_sample():
    sheets = [
        AnswerExample(f"a.jsonl:{i}", "drawn", f"prompt {i}", (), (("fkl", f"answer {i}", ""),)) for i in range(9)
    ]
    page = render("title", [], [Section("answers", "Answers", sheets=sheets)]).partition("<script>")[0]
    for number in range(9):
        assert f"prompt {number}<" in page
        assert f"answer {number}<" in page
    assert " hidden" not in page.partition("</style>")[2]
    assert "<input" not in page


def test_the_page_begins_with_who_was_compared_on_what_and_the_verdict():
    found = comparison("akl")
    row = replace(found.rows[0], parameters=920_000, teacher_parameters=3_300_000)
    setup = Setup("big", "small", "train.jsonl", 3000, 8, "valid", 200, "mine-1", (0.0015,))
    found = replace(found, rows=(row, found.rows[1]), setup=setup)
    page = report(found, [])
    assert "<title>big (3.3 M) → small (920 K): 2 objectives compared</title>" in page
    assert "Trained on train.jsonl (3,000 rows); 1 steps of 8 rows, 2 response tokens; learning rate 0.0015;" in page
    assert "measured on valid (200 rows), protocol mine-1." in page
    anchors = re.findall(r'<section id="([^"]+)"', page)
    assert anchors[0] == "verdict"
    assert re.findall(r'<li><a href="#([^"]+)"', page) == anchors


def test_a_wide_table_of_numbers_is_cut_into_blocks_that_name_their_lines():
    heads = ("objective", *(f"score {i}" for i in range(5)))
    table = Table("caption", heads, (("fkl", *"12345"), ("rkl", *"67890")))
    page = render("title", [], [Section("x", "y", tables=[table])])
    assert page.count("<table") == 3
    assert page.count('<th scope="row">fkl</th>') == 3
    assert all(f'<td data-head="score {i}">{value}</td>' in page for i, value in enumerate("12345"))
    words = Table("", ("a", "b", "c", "d", "e"), (("1", "2", "3", "4", "5"),), numbers=False)
    assert render("title", [], [Section("x", "y", tables=[words])]).count("<table") == 1
