import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kdcli.cli import render
from kdcli.cli import render as render_plan
from kdcli.cli.render import duration, size
from kdcli.cli.terminal import Terminal, console, jsonable, runnable
from kdcli.comparison.records import Comparison, ComparisonRow, Failure, ReferenceRow
from kdcli.distill.plan import Fact, Plan, Shown
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.statistics import Estimate
from kdcli.statistics.rounding import decimals, plain, with_interval

HOSTILE = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b31m",
    "\u202egnp.exe",
    "zero\u200bwidth",
    "[bold red]markup[/]",
    "[/]",
    "[link=https://evil]x[/link]",
    "tab\there\nline",
    "\x00\x7f\x85\u2028",
    "a" * 5000,
    "=cmd|' /C calc'!A0",
    "\ud800",
]


def drawn(part, width: int = 80) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width, markup=False, highlight=False, emoji=False).print(part)
    return screen.getvalue()


def estimate(mean: float, half: float | None = 0.1, p_value: float | None = None, unit: str = "seeds") -> Estimate:
    if half is None:
        return Estimate(mean, None, None, 1, "none")
    return Estimate(mean, mean - half, mean + half, 3, unit, half / 4.302653, p_value)


INFOS = (
    ScoreInfo("rougeL", "higher", "rougeL", "rougeL|stem:yes"),
    ScoreInfo("perplexity", "lower", "perplexity", "perplexity|unit:token"),
    ScoreInfo("length", "neither", "length", "length|unit:word"),
)


def comparison(labels=("fkl", "akl"), **more) -> Comparison:
    rows = tuple(
        ComparisonRow(
            label=label,
            seeds=(0, 1, 2),
            scores={"rougeL": estimate(30.0 + i), "perplexity": estimate(5.0 - i), "length": estimate(9.0 + i)},
            differences=dict.fromkeys(("rougeL", "perplexity", "length"))
            if i == 0
            else {
                "rougeL": estimate(1.0, 0.2, 0.01),
                "perplexity": estimate(1.0, 0.2, 0.01),
                "length": estimate(1.0, 0.2, 0.01),
            },
            steps=300,
            tokens=12_345,
            seconds=75.0,
            peak_bytes=512 * 2**20,
        )
        for i, label in enumerate(labels)
    )
    return Comparison(labels[0], rows, INFOS, ("one seed shows nothing",), Path("study"), **more)


def test_the_answer_of_four_objectives_fits_one_screen(tmp_path, monkeypatch):
    names = ["rougeL", "exact_match", "perplexity", "nll", "ece", "brier"]
    infos = tuple(ScoreInfo(name, "higher", name, "") for name in names)
    rows = tuple(
        replace(
            comparison().rows[min(i, 1)], label=label, scores=dict.fromkeys(names, estimate(30.0 + i)),
            differences=dict.fromkeys(names, estimate(1.0, 0.2, 0.01) if i else None),
            best=("rougeL",) * (i == 3), tied=("rougeL",) * (i > 1),
            before=dict.fromkeys(names, estimate(2.0, 0.5, 0.01)), closed=dict.fromkeys(names, estimate(0.5)),
        )
        for i, label in enumerate(("fkl", "rkl", "akl", "atkd"))
    )  # fmt: skip
    start, teacher = (ReferenceRow(role, role, dict.fromkeys(names, estimate(9.0))) for role in ("before", "teacher"))
    monkeypatch.chdir(tmp_path)
    Path("study").mkdir()
    Path("study/report.html").touch()
    more = {"references": (start, teacher), "suggested": "kd compare -o s --seeds 0,1,2"}
    found = Comparison("fkl", rows, infos, ("one", "two"), Path("study"), **more)
    lines = drawn(render.answer(found, 80)).splitlines()
    assert len(lines) <= 24, "\n".join(lines)
    assert lines[-1] == "Next: kd compare -o s --seeds 0,1,2"
    text = " ".join(" ".join(lines).split())
    assert "atkd and akl do not differ significantly in Rouge-L" in text
    assert "every objective improved on the student before training" in text
    assert "more scores, costs and 2 remarks" in text
    assert "report.html, or --verbose" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_the_answer_shows_hostile_labels_as_text(text):
    failure = Failure(text, 0, text, Path("x"), 3)
    shown = drawn(render.answer(comparison((text, "b"), failed=(failure,), suggested=f"kd compare {text}"), 80))
    assert not [letter for letter in shown if ord(letter) < 32 and letter != "\n"]
    assert not {"\u202e", "\u200b", "\x9b", "\u2028", "\x7f"} & set(shown)


