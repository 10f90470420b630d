import importlib.util
from pathlib import Path

import pytest

from kdcli.cli.app import app
from kdcli.config.resolve import flag_paths, iter_settings
from kdcli.config.schema import (
    CacheConfig,
    CompareConfig,
    DistillConfig,
    DoctorConfig,
    EvalConfig,
    GenerateConfig,
    JudgeConfig,
)
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
    kinds = (DistillConfig, EvalConfig, CompareConfig, CacheConfig, GenerateConfig, JudgeConfig, DoctorConfig)
    for kind in kinds:
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
    from kdcli.cli import options

    shown = {}
    for found in vars(options).values():
        for info in getattr(found, "__metadata__", ()):
            if " Default " in (info.help or ""):
                name = info.default.lstrip("-").replace("-", "_")
                shown[name] = info.help.rpartition(" Default ")[2].rstrip(".")
    settings = {
        **iter_settings(CacheConfig),
        **iter_settings(GenerateConfig),
        **iter_settings(CompareConfig),
        **iter_settings(EvalConfig),
        **iter_settings(DistillConfig),
    }
    assert {"lr", "batch_size", "epochs"} <= set(shown)
    for name, text in shown.items():
        if name == "resume":
            continue
        setting = settings[flag_paths(settings)[name]]
        default = setting.info.default
        if default is None:  # the help tells in words what happens without a value
            assert " " in text or text.isdecimal(), name
            continue
        assert setting.from_text(text, lambda *why: AssertionError(why)) == default, name
