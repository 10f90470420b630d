"""A fault at any operation on the disk loses nothing: the same command ends as if it had never been."""

import signal

import pytest

import faults
import study
import writers


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    made = study.Parts(tmp_path_factory.mktemp("faults"))
    writers.warm(made)
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several shards in a small cache, and no picture, which other tests draw."""
    writers.make_small(monkeypatch)


def check(work, every=1, first=0):
    """Try every so many operations; return how many states were mended, and list those that were not."""
    work.reset()
    whole = work.attempt()
    assert whole["code"] == 0, whole["said"]
    expected, wrong, tried = work.content(), [], {"kill": 0, "torn": 0, "refusal": 0}

    def mended(label):
        ended = work.attempt()
        found = work.content()
        differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if ended["code"] or differ:
            wrong.append((label, ended["code"], ended["said"][-300:], differ))

    seen = {}
    for state in work.states(every, first):
        tried["torn" if state.name.endswith("-torn") else "kill"] += 1
        work.reset(state)
        content = tuple(sorted(work.content(raw=True).items()))
        if content not in seen:  # equal states end alike
            seen[content] = state.name
            mended(state.name)
    for number in range(first or every, whole["operations"] + 1, every):
        work.reset()
        ended = work.attempt(faults.refused(number))
        tried["refusal"] += 1
        if ended["code"] not in (0, 4):
            wrong.append((f"refusal {number}", ended["code"], ended["said"][-300:], []))
        mended(f"refusal {number}")
    return tried | {"different": len(seen), "operations": whole["operations"]}, wrong


def test_a_killed_process_leaves_what_the_states_say(parts):
    """The states are those that ``kill -9`` leaves: some are compared with real ones."""
    work = writers.work_of(parts, "cache")
    states = {int(state.name[:4]): state for state in work.states(9) if not state.name.endswith("-torn")}
    for number in (18, 36):
        work.reset()
        assert work.attempt(faults.killed(number))["code"] == -signal.SIGKILL
        real = work.content(raw=True)
        work.reset(states[number])
        assert work.content(raw=True) == real


@pytest.mark.parametrize(
    "name, every",
    [
        ("distill", 100),
        ("cache", 20),
        ("eval", 30),
        ("student", 14),
        ("export", 13),
        ("compare", 290),
        ("federate", 380),
        ("balance", 24),
    ],
)
def test_some_faults_are_mended_by_the_same_command(parts, name, every):
    tried, wrong = check(writers.work_of(parts, name), every)
    assert wrong == []
    assert tried["kill"] >= 2
    assert tried["refusal"] >= 2


PARTS = {
    "cache": 1,
    "compact": 1,
    "student": 1,
    "export": 1,
    "eval": 1,
    "balance": 1,
    "distill": 4,
    "compare": 12,
    "federate": 12,
}
"""Into how many tests the operations of a command are dealt."""


@pytest.mark.full
@pytest.mark.parametrize("name, part", [(name, part) for name, parts in PARTS.items() for part in range(parts)])
def test_every_fault_is_mended_by_the_same_command(parts, name, part, record_property):
    tried, wrong = check(writers.work_of(parts, name), PARTS[name], part)
    record_property("tried", tried)
    assert wrong == []
    assert tried["refusal"] == tried["kill"] == len(range(part or PARTS[name], tried["operations"] + 1, PARTS[name]))
    assert tried["operations"] > 30
