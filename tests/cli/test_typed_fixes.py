"""Every fix that names a command, a flag or a setting: each of its names is checked, and the fixes are typed.

A fix is in one of two tables. ``SCENARIOS`` holds a wrong line, which is answered with the fix, and the line that the
fix leads to, which must succeed. ``ELSEWHERE`` holds the fixes that only a server, a GPU, a damaged file or the like
brings up, with the commands that may say them: each flag must be one of all of these. A fix in neither fails the test.
"""

import ast
import contextlib
import functools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import typer

import kdcli
import loopback
from kdcli.cli.app import app
from kdcli.config.resolve import iter_settings
from kdcli.config.schema import (
    CacheConfig,
    CompareConfig,
    DistillConfig,
    DoctorConfig,
    EvalConfig,
    GenerateConfig,
    JudgeConfig,
    SupernetConfig,
)
from kdcli.errors import KDError
from kdcli.storage.run_dir import RunFolder
from shell import kd
from typed_fixes import SCENARIOS, build, server

HOME = Path(kdcli.__file__).parent
KINDS = (
    DistillConfig, EvalConfig, CompareConfig, CacheConfig, GenerateConfig, DoctorConfig, JudgeConfig, SupernetConfig,
)  # fmt: skip
SETTINGS = {name for kind in KINDS for name in iter_settings(kind)}
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
COMMAND = re.compile(r"(?:^|[ (:;`'])kd ([a-z]+(?: (?:list|show|check|batch))?)\b")
SETTING = re.compile(
    r"--set ([a-z_.]+)=|\b((?:data|train|hardware|evaluation|monitor|server|lora|edge|supernet)\.[a-z_.]+[a-z])"
)


def commands(command=None, above=()):
    """Every command with its flags."""
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        return {" ".join(above): {name for one in command.params for name in one.opts} | {"--help", "--debug"}}
    return {key: flags for name, one in inner.items() for key, flags in commands(one, (*above, name)).items()}


TABLE = commands()
DATA = ("distill", "plan", "eval", "compare", "cache", "generate", "doctor", "inspect batch")
TRAIN = ("distill", "plan", "compare")
MEASURE = ("distill", "eval", "compare")
ANY = tuple(TABLE)


def texts(node):
    """The texts that an expression may be; ``{}`` stands for what is put in."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in (texts(node.left) or ["{}"]) for b in (texts(node.right) or ["{}"])]
    if isinstance(node, ast.Dict):
        return [text for value in node.values for text in texts(value)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts(value)]
    if isinstance(node, ast.Subscript):
        return texts(node.value)
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get":
        return [text for part in (node.func.value, *node.args[1:]) for text in texts(part)]
    if isinstance(node, ast.Name) and node.id.isupper():
        return [text for value in constants().get(node.id, ()) for text in texts(value)]
    return []


@functools.cache
def constants():
    """The constants of all modules: name -> the values that it has in one or another."""
    found = {}
    for path in sorted(HOME.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def fixes_in(tree):
    """The fixes of a source file: arguments and variables of that name, and the third argument of our errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "fix":
            yield from texts(node.value)
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                pairs = [(target, node.value)]
                same = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                if same and not any(isinstance(one, ast.Starred) for one in target.elts):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                for name, value in pairs:
                    if isinstance(name, ast.Name) and name.id.lower().strip("_") in ("fix", "fixes"):
                        yield from texts(value)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("fault", "_refuse", "_bad", "_damaged") and len(node.args) > 2:
                yield from texts(node.args[2])
            elif name == "refuse_unused" and len(node.args) > 3:
                yield from texts(node.args[3])


@functools.cache
def fixes():
    """Every fix that names a flag, a command, a setting or a package."""
    found = set()
    for path in sorted(HOME.rglob("*.py")):
        found |= set(fixes_in(ast.parse(path.read_text(encoding="utf-8"))))
    return {text for text in found if FLAG.search(text) or COMMAND.search(text) or SETTING.search(text)}


