"""``kd data score``: numbers in a column, kept ranks, and what is left of them after a kill."""

import json
import math
import os
import signal
import time

import pyarrow
import pyarrow.parquet
import pytest

import study
import tiny
from kdcli.config.schema import DataConfig, HardwareConfig, ScoreConfig
from kdcli.data.dataset import load_dataset
from kdcli.end_tokens import EndTokens
from kdcli.errors import ExperimentChangedError, IntegrityError, InterruptedRunError, KDError, NumericsError
from kdcli.events import silent
from kdcli.registry.registry import SCORES
from kdcli.rows.score import kept_places, score
from kdcli.scores.base import Score
from kdcli.scores.likelihood import NegativeLogLikelihood
from kdcli.storage import lock
from kdcli.study.verify import verify
from killing import forked, killed_when
from shell import kd

PLUGIN = '''
"""A score of somebody's own."""

from typing import Annotated, ClassVar

from pydantic import Field

from kdcli.scores.base import Score


class Vowels(Score):
    """Share of the prompt's letters that are a vowel, times a factor."""

    name: ClassVar[str] = "vowels"
    summary: ClassVar[str] = "vowels"
    formula: ClassVar[str] = "v / n"
    reference: ClassVar[str] = "none"

    factor: Annotated[float, Field(gt=0, description="factor")] = 1.0

    def value(self, row):
        """Return the share."""
        return self.factor * sum(letter in "aeiou" for letter in row.example.prompt) / len(row.example.prompt)


class Broken(Score):
    """Raises."""

    name: ClassVar[str] = "broken"

    def value(self, row):
        """Fail."""
        raise KeyError("nothing")
'''


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


def config(parts, output, *by, **changes):
    return ScoreConfig(
        **{
            "student": str(parts.student),
            "data": DataConfig(train=str(parts.train)),
            "hardware": HardwareConfig(device="cpu"),
            "by": by or ("nll",),
            "output": None if output is None else str(output),
            **changes,
        }
    )


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_ranks_on_a_hand_list():
    values = [0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6, 1.0]
    assert [values[at] for at in kept_places(values, 0.5, 0.8)] == [0.7, 0.8, 0.6]
    assert [values[at] for at in kept_places(values, 0.0, 0.3)] == [0.1, 0.3, 0.2]
    assert [values[at] for at in kept_places(values, 0.3, 1.0)] == [0.9, 0.5, 0.7, 0.8, 0.4, 0.6, 1.0]
    assert kept_places([1.0, 1.0, 1.0, 1.0], 0.25, 0.75) == [1, 2], "equal ones in file order"
    assert kept_places(values, 0.0, 1.0) == list(range(10))


def test_scores_stand_in_a_column_beside_those_the_rows_had(parts, tmp_path):
    rows = [{"id": at, "prompt": f"say {letter}:", "completion": letter * 3} for at, letter in enumerate("abcd")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=str(file))
    first = score(config(parts, tmp_path / "first", "nll", data=data), silent)
    again = config(parts, tmp_path / "second", "length", "log_ratio", data=DataConfig(train=str(first.file)),
                   teacher=str(parts.teacher))  # fmt: skip
    found = lines(score(again, silent).file)
    assert [{key: value for key, value in row.items() if key != "scores"} for row in found] == rows
    assert [list(row["scores"]) for row in found] == [["nll", "length", "log_ratio"]] * 4
    assert {row["scores"]["length"] for row in found} == {4.0}, "three letters and the end token"
    assert [row["scores"]["nll"] for row in found] == [row["scores"]["nll"] for row in lines(first.file)]
    assert [check.what for check in verify(tmp_path)] == ["rows", "rows"]
    assert all(check.passed for check in verify(tmp_path))


def test_a_share_is_kept_and_another_one_measures_nothing_anew(parts, tmp_path, monkeypatch):
    whole = score(config(parts, tmp_path / "whole"), silent)
    values = [row["scores"]["nll"] for row in lines(whole.file)]
    score(config(parts, tmp_path / "part", keep=0.25), silent)
    monkeypatch.setattr("kdcli.loading.session.load_model", lambda *_, **__: pytest.fail("weights were read"))
    kept = lines(score(config(parts, tmp_path / "part", keep=0.25), silent).file)
    assert [row["scores"]["nll"] for row in kept] == [values[at] for at in kept_places(values, 0.75, 1.0)]
    ranked = score(config(parts, tmp_path / "part", low=0.5, high=0.75), silent)
    assert (ranked.rows, ranked.scored, ranked.scores[0].fresh) == (6, 24, 0)
    assert len(lines(ranked.file)) == 6
    assert all(check.passed for check in verify(tmp_path))


