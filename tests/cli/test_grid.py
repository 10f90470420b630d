import io

from rich.console import Console

from kdcli.cli import launch
from kdcli.cli.progress import BarProgress, CellStatus, LineProgress, grid, shown
from kdcli.events import Event


def cell(name, state, done=0, total=8, **values):
    return Event("cell", name, done, total, {"state": state, **values})


def test_lines_tell_each_change_of_state_once():
    stream = io.StringIO()
    with LineProgress(stream) as show:
        for event in (cell("a", "waiting"), cell("b", "waiting"), cell("a", "running"), cell("a", "running", 3)):
            show(event)
        show(cell("a", "done", 8))
        show(cell("b", "failed", log="b/error.log"))
    assert stream.getvalue().splitlines() == [
        "a: running (1 running, 1 waiting)",
        "a: done (1 done, 1 waiting)",
    ]


def test_a_terminal_gets_the_grid():
    stream = io.StringIO()
    with BarProgress(Console(file=stream, force_terminal=True, width=80, height=24, color_system=None)) as show:
        show(cell("akl · seed 0", "running", 3, left=75.0))
        show(cell("fkl · seed 0", "failed", log="cells/fkl/error.log"))
        show._bar.refresh()
    drawn = stream.getvalue()
    assert "3/8" in drawn
    assert "1:15" in drawn
    assert "failed (see cells/fkl/error.log)" in drawn
    assert "1 running, 1 failed" in drawn


def test_of_many_cells_those_that_run_or_failed_are_shown():
    cells = [CellStatus(str(at), "done" if at < 50 else "waiting", 0, 1, None) for at in range(100)]
    cells[30] = CellStatus("30", "failed", 0, 1, None)
    cells[60] = CellStatus("60", "running", 0, 1, None)
    assert [one.cell for one in shown(cells, 4)] == ["30", "50", "51", "60"]
    assert grid(shown(cells, 4)).row_count == 4


def test_the_launcher_reads_our_profile_only():
    command = launch.launch_arguments(4, ["distill", "-c", "a.yaml"])
    assert command[0] == "--config_file"
    assert command[command.index("--num_processes") + 1] == "4"
    assert command[-5:] == ["--module", "kdcli", "distill", "-c", "a.yaml"]
    profile = launch.PROFILE.read_text(encoding="utf-8")
    assert "distributed_type: MULTI_GPU" in profile
    assert 'mixed_precision: "no"' in profile
