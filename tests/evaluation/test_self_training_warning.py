"""Cross-entropy on what the student itself wrote: a warning names the objective that keeps both apart."""

import pytest

import study
from kdcli.distill.compat import own_words_note
from kdcli.distill.plan import plan_distill
from kdcli.losses.build import build_objective
from kdcli.sources.build import build_source


@pytest.mark.parametrize(
    ("loss", "source", "warned"),
    [
        ("0.5*ce+0.5*jsd", "student", True),
        ("ce", "student:rate=0.5", True),
        ("0.5*ce+0.5*jsd", "replay", True),
        ("ce", "rollout", True),
        ("atkd:hard=(0.5*ce+akl)", "student", True),
        ("ramp:loss=(0.5*ce+0.5*fkl)", "student", True),
        ("jsd", "student", False),
        ("soft_ce", "student", False),
        ("0*ce+jsd", "student", False),
        ("ce", "student:rate=0.0", False),
        ("ce", "dataset", False),
        ("ce", "teacher", False),
        ("route:data=ce,student=jsd", "student:rate=0.5", False),
        ("0.1*ce+route:data=ce,student=jsd", "student:rate=0.5", True),
    ],
)
def test_a_warning_comes_where_the_students_own_words_are_taken_for_right(loss, source, warned):
    note = own_words_note(build_objective(loss), build_source(source))
    assert (note is not None) == warned
    assert not warned or "route" in note


def test_the_plan_of_a_run_shows_it(tmp_path):
    parts = study.Parts(tmp_path)
    notes = plan_distill(parts.run(loss="0.5*ce+0.5*jsd@student:rate=0.5,max_new_tokens=4")).notes
    assert any("route:data=ce,student=jsd" in note for note in notes)
    assert not any("route" in note for note in plan_distill(parts.run(loss="0.5*ce+0.5*jsd")).notes)
