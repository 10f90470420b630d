from itertools import pairwise

import numpy as np
import pytest

from kdcli.metrics.calibration import equal_width_series, reliability_curve
from kdcli.metrics.curve import Curve, series
from kdcli.plots import draw, figure_of, plot_style

X = np.arange(4.0)
BAND = series("student", X, X**2, low=X**2 - 1, high=X**2 + 1, count=[5] * 4)
CURVES = {
    "line": Curve("line", "A line", "token", "nats", (BAND, series("teacher", X, X)), "line"),
    "points": Curve("points", "Points", "words", "Rouge-L", (BAND,), "points", ("1-3", "4-9", "10-20", "21-")),
    "bars": Curve("bars", "Bars", "words", "answers", (series("a", X, X, left=X, right=X + 1), BAND), "bars"),
    "reliability": reliability_curve(
        "reliability", "Calibration",
        (equal_width_series("a", np.array([[0.0] * 27 + [4.0, 3.8, 3.0]])), series("no counts", [0.5], [0.7])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CURVES)
def test_every_kind_is_drawn_with_its_labels_and_the_same_bytes_every_time(tmp_path, kind):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw(tmp_path / name, CURVES[kind])
    for ending in ("png", "svg"):
        first, second = (tmp_path / name / f"{kind}.{ending}" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_labels_ticks_and_legend_are_those_of_the_curve():
    with plot_style():
        (ax,) = figure_of(CURVES["line"]).axes
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")) == ("token", "nats", "A line")
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["student", "teacher"]
        assert ax.lines[0].get_ydata().tolist() == [0.0, 1.0, 4.0, 9.0]
        (ax,) = figure_of(CURVES["points"]).axes
        assert [text.get_text() for text in ax.get_xticklabels()] == ["1-3", "4-9", "10-20", "21-"]


def test_bars_stand_on_their_edges():
    with plot_style():
        (ax,) = figure_of(CURVES["bars"]).axes
    assert [bar.get_x() for bar in ax.patches[:4]] == [0.0, 1.0, 2.0, 3.0]


def test_a_reliability_diagram_shows_accuracy_gap_and_count():
    with plot_style():
        upper, _, lower, _ = figure_of(CURVES["reliability"]).axes
    accuracy, gap = upper.patches
    assert (accuracy.get_x(), accuracy.get_height()) == (0.9, 0.75)
    assert (gap.get_y(), gap.get_height()) == (0.75, pytest.approx(0.2))
    assert lower.patches[0].get_height() == 4.0


def test_numbers_that_are_none_and_control_characters_do_no_harm(tmp_path):
    odd = Curve("odd", "a\x1b[2J$x_$", "x", "y", (series("\x00", [0, 1], [np.nan, 1.0]),), "line")
    draw(tmp_path, odd)
    with plot_style():
        assert "\x1b" not in figure_of(odd).axes[0].get_title(loc="left")


def boxes(figure, texts):
    canvas = figure.canvas
    canvas.draw()
    return [text.get_window_extent(canvas.get_renderer()) for text in texts]


@pytest.mark.parametrize("names", [("0", "1", "2–3"), tuple(f"{2**i}–{2 ** (i + 1) - 1}" for i in range(10))])
def test_names_of_groups_do_not_run_into_each_other(names):
    bars = series("a", range(len(names)), range(len(names)))
    with plot_style():
        figure = figure_of(Curve("b", "B", "words", "share", (bars,), "bars", ticks=names))
        found = boxes(figure, figure.axes[0].get_xticklabels())
    straight = figure.axes[0].get_xticklabels()[0].get_rotation() == 0.0
    assert straight is (len(names) == 3)
    ends = [(box.x0, box.x1) if straight else (box.x1, box.x1 + box.height / 4) for box in found]
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_a_long_title_stays_inside_a_narrow_diagram():
    part = equal_width_series("a", np.array([[0.0] * 27 + [4.0, 3.8, 3.0]]))
    with plot_style():
        figure = figure_of(
            reliability_curve("r", "Calibration of something with a rather long name, ECE 0.123", (part,))
        )
        (title,) = figure.findobj(lambda one: getattr(one, "get_text", str)().startswith("Calibration of"))
        (box,) = boxes(figure, [title])
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
