"""A warning that our own code causes is an error here; one of a library's own source text is not."""

import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_warning_is_an_error():
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", UserWarning, stacklevel=1)


def test_what_python_says_of_a_librarys_source_text_is_not():
    """Python 3.12 and later say it of invalid escape sequences, at the first import after an installation."""
    found = compile("1 is 1", "/somewhere/site-packages/library.py", "eval")
    assert eval(found) is True


def test_python_says_nothing_of_our_own_source_text():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in ("src", "tests", "benchmarks", "docs"):
            for path in sorted((ROOT / part).rglob("*.py")):
                compile(path.read_text(encoding="utf-8"), str(path), "exec")
