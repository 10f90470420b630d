import csv
import io
import json
from pathlib import Path

import pytest

from kdcli.runs import tables
from kdcli.runs.cells import slug
from kdcli.runs.records import Comparison, ComparisonRow, Failure, ScoreInfo
from kdcli.statistics import Estimate

INFO = ScoreInfo("rougeL", "higher", "rougeL", "rougeL|stem:yes", "texts")


def comparison(label="=cmd()|x", failed=()):
    one = Estimate(20.123, 19.0, 21.0, 3, "seeds", 0.23)
    change = Estimate(-1.5, -2.0, -1.0, 3, "seeds", 0.1, 0.01)
    rows = (
        ComparisonRow("fkl", (0, 1, 2), {"rougeL": one}, {"rougeL": None}, 10, 1000, 1.25, 2**20),
        ComparisonRow(label, (0, 1, 2), {"rougeL": one}, {"rougeL": change}, 10, 1000, 1.25, 2**20),
    )
    return Comparison("fkl", rows, (INFO,), ("a | b",), None, failed)


def test_markdown_is_a_table_whatever_the_labels_hold():
    text = tables.markdown(comparison())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == lines[0].count("|") for line in lines[:4])
    assert "=cmd()\\|x" in text
    assert "20.12 ± 0.99" in text
    assert "-1.50 ± 0.43 \\*" in text
    assert "- a \\| b" in text


def test_csv_holds_no_formula_and_full_numbers():
    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(comparison()))))
    assert rows[1]["objective"] == "'=cmd()|x"
    assert float(rows[1]["mean"]) == 20.123
    assert float(rows[1]["difference"]) == -1.5
    assert rows[0]["difference"] == ""


def test_json_keeps_the_machine_apart():
    failure = Failure("akl", 1, "no disk", Path("run/error.log"), 4)
    document = json.loads(tables.as_json(comparison(failed=(failure,))))
    assert document["rows"][0]["cost"] == {"seconds": 1.25, "peak_bytes": 2**20}
    assert document["failed"][0]["log"] == "run/error.log"


def test_json_has_no_nan():
    nan = Estimate(float("nan"), None, None, 1, "none")
    row = ComparisonRow("fkl", (0,), {"rougeL": nan}, {"rougeL": None}, 1, 1, 1.0, 1)
    text = tables.as_json(Comparison("fkl", (row,), (INFO,), (), None))
    assert "NaN" not in text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.5, None, None, 1, "none"), "0.5000"),
        (Estimate(1234.5678, None, None, 1, "none"), "1235"),
        (Estimate(0.0, 0.0, 0.0, 3, "seeds", 0.0), "0.000 ± 0.000"),
        (Estimate(float("inf"), None, None, 3, "seeds"), "inf"),
        (None, "–"),
    ],
)
def test_numbers(estimate, text):
    assert tables.number(estimate) == text


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
