import importlib.util
from pathlib import Path

import pytest
import typer

from kdcli.cli.app import app
from kdcli.config.resolve import flag_paths, iter_settings
from kdcli.config.schema import KINDS
from kdcli.registry.catalog import LOSSES, METRICS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "objectives.md"])
def test_generated_parts_are_fresh(generate, page):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert generate.refreshed(text) == (text, [])


def test_a_stale_part_is_noticed(generate):
    text = (DOCS / "objectives.md").read_text(encoding="utf-8").replace("akl", "alk", 40)
    assert generate.refreshed(text)[1] == ["objectives", "objective details"]


def test_everything_that_has_a_name_is_documented():
    cli, objectives = ((DOCS / name).read_text(encoding="utf-8") for name in ("cli.md", "objectives.md"))
    for kind in KINDS:
        for path in iter_settings(kind):
            assert f"| `{path}` |" in cli
    for metric in METRICS:
        assert f"| `{metric}` |" in cli
    for loss in LOSSES:
        assert f"\n### {loss}\n" in objectives
    for command in app.registered_commands:
        assert f"\n## kd {command.name}\n" in cli


def test_defaults_in_help_are_the_defaults():
    """Defaults are written out in the flags' help, so that help need not load the settings."""
    commands = typer.main.get_command(app).commands
    seen = set()
    for kind in KINDS:
        settings = iter_settings(kind)
        paths = flag_paths(settings)
        group, _, inner = kind.command.partition("-")
        command = commands[group].commands[inner] if inner else commands[group]
        for parameter in command.params:
            if parameter.name not in paths or " Default " not in (getattr(parameter, "help", None) or ""):
                continue
            seen.add(parameter.name)
            text = parameter.help.rpartition(" Default ")[2].rstrip(".")
            setting = settings[paths[parameter.name]]
            default = setting.info.default
            if default is None:  # the help tells in words what happens without a value
                assert " " in text or text.isdecimal(), parameter.name
                continue
            assert setting.from_text(text, lambda *why: AssertionError(why)) == default, parameter.name
    assert {"lr", "batch_size", "epochs", "sampling_seeds", "kind", "top_k"} <= seen
