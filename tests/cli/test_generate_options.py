"""A field of the settings is the only place of a flag."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import typer
from typer.testing import CliRunner

from kdcli.cli import generate_options, options
from kdcli.cli.generate_options import COMMANDS, Command, source
from kdcli.config.names import TRAINING
from kdcli.config.resolve import flag_paths, iter_settings, resolve
from kdcli.config.schema import KINDS, CompareConfig, DistillConfig, EvalConfig, Flag, Positive, TrainConfig, setting

HOME = Path(generate_options.__file__).parent
SHARED = ["data", "train", "hardware", "evaluation", "benchmarks"]


class Warmer(TrainConfig):
    """Training settings with one field more."""

    restarts: Positive = setting(
        3, "restarts of the schedule", Flag("--restarts", "N", "Restarts of the schedule.", TRAINING, on="distill")
    )
    averaged: bool = setting(False, "average weights", Flag("--averaged", "", "Average weights.", TRAINING))


class WarmerConfig(DistillConfig):
    """A run with one field more in a section."""

    command: ClassVar[str] = "distill"
    train: Warmer = Warmer()


def module(text, path):
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def program(tmp_path):
    """A command of the settings above, and what it was called with."""
    made = module(source({"distill": Command(WarmerConfig, "Resume Json Debug")}), tmp_path / "made.py")
    calls = []

    def run(typed, **switches):
        """Train."""
        calls.append((typed, switches))

    app = typer.Typer()
    app.command("distill")(made.distill(run))
    return lambda *words: CliRunner().invoke(app, words, env={"COLUMNS": "80", "TERM": "dumb"}), calls


def test_the_file_is_fresh():
    assert Path(options.__file__).read_text(encoding="utf-8") == source(), "run: python docs/generate.py"


def test_help_loads_no_settings():
    script = (
        "import sys; from kdcli.cli.app import run; run(['compare', '--help']); "
        "sys.exit(str([name for name in ('kdcli.config.schema', 'kdcli.config.resolve') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "--tune" in done.stdout


def test_a_field_is_enough_for_a_flag(program):
    invoke, calls = program
    shown = invoke("--help").output
    assert "--restarts" in shown
    assert "Restarts of the schedule. Default 3." in shown
    assert invoke("--restarts", "7", "--averaged", "--resume", "never", "--debug").exit_code == 0
    typed, switches = calls[0]
    assert {name: value for name, value in typed.items() if value} == {"restarts": "7", "averaged": True}
    assert switches == {"resume": "never", "json": False}
    assert resolve(WarmerConfig, flags={"restarts": typed["restarts"]}).train.restarts == 7


def test_a_changed_default_changes_the_help():
    class Sooner(TrainConfig):
        epochs: float = setting(7.5, "passes", *iter_settings(TrainConfig)["epochs"].flags)

    class SoonerConfig(DistillConfig):
        train: Sooner = Sooner()

    changed = source({"distill": Command(SoonerConfig, "Json")})
    assert "Passes over the rows. Default 7.5." in changed
    assert "Passes over the rows. Default 3." in source({"distill": Command(DistillConfig, "Json")})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_a_command_is_one_of_its_settings(name):
    command = COMMANDS[name]
    found = generate_options.options(name, command)
    paths = flag_paths(iter_settings(command.kind))
    names = [option.flag.name for option in found]
    assert len(set(names)) == len(names)
    assert all(paths[option.flag.name] == option.setting.path for option in found)
    unknown = {*command.order.split(), *(command.only or "").split()} - set(names)
    assert not unknown


def test_flags_name_commands_that_exist():
    known = {kind.command for kind in KINDS}
    for kind in KINDS:
        for one in iter_settings(kind).values():
            for flag in one.flags:
                assert {*flag.on.split(), *flag.hidden.split()} - {"*"} <= known, one.path


def test_commands_have_plain_signatures():
    """What a command takes is read off its signature, by people, by type checkers and by Typer."""
    for file in HOME.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            text = node.value if isinstance(node, ast.Constant) else ""
            assert name not in ("locals", "__annotations__"), file
            assert "__signature__" not in (name, text), file


def test_records_keep_the_order_of_their_fields():
    """Fields of several bases stand from the last base to the first; records and digests rest on it."""
    assert list(DistillConfig.model_fields) == [
        *("teacher", "teacher_cache", "student", "loss", "lora", "teacher_quantization", "server"),
        *(*SHARED, "monitor", "output"),
    ]
    assert list(CompareConfig.model_fields) == [
        *("losses", "vary", "tune", "tune_by", "tune_seeds", "seeds", "baseline", "teacher", "teacher_cache"),
        *("student", "lora", "teacher_quantization", "server", *SHARED, "execution", "output"),
    ]


def test_a_name_means_what_the_command_means():
    assert flag_paths(iter_settings(EvalConfig))["limit"] == "data.eval_limit"
    assert flag_paths(iter_settings(DistillConfig))["limit"] == "data.limit"
    assert flag_paths(iter_settings(DistillConfig))["protocol"] == "evaluation.protocol"