def test_a_command_names_kd_by_its_path_where_it_is_not_on_the_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / ".venv" / "bin" / "kd"), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runnable("kd compare -o demo --seeds 0,1") == ".venv/bin/kd compare -o demo --seeds 0,1"
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest"])
    assert runnable("kd compare") == "kd compare"


def test_a_comparison_shows_means_intervals_differences_and_costs():
    text = drawn(render.comparison(comparison(), 80))
    assert "30.00 ± 0.10" in text
    assert "+1.00 ± 0.20 ▲" in text
    assert "+1.00 ± 0.20 ▼" in text
    assert "+1.00 ± 0.20 ≠" in text
    assert "Rouge-L ↑" in text
    assert "perplexity ↓" in text
    assert "12,345" in text
    assert "1 min 15 s" in text
    assert "512 MiB" in text
    assert "· one seed shows nothing" in text
    assert "written to study" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_comparison_stays_within_its_width_and_loses_no_column(width):
    infos = tuple(ScoreInfo(f"score_{i}", "higher", "m", "s") for i in range(9))
    row = comparison().rows[1]
    wide = ComparisonRow(
        **{
            **vars(row),
            "scores": {info.name: estimate(3.14159, 0.0123) for info in infos},
            "differences": {info.name: estimate(0.1, 0.0123, 0.2) for info in infos},
        }
    )
    found = Comparison("fkl", (wide, wide), infos, (), None)
    text = drawn(render.comparison(found, width), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(info.name in text for info in infos)
    assert text.count("+0.100 ± 0.012 =") == 18


@pytest.mark.parametrize(
    "better, p_value, mean, mark",
    [
        ("higher", 0.01, 1.0, "▲"),
        ("higher", 0.01, -1.0, "▼"),
        ("lower", 0.01, -1.0, "▲"),
        ("lower", 0.01, 1.0, "▼"),
        ("higher", 0.2, 1.0, "="),
        ("neither", 0.01, 1.0, "≠"),
        ("higher", None, 1.0, "?"),
    ],
)
def test_the_mark_of_a_difference(better, p_value, mean, mark):
    assert render.verdict(estimate(mean, 0.2, p_value), better) == mark


def test_one_seed_has_no_interval():
    row = comparison().rows[0]
    alone = ComparisonRow(**{**vars(row), "scores": {"rougeL": estimate(30.0, None)}, "differences": {"rougeL": None}})
    text = drawn(render.comparison(Comparison("fkl", (alone,), INFOS[:1], (), None), 80))
    assert "30.00" in text
    assert "±" not in text


def test_the_best_and_its_ties_are_marked_without_colour():
    rows = comparison().rows
    marked = (
        ComparisonRow(**{**vars(rows[0]), "tied": ("rougeL",)}),
        ComparisonRow(**{**vars(rows[1]), "best": ("rougeL",), "tied": ("rougeL",)}),
    )
    text = drawn(render.comparison(Comparison("fkl", marked, INFOS, (), None), 80))
    assert "30.00 ± 0.10 ○" in text
    assert "31.00 ± 0.10 ●" in text
    assert "● best, ○ not significantly different" in text


def test_numbers_of_a_column_stand_below_each_other():
    text = drawn(render.comparison(comparison(), 80))
    means, changes = (next(line for line in text.splitlines() if part in line) for part in ("31.00 ±", "+1.00 ±"))
    assert means.index("31.00") + 5 == changes.index("+1.00") + 5


def test_costs_that_are_the_same_for_all_stand_once():
    rows = comparison().rows
    paid = {"student_tokens": 100, "teacher_tokens": 25, "flops": 2.5e15}
    other = ComparisonRow(**{**vars(rows[1]), "steps": 400, **paid})
    text = drawn(render.comparison(Comparison("fkl", (rows[0], other), INFOS, (), None), 80))
    assert "each: seeds 0,1,2, response tokens 12,345" in text
    assert "400" in text
    assert "0.25   2.5e+15" in text
    assert "seconds" not in text


def test_a_time_is_shown_with_its_spread_and_nobody_is_called_faster():
    first, other = comparison(pareto={"rougeL": {"seconds": ("akl",), "flops": ("fkl",)}}).rows
    rows = (replace(first, seconds_range=(66.0, 84.0)), other)
    text = drawn(render.comparison(Comparison("fkl", rows, INFOS, (), None), 100))
    assert "1 min 06 s to 1 min 24 s" in text
    assert "time: least to greatest of the seeds" in " ".join(text.split())
    assert "faster" not in text
    single = tuple(replace(row, seeds=(0,)) for row in rows)
    text = " ".join(drawn(render.comparison(Comparison("fkl", single, INFOS, (), None), 100)).split())
    assert "time: of one run, which says little about the next" in text


def test_reference_lines_stand_above_the_contenders():
    before = ReferenceRow("before", "student, before", {"rougeL": estimate(28.0), "perplexity": estimate(5.5)})
    teacher = ReferenceRow("teacher", "teacher", {"rougeL": estimate(35.0)})
    lines = drawn(render.comparison(comparison(references=(before, teacher)), 100)).splitlines()
    places = [next(i for i, line in enumerate(lines) if line.startswith(f" {label} ")) for label in
              ("student, before", "teacher", "fkl")]  # fmt: skip
    assert places == sorted(places)
    assert "28.00 ± 0.10" in lines[places[0]]
    assert lines[places[1]].split()[-1] == "-"


def test_long_names_break_between_their_parts():
    text = drawn(render.comparison(comparison(("fkl", "0.5*ce+0.5*akl:mu=0.6,temperature=2.0")), 80))
    assert "0.5*ce+0.5*akl:mu=0.6, " in text
    assert " temperature=2.0 " in text


def test_a_failed_cell_is_named():
    failure = Failure("rkl", 1, "loss is nan", Path("study/log"), 7)
    text = drawn(render.comparison(comparison(failed=(failure,)), 100), 100)
    assert "failed: rkl seed 1: loss is nan (see study/log)" in text


def test_a_missing_score_is_a_dash():
    rows = comparison().rows
    lame = ComparisonRow(**{**vars(rows[1]), "scores": {}, "differences": {}})
    assert " - " in drawn(render.comparison(Comparison("fkl", (rows[0], lame), INFOS, (), None), 80))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_strings_from_outside_are_harmless(text):
    found = comparison((text, "b"), failed=(Failure(text, 0, text, Path("x"), 3),))
    record = EvalRecord(
        name=text,
        model=text,
        model_digest="",
        folder=Path("x"),
        examples=3,
        estimates={"s": estimate(1.0)},
        infos=(ScoreInfo("s", "higher", "m", text),),
        protocol={},
        notes=(text,),
    )
    plan = Plan({text[:9]: Fact(text)}, ((text, text),), (Shown(text, ((text, False), (text, True)), 3, 1),), (text,))
    for part in (render.comparison(found, 80), render.evaluation(record), render_plan.plan(plan)):
        shown = drawn(part)
        bad = [letter for letter in shown if (ord(letter) < 32 and letter not in "\n\t") or 0x7F <= ord(letter) <= 0x9F]
        assert not bad
        assert not {"\u202e", "\u200b", "\u2028", "\ud800"} & set(shown)
        assert "\x1b" not in shown
        if "[" in text and "\x1b" not in text:
            assert text[:9] in shown


def test_what_is_learnt_stands_in_brackets():
    shown = Shown("train.jsonl line 1", (("say a:", False), (" a.</s>", True)), 9, 4)
    assert "say a:⟦ a.</s>⟧" in drawn(render_plan.example(shown))
    assert "nothing was written" in drawn(render_plan.plan(Plan({"steps": Fact("3")}, examples=(shown,))))


def test_json_is_plain_and_safe():
    out = io.StringIO()
    Terminal(json=True, stdout=out).result(comparison(tuple(HOSTILE[:2])), lambda found: "")
    text = out.getvalue()
    assert text.isascii()
    assert json.loads(text)["rows"][0]["label"] == HOSTILE[0]
    assert json.loads(text)["rows"][0]["scores"]["rougeL"]["mean"] == 30.0
    assert jsonable({"a": math.inf, "b": (1, {2})}) == {"a": None, "b": [1, [2]]}


def test_a_pipe_has_a_fixed_width():
    assert console(io.StringIO()).width == Terminal(stdout=io.StringIO()).width == 100


def test_numbers():
    assert with_interval(float("nan"), 0.1, 0.2, 2) == "nan"
    assert plain(1234.5, 1) == "1,234.5"
    assert decimals([0.0], [None]) == 2
    assert decimals([123456.0], [None]) == 0
    assert duration(3599.9).startswith("59 min")
    assert size(0) == "0 MiB"
