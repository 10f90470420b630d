"""``kd data split``: every row in one part, the same parts again, mixtures as drawn."""

import json
from collections import Counter

import pytest

from kdcli.config.schema import DataConfig, SplitConfig
from kdcli.errors import ExperimentChangedError, KDError
from kdcli.events import silent
from kdcli.rows.split import SplitRow, build_split, shares_of, split
from kdcli.study.verify import verify
from shell import kd


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    kinds = ["qa"] * 60 + ["list"] * 30 + ["poem"] * 10
    table = [
        {"prompt": f"ask {number % 90}:", "completion": f"say {number}", "kind": kind, "extra": {"at": number}}
        for number, kind in enumerate(kinds)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def config(rows, by="iid", parts=(4.0,), **changes):
    data = DataConfig(train=str(rows))
    return SplitConfig(**{"by": by, "parts": parts, "data": data, "output": str(rows.parent / "out"), **changes})


def read(record):
    return [[json.loads(line) for line in part.file.read_text().splitlines()] for part in record.parts]


@pytest.mark.parametrize(
    ("by", "parts"),
    [("iid", (4.0,)), ("iid", (0.8, 0.1, 0.1)), ("column:by=kind", None), ("dirichlet:by=kind,alpha=0.3", (4.0,))],
)
def test_every_row_goes_whole_to_one_part_and_the_same_line_gives_the_same(rows, by, parts):
    record = split(config(rows, by, parts), silent)
    found = read(record)
    whole = [json.loads(line) for line in rows.read_text().splitlines()]
    assert sorted((row for part in found for row in part), key=lambda row: row["extra"]["at"]) == whole
    assert [[row["extra"]["at"] for row in part] for part in found] == [
        sorted(row["extra"]["at"] for row in part) for part in found
    ]
    before = [part.file.read_bytes() for part in record.parts]
    assert [part.file.read_bytes() for part in split(config(rows, by, parts), silent).parts] == before
    assert all(check.passed for check in verify(rows.parent / "out"))
    assert record.rows == 100


def test_shares_are_kept_and_prompts_stay_together(rows):
    found = read(split(config(rows, parts=(0.8, 0.2)), silent))
    prompts = [{row["prompt"] for row in part} for part in found]
    assert not prompts[0] & prompts[1]
    assert abs(len(found[1]) - 20) <= 1


def test_a_seed_changes_the_draw(rows):
    first = read(split(config(rows), silent))
    assert read(split(config(rows, seed=1, output=str(rows.parent / "other")), silent)) != first


def test_a_column_makes_a_part_of_each_value(rows):
    record = split(config(rows, "column:by=kind", None), silent)
    assert build_split("column:kind") == build_split("column:by=kind")
    assert {part.file.stem: part.rows for part in record.parts} == {"list": 30, "poem": 10, "qa": 60}


def test_values_that_make_one_file_name_stay_apart():
    table = [SplitRow("", {"kind": kind}, "") for kind in ("a/b", "a b", "a_b", "a/b")]
    assert build_split("column:by=kind").cut(table, [], 0) == {"a_b": [1], "a_b-1": [0, 3], "a_b-2": [2]}


def test_a_small_alpha_makes_parts_that_differ_and_a_large_one_parts_that_do_not(rows):
    table = [SplitRow(str(at), {"kind": "ab"[at % 2]}, "") for at in range(2000)]

    def shares_of_a(alpha):
        parts = build_split(f"dirichlet:by=kind,alpha={alpha}").cut(table, [0.25] * 4, seed=0)
        return [Counter(table[at].fields["kind"] for at in part)["a"] / len(part) for part in parts.values()]

    even, uneven = shares_of_a(1e4), shares_of_a(0.1)
    assert max(abs(share - 0.5) for share in even) < 0.03
    assert max(abs(share - 0.5) for share in uneven) > 0.3


def test_mixtures_have_the_mean_and_variance_of_the_distribution():
    """Share of a value's rows in a part: mean 1/K, variance (K-1) / (K^2 (K alpha + 1)) of Dirichlet(alpha)."""
    table, alpha, parts = [SplitRow(str(at), {"kind": "a"}, "") for at in range(400)], 0.7, 4
    way = build_split(f"dirichlet:by=kind,alpha={alpha}")
    found = []
    for seed in range(300):
        try:
            found += [len(part) / 400 for part in way.cut(table, [1 / parts] * parts, seed).values()]
        except KDError:
            continue
    mean = sum(found) / len(found)
    variance = sum((share - mean) ** 2 for share in found) / len(found)
    assert mean == pytest.approx(1 / parts)
    assert variance == pytest.approx((parts - 1) / (parts**2 * (parts * alpha + 1)), rel=0.15)


def test_another_split_does_not_take_its_place(rows):
    split(config(rows), silent)
    with pytest.raises(ExperimentChangedError, match="another split"):
        split(config(rows, seed=7), silent)


WRONG = {
    "no such way": ({"by": "random"}, "CLI-06", 2),
    "no column named": ({"by": "dirichlet:alpha=1"}, "CLI-09", 2),
    "no such column": ({"by": "dirichlet:by=topic"}, "ROWS-04", 3),
    "column of objects": ({"by": "column:by=extra", "parts": None}, "ROWS-04", 3),
    "alpha of 0": ({"by": "dirichlet:by=kind,alpha=0"}, "CLI-06", 2),
    "no parts": ({"parts": None}, "CLI-20", 2),
    "half a part": ({"parts": (2.5,)}, "CLI-07", 2),
    "one part": ({"parts": (1.0,)}, "CLI-07", 2),
    "shares over 1": ({"parts": (0.9, 0.2)}, "CLI-06", 2),
    "shares of mixtures": ({"by": "dirichlet:by=kind", "parts": (0.9, 0.1)}, "CLI-09", 2),
    "parts of a column": ({"by": "column:by=kind"}, "CLI-09", 2),
    "more parts than prompts": ({"parts": (95.0,)}, "ROWS-05", 3),
    "rows for each": ({"by": "dirichlet:by=kind,alpha=0.01,least=20"}, "ROWS-05", 3),
    "no folder": ({"output": None}, "CLI-20", 2),
    "no data": ({"data": DataConfig()}, "CLI-20", 2),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_end_in_one_line(rows, case):
    changes, code, exit_code = WRONG[case]
    with pytest.raises(KDError) as caught:
        split(config(rows, **changes), silent)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.fix
    assert not (rows.parent / "out").exists()


def test_the_command(rows):
    line = ("data", "split", "--data", str(rows), "--parts", "3", "--by", "dirichlet:alpha=.5,by=kind", "-o", "out")
    said = kd(*line, folder=rows.parent)
    assert said.code == 0, said.err
    assert "part-00.jsonl" in said.out
    assert said.out.splitlines()[-1] == "out"
    assert sum(part["rows"] for part in json.loads(kd(*line, "--json", folder=rows.parent).out)["parts"]) == 100


def test_shares_of_a_number_of_parts():
    assert shares_of((3.0,)) == [1 / 3] * 3
