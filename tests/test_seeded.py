"""Every seeded bug still fits the source text it changes, and names tests that exist."""

import pytest

import seeded

BUGS = seeded.read_bugs()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_changes_one_place_and_names_tests(bug: seeded.Bug) -> None:
    source = bug.source()
    assert source != (seeded.PACKAGE / bug.file).read_text(encoding="utf-8")
    compile(source, bug.file, "exec")
    assert bug.tests
    assert [name for name in bug.tests if not (seeded.ROOT / name).exists()] == []


def test_names_are_unique() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 80