ELSEWHERE = {
    "--batch-size counts the sequences of a step over all processes: give that number": (
        ("distill", "plan"),
        "several processes",
    ),
    "--batch-size is cut by --set train.micro_tokens=N: give the whole of it": (
        ("distill", "plan"),
        "says how a flag of other tools is called here",
    ),
    "end other programs, or raise the limits that ulimit -u and ulimit -v show": (
        (),
        "a machine without a free thread",
    ),
    "give --dtype fp32": (("doctor",), "a machine that multiplies wrongly"),
    "give --set evaluation.generation.batch_tokens=N, in tokens": (
        ("eval",),
        "says how a flag of other tools is called here",
    ),
    "give development rows: data.dev=FILE or data.dev_share=0.1": (("distill", "compare"), "a warning, not an error"),
    "give held-out rows with --eval-data, or run kd eval RUN --tasks afterwards": (
        TRAIN,
        "task files of lm-evaluation-harness",
    ),
    "kd cache with the same settings builds the shard again": (TRAIN, "a shard damaged while it is read"),
    "leave the row out, or choose another --template": (DATA, "a row that one of two tokenizers cannot read"),
    "measure a model, or give --set evaluation.length_unit=words": (("eval",), "lengths of answers made elsewhere"),
    "pip install -c {} kdcli": (("doctor",), "installs packages"),
    "put a key that may use this model into the variable that server.key_variable names": (
        ("eval", "judge", "cache", "generate"),
        "a server that asks for a key",
    ),
    "put the key into the variable that server.key_variable names (default OPENAI_API_KEY)": (
        ("eval", "judge", "cache", "generate"),
        "a server that asks for a key",
    ),
    "kd compare {} goes on with it": (
        ("compare",),
        "tests/study/test_export.py has no finished run",
    ),
    "make the tracker work in Python first, or leave train.report_to out; the study is complete": (
        ("compare",),
        "tests/study/test_trackers.py lets a tracker fail",
    ),
    "run it again with --debug": (TRAIN, "a process of several that ends without a word"),
    "run kd compare -o again": (("compare", "report"), "a damaged file of a tuned study"),
    "run the kd compare that wrote it again; finished runs are kept": (
        ("compare", "report"),
        "tests/evaluation/test_run_access.py damages each file",
    ),
    "see kd metrics show": (ANY, "the library's metric module alone says it"),
    "try a smaller --batch-size, --set train.micro_tokens=1024, or --set train.chunk_tokens=128": (
        TRAIN,
        "a machine without memory",
    ),
    "try a smaller --max-length": (("cache",), "a machine without memory"),
    "try a smaller --max-length, or --set evaluation.generation.batch_tokens=1024": (
        ("eval",),
        "a machine without memory",
    ),
    "try each task alone, with --debug": (MEASURE, "task files of lm-evaluation-harness"),
    "use --gpus {}, or --device cpu": (TRAIN, "GPUs"),
    "use --set hardware.shard=ddp, or lower data.max_length": (TRAIN, "several processes"),
    "use a tokenizer with a tokenizer.json, or another --template": (DATA, "a tokenizer without places in the text"),
    "use ce+1.5*uld, or ce on the teacher's text (--config seqkd), or models with the same tokenizer": (
        TRAIN,
        "two tokenizers",
    ),
    "kd data score --by {} ..., and give its rows.jsonl": (
        ("data balance",),
        "tests/rows/test_balance.py brings it up",
    ),
    "name another: --set column=kd_scores": (("data score",), "tests/rows/test_score.py brings it up"),
    "name one, such as --by category": (("data balance",), "tests/rows/test_balance.py brings it up"),
    "name some of: kd scores list": (("data score",), "tests/rows/test_score.py brings it up"),
    "raise --budget": (("data balance",), "tests/rows/test_balance.py brings it up"),
}
"""Fix -> the commands that may say it (none: other programs' flags), and what it takes to be brought up."""

CONFIGS = {
    "distill": DistillConfig, "plan": DistillConfig, "inspect batch": DistillConfig, "eval": EvalConfig,
    "compare": CompareConfig, "cache": CacheConfig, "generate": GenerateConfig, "doctor": DoctorConfig,
    "judge": JudgeConfig,
}  # fmt: skip


def test_every_fix_is_typed_here_or_held_against_the_commands_that_say_it():
    assert not set(SCENARIOS) & set(ELSEWHERE)
    missing = sorted(fixes() - set(SCENARIOS) - set(ELSEWHERE))
    assert not missing, f"give each a line of SCENARIOS or, where it cannot be typed here, of ELSEWHERE: {missing}"
    gone = sorted((set(SCENARIOS) | set(ELSEWHERE)) - fixes())
    assert not gone, f"no longer said: {gone}"


@pytest.mark.parametrize("fix", ELSEWHERE)
def test_every_name_in_a_fix_is_one_of_the_commands_that_say_it(fix):
    named = [name for name in COMMAND.findall(fix) if name]
    for name in named:
        assert name in TABLE or name in {key.split(" ")[0] for key in TABLE}, f"there is no kd {name}"
    for said_by in ELSEWHERE[fix][0]:
        flags = set().union(*(TABLE[name] for name in named if name in TABLE), TABLE[said_by])
        assert set(FLAG.findall(fix)) <= flags | {"--set"}, f"kd {said_by} says it"
        known = set().union(*(iter_settings(CONFIGS[name]) for name in (*named, said_by) if name in CONFIGS))
        settings = {one or two for one, two in SETTING.findall(fix)} - {"evaluation."}
        assert settings <= known or said_by not in CONFIGS, f"kd {said_by} says it"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("typed")
    build(made)
    return made


