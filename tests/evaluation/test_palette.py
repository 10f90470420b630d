"""The sizes of a supernet, measured: each as the model that is picked, and which of them no other beats."""

import json

import pytest

import sliced
import tiny
from kdcli.evaluation.palette import MeasuredSize, _marked, spread
from kdcli.students.palette import Size
from shell import kd

EDGE = "--set edge.prompt_tokens=4 --set edge.new_tokens=3 --set edge.repeats=1"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("palette")
    sliced.folder(root / "teacher", "llama", seed=1)
    tiny.folder(root / "other", seed=1)
    tiny.rows(root / "rows.jsonl", 6)
    line = "supernet --teacher teacher --data rows.jsonl --depths 0.333,1 --max-steps 2 --device cpu -o SN"
    answer = kd(*line.split(), folder=root)
    assert answer.code == 0, answer.err
    return root


def test_a_palette_measures_the_sizes_that_are_picked(home):
    answer = kd(*f"eval SN --palette 8 --data rows.jsonl --device cpu {EDGE}".split(), folder=home)
    assert answer.code == 0, answer.err
    assert "written to SN/palette" in answer.out
    record = json.loads((home / "SN" / "palette" / "palette.json").read_text())
    assert record["examples"] == 6
    sizes = record["sizes"]
    assert [(one["width"], round(one["depth"], 3)) for one in sizes] == [(0.5, 0.333), (0.5, 1), (1, 0.333), (1, 1)]
    assert [one["parameters"] for one in sizes] == sorted(one["parameters"] for one in sizes)
    assert {path.name for path in (home / "SN" / "palette").iterdir()} == {"palette.json", "palette.png", "palette.svg"}
    for one in (sizes[0], sizes[-1]):
        name = f"w{one['width']:g}"
        pick = f"width={one['width']:g},depth={one['depth']:.3f}"
        assert kd("student", "SN", "--pick", pick, "-o", name, folder=home).code == 0
        line = f"eval {name} --data rows.jsonl --device cpu --metric perplexity --json"
        found = json.loads(kd(*line.split(), folder=home).out)
        assert found["estimates"]["perplexity"]["mean"] == one["perplexity"]
        assert found["estimates"]["perplexity"]["low"] == one["low"]
        assert f"{one['parameters']:,}" in answer.out
    assert kd("eval", "SN", "--data", "rows.jsonl", "--metric", "perplexity", "--device", "cpu", folder=home).code == 0


def test_a_palette_of_fewer_sizes_goes_where_it_is_told(home):
    line = f"eval SN/model --palette 2 --data rows.jsonl --device cpu {EDGE} --json"
    found = json.loads(kd(*line.split(), folder=home).out)
    assert found["kind"] == "palette"
    assert found["folder"] is None
    assert [one["width"] for one in found["sizes"]] == [0.5, 1.0]
    line = f"eval SN/model --palette 1 --data rows.jsonl --device cpu {EDGE} --set pictures=false -o there"
    assert kd(*line.split(), folder=home).code == 0
    assert [path.name for path in (home / "there").iterdir()] == ["palette.json"]


WRONG = [
    ("eval other --palette 2 --data rows.jsonl", 3, "SUP-04]: other: the model has one size alone"),
    ("eval SN --palette 0 --data rows.jsonl", 2, "palette"),
    ("eval SN --palette 2", 2, "CLI-20]: --data is missing"),
    ("eval SN --palette 2 --data rows.jsonl --metric ece", 2, "CLI-09]: --metric: has no effect with --palette"),
    ("eval SN --palette 2 --data rows.jsonl --edge", 2, "CLI-09]: --edge: has no effect with --palette"),
    ("eval --palette 2 --data rows.jsonl", 2, "no model is given"),
]


@pytest.mark.parametrize("line,code,message", WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_lines_end_in_one_line(home, line, code, message):
    answer = kd(*line.split(), folder=home)
    (said,) = answer.error_lines
    assert message in said
    assert ". Fix: " in said
    assert answer.code == code


def test_sizes_are_spread_over_their_parameters():
    counted = {Size(width / 10, 1.0): 100 * width for width in range(1, 11)}
    assert spread(counted, 20) == sorted(counted)
    assert [round(size.width * 10) for size in spread(counted, 4)] == [1, 4, 7, 10]
    assert len(set(spread(counted, 7))) == 7
    assert spread(counted, 1) == [Size(1.0, 1.0)]


def test_marks_are_those_of_sizes_that_nothing_beats():
    def size(parameters, perplexity, seconds):
        return MeasuredSize(1.0, 1.0, parameters, perplexity, None, None, 0.0, seconds)

    marked = _marked([size(10, 9.0, 1.0), size(20, 9.5, 0.5), size(30, 5.0, 2.0)])
    assert [one.unbeaten for one in marked] == [
        ("parameters", "seconds_per_token"), ("seconds_per_token",), ("parameters", "seconds_per_token")
    ]  # fmt: skip
