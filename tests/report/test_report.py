"""Strings and numbers that reach a report."""

import json
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import study
from kdcli.comparison.aggregate import Group
from kdcli.comparison.records import Comparison, ComparisonRow, Failure
from kdcli.distill.run import distill
from kdcli.evaluation.records import ScoreInfo
from kdcli.events import silent
from kdcli.plots import look, panels
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
    assert not {"script", "img"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on") or name == "style"]
    assert parsed.open == []
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e\u200b]", page)
    assert page.count("<style>") == page.count("</style>") == 1
    assert "<!--" not in page


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_prompts_and_tables_are_only_text(text):
    sheet = AnswerExample(text, text, shown(text), (shown(text),), ((text, shown(text), text),))
    section = Section(
        "x", text, [text], remarks=[text], tables=[Table(text, (text,), ((text, text),))], sheets=[sheet], texts=[text]
    )
    page = render(text, [(text, text)], [section])
    page.encode("utf-8")
    assert not {"script", "img", "svg", "iframe", "bold"} & set(Page(page).tags)
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
    from dataclasses import replace

    moved = replace(record, folder=folder)
    page = report(comparison("fkl2"), [Group("fkl", {0: (moved, record.evaluation)})])
    assert "<script" not in page
    assert "alert(1)" in page
    assert "<img" not in page


def test_control_characters_in_answers_become_symbols():
    assert shown("a\x1b[31m\x00\x7f") == "a␛[31m␀␡"
    assert shown("x" * 3000, 10) == "x" * 9 + "…"


def test_pictures_are_the_same_bytes_and_keep_their_ids_apart():
    def draw(key):
        with look():
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
    assert len(chosen) == 6
    assert choose(rows, "rougeL") == choose(dict(reversed(rows.items())), "rougeL")
    drawn = [index for index, why in chosen if why == "drawn"]
    assert not set(drawn) & {1, 4, 3}
