"""``kd data balance``: quotas by hand, what a stage takes, and what it may not."""

import json
from collections import Counter

import pytest

from kdcli.config.schema import BalanceConfig, DataConfig
from kdcli.errors import ExperimentChangedError, KDError
from kdcli.events import silent
from kdcli.rows.balance import balance, quotas, stage_of
from kdcli.study.verify import verify
from shell import kd

NATURAL = {"a": 70, "b": 20, "c": 8, "d": 2}


@pytest.mark.parametrize(
    ("policy", "stage", "expected"),
    [
        ("natural", 1, (70, 20, 8, 2)),
        ("natural", 5, (70, 20, 8, 2)),
        ("balanced", 1, (25, 25, 25, 25)),
        ("adaptive", 1, (61, 21, 11, 6)),
        ("adaptive", 2, (52, 22, 14, 11)),
        ("adaptive", 3, (43, 23, 18, 15)),
        ("adaptive", 4, (34, 24, 21, 20)),
        ("adaptive", 5, (25, 25, 25, 25)),
    ],
)
def test_quotas_by_hand(policy, stage, expected):
    found = quotas(policy, NATURAL, 100, stage, 5)
    assert tuple(found.values()) == expected
    assert sum(found.values()) <= 100


def test_a_quota_loses_no_row_to_rounding():
    """In floating point, 0.2 * 25 + 0.8 * 20 and the like may come out below the whole number that they are."""
    for stages in range(1, 30):
        for stage in range(1, stages + 1):
            found = quotas("adaptive", {"x": 40, "y": 40}, 80, stage, stages)
            assert found == {"x": 40, "y": 40}


@pytest.fixture
def rows(tmp_path):
    kinds = [*["a"] * 60, *["b"] * 25, *["c"] * 12, *["d"] * 3]
    table = [
        {"id": at, "prompt": f"ask {at}:", "completion": "x", "kind": kind, "scores": {"ifd": (at * 37 % 100) / 100}}
        for at, kind in enumerate(kinds)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def config(rows, stage="1/5", name="stage1", **changes):
    return BalanceConfig(
        **{
            "by": "kind",
            "stage": stage,
            "budget": 100,
            "data": DataConfig(train=str(rows)),
            "output": str(rows.parent / name),
            **changes,
        }
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_stage_takes_its_quotas_and_the_next_none_of_its_rows(rows):
    first = balance(config(rows), silent)
    counts = Counter(row["kind"] for row in lines(first.file))
    assert counts == {one.value: one.quota for one in first.taken if one.quota}
    changes = {"score": "ifd", "before": (str(rows.parent / "stage1"),)}
    second = balance(config(rows, "2/5", "stage2", **changes), silent)
    used, found = {row["id"] for row in lines(first.file)}, lines(second.file)
    pool = [row for row in lines(rows) if row["id"] not in used]
    for one in second.taken:
        mine = [row for row in found if row["kind"] == one.value and not str(row["id"]).count("#")]
        there = sorted((row for row in pool if row["kind"] == one.value), key=lambda row: -row["scores"]["ifd"])
        assert sorted(row["id"] for row in mine) == sorted(row["id"] for row in there[: one.quota])
        assert one.fresh + one.repeated == one.quota
    union = lines(second.union)
    assert len(union) == second.rows_in_all == first.rows + second.rows
    assert len({row["id"] for row in union}) == len(union), "each row has an id of its own"
    assert all(check.passed for check in verify(rows.parent))


def test_a_value_with_too_few_rows_is_repeated_whole_and_then_its_head_or_stays_short(rows):
    settings = config(rows, policy="balanced", stage="1/1", budget=32)
    repeated = balance(settings, silent)
    mine = [row["id"] for row in lines(repeated.file) if row["kind"] == "d"]
    times = Counter(str(name).partition("#")[0] for name in mine)
    assert sorted(times.values()) == [2, 3, 3], "three rows for eight places"
    assert len(set(mine)) == 8
    (tail,) = [one for one in repeated.taken if one.value == "d"]
    assert (tail.there, tail.quota, tail.fresh, tail.repeated) == (3, 8, 3, 5)
    short = balance(settings.model_copy(update={"tail": "leave", "output": str(rows.parent / "short")}), silent)
    assert Counter(row["kind"] for row in lines(short.file)) == {"a": 8, "b": 8, "c": 8, "d": 3}


def test_the_same_line_gives_the_same_rows_and_another_is_refused(rows):
    first = balance(config(rows), silent)
    before = first.file.read_bytes()
    assert balance(config(rows), silent).file.read_bytes() == before
    with pytest.raises(ExperimentChangedError, match="another stage") as caught:
        balance(config(rows, seed=1), silent)
    assert caught.value.exit_code == 8


WRONG = {
    "no column": ({"by": None}, "CLI-20", 2),
    "no such column": ({"by": "topic"}, "ROWS-04", 3),
    "no stage": ({"stage": "2"}, "CLI-06", 2),
    "a stage too many": ({"stage": "6/5"}, "CLI-06", 2),
    "no budget": ({"budget": None}, "CLI-20", 2),
    "budget below the stages": ({"budget": 3}, "CLI-20", 2),
    "more than there is": ({"budget": 600}, "CLI-06", 2),
    "no stages before": ({"stage": "2/5"}, "CLI-20", 2),
    "a folder that is no stage": ({"stage": "2/5", "before": ("nowhere",)}, "ROWS-06", 3),
    "no such score": ({"score": "nll"}, "ROWS-07", 3),
    "quotas of nothing": ({"budget": 15, "policy": "balanced"}, "DATA-02", 3),
    "no data": ({"data": DataConfig()}, "CLI-20", 2),
    "no folder": ({"output": None}, "CLI-20", 2),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_end_in_one_line(rows, monkeypatch, case):
    monkeypatch.chdir(rows.parent)
    changes, code, exit_code = WRONG[case]
    with pytest.raises(KDError) as caught:
        balance(config(rows, **changes), silent)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.fix
    assert not (rows.parent / "stage1").exists()


def test_the_command(rows):
    line = ("data", "balance", "--data", str(rows), "--by", "kind", "--stage", "1/2", "--budget", "40", "-o", "out")
    said = kd(*line, folder=rows.parent)
    assert said.code == 0, said.err
    assert "quota" in said.out
    assert json.loads(kd(*line, "--json", folder=rows.parent).out)["rows"] == sum(
        one["quota"] for one in json.loads(kd(*line, "--json", folder=rows.parent).out)["taken"]
    )
    assert stage_of("1/2") == (1, 2)
