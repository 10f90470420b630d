"""The lock, the ranges in pyproject.toml and what is installed agree."""

import ast
import importlib.metadata
import os
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kdcli.diagnostics.doctor import Examination, examine_versions, locked_versions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = ROOT / "src/kdcli/constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13")


def entries(path, **environment):
    """The lines of a lock that count on a platform, by name."""
    lines = [Requirement(line) for line in path.read_text().splitlines() if line]
    return {canonicalize_name(r.name): r for r in lines if r.marker is None or r.marker.evaluate(environment)}


def asked():
    """Every requirement of pyproject.toml: of the package, its extras and its development group."""
    lists = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    return [Requirement(line) for part in (*lists, PROJECT["dependency-groups"]["dev"]) for line in part]


def version_in(lock, name):
    return Version(next(iter(lock[canonicalize_name(name)].specifier)).version)


def test_a_lock_is_exact_and_names_no_index_and_no_hash():
    for line in LOCK.read_text().splitlines():
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "=="
        assert not [mark for mark in ("*", "://", "@", "--") if mark in line], line


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    "platform", [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]
)
def test_every_requirement_is_locked_inside_its_range(python, platform):
    system, name, machine = platform
    here = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": system,
        "platform_system": name,
        "platform_machine": machine,
    }
    lock = entries(LOCK, **here)
    for requirement in asked():
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert requirement.specifier.contains(version_in(lock, requirement.name)), (requirement, here)


def test_every_installed_library_that_we_reach_has_its_locked_version():
    lock = entries(ROOT / os.environ.get("LOCK_UNDER_TEST", LOCK))
    open_, seen, wrong = asked(), set(), []
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                installed = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # of an extra that is not installed, or not needed on this platform
            if name not in lock:
                wrong.append(f"{name} {installed.version} is not locked")
            elif Version(installed.version).public != version_in(lock, name).public:
                wrong.append(f"{name} {installed.version}, locked {version_in(lock, name)}")
            needs = [Requirement(line) for line in installed.requires or ()]
            open_ += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    assert len(seen) > 100
    assert not wrong, wrong


def test_every_library_that_the_package_imports_is_required():
    providers = importlib.metadata.packages_distributions()
    required = {canonicalize_name(r.name) for r in asked()}
    missing = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"kdcli", ""}:
                names = {canonicalize_name(name) for name in providers.get(module, [module])}
                if not names & required:
                    missing.add((module, path.name))
    assert not missing


def test_ranges_of_libraries_whose_internals_are_used_end_at_the_tested_minor():
    lock = entries(LOCK)
    for name in ("torch", "transformers", "accelerate", "typer", "peft", "torchao", "bitsandbytes"):
        (requirement,) = [r for r in asked() if r.name == name]
        tested = version_in(lock, name)
        assert requirement.specifier.contains(tested)
        assert not requirement.specifier.contains(f"{tested.major}.{tested.minor + 1}.0"), requirement


def test_the_doctor_says_which_versions_were_tested_and_which_are_here():
    tested = locked_versions()

    def line(**changed):
        found = Examination()
        examine_versions(found, lambda name: changed.get(name) or tested[name])
        return found.checks[0]

    assert line().state == "ok"
    assert "each in the version that was tested" in line().what
    other = line(transformers="5.21.0")
    assert (other.state, other.exit_code) == ("warn", 0)
    assert f"transformers 5.21.0 (tested {tested['transformers']})" in other.what
    outside = line(transformers="5.99.0")
    assert (outside.state, outside.exit_code) == ("fail", 4)
    assert "transformers 5.99.0 (<5.25,>=5.20)" in outside.what
    assert "constraints.txt" in outside.fix
