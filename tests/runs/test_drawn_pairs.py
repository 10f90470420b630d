"""What needs drawn sequences is refused on rows before any weight is read, with the pairs that would work."""

import pytest

from kdcli.config import DistillConfig
from kdcli.errors import UsageError
from kdcli.runs.pairs import refuse_pair
from kdcli.runs.prepare import objective_of


def refused(text, teacher="teacher"):
    loss, label, source = objective_of(text)
    with pytest.raises(UsageError) as caught:
        refuse_pair(DistillConfig(teacher=teacher), loss, source, label)
    return str(caught.value)


@pytest.mark.parametrize("spec", ["minillm", "minillm:variant=lmops", "minillm:variant=single", "0.5*ce+0.5*minillm"])
def test_minillm_on_rows_is_refused_with_the_sources_that_would_do(spec):
    told = refused(spec)
    assert "@data" in told
    assert "@rollout" in told


def test_the_students_words_do_for_the_single_part_and_not_for_the_long_one():
    loss, label, source = objective_of("minillm:variant=single@student")
    refuse_pair(DistillConfig(teacher="teacher"), loss, source, label)
    assert "@rollout" in refused("minillm@student")
    assert "behaviour_logp" in refused("minillm@student")


def test_an_objective_for_words_that_the_source_has_none_of_is_refused():
    assert "corpus" in refused("route:rollout=minillm,corpus=ce@rollout")
    assert "student" in refused("route:student=rkl,rollout=minillm@rollout")


def test_a_corpus_that_was_not_given_is_asked_for():
    told = refused("route:rollout=minillm,corpus=ce@rollout:corpus=4")
    assert "data.corpus" in told


def test_pairs_that_work_are_let_through():
    for spec in ("minillm@rollout", "rkl@rollout", "route:rollout=(minillm:variant=lmops)@rollout:alpha=0"):
        loss, label, source = objective_of(spec)
        refuse_pair(DistillConfig(teacher="teacher"), loss, source, label)
