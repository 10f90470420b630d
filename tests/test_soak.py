"""The soak can fail: what grows, is left behind or differs is said."""

import mmap
import tempfile

import pytest

import soak
import study

CLEAN = soak.Growth(0.1, (10, 10), (2, 2), ())


@pytest.mark.parametrize(
    "growth, said",
    [
        (CLEAN, []),
        (soak.Growth(2.1, (10, 10), (2, 2), ()), ["memory grows by 2.10 KiB a step"]),
        (soak.Growth(0.1, (10, 11), (2, 2), ()), ["open files: (10, 11)"]),
        (soak.Growth(0.1, (10, 10), (2, 3), ()), ["threads: (2, 3)"]),
    ],
)
def test_what_grows_is_said(growth, said):
    assert growth.complaints() == said


def test_a_training_that_keeps_a_little_at_every_step_is_seen(tmp_path):
    kept, parts = [], study.Parts(tmp_path)

    def leak(event):
        if event.kind == "progress" and event.message == "training":
            kept.append(mmap.mmap(-1, 40_960))  # pages of its own: those that earlier tests gave back do not count
            kept[-1].write(b"x" * 40_960)

    config = parts.run(max_steps=160, save_every=1000)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"metrics": ()})})
    found = soak.grown(config, 40, leak)
    assert 20 < found.slope < 80
    assert found.complaints()[0].startswith("memory grows by")


def test_what_is_left_behind_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = soak.held()
    with open("/dev/null"):
        assert soak.left_behind(before) == [
            f"open files: {before['open files']} before, {before['open files'] + 1} now"
        ]
    (tmp_path / "forgotten").touch()
    assert soak.left_behind(before) == ["temporary files: [] before, ['forgotten'] now"]


@pytest.mark.full
def test_a_round_finds_nothing_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(soak.results, "publish", soak.results.publish)  # given back after the test
    monkeypatch.setattr(soak.cache_build, "_SHARD_BYTES", soak.cache_build._SHARD_BYTES)
    monkeypatch.setattr(soak.cache_build, "_MICRO_TOKENS", soak.cache_build._MICRO_TOKENS)
    made = soak.Soak(tmp_path, seed=1)
    assert made.round() == []
    assert made.counts["kills"] >= 5