def test_marks_keep_all_rows_and_say_where_the_teacher_is_trusted(parts, tmp_path):
    done = score(config(parts, tmp_path / "out", "length", keep=0.25, mark=True), silent)
    rows = lines(done.file)
    marked = kept_places([row["scores"]["length"] for row in rows], 0.75, 1.0)
    assert (len(rows), done.rows) == (24, 6)
    assert [at for at, row in enumerate(rows) if row["teacher_trust"]] == marked
    read = load_dataset(str(done.file), tiny.tokenizer(), DataConfig(), ends=EndTokens((2,)))
    assert [at for at, one in enumerate(read.examples) if one.teacher_trust == 1.0] == marked
    plain = load_dataset(str(parts.train), tiny.tokenizer(), DataConfig(), ends=EndTokens((2,)))
    assert [one.ids for one in plain.examples] == [one.ids for one in read.examples]
    assert plain.digest != read.digest, "another experiment"


def test_all_columns_of_a_table_are_kept(parts, tmp_path):
    file = tmp_path / "rows.parquet"
    table = {"prompt": ["say a:", "say b:"], "completion": ["a", "b"], "kind": ["x", "y"], "n": [1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    found = lines(score(config(parts, tmp_path / "out", data=DataConfig(train=str(file))), silent).file)
    assert [(row["kind"], row["n"]) for row in found] == [("x", 1), ("y", 2)]


def test_rows_that_no_training_reads_have_no_score(parts, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "say a:", "completion": "a"}, {"prompt": "b" * 60, "completion": "b"}, {"prompt": "c:"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=str(file), max_length=20, skip_bad=True)
    found = score(config(parts, tmp_path / "out", "nll", "length", data=data), silent)
    assert (found.rows, found.dropped) == (1, 2)


def test_a_killed_command_goes_on_with_the_rows_that_are_missing(parts, tmp_path, monkeypatch):
    whole = score(config(parts, tmp_path / "whole", "ifd", "energy"), silent)
    settings, kills = config(parts, tmp_path / "killed", "ifd", "energy"), 0

    def stored():
        return sum(path.read_bytes().count(b"\n") for path in (tmp_path / "killed").glob("*-*.jsonl"))

    for wanted in (1, 20):
        kills += killed_when(forked(lambda: score(settings, silent)), lambda wanted=wanted: stored() >= wanted)
    there = stored()
    again = score(settings, silent)
    assert kills >= 1
    assert 0 < sum(one.fresh for one in again.scores) <= 48 - there + 2
    assert again.file.read_bytes() == whole.file.read_bytes()
    assert all(check.passed for check in verify(tmp_path))


def test_a_signal_ends_it_in_time_and_the_rest_follows(parts, tmp_path):
    def interrupt(event):
        if event.kind == "progress" and event.done == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="5 of 24 rows, saved") as caught:
        score(config(parts, tmp_path / "cut"), interrupt, command="kd data score -o cut")
    assert caught.value.exit_code == 130
    assert "kd data score -o cut" in caught.value.fix
    assert score(config(parts, tmp_path / "cut"), silent).scores[0].fresh == 19


def test_the_number_of_a_row_is_found_again_in_another_file(parts, tmp_path):
    made = tmp_path / "made"
    score(config(parts, made, data=DataConfig(train=str(parts.train), limit=10)), silent)
    with pytest.raises(ExperimentChangedError, match="scores of other rows") as caught:
        score(config(parts, made), silent)
    assert caught.value.exit_code == 8


def test_damage_is_found(parts, tmp_path):
    record = score(config(parts, tmp_path / "out"), silent)
    record.file.write_bytes(record.file.read_bytes()[:-1])
    assert [check.passed for check in verify(tmp_path)] == [False]
    (tmp_path / "out" / "about.json").write_text("{")
    with pytest.raises(IntegrityError):
        score(config(parts, tmp_path / "out"), silent)


def test_one_command_at_a_time(parts, tmp_path):
    (tmp_path / "out").mkdir()
    pid = os.fork()
    if not pid:
        with lock.hold(tmp_path / "out"):
            (tmp_path / "held").touch()
            time.sleep(20)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.001)
    try:
        with pytest.raises(KDError) as caught:
            score(config(parts, tmp_path / "out"), silent)
        assert caught.value.exit_code == 5
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_number_that_is_not_finite_stops_it(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(NegativeLogLikelihood, "value", lambda *_: math.nan)
    with pytest.raises(NumericsError, match="nll of this row is nan") as caught:
        score(config(parts, tmp_path / "out"), silent)
    assert (caught.value.exit_code, caught.value.where) == (7, "train.jsonl line 1")


def test_a_score_of_ones_own_works_like_ours(parts, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    line = ("data", "score", "--student", str(parts.student), "--data", str(parts.train), "--device", "cpu", "-o")
    said = kd(*line, "out", "--by", "./mine.py:Vowels:factor=2", "--quiet", folder=tmp_path)
    assert said.code == 0, said.err
    (found, *_) = lines(tmp_path / "out" / "rows.jsonl")
    assert list(found["scores"].values()) == [pytest.approx(2 * 2 / 6)]  # "say a:"
    assert kd("scores", "show", "./mine.py:Vowels", folder=tmp_path).code == 0
    broken = kd(*line, "bad", "--by", "./mine.py:Broken", "--quiet", folder=tmp_path)
    assert broken.code == 3
    assert "PLUG-10" in broken.err
    assert "KeyError" in broken.err


def test_a_changed_score_of_ones_own_is_another_one(tmp_path):
    digests = set()
    for name, factor in (("one", "1"), ("same", "1"), ("other", "2")):
        (tmp_path / f"{name}.py").write_text(PLUGIN.replace("self.factor *", f"{factor} *"))
        digests.add(SCORES.code_digest(SCORES.resolve(f"{tmp_path / name}.py:Vowels")))
    assert len(digests) == 2


def test_the_catalogue_is_printed():
    said = kd("scores", "list", "--json")
    assert [card["name"] for card in json.loads(said.out)] == [
        "nll", "ifd", "energy", "el2n", "tracin", "length", "teacher_right", "log_ratio",
    ]  # fmt: skip
    assert kd("scores").out == kd("scores", "list").out
    assert "sum_t log sum_j exp z_tj" in kd("scores", "show", "energy").out


WRONG = {
    "no score": ({"by": ()}, "CLI-20", 2),
    "unknown score": ({"by": ("nl",)}, "SCORE-01", 2),
    "unknown option": ({"by": ("nll:off=teacher",)}, "CLI-09", 2),
    "option out of bounds": ({"by": ("nll:of=judge",)}, "CLI-06", 2),
    "a sum": ({"by": ("nll+ifd",)}, "SPEC-01", 2),
    "twice": ({"by": ("nll", "nll:of=student")}, "CLI-08", 2),
    "no teacher": ({"by": ("log_ratio",)}, "CLI-20", 2),
    "no held-out rows": ({"by": ("tracin",)}, "CLI-20", 2),
    "no model": ({"by": ("length",), "student": None}, "CLI-20", 2),
    "random model": ({"student": "random:layers=1"}, "CLI-09", 2),
    "served model": ({"student": "http://localhost:1/v1"}, "SERVE-11", 2),
    "several models": ({"student": "0.5*A+0.5*B"}, "CLI-22", 2),
    "keep and low": ({"keep": 0.5, "low": 0.2}, "CLI-09", 2),
    "ranks the wrong way round": ({"low": 0.8, "high": 0.5}, "CLI-09", 2),
    "marks on all": ({"mark": True}, "CLI-09", 2),
    "ranks that hold nothing": ({"low": 0.5, "high": 0.501}, "DATA-02", 3),
    "no data": ({"data": DataConfig()}, "CLI-20", 2),
    "no file": ({"data": DataConfig(train="nowhere.jsonl")}, "DATA-01", 3),
    "no folder": ({"output": None}, "CLI-20", 2),
    "no model folder": ({"student": "nowhere"}, "MOD-01", 3),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_end_in_one_line_before_weights_are_read(parts, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    changes, code, exit_code = WRONG[case]
    if case != "ranks that hold nothing":
        monkeypatch.setattr("kdcli.loading.session.load_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(KDError) as caught:
        score(config(parts, **{"output": tmp_path / "out", **changes}), silent)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def test_a_column_of_the_rows_own_is_not_overwritten(parts, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "say a:", "completion": "a", "scores": 3}) + "\n")
    with pytest.raises(KDError) as caught:
        score(config(parts, tmp_path / "out", data=DataConfig(train=str(file))), silent)
    assert (caught.value.code, caught.value.where) == ("ROWS-01", "rows.jsonl line 1")
    done = score(config(parts, tmp_path / "out", data=DataConfig(train=str(file)), column="kd"), silent)
    assert [(row["scores"], list(row["kd"])) for row in lines(done.file)] == [(3, ["nll"])]


def test_a_row_too_long_for_the_model_is_named(parts, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a" * 150, "completion": "b"}) + "\n")
    student = str(tiny.folder(tmp_path / "positions", "gpt2", seed=1))
    with pytest.raises(KDError) as caught:
        score(config(parts, tmp_path / "out", data=DataConfig(train=str(file)), student=student), silent)
    assert caught.value.code == "MOD-22"


def test_scores_are_declared_in_an_entry_point_group():
    assert SCORES.group == "kd.scores"
    assert issubclass(SCORES.resolve("nll"), Score)
