import io
import re
import sys

import pytest
from rich.console import Console

from kdcli.cli import progress
from kdcli.cli.progress import BarProgress, LineProgress
from kdcli.cli.terminal import Terminal
from kdcli.events import Event

STORY = [
    Event("note", "cpu · fp32"),
    Event("stage", "training", total=100),
    *(Event("progress", "training", done=i, total=100, values={"loss": 1.0 / i}) for i in range(1, 101)),
    Event("saved", "checkpoint-00000100"),
    Event("warning", "slow\x1b[2J"),
    Event("result", "done"),
]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_sparse(clock):
    stream = io.StringIO()
    with LineProgress(stream) as show:
        for event in STORY:
            clock[0] += 1.0
            show(event)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["cpu · fp32", "training"]
    assert lines[2:5] == [
        "training: 30/100, loss 0.03333, 1:10 left",
        "training: 60/100, loss 0.01667, 0:40 left",
        "training: 90/100, loss 0.01111, 0:10 left",
    ]
    assert lines[5:] == ["saved checkpoint-00000100", "warning: slow\\x1b[2J"]


def test_a_study_in_a_pipe_has_two_lines_for_each_run(clock):
    stream = io.StringIO()
    with LineProgress(stream) as show:
        show(Event("stage", "making data"))
        for _ in range(2):
            show(Event("note", "template: plain"))
        for name in ("a", "b"):
            show(cell(name, "waiting"))
        for name in ("a", "b"):
            show(cell(name, "running"))
            for stage in ("training", "answers", "scores"):
                show(Event("stage", f"{name}: {stage}", total=9))
            show(cell(name, "done", 100))
        show(Event("stage", "teacher: answers", total=9))
        clock[0] += 31.0
        show(Event("progress", "answers", done=3, total=9))
    lines = stream.getvalue().splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "making data", "template: plain", "a: running", "a: done", "b: running", "b: done",
        "teacher: answers: 3/9, 1:02 left",
    ]  # fmt: skip


def test_quiet_shows_warnings_only():
    stream = io.StringIO()
    with LineProgress(stream, quiet=True) as show:
        for event in STORY:
            show(event)
    assert stream.getvalue() == "warning: slow\\x1b[2J\n"


def test_a_terminal_gets_a_bar():
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with BarProgress(screen) as show:
        for event in STORY[:40]:
            show(event)
        show._bar.refresh()
        shown = stream.getvalue()
        for event in STORY[40:]:
            show(event)
    assert "training" in shown
    assert "38/100" in shown
    assert "loss" in shown
    assert "slow\\x1b[2J" in stream.getvalue()


def test_stages_follow_each_other_on_the_bar():
    stream = io.StringIO()
    with BarProgress(Console(file=stream, force_terminal=True, width=100, color_system=None)) as show:
        for name in ("training", "answering"):
            show(Event("stage", name, total=2))
            show(Event("progress", name, done=1, total=2))
            show._bar.refresh()
        assert len(show._bar.tasks) == 1
    assert "answering" in stream.getvalue()


def test_progress_without_a_stage_is_no_error():
    with BarProgress(Console(file=io.StringIO(), force_terminal=True, width=100)) as show:
        show(Event("progress", "training", done=1))


def test_what_libraries_print_is_no_result(capsys):
    out, err = io.StringIO(), io.StringIO()
    with Terminal(stdout=out, stderr=err).progress() as show:
        sys.stdout.write("chatter\n")
        show(Event("stage", "training"))
    assert out.getvalue() == ""
    assert err.getvalue() == "chatter\ntraining\n"


@pytest.mark.parametrize("width", [80, 120])
def test_the_time_left_is_never_what_is_cut(width):
    values = {"loss": 0.4123, "lr": 0.001171, "tokens_per_second": 12345.6, "generated_per_second": 99.5}
    show = BarProgress(Console(file=io.StringIO(), force_terminal=True, width=width, height=24, color_system=None))
    show(Event("stage", "student before distillation: training and some more words", total=900))
    for step in range(1, 774):
        show(Event("progress", "training", done=step, total=900, values=values))
    with show._bar.console.capture() as found:
        show._bar.console.print(show._bar.get_renderable())
    (line,) = found.get().splitlines()
    assert len(line) <= width
    assert "773/900" in line
    assert re.search(r" \d\d:\d\d ", line)
    assert "loss 0.4123" in line


def test_a_terminal_shows_at_once_that_something_is_loading():
    stream = io.StringIO()
    with BarProgress(Console(file=stream, force_terminal=True, width=80, color_system=None)):
        assert "loading PyTorch ..." in stream.getvalue() or "starting ..." in stream.getvalue()
        assert "/?" not in stream.getvalue()
        assert "--:--" not in stream.getvalue()


def cell(name, state, done=0, **values):
    return Event("cell", name, done=done, total=100, values={"state": state, **values})


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_time_left_of_a_study_is_never_what_is_cut(clock, width):
    show = BarProgress(Console(file=io.StringIO(), force_terminal=True, width=width, height=24, color_system=None))
    for name, state in (("done", "done"), ("lost", "failed"), ("cut", "stopped"), ("later", "waiting")):
        for number in range(30):
            show(cell(f"{name} {number}", state, 100 if state == "done" else 0))
    for step in (1, 2):
        clock[0] = 60.0 * step
        show(cell("an objective with a long name · seed 0", "running", step))
    with show._bar.console.capture() as found:
        show._bar.console.print(show._bar.get_renderable())
    lines = found.get().splitlines()
    assert all(len(line) <= width for line in lines)
    (line,) = [line for line in lines if " left " in line and "━" in line]
    assert "51:38:00 left" in line
    assert any(line.rstrip().endswith("1:38:00") for line in lines)


def test_a_study_has_one_bar_with_the_time_left(clock):
    show = BarProgress(Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None))
    for name in ("a", "b", "c"):
        show(cell(name, "waiting"))
    show(Event("stage", "a: training", total=100))
    for step in range(1, 51):
        clock[0] = float(step)
        show(cell("a", "running", step))
        show(Event("progress", "training", done=step, total=100))
    with show._bar.console.capture() as found:
        show._bar.console.print(show._bar.get_renderable())
    text = found.get()
    assert "4:10 left 1 running, 2 waiting" in text
    row = next(line for line in text.splitlines() if line.startswith(" a "))
    assert row.split() == ["a", "running", "50/100", "0:50"]
    assert "a: training 50/100" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert show._cells.share == pytest.approx(50 / 300)
