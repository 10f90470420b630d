import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kdcli.losses.testing import conformance as published
from kdcli.losses.testing.conformance import STUDENT, TEACHER, conformance
from kdcli.registry import catalog

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())
P, Q = (published.softmax(np.array(row)) for row in (TEACHER, STUDENT))
ALONE = {"ce", "sce", "srkl", "tvd", "minillm", "route", "uld", "hidden", "attention"}
AROUND = {"weighted", "trusted", "annealed", "ramp", "revised", "tempered", "truncated"}


@cache
def rows():
    return conformance()


def row(objective, variant):
    (found,) = [row for row in rows() if row.objective == objective and row.variant.startswith(variant)]
    return found


def test_rows_that_say_same_agree_and_no_others():
    for found in rows():
        assert found.agrees == found.note.startswith("same"), found


def test_our_column_is_never_infinite_or_undefined():
    assert all(math.isfinite(found.ours) for found in rows())


def test_rows_are_unique_and_cover_every_family():
    assert len({(found.objective, found.variant) for found in rows()}) == len(rows())
    covered = {found.objective.split(":")[0] for found in rows()}
    assert covered <= set(catalog.LOSSES)
    assert set(catalog.LOSSES) - covered == ALONE | AROUND


MAIN_PAIR = {
    token["loss"]: token["value"]
    for token in GOLDEN["tokens"]
    if (token["teacher"], token["student"]) == (list(TEACHER), list(STUDENT)) and not token["loss"].startswith("akl")
}


@pytest.mark.parametrize(
    "found", [row for row in conformance() if row.objective in MAIN_PAIR and "certain" not in row.variant], ids=str
)
def test_our_column_is_the_golden_value(found):
    assert found.ours == pytest.approx(MAIN_PAIR[found.objective], abs=1e-9)


@pytest.mark.parametrize(
    "objective, variant, factor",
    [
        ("ab:alpha=0.5,beta=0.0", "ABKD", 0.5),
        ("ab:alpha=0.0,beta=0.5", "ABKD", 0.5),
        ("ab:alpha=0.5,beta=-0.5", "ABKD", 0.5),
        ("fkl:temperature=2", "DSKD", 0.25),
    ],
)
def test_differences_by_a_factor(objective, variant, factor):
    found = row(objective, variant)
    assert found.published == pytest.approx(factor * found.ours, rel=1e-9)


def test_differences_by_the_teachers_entropy():
    entropy = published.cross_entropy(P, P)
    for objective in ("fkl", "skl:alpha=0.1"):
        found = row(objective, "DistiLLM")
        assert found.published - found.ours == pytest.approx(entropy, abs=1e-9)


def test_numbers_known_from_elsewhere():
    assert row("akl", "AKL paper").published == pytest.approx(0.1789287795, abs=1e-9)
    assert row("atkd", "ATKD code").published == pytest.approx(GOLDEN["batch"]["value"], abs=1e-12)
    assert math.isinf(row("tkd", "ATKD code").published)
    assert row("akl:head_rule=official", "AKL").published == pytest.approx(0.1721541065, abs=1e-9)
    assert math.isnan(row("akl", "AKL official code, p = q").published)
    assert row("jsd:beta=0.01", "TRL").published / row("jsd:beta=0.01", "TRL").ours > 100


@pytest.mark.parametrize("p", [(0.4, 0.3, 0.2, 0.1), (0.3, 0.3, 0.2, 0.2)])
def test_head_rules_on_the_known_rows(p):
    p = np.array(p)
    assert published.paper_head(p, 0.5).tolist() == [0, 1]
    assert published.official_head(p, 0.5).tolist() == [0]
    assert sorted(published.dskd_head(p, 0.5).tolist()) == [0, 1]


def test_the_published_alpha_beta_jumps_on_the_axis_where_the_limit_does_not():
    near, on = published.alpha_beta(P, Q, 0.5, 1e-6), published.alpha_beta(P, Q, 0.5, 0.0)
    assert near / on == pytest.approx(2.0, rel=1e-4)
