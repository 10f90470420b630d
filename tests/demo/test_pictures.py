import matplotlib as mpl
import pytest
import torch

from kdcli import plots
from kdcli.demo.synthetic import Spread, Task, most_informative_task
from kdcli.demo.toy import draw_fits, fit, target, value
from kdcli.losses.build import build_objective


@pytest.fixture(scope="module")
def fits():
    return {name: fit(name) for name in ("fkl", "rkl")}


def test_forward_kl_covers_and_reverse_kl_seeks(fits):
    assert fits["fkl"].kept > 0.99
    assert fits["fkl"].spilt > 0.2
    assert fits["rkl"].kept == pytest.approx(0.6, abs=0.02)
    assert fits["rkl"].spilt < 0.01


def test_free_logits_reach_the_target(fits):
    for one in fits.values():
        assert one.head[0] + one.tail[0] == pytest.approx((target() - 1 / 60).abs().sum().item())
        assert one.head[-1] < 0.1 * one.head[0]
        assert one.tail[-1] < 0.2 * one.tail[0]


def test_reverse_kl_reaches_the_tail_sooner(fits):
    assert fits["rkl"].tail[75] < 0.7 * fits["fkl"].tail[75]


def test_objectives_that_plan_are_planned():
    p = target().log().expand(6, -1)
    labels = torch.tensor([17, 18, 20, 24, 43, 45])
    loss = build_objective("atkd")
    assert value(loss, p.clone(), p, labels).item() == pytest.approx(0.0, abs=1e-12)
    assert value(loss, torch.zeros_like(p), p, labels).item() > 0.1


def test_pictures_are_the_same_bytes_every_time(tmp_path, fits):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_fits(tmp_path / name, [*fits.values()])
    for kind in ("png", "svg"):
        first, second = (tmp_path / name / f"fits.{kind}" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size > 5000


def test_drawing_leaves_the_users_settings_alone():
    before = dict(mpl.rcParams)
    with plots.plot_style():
        assert mpl.rcParams["svg.hashsalt"] == "kd"
    assert dict(mpl.rcParams) == before


def test_what_is_no_valid_answer_is_the_rest():
    assert Spread("fkl", (0.5, 0.25)).elsewhere == 0.25
    assert Spread("fkl", (0.6, 0.5)).elsewhere == 0.0


def test_the_telling_task_has_the_widest_choice():
    wide = Task("b", ("x", "y"), (0.5, 0.5))
    assert most_informative_task([Task("a", ("x", "y"), (0.9, 0.1)), wide, Task("c", ("x",) * 9, (1 / 9,) * 9)]) is wide
