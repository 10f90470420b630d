"""The report's pictures of curves: one line per contender, the mean of its seeds."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import evaluated
from kdcli.comparison.aggregate import Group
from kdcli.comparison.records import Comparison
from kdcli.metrics.curve import Curve, series
from kdcli.report import answer_curves as module
from kdcli.report.answer_curves import answer_curves, mean_of, reliability
from kdcli.report.sections import ReportData
from kdcli.statistics import Estimate


def line(*labels, length=4, shift=0.0):
    x = np.arange(1, length + 1)
    made = [series(label, x, x + shift, low=x + shift - 1, high=x + shift + 1, count=x[::-1]) for label in labels]
    return Curve("on_policy_kl", "Divergence", "position, tokens", "KL, nats", tuple(made))


def bars(heights, references=(0.5, 0.5)):
    answers = series("answers", range(len(heights)), heights, count=heights)
    same = series("references", range(len(references)), references, count=references)
    ticks = tuple(map(str, range(max(len(heights), len(references)))))
    return Curve("lengths", "Length", "words", "share", (answers, same), "bars", ticks=ticks)


@pytest.fixture
def material(tmp_path):
    def make(curves, labels=("fkl", "rkl")):
        """Take the curves by label, one tuple of curves for each of two seeds."""
        groups = evaluated.groups(tmp_path, labels=labels, seeds=(0, 1), gains=(0.0,) * len(labels))
        kept = [
            Group(
                group.label,
                {
                    seed: (run, replace(found, curves=curves[group.label][seed]))
                    for seed, (run, found) in group.runs.items()
                },
            )
            for group in groups
        ]
        return ReportData(Comparison("fkl", (), (), (), None, ()), tuple(kept))

    return make


@pytest.fixture
def drawn(monkeypatch):
    found = []
    real = module.figure_of
    monkeypatch.setattr(
        module, "figure_of", lambda curve, colours: found.append((curve, colours)) or real(curve, colours)
    )
    return found


def test_every_line_has_a_picture_with_the_mean_of_each_contenders_seeds(material, drawn):
    curves = {
        "fkl": [(line("p to q", "q to p"),), (line("p to q", "q to p", shift=2.0),)],
        "rkl": [(line("p to q", "q to p", shift=9.0),), (line("p to q", "q to p", shift=9.0, length=3),)],
    }
    section = answer_curves(material(curves))
    assert section is not None
    assert len(section.pictures) == 2
    assert [curve.title for curve, _ in drawn] == ["Divergence\np to q", "Divergence\nq to p"]
    first, other = drawn[0][0].series
    assert (first.label, first.y, first.low, first.high) == (
        "fkl", (2.0, 3.0, 4.0, 5.0), (1.0, 2.0, 3.0, 4.0), (3.0, 4.0, 5.0, 6.0),
    )  # fmt: skip
    assert (other.label, other.x, other.y) == ("rkl", (1.0, 2.0, 3.0), (10.0, 11.0, 12.0))
    assert len(set(drawn[0][1])) == 2


def test_histograms_stand_together_with_what_all_share_drawn_once(material, drawn):
    curves = {"fkl": [(bars([1.0]),), (bars([0.5, 0.5]),)], "rkl": [(bars([0.0, 1.0]),)] * 2}
    section = answer_curves(material(curves))
    assert section is not None
    (picture,) = section.pictures
    assert "Length" in str(picture.svg)
    ((curve, colours),) = drawn
    assert [(one.label, one.y) for one in curve.series] == [
        ("fkl", (0.75, 0.25)), ("rkl", (0.0, 1.0)), ("references", (0.5, 0.5)),
    ]  # fmt: skip
    assert colours[-1] not in colours[:-1]
    assert curve.ticks == ("0", "1")


def test_one_run_alone_shows_its_own_bars_and_the_references(material, drawn):
    curves = {"fkl": [(bars([1.0, 0.0]),)] * 2}
    answer_curves(material(curves, labels=("fkl",)))
    assert [one.label for one in drawn[0][0].series] == ["fkl", "references"]


def test_a_contender_without_the_curve_in_every_seed_is_left_out(material, drawn):
    curves = {"fkl": [(line("a"),), ()], "rkl": [(line("a"),)] * 2}
    source = material(curves)
    answer_curves(source)
    ((curve, colours),) = drawn
    assert [one.label for one in curve.series] == ["rkl"]
    assert colours == [source.colour("rkl")]


def test_without_curves_there_is_no_section(material):
    assert answer_curves(material({"fkl": [(), ()], "rkl": [(), ()]})) is None


def test_a_mean_is_taken_where_all_lines_have_a_point_and_an_interval():
    one, other = series("a", [1, 2], [1.0, 3.0], low=[0.0, 2.0], high=[2.0, 4.0]), series("a", [1], [3.0])
    mean = mean_of("m", [one, other])
    assert (mean.x, mean.y, mean.low, mean.high) == ((1.0,), (2.0,), None, None)


def test_the_number_above_a_diagram_is_the_tables_and_not_that_of_the_pooled_bars(material, monkeypatch):
    """Two seeds, one overconfident by 0.2 and one underconfident by 0.2: together their bars show no gap."""
    made = material({"fkl": [(), ()], "rkl": [(), ()]})
    gaps = {0: [10.0, 5.0, 3.0], 1: [10.0, 5.0, 7.0]}
    folders = {found.folder: gaps[seed] for group in made.groups for seed, (_, found) in group.runs.items()}
    table = {folder: pa.table({"ece.sums": [sums]}) for folder, sums in folders.items()}
    monkeypatch.setattr(made, "samples", lambda found: table[found.folder])
    for group in made.groups:
        for _, found in group.runs.values():
            found.estimates["ece"] = Estimate(0.2, None, None, 1, "none")
    section = reliability(made)
    assert [picture.svg.count("ece 0.200") > 0 for picture in section.pictures] == [True, True]
    assert "the mean over seeds of each seed's own ECE" in " ".join(section.words)


def test_runs_without_calibration_have_no_diagram(material):
    assert reliability(material({"fkl": [(), ()], "rkl": [(), ()]})) is None
