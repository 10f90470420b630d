"""``kd init``: writes a commented settings file for a comparison."""

import json as form
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcli.cli import switches
from kdcli.config.names import DATA, MODELS, OUTPUT
from kdcli.errors import UsageError
from kdcli.text import one_line, typed

_QUESTIONS = {
    "teacher": ("Teacher: model folder or hub id", "./teacher"),
    "student": ("Student: model folder, hub id, or random:layers=4,width=256,heads=4", "./student"),
    "data.train": ("Training rows: file, folder or hub id", "train.jsonl"),
}
_SHOWN = (
    "teacher", "student", "losses", "seeds", "baseline", "data.train", "data.eval", "data.max_length", "train.epochs",
    "train.batch_size", "train.lr", "train.gradient_checkpointing", "hardware.dtype", "evaluation.metrics",
)  # fmt: skip
_OFFERED = {
    "tune": ["lr=1e-4,3e-4,1e-3"],
    "data.columns": {"prompt": "question", "completion": "answer"},
    "train.max_steps": 600,
    "train.report_to": ["tensorboard"],
    "lora.rank": 16,
    "teacher_quantization": "int8",
    "execution.jobs": 4,
}
"""What many a study needs, written as comments: setting -> an example."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "init",
        epilog="Example: kd init --teacher ./T --student ./S --data train.jsonl --eval-data test.jsonl",
        short_help="Write a commented study.yaml to start from.",
    )(init)


def init(
    teacher: Annotated[str | None, switches.flag("--teacher", "MODEL", "Model folder or hub id.", MODELS)] = None,
    student: Annotated[str | None, switches.flag("--student", "MODEL", "Folder, hub id, or random:..", MODELS)] = None,
    data: Annotated[str | None, switches.flag("--data", "FILE", "Training rows.", DATA)] = None,
    eval_data: Annotated[str | None, switches.flag("--eval-data", "FILE", "Held-out rows.", DATA)] = None,
    output: Annotated[
        str, switches.flag("--output -o", "FILE", "File to write. Default study.yaml.", OUTPUT)
    ] = "study.yaml",
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Write a settings file for kd compare, with a comment on each setting.

    In a terminal it asks for teacher, student and rows where they are not given; elsewhere places are left for them.
    """
    from kdcli.cli.terminal import Terminal
    from kdcli.storage import atomic

    target = Path(output)
    if target.exists():
        raise UsageError("CLI-10", "exists already", where=f"-o {one_line(output, 100)}", fix="give another name")
    given = {"teacher": teacher, "student": student, "data.train": data, "data.eval": eval_data}
    asks = _asks()
    for name, (question, example) in _QUESTIONS.items():
        if given[name] is None:
            given[name] = typer.prompt(question, default=example, err=True) if asks else example
    given["data.eval"] = given["data.eval"] or "test.jsonl"
    atomic.write_file(target, text({**given, "losses": ["fkl", "rkl", "akl"], "seeds": [0, 1, 2]}, output))
    Terminal(json, quiet).result(
        {"file": output, "next": f"kd compare -c {typed(output)} --dry-run"},
        lambda found: f"{found['file']}\nnext: {found['next']}",
    )


def _asks() -> bool:
    """Whether questions can be asked: standard input and standard error are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def text(given: Mapping[str, Any], name: str = "study.yaml") -> str:
    """Return the file: what is given, else defaults, each with what it means; further settings as comments.

    Args:
        given: dotted name of a setting -> value.
        name: of the file, for the commands at its top.
    """
    from kdcli.config.resolve import iter_settings
    from kdcli.config.schema import CompareConfig

    settings = iter_settings(CompareConfig)
    lines = [
        "# A study: objectives times seeds on an equal budget.",
        f"#   kd compare -c {typed(name)} --dry-run      look at it first: rows, memory, time; nothing is written",
        f"#   kd compare -c {typed(name)} -o study       train, evaluate, compare; the same line goes on after a stop",
        "# Every setting: docs/cli.md. A flag on the command line wins over this file.",
    ]
    plain = [path for path in (*_SHOWN, *_OFFERED) if "." not in path]
    for section in ("", "data", "train", "lora", "hardware", "evaluation", "execution"):
        inside = [path for path in (*_SHOWN, *_OFFERED) if path.partition(".")[0] == section and "." in path]
        paths = inside if section else plain
        if section:
            live = any(path in _SHOWN for path in paths)
            lines += ["", f"{'' if live else '# '}{section}:"]
        for path in paths:
            indent = "  " if section else ""
            value = given.get(path, settings[path].info.default) if path in _SHOWN else _OFFERED[path]
            lines += (
                ["", f"{indent}# {settings[path].info.description}"]
                if not section
                else [f"{indent}# {settings[path].info.description}"]
            )
            off = value is None or path in _OFFERED
            lines.append(f"{'# ' if off else ''}{indent}{path.rpartition('.')[2]}: {_yaml(value)}")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    """Return a value in the part of YAML that is also JSON."""
    if value is None:
        return "null"
    return form.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
