"""``kd data balance --tail write``: what a teacher of known chances writes for values that lack rows."""

import json
import re
import signal
from collections import Counter

import pytest

import loopback
import markov
from kdcli.config.schema import BalanceConfig, DataConfig, HardwareConfig, ServerConfig
from kdcli.errors import ExperimentChangedError, InterruptedRunError, KDError
from kdcli.events import silent
from kdcli.rows.balance import balance
from kdcli.sources.teacher_text.store import LocalGenerator
from kdcli.study.verify import verify
from killing import forked, killed_when
from shell import kd

KINDS = [*["a"] * 12, *["b"] * 8, *["c"] * 3, "d"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    markov.folder(root / "T")
    markov.folder(root / "G", markov.GARBAGE)
    return root


@pytest.fixture
def rows(tmp_path):
    """Rows of which one is what the teacher may write."""
    table = [{"id": at, "prompt": f"q{at}", "completion": "r9", "kind": kind} for at, kind in enumerate(KINDS)]
    table[0] |= {"prompt": "w0", "completion": "r0"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def config(models, rows, name="stage", teacher="T", **changes):
    return BalanceConfig(
        **{
            "by": "kind",
            "policy": "balanced",
            "budget": 24,
            "tail": "write",
            "teacher": str(models / teacher) if teacher in ("T", "G") else teacher,
            "source": "teacher:max_new_tokens=8",
            "data": DataConfig(train=str(rows)),
            "hardware": HardwareConfig(device="cpu"),
            "output": str(rows.parent / name),
            **changes,
        }
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(found):
    return lambda event: found.append((event.kind, event.message))


def test_short_values_get_what_they_lack_and_no_other_value_gets_any(models, rows):
    record = balance(config(models, rows, tries=6), silent)
    found = lines(record.file)
    assert Counter(row["kind"] for row in found) == dict.fromkeys("abcd", 6)
    written = [row for row in found if "made" in row]
    assert Counter(row["kind"] for row in written) == {"c": 3, "d": 5}
    assert [row for row in found if "made" not in row] == [
        row for row in lines(rows) if row["id"] in {one["id"] for one in found}
    ]
    for row in written:
        assert re.fullmatch(r"w\d+", row["prompt"])
        assert re.fullmatch(r"r[012]", row["completion"])
        assert row["made"]["teacher"] == str(models / "T")
        mine = {f"rows.jsonl line {1 + at}" for at, kind in enumerate(KINDS) if kind == row["kind"]}
        assert set(row["made"]["shown"]) <= mine
        assert len(row["made"]["shown"]) == min(4, len(mine))
    pairs = [(row["prompt"], row["completion"]) for row in [*lines(rows), *written]]
    assert len(set(pairs)) == len(pairs), "no double of a row or of another written one"
    assert len({str(row["id"]) for row in found}) == len(found)
    assert [(one.quota, one.fresh, one.written, one.lacking) for one in record.taken] == [
        (6, 6, 0, 0), (6, 6, 0, 0), (6, 3, 3, 0), (6, 1, 5, 0),
    ]  # fmt: skip
    assert all(check.passed for check in verify(rows.parent))


def test_prompts_show_rows_of_their_value_alone(models, rows):
    balance(config(models, rows, shots=2), silent)
    asked = lines(rows.parent / "stage" / "written" / "1" / "prompts.jsonl")
    assert Counter(one["value"] for one in asked) == {"c": 3, "d": 5}
    by_kind = {kind: {row["prompt"] for row in lines(rows) if row["kind"] == kind} for kind in "abcd"}
    for one in asked:
        shown = re.findall(r"^Prompt: (\S+)\nResponse: r9$", one["prompt"], re.MULTILINE)
        assert set(shown) <= by_kind[one["value"]]
        assert len(set(shown)) == len(shown) == (2 if one["value"] == "c" else 1)
        assert one["prompt"].endswith("\n\nPrompt:")
    assert len({one["prompt"] for one in asked if one["value"] == "c"}) > 1, "each prompt has a draw of its own"


def test_garbage_leaves_the_shortfall_said_and_the_rows_as_they_are(models, rows):
    said = []
    record = balance(config(models, rows, teacher="G", tries=2), told(said))
    short = balance(config(models, rows, "short", tail="leave", teacher=None), silent)
    assert record.file.read_bytes() == short.file.read_bytes()
    warnings = [message for kind, message in said if kind == "warning"]
    assert [message.partition(":")[0] for message in warnings] == [
        'kind "c" stays 3 rows below its quota', 'kind "d" stays 5 rows below its quota',
    ]  # fmt: skip
    assert "6 answers hold 0 new rows, 0 doubles" in warnings[0]
    assert not (rows.parent / "stage" / "written" / "3").exists(), "two tries and no more"


def test_a_teacher_that_runs_out_of_new_rows_stops_after_its_tries(models, rows):
    """It knows 36 pairs, of which one is there: 35 new ones at most, whatever is asked."""
    table = [*lines(rows), *({"id": 100 + at, "prompt": f"x{at}", "completion": "y", "kind": "a"} for at in range(200))]
    rows.write_text("".join(json.dumps(row) + "\n" for row in table))
    said = []
    record = balance(config(models, rows, budget=200, tries=4), told(said))
    written = sum(one.written for one in record.taken)
    assert 20 < written <= 35
    assert sum(one.lacking for one in record.taken) == sum(
        int(re.search(r"stays (\d+) rows", message)[1]) for kind, message in said if kind == "warning"
    )
    assert Counter(row["kind"] for row in lines(record.file)) == {
        one.value: one.quota - one.lacking for one in record.taken
    }


def test_the_same_line_asks_nothing_again_and_another_seed_writes_others(models, rows, monkeypatch):
    first = balance(config(models, rows), silent)
    before = first.file.read_bytes()
    other = balance(config(models, rows, "other", seed=1), silent)
    pairs = [[(row["prompt"], row["completion"]) for row in lines(one.file) if "made" in row] for one in (first, other)]
    assert pairs[0] != pairs[1]
    monkeypatch.setattr(LocalGenerator, "write", lambda *_: pytest.fail("asked again"))
    assert balance(config(models, rows), silent).file.read_bytes() == before
    for changes in ({"shots": 2}, {"tries": 1}, {"teacher": "G"}, {"source": "teacher:max_new_tokens=9"}):
        with pytest.raises(ExperimentChangedError, match="another stage"):
            balance(config(models, rows, **changes), silent)


def test_a_later_stage_writes_no_row_that_an_earlier_one_has(models, rows):
    first = balance(config(models, rows, "stage1", stage="1/2", budget=48, tries=6), silent)
    second = balance(
        config(models, rows, "stage2", stage="2/2", budget=48, tries=6, before=(str(rows.parent / "stage1"),)), silent
    )
    union = lines(second.union)
    assert len(union) == first.rows + second.rows
    pairs = Counter((row["prompt"], row["completion"]) for row in union)
    assert set(pairs.values()) == {1}
    assert len({str(row["id"]) for row in union}) == len(union)


def answers(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("written/*/.teacher-*.jsonl")) + sum(
        path.read_bytes().count(b"\n") for path in folder.glob("written/*/teacher-*/text.jsonl")
    )


def test_a_killed_stage_goes_on_to_the_same_bytes(models, rows):
    whole = balance(config(models, rows, "whole", budget=20), silent)
    cut, kills = rows.parent / "cut", 0
    for wanted in (1, 4):
        pid = forked(balance, config(models, rows, "cut", budget=20), silent)
        kills += killed_when(pid, lambda wanted=wanted: cut.is_dir() and answers(cut) >= wanted)
    assert kills >= 1
    again = balance(config(models, rows, "cut", budget=20), silent)
    assert again.file.read_bytes() == whole.file.read_bytes()
    assert again.union.read_bytes() == whole.union.read_bytes()


def test_a_signal_ends_it_in_time_and_the_rest_follows(models, rows):
    whole = balance(config(models, rows, "whole"), silent)

    def interrupt(event):
        if event.kind == "progress" and event.done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="answers, saved") as caught:
        balance(config(models, rows, "cut"), interrupt, command="kd data balance -o cut")
    assert (caught.value.exit_code, "kd data balance -o cut" in caught.value.fix) == (130, True)
    assert balance(config(models, rows, "cut"), silent).file.read_bytes() == whole.file.read_bytes()


@pytest.mark.enable_socket
def test_a_served_teacher_writes_too(models, rows):
    def answer(asked, before):
        if asked.path.endswith("/models"):
            return loopback.models("toy")
        number = 1 + asked.body["seed"] % (len(markov.WORDS) - 1)
        return loopback.completion(f"{markov.WORDS[number]}\nResponse: r1\n\nPrompt: w0\nResponse: r2", "length")

    with loopback.serving(answer) as server:
        changes = {"teacher": f"{server.url}/v1", "student": str(models / "T"), "server": ServerConfig(wait=0.0)}
        record = balance(config(models, rows, **changes), silent)
    written = [row for row in lines(record.file) if "made" in row]
    assert written
    assert {row["completion"] for row in written} == {"r1"}
    assert "w0" not in {row["prompt"] for row in written}, "the last example was cut"


def test_rows_of_the_wrong_value_do_not_count_where_the_teacher_writes_the_column(models, rows):
    table = [{"prompt": f"q{at}", "completion": "r0" if at < 2 else "r9"} for at in range(20)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in table))
    record = balance(config(models, rows, by="completion", budget=16, tries=20), silent)
    found = Counter(row["completion"] for row in lines(record.file))
    assert found == {"r9": 8, "r0": 8}


WRONG = {
    "no teacher": ({"teacher": None}, "CLI-20", 2, "no teacher"),
    "several": ({"teacher": "0.5*A+0.5*B"}, "CLI-22", 2, "one teacher writes"),
    "a source that trains": ({"source": "student"}, "TEXT-01", 2, "a text by itself"),
    "no prompts": ({"source": "teacher:prompts=bos"}, "TEXT-05", 2, "prompts of their own"),
    "no folder": ({"teacher": "nowhere"}, "MOD-01", 3, "nowhere"),
    "a server without a reader": ({"teacher": "http://127.0.0.1:9/v1"}, "SERVE-10", 2, "no tokenizer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_end_in_one_line_before_anything_is_written(models, rows, monkeypatch, case):
    monkeypatch.chdir(rows.parent)
    changes, code, exit_code, said = WRONG[case]
    with pytest.raises(KDError, match=said) as caught:
        balance(config(models, rows, **changes), silent)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.fix
    assert not (rows.parent / "stage").exists()


def test_the_command(models, rows):
    line = ["data", "balance", "--data", str(rows), "--by", "kind", "--policy", "balanced", "--budget", "24"]
    write = ["--tail", "write", "--teacher", str(models / "T"), "--source", "teacher:max_new_tokens=8", "--tries", "6"]
    said = kd(*line, *write, "--device", "cpu", "-o", "out", folder=rows.parent)
    assert said.code == 0, said.err
    assert "1 new, 5 written" in said.out
    refused = kd(*line, "--teacher", str(models / "T"), "-o", "out2", folder=rows.parent)
    assert (refused.code, len(refused.error_lines)) == (2, 1)
    assert "--tail write" in refused.err