DEAR = {fix for fix, one in SCENARIOS.items() if one.before is not None or len(one.right) > 1} | {
    "add --tune lr=1e-4,3e-4",
    "give --set data.dev=FILE",
    "give one, such as -o report.html",
    "add --data",
    "set a smaller --max-new-tokens",
    "lower edge.prompt_tokens and edge.new_tokens",
    "choose with --set server.model=NAME",
    "leave it out, or give --lora-mean freeze_a",
    "give one, such as -o federation",
}


def fix_of(wrong, folder):
    """Return the fix that a line of the command, or a call of the library, is answered with."""
    if isinstance(wrong, str):
        answer = kd(*shlex.split(wrong), folder=folder)
        assert answer.code != 0, answer.out + answer.err
        assert answer.error_lines, answer.err
        return answer.error_lines[0].partition("Fix: ")[2]
    with contextlib.chdir(folder), pytest.raises(KDError) as caught:
        wrong()
    return caught.value.fix


def is_typed(word, one):
    """Whether a flag or command is in a line that the fix leads to, or was in the wrong line and is left out there."""
    return any(word in f"kd {right}" or word in f"kd {one.wrong}" for right in one.right)


def typed_ok(fix, one, folder, patch, url):
    """Type the wrong line, do what the fix asks to do by hand, and type the lines that the fix leads to."""
    torch.set_num_threads(1)
    if one.before is not None:
        one.before(folder, patch)
    told = fix_of(one.wrong.replace("URL", url) if isinstance(one.wrong, str) else one.wrong, folder)
    said = re.escape(fix).replace(r"\{\}", "(.+?)")
    found = re.search(f"{said}$", told) or re.search(said, told)
    assert found, told
    if one.mended is not None:
        one.mended(folder, patch)
    words = {*FLAG.findall(fix), *COMMAND.findall(fix)} - {"-c"}
    assert not words or any(is_typed(word, one) for word in words), "the lines do what the fix says"
    for right in one.right:
        for place, value in enumerate(found.groups()):
            right = right.replace(f"{{{place}}}", value)
        done = kd(*shlex.split(right.replace("URL", url)), folder=folder)
        assert done.code == 0, (right, done.err)


@pytest.fixture(scope="module")
def url():
    with loopback.serving(server()) as running:
        yield running.url.removesuffix("/v1")


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize(
    "fix", [pytest.param(fix, marks=pytest.mark.full) if fix in DEAR else fix for fix in SCENARIOS]
)
def test_a_fix_that_is_typed_succeeds(fix, home, url, tmp_path, monkeypatch):
    typed_ok(fix, SCENARIOS[fix], shutil.copytree(home, tmp_path / "home"), monkeypatch, url)


NAME = "a b;$(x)'&"


@pytest.mark.parametrize(
    "line, before",
    [("compare run other", "finish it with: "), ("compare done other", "make it with: ")],
)
def test_a_printed_command_can_be_pasted_whatever_the_folder_is_called(line, before, home, tmp_path):
    here = tmp_path / NAME
    (here / "run").mkdir(parents=True)
    RunFolder(here / "run").begin("loss: fkl\n", {"loss": "fkl", "steps": 4, "train.seed": 0}, {})
    RunFolder(here / "run").set_status("training", steps=2)
    for name in ("done", "other"):
        shutil.copytree(home / "bare", here / name, ignore=shutil.ignore_patterns("eval"))
    names = [str(here / word) for word in line.split()[1:]]
    answer = kd("compare", *names)
    assert answer.code in (2, 3)
    command = answer.err.strip().partition(before)[2]
    words = shlex.split(command)
    assert words[0] == "kd"
    places = [word for word in words if NAME in word]
    assert places
    assert all(Path(place).exists() for place in places), command
    bash = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=False)
    assert bash.stdout.splitlines() == words


PASTED = re.compile(r"kd (?:distill|compare|eval|demo|rerun|cache|generate|report) .*\{|hf upload \{|--plugin \{")


def test_every_name_in_a_printed_command_is_quoted():
    found = []
    for path in sorted(HOME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) and PASTED.search(texts(node)[0]):
                calls = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
                plain = [ast.unparse(one) for one in calls if not _is_quoted(one)]
                found += [(path.relative_to(HOME).as_posix(), one) for one in plain]
    assert found == [("cli/study.py", "flag"), ("registry/plugins.py", "one_line(name, 200)")], "write typed(...)"


def _is_quoted(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("typed", "quoted")
