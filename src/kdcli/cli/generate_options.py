"""Writes ``options.py``, the commands' flags, from the fields of the settings; ``docs/generate.py`` calls it.

The result is plain code that loads no settings, so that help is quick.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from kdcli.cli import switches
from kdcli.config.names import DATA, MODELS, OUTPUT, PANELS
from kdcli.config.resolve import Setting, iter_settings
from kdcli.config.schema import (
    BalanceConfig,
    CacheConfig,
    CheckConfig,
    CommandConfig,
    CompareConfig,
    DistillConfig,
    DoctorConfig,
    EvalConfig,
    ExportConfig,
    FederateConfig,
    GenerateConfig,
    JudgeConfig,
    RationalesConfig,
    ScoreConfig,
    SplitConfig,
    StudentConfig,
    SupernetConfig,
)
from kdcli.config.sections import Flag

WIDTH = 120


@dataclass(frozen=True)
class Command:
    """What a command takes.

    Args:
        kind: its settings; every flag that they declare for it is one of its flags.
        switches: what it takes besides, names in ``switches.py`` with spaces between.
        order: flags that stand first under their heading of the help; the others follow in the order of the fields.
        only: the flags it has, if not all.
        panels: headings of its help, in their order.
    """

    kind: type[CommandConfig]
    switches: str
    order: str = ""
    only: str | None = None
    panels: Sequence[str] = PANELS


COMMANDS = {
    "distill": Command(DistillConfig, "Resume PushToHub Config Sets HiddenPlugin DryRun Json Quiet Debug"),
    "plan": Command(DistillConfig, "PushToHub Config Sets HiddenPlugin Json Quiet Debug GpuMemory"),
    "compare": Command(
        CompareConfig,
        "Config Sets HiddenPlugin DryRun Json HiddenQuiet Verbose Debug Status "
        "By To Layout Titles Digits Caption Label",
        order="baseline seeds vary tune dev_data jobs executor slurm gpus",
    ),
    "eval": Command(
        EvalConfig,
        "Config Sets HiddenPlugin Json Quiet Debug",
        order="data dev_data predictions protocol metric tasks edge palette rouge_tokenizer sampling_seeds",
    ),
    "judge": Command(JudgeConfig, "Config Sets Json Quiet Debug", panels=(DATA, MODELS, OUTPUT)),
    "cache": Command(CacheConfig, "Config Sets DryRun Json Quiet Debug"),
    "generate": Command(GenerateConfig, "Config Sets HiddenPlugin DryRun Json Quiet Debug", order="data"),
    "student": Command(StudentConfig, "Config Sets DryRun Json Quiet Debug", order="teacher"),
    "supernet": Command(
        SupernetConfig, "Resume Config Sets HiddenPlugin Json Quiet Debug", order="teacher widths depths by"
    ),
    "export": Command(ExportConfig, "Config Sets DryRun Json Quiet Debug", order="data"),
    "doctor": Command(DoctorConfig, "Config Sets Json Quiet Debug"),
    "data check": Command(CheckConfig, "Config Sets Json Quiet Debug"),
    "data score": Command(ScoreConfig, "Config Sets HiddenPlugin Json Quiet Debug", order="data"),
    "data split": Command(SplitConfig, "Config Sets Json Quiet Debug", order="data"),
    "data balance": Command(BalanceConfig, "Config Sets Json Quiet Debug", order="data"),
    "data rationales": Command(RationalesConfig, "Config Sets Json Quiet Debug", order="data"),
    "federate": Command(
        FederateConfig,
        "Config Sets HiddenPlugin Json Quiet Debug",
        order="clients split rounds server lora_mean",
    ),
    "inspect batch": Command(
        DistillConfig,
        "Objectives Rows Config Sets HiddenPlugin Json Quiet Debug",
        only="teacher student data columns template max_length limit skip_bad seed output device dtype threads "
        "matmul_precision",
    ),
}
"""Every command that has settings."""

UNREAD = ("HiddenPlugin", "Debug")
"""Switches that act when they are read; no command asks for them."""


@dataclass(frozen=True)
class Option:
    """A setting's flag on one command.

    Args:
        setting: the setting.
        flag: its flag there.
        hidden: whether the help leaves it out.
    """

    setting: Setting
    flag: Flag
    hidden: bool

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.setting.info.default is False

    @property
    def declaration(self) -> str:
        """Its type and help, as code."""
        flag = self.flag
        kind = "bool" if self.is_switch else "Texts" if flag.repeat else "Text"
        if flag.positional:
            return f"{kind}, argument({_quoted(flag.metavar, flag.help)})"
        words = [flag.spelling, *([] if self.is_switch else [flag.metavar]), self.help, flag.panel]
        call = _quoted(*words) + ", hidden=True" * self.hidden
        return f"{kind}, {'switch' if self.is_switch else 'flag'}({call})"

    @property
    def help(self) -> str:
        """Its line of the help, with the default."""
        default = self.flag.default
        if default is None:
            default = _text(self.setting.info.default)
        return f"{self.flag.help} Default {default}." if default else self.flag.help


def source(commands: Mapping[str, Command] = COMMANDS) -> str:
    """Return the text of ``options.py``."""
    names: dict[str, str] = {}
    parts = [_function(name, command, names) for name, command in commands.items()]
    declared = "\n".join(_declared(name, text) for text, name in names.items())
    return "\n\n\n".join([f"{_HEAD}\n{declared}", *parts]) + "\n"


def options(name: str, command: Command) -> list[Option]:
    """Return the flags of a command, in the order of its help.

    >>> [option.flag.name for option in options("judge", COMMANDS["judge"])]
    ['answers', 'scores', 'server_url', 'server_model', 'output']
    """
    found = []
    helped_as = name if command.only is not None else command.kind.command
    for setting in iter_settings(command.kind).values():
        flags = [flag for flag in setting.flags if flag.of(command.kind.command)]
        if flags and (command.only is None or flags[-1].name in command.only.split()):
            found.append(Option(setting, flags[-1], flags[-1].hidden_in(helped_as)))
    first = command.order.split()

    def place(option: Option) -> tuple[bool, int, int]:
        flag = option.flag
        return (
            not flag.positional,
            command.panels.index(flag.panel),
            first.index(flag.name) if flag.name in first else len(first),
        )

    return sorted(found, key=place)


_HEAD = '''"""The flags of every command that has settings. Written by docs/generate.py from config/schema.py."""

from typing import Annotated

from kdcli.cli import switches
from kdcli.cli.switches import Run, Text, Texts, argument, flag, switch
'''


def _function(name: str, command: Command, names: dict[str, str]) -> str:
    """Return the function that makes a command; names holds the declarations so far and gets those it adds."""
    own = options(name, command)
    besides = command.switches.split()
    signature = [f"{option.flag.name}: {_named(option, name, names)} = {_nothing(option)}" for option in own]
    signature += [f"{_parameter(one)}: switches.{one} = {_default(one)}" for one in besides]
    pairs = textwrap.wrap(", ".join(f'"{one.flag.name}":\0{one.flag.name}' for one in own) + ",", WIDTH - 12)
    passed = ", ".join(f"{_parameter(one)}={_parameter(one)}" for one in besides if one not in UNREAD)
    body = [
        f"def {name.replace(' ', '_')}(run: Run) -> Run:",
        f'    """Return ``kd {name}``, which calls ``run`` with the settings as typed and the switches by name."""',
        "",
        "    def command(",
        *(f"        {line}," for line in signature),
        "    ) -> None:",
        "        typed = {",
        *("            " + line.replace("\0", " ") for line in pairs),
        "        }  # fmt: skip",
        *_call(f"run(typed, {passed})"),
        "",
        "    command.__doc__ = run.__doc__",
        "    return command",
    ]
    return "\n".join(body)


def _call(text: str) -> list[str]:
    inner = text.removeprefix("run(").removesuffix(")")
    if len(text) + 8 <= WIDTH:
        return [f"        {text}"]
    lines = [inner] if len(inner) + 12 <= WIDTH else [f"{one}," for one in inner.split(", ")]
    return ["        run(", *(f"            {line}" for line in lines), "        )"]


def _named(option: Option, command: str, names: dict[str, str]) -> str:
    """Return what an option's declaration is called; one that differs from another command's bears the command."""
    text = option.declaration
    if text not in names:
        name = _camel(option.flag.name)
        names[text] = name if name not in names.values() else name + _camel(command)
    return names[text]


def _declared(name: str, text: str) -> str:
    line = f"{name} = Annotated[{text}]"
    return line if len(line) <= WIDTH else f"{name} = Annotated[\n    {text}\n]"


def _quoted(*words: str) -> str:
    return ", ".join(json.dumps(word, ensure_ascii=False) for word in words)


def _nothing(option: Option) -> bool | None:
    return False if option.is_switch else None


def _default(switch: str) -> bool | None:
    return False if get_args(getattr(switches, switch))[0] is bool else None


def _parameter(switch: str) -> str:
    plain = switch.removeprefix("Hidden")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in plain).lstrip("_")


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.replace(" ", "_").split("_"))


def _text(default: Any) -> str:
    """Return a default as one types it, empty if there is none.

    >>> _text(5e-4), _text(3.0), _text((10, 20)), _text(None), _text(False)
    ('0.0005', '3', '10,20', '', '')
    """
    if default is None or default is False:
        return ""
    if isinstance(default, tuple | dict):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)
