"""The page on architecture and the code: the trips it draws are there, and settings end where it says."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

import kdcli
import study
from kdcli.config.schema import CommandConfig
from kdcli.config.sections import LoraConfig, MonitorConfig, Settings
from kdcli.distill.run import distill
from kdcli.events import silent

CODE = Path(kdcli.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
PLACE = re.compile(r"([\w/]+\.py): (\w+(?:\.\w+)?(?:, \w+(?:\.\w+)?)*)")


def trips() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").split("## Four trips\n")[1].split("\n## ")[0]
    return re.findall(r"```\n(.*?)```", section, re.DOTALL)


@cache
def names_in(file: str) -> frozenset[str]:
    """Functions, classes, methods as Class.method, and variables at the top of a file."""
    found: set[str] = set()
    for node in ast.parse((CODE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        if isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {one.id for one in targets if isinstance(one, ast.Name)}
    return frozenset(found)


def test_the_page_draws_four_trips():
    assert len(trips()) == 4
    assert all(len(PLACE.findall(trip)) >= 10 for trip in trips())


@pytest.mark.parametrize("number", range(4))
def test_every_file_and_function_of_a_trip_is_there(number):
    drawn = [(file, name) for file, names in PLACE.findall(trips()[number]) for name in names.split(", ")]
    assert [(file, name) for file, name in drawn if not (CODE / file).is_file() or name not in names_in(file)] == []
    lines = [line for line in trips()[number].splitlines() if line.strip()]
    assert [line for line in lines if not PLACE.search(line)] == []


class Arrived(BaseException):
    """The first weight is about to be read."""


def followed(config) -> tuple[set[str], set[str]]:
    """Return the files whose functions are given a command's settings, and a section, before a weight is read."""
    whole: set[str] = set()
    sections: set[str] = set()

    def seen(frame, event, _):
        code = frame.f_code
        file = code.co_filename
        if event != "call" or not file.startswith(str(CODE)):
            return
        here = Path(file).relative_to(CODE).as_posix()
        if (here, code.co_name) == ("models/load.py", "load_model"):
            raise Arrived
        count = code.co_argcount + code.co_kwonlyargcount
        given = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
        if not here.startswith("config/s"):  # the settings themselves
            whole.update({here} if any(isinstance(one, CommandConfig) for one in given) else ())
            sections.update({here} if any(isinstance(one, Settings) for one in given) else ())

    sys.setprofile(seen)
    try:
        distill(config, silent)
    except Arrived:
        return whole, sections
    finally:
        sys.setprofile(None)
    raise AssertionError("no weight was read")


@pytest.mark.parametrize("kind", ["plain", "monitored", "random"])
def test_settings_go_no_further_than_where_a_run_is_prepared(tmp_path, kind):
    parts = study.Parts(tmp_path)
    changes = {
        "plain": {},
        "monitored": {"monitor": MonitorConfig(every=2, patience=1), "lora": LoraConfig(rank=2)},
        "random": {"student": "random:layers=1,width=8,heads=1"},
    }
    whole, sections = followed(parts.run(loss="0.5*ce+0.5*akl").model_copy(update=changes[kind]))
    assert whole == {"distill/run.py", "distill/prepare.py", "config/resolve.py"}
    assert len(sections) <= 12, " ".join(sorted(sections))
