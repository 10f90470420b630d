"""A loss of power at any moment loses nothing: the same command ends as if it had never been."""

import pytest

import power
import study
import writers


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    made = study.Parts(tmp_path_factory.mktemp("power"))
    writers.warm(made)
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch):
    writers.make_small(monkeypatch)


def check(work, every=1, first=0):
    """Try the states of every so many moments; return how many differ, and list those that are not mended."""
    work.reset()
    whole = work.attempt()
    assert whole["code"] == 0, whole["said"]
    expected, wrong, seen = work.content(), [], {}
    for number, moment in enumerate(power.moments(work)):
        for name, state in power.states(moment) if number % every == first else ():
            key = tuple(sorted(state.items()))
            if key in seen:  # equal states end alike
                continue
            seen[key] = name
            power.put(state, work.root, work.beside / "blobs")
            ended = work.attempt()
            found = work.content()
            differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            if ended["code"] or differ:
                wrong.append((moment.label, name, ended["code"], ended["said"][-300:], differ))
    return len(seen), wrong


@pytest.mark.parametrize("name, every", [("distill", 150), ("cache", 40), ("student", 30)])
def test_some_states_are_mended_by_the_same_command(parts, name, every):
    seen, wrong = check(writers.work_of(parts, name), every, every // 2)
    assert wrong == []
    assert seen >= 4


PARTS = {
    "cache": (1, 1),
    "compact": (1, 1),
    "student": (1, 1),
    "export": (1, 1),
    "eval": (1, 1),
    "balance": (1, 1),
    "distill": (4, 4),
    "compare": (4, 40),
}
"""Into how many tests the moments of a command are dealt, and of how many moments one is tried."""


@pytest.mark.full
@pytest.mark.parametrize("name, part", [(name, part) for name, (parts, _) in PARTS.items() for part in range(parts)])
def test_every_state_is_mended_by_the_same_command(parts, name, part, record_property):
    seen, wrong = check(writers.work_of(parts, name), PARTS[name][1], part)
    record_property("states", seen)
    assert wrong == []
    assert seen > 10
