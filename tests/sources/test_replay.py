import numpy as np
import pytest
from scipy.stats import kstest

import running
from kdcli.config.schema import TrainConfig
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.sequences import TrainingSequence


@pytest.fixture(scope="module")
def student():
    return running.model("student", seed=1)


def opened(spec, student=None, steps=400):
    train = TrainConfig(batch_size=4, max_steps=steps)
    base = SourceContext(running.dataset(20), train, pad_id=0, vocab=running.VOCAB, longest=24, student=student)
    return build_source(f"replay:max_new_tokens=5,{spec}").open(base)


def origins(windows, step):
    return {one.origin for one in windows.write(step, windows.members(step))}


def test_phi_grows_when_the_score_gets_worse_and_never_falls():
    windows, seen = opened("eps=0.1,growth=0.3"), []
    for score in (2.0, 2.05, 2.2, None, 2.0, 2.11, 2.0, 2.5, 3.0, 4.0, 5.0):
        windows.observe(0, {"nll": score, "perplexity": 9.0})
        seen.append(round(windows.phi, 6))
    assert seen == [0.0, 0.0, 0.3, 0.3, 0.3, 0.6, 0.6, 0.9, 1.0, 1.0, 1.0]


def test_which_answer_comes_again_does_not_follow_from_the_draw_that_said_replay():
    """In the last steps of a run nothing is written; each of 100 answers is as likely for the first row as another."""
    windows, example = opened("phi=0.3,growth=0", steps=10**9), running.dataset(1).examples[0]
    windows.buffer = [TrainingSequence(example, number, "student") for number in range(100)]
    drawn = [windows.write(step, [0])[0] for step in range(10**9 - 1000, 10**9)]
    replayed = [one.row for one in drawn if one.origin == "student"]
    assert 250 < len(replayed) < 350
    assert kstest(np.array(replayed) / 100, "uniform").pvalue > 0.01


def test_at_phi_0_it_is_the_data_set(student):
    windows = opened("phi=0", student)
    assert all(origins(windows, step) == {"data"} for step in range(50))
    assert windows.buffer == []


def test_the_shares_of_writing_and_replaying_are_those_of_the_schedule(student):
    windows = opened("phi=0.8,growth=0,capacity=30", student)
    replayed = written = 0
    for step in range(400):
        windows.begin()
        replayed += origins(windows, step) == {"student"}
        written += windows.generated > 0
    expected = sum(0.8 * (1 - step / 400) for step in range(400))
    deviation = sum(p * (1 - p) for p in (0.8 * (1 - step / 400) for step in range(400))) ** 0.5
    assert abs(written - expected) < 3 * deviation
    assert abs(replayed - 320) < 3 * (400 * 0.8 * 0.2) ** 0.5


def test_the_buffer_forgets_the_oldest_and_is_drawn_from(student):
    windows = opened("phi=1,growth=0,capacity=10", student)
    kept = []
    for step in range(5):
        windows.begin()
        found = windows.write(step, windows.members(step))
        if windows.generated:
            kept = [*kept, *windows.buffer[-4:]][-10:]
        assert windows.buffer == kept
        assert all(any(one is other for other in windows.buffer) for one in found)
    assert len(windows.buffer) == 10


def test_fresh_words_are_trained_on_at_once_if_asked(student):
    windows = opened("phi=1,growth=0,fresh=true", student)
    found = windows.write(0, windows.members(0))
    assert [one.row for one in found] == windows.members(0)


def test_the_state_is_all_there_is(student):
    windows = opened("phi=0.9,growth=0.05", student)
    for step in range(6):
        windows.window(step)
    windows.observe(5, {"nll": 3.0})
    windows.observe(6, {"nll": 3.5})
    other = opened("phi=0.9,growth=0.05", student)
    other.restore(windows.state())
    assert (other.phi, other.previous) == (windows.phi, 3.5) == (pytest.approx(0.95), 3.5)
    assert [one.example for one in other.buffer] == [one.example for one in windows.buffer]
    assert origins(other, 7) == origins(windows, 7)
