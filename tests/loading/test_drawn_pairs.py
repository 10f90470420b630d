"""Pairs of objective and source that cannot work are refused before any weight is read, with those that would."""

import pytest

from kdcli.config.schema import DistillConfig, HardwareConfig, MonitorConfig
from kdcli.distill.compat import Combination, check
from kdcli.distill.prepare import objective_of


def faults(text, teacher="teacher", **settings):
    loss, label, source = objective_of(text)
    config = DistillConfig(teacher=teacher, **settings)
    names = ("teacher", "teacher_cache", "data", "hardware", "lora", "evaluation", "monitor")
    parts = {name: getattr(config, name) for name in names}
    quantization = config.teacher_quantization
    return check(Combination(loss=loss, label=label, source=source, quantization=quantization, pair=None, **parts))


def refused(text, teacher="teacher", **settings):
    return str(faults(text, teacher, **settings)[0])


def test_a_cache_does_not_know_what_a_student_will_write():
    assert "@student trains on others" in refused("fkl@student", teacher_cache="cache")
    assert "@student trains on others" not in refused("minillm@student", teacher_cache="cache")  # the nearer reason


@pytest.mark.parametrize("spec", ["fkl", "ce@teacher", "hidden", "ramp:loss=rkl"])
def test_what_learns_from_a_teacher_asks_for_one(spec):
    assert "--teacher" in refused(spec, teacher=None)


def test_a_replay_buffer_needs_an_evaluation_to_follow():
    assert "--eval-every" in refused("skl@replay")
    told = refused("skl@replay:score=rougeL", monitor=MonitorConfig(every=5))
    assert "choose score=perplexity" in told or "choose score=nll" in told


@pytest.mark.parametrize(
    "spec, settings, why",
    [
        ("0.5*fkl+0.5*hidden", {}, "inside the models"),
        ("fkl", {"teacher": "one+other"}, "ensemble"),
        ("fkl", {"teacher_quantization": "int8"}, "quantised"),
    ],
)
def test_what_cannot_be_cut_into_shards_is_named(spec, settings, why):
    told = refused(spec, hardware=HardwareConfig(gpus=2, shard="fsdp2"), **settings)
    assert why in told
    assert "--set hardware.shard=ddp" in told


@pytest.mark.parametrize("spec", ["minillm", "minillm:variant=lmops", "minillm:variant=single", "0.5*ce+0.5*minillm"])
def test_minillm_on_rows_is_refused_with_the_sources_that_would_do(spec):
    told = refused(spec)
    assert "@data" in told
    assert "@rollout" in told


def test_the_students_words_do_for_the_single_part_and_not_for_the_long_one():
    assert not faults("minillm:variant=single@student")
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
        assert not faults(spec)
