"""Command lines in rounds from one file: what they become, how a loop ends, and that it goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import tiny
from kdcli.cli.loop import read_loop
from kdcli.errors import InputError
from shell import kd, kd_process
from study import tree

PAGE = Path(__file__).parents[2] / "docs" / "rows.md"


def written(folder, text):
    path = folder / "loop.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_rounds_are_numbered_and_only_the_three_words_are_replaced(tmp_path):
    path = written(
        tmp_path,
        "rounds: 3\n"
        "first:\n  - kd data check one.jsonl\n"
        'each:\n  - kd generate --data r{previous}.jsonl --template "{instruction} {round}/{rounds}" -o r{round}\n'
        "last: [kd report runs]\n",
    )
    steps = read_loop(path)
    asked = "generate --data r{}.jsonl --template"
    assert [step.where for step in steps] == [
        "round 1 of 3", "round 2 of 3", "round 3 of 3", "after all rounds",
    ]  # fmt: skip
    assert steps[0].words == ("data", "check", "one.jsonl")
    for number in (2, 3):
        words = steps[number - 1].words
        assert words == (*asked.format(number - 1).split(), f"{{instruction}} {number}/3", "-o", f"r{number}")
    assert steps[3].words == ("report", "runs")


def test_without_a_number_there_is_one_round(tmp_path):
    assert [step.where for step in read_loop(written(tmp_path, "each:\n  - kd doctor\n"))] == ["round 1 of 1"]


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("rounds: 2\n", None, "it lists no commands"),
        ("rounds: 0\neach: [kd doctor]\n", 1, "rounds must be a whole number from 1"),
        ("rounds: two\neach: [kd doctor]\n", 1, "rounds must be a whole number from 1"),
        ("rounds: true\neach: [kd doctor]\n", 1, "rounds must be a whole number from 1"),
        ("each: kd doctor\n", 1, "a list of command lines is needed"),
        ("each:\n  - kd: doctor\n", 2, "a list of command lines is needed"),
        ("each:\n  - rm -rf /\n", 2, '"rm -rf /" is no command of kd'),
        ("each:\n  - kd\n", 2, '"kd" is no command of kd'),
        ("each:\n  - kd loop other.yaml\n", 2, "is no command of kd"),
        ("each:\n  - kd report 'runs\n", 2, "it is no command line: No closing quotation"),
        ("each:\n  - kd report run{previous}\n", 2, "{previous} stands for no number in round 1"),
        ("evry: [kd doctor]\neach: [kd doctor]\n", 1, 'unknown key "evry"'),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, text, line, said):
    with pytest.raises(InputError) as caught:
        read_loop(written(tmp_path, text))
    assert caught.value.code == "LOOP-01"
    assert said in caught.value.what
    assert line is None or caught.value.where.endswith(f"line {line}")


def test_a_dry_run_shows_every_line_and_runs_none(tmp_path):
    written(tmp_path, "rounds: 2\neach:\n  - kd data check 'my rows{round}.jsonl'\n")
    answer = kd("loop", "loop.yaml", "--dry-run", folder=tmp_path)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "round 1 of 2: kd data check 'my rows1.jsonl'",
        "round 2 of 2: kd data check 'my rows2.jsonl'",
    ]


def test_a_loop_ends_with_the_code_of_the_command_that_failed_and_goes_on(tmp_path):
    tiny.rows(tmp_path / "rows1.jsonl", 3)
    written(tmp_path, "rounds: 2\neach:\n  - kd data check rows{round}.jsonl\n")
    answer = kd_process("loop", "loop.yaml", folder=tmp_path)
    assert answer.code == 3
    assert "1 of 2, round 1 of 2: kd data check rows1.jsonl" in answer.err
    assert answer.err.splitlines()[-1] == (
        "kd: stopped in round 2 of 2, at: kd data check rows2.jsonl (exit code 3); go on with: kd loop loop.yaml"
    )
    tiny.rows(tmp_path / "rows2.jsonl", 3)
    again = kd_process("loop", "loop.yaml", "--quiet", folder=tmp_path)
    assert (again.code, again.out.splitlines()[-1]) == (0, "2 command lines done")


def staged(folder, rounds=2):
    """The loop of the page, on small models and few rows."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    settings = yaml.safe_load(next(text for text in blocks if "rounds:" in text)) | {"rounds": rounds}
    for key in ("first", "each"):
        lines = [line.replace("--budget 500", "--budget 12") for line in settings[key]]
        short = {"distill": " --max-steps 2 --device cpu", "data score": " --device cpu"}
        settings[key] = [
            line + next((more for name, more in short.items() if line.startswith(f"kd {name}")), "") for line in lines
        ]
    folder.mkdir()
    (folder / "stages.yaml").write_text(yaml.safe_dump(settings, width=1000))
    tiny.folder(folder / "T", seed=2)
    tiny.folder(folder / "S", seed=1)
    rows = [
        {"prompt": f"say {chr(97 + at)}:", "completion": chr(97 + at) * (1 + at % 3), "category": "aaab"[at % 4]}
        for at in range(24)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_loop_of_the_page_goes_on_after_a_stop_to_the_same_bytes(tmp_path, number):
    whole, cut = staged(tmp_path / "whole"), staged(tmp_path / "cut")
    assert kd_process("loop", "stages.yaml", folder=whole).code == 0
    process = subprocess.Popen([sys.executable, "-m", "kdcli", "loop", "stages.yaml"], cwd=cut, start_new_session=True)
    wait_for(lambda: (cut / "run1" / "manifest.json").is_file())
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait() in (143, -signal.SIGKILL)
    assert kd_process("loop", "stages.yaml", folder=cut).code == 0
    for name in ("stage1", "stage2", "scored1", "run2/model"):
        ours, theirs = ({**tree(folder / name)} for folder in (whole, cut))
        kept = [path for path in ours if path.endswith((".jsonl", ".safetensors"))]
        assert kept
        assert {path: theirs[path] for path in kept} == {path: ours[path] for path in kept}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
