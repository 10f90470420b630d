"""Every fix that names a command, a flag or a setting: each of its names is checked, and the fixes are typed.

A fix is in one of two tables. ``SCENARIOS`` holds a wrong line, which is answered with the fix, and the line that the
fix leads to, which must succeed. ``ELSEWHERE`` holds the fixes that only a server, a GPU, a damaged file or the like
brings up, with the commands that may say them: each flag must be one of all of these. A fix in neither fails the test.
"""

import ast
import functools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

import kdcli
import tiny
from kdcli.cli.app import app
from kdcli.config import (
    CacheConfig,
    CompareConfig,
    DistillConfig,
    DoctorConfig,
    EvalConfig,
    GenerateConfig,
    JudgeConfig,
)
from kdcli.fields import leaves
from kdcli.runs.folder import RunFolder
from shell import kd

HOME = Path(kdcli.__file__).parent
KINDS = (DistillConfig, EvalConfig, CompareConfig, CacheConfig, GenerateConfig, DoctorConfig, JudgeConfig)
SETTINGS = {name for kind in KINDS for name in leaves(kind)}
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
COMMAND = re.compile(r"(?:^|[ (:;`'])kd ([a-z]+(?: (?:list|show|check|batch))?)\b")
SETTING = re.compile(
    r"--set ([a-z_.]+)=|\b((?:data|train|hardware|evaluation|monitor|server|lora|edge)\.[a-z_.]+[a-z])"
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
    return []


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
                    if isinstance(name, ast.Name) and name.id.lower().strip("_") == "fix":
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


RUN = "--teacher t --student s --data d.jsonl --device cpu"
PLAN = f"plan {RUN}"
BARE = f"distill {RUN} --max-steps 1 -o bare"
MEASURED = "eval s --data d.jsonl --device cpu --metric perplexity"
COMPARE = f"compare fkl rkl {RUN} --eval-data d.jsonl --dry-run"
SCENARIOS = {
    "give a folder, --predictions FILE or --server-url URL": ("eval", "eval --predictions p.jsonl --metric em"),
    "give --data, or set it in a file read with -c": ("eval s --metric perplexity --device cpu", MEASURED),
    "give {}, or set it in a file read with -c": ("distill --student s --data d.jsonl", PLAN),
    "add --eval-data, or use kd eval afterwards": (
        f"{PLAN} --metric perplexity",
        f"{PLAN} --metric perplexity --eval-data d.jsonl",
    ),
    "name another, or use kd distill": (f"{COMPARE} ".replace("fkl rkl", "fkl"), f"distill {RUN} --loss fkl --dry-run"),
    "add --tune lr=1e-4,3e-4": (f"{COMPARE} --dev-data d.jsonl", f"{COMPARE} --dev-data d.jsonl --tune lr=1e-4,3e-4"),
    "give --seeds": (f"{COMPARE} --set train.seed=3", f"{COMPARE} --seeds 3"),
    "give one; use --set key=value": (f"{PLAN} -c a -c b", f"{PLAN} --set train.lr=1e-4"),
    "write --set train.lr=1e-4": (f"{PLAN} --set train.lr", f"{PLAN} --set train.lr=1e-4"),
    "name some of: kd metrics list": ("eval s --data d.jsonl --set evaluation.metrics=[]", "metrics list"),
    "say which is which, as in --columns prompt=question,completion=answer": (
        f"{PLAN} --data odd.jsonl",
        f"{PLAN} --data odd.jsonl --columns prompt=ask,completion=say",
    ),
    "use --template alpaca, plain, or a text with {instruction}": (
        f"{PLAN} --template chat",
        f"{PLAN} --template plain",
    ),
    "use --device cpu": (f"{PLAN} --device cuda", PLAN),
    "add --resume auto to go on, or choose another -o": (
        f"{BARE} --resume never",
        f"{BARE} --resume auto",
    ),
    "give --data, or --source teacher:prompts=bos with --count N": (
        "generate --teacher t --device cpu --dry-run",
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --count 2",
    ),
    "give --count N": (
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos",
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --count 2",
    ),
    "leave --count out, or use --limit": (
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --count 2 --data d.jsonl",
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --limit 2 --data d.jsonl",
    ),
    "give -o {}": (
        "generate --teacher t --device cpu --data d.jsonl -o text.jsonl --dry-run",
        "generate --teacher t --device cpu --data d.jsonl -o text --dry-run",
    ),
    "give --scores FILE or --server-url URL": ("judge judged.jsonl", "judge judged.jsonl --scores scores.jsonl"),
    "give kd distill --eval-every N, with --eval-data or --set data.dev_share=0.1": (
        f"{PLAN} --loss fkl@replay",
        f"{PLAN} --loss fkl@replay --eval-every 1 --eval-data d.jsonl",
    ),
    "give --set monitor.every=N": (
        f"{PLAN} --set monitor.patience=2 --eval-data d.jsonl",
        f"{PLAN} --set monitor.patience=2 --eval-data d.jsonl --set monitor.every=1",
    ),
    "give --eval-data, or --set data.dev_share=0.1": (
        f"{PLAN} --eval-every 1",
        f"{PLAN} --eval-every 1 --set data.dev_share=0.2",
    ),
    "give --set data.dev=FILE": (
        "eval s --data d.jsonl --device cpu --metric token_temperature",
        "eval s --data d.jsonl --device cpu --metric token_temperature --set data.dev=d.jsonl",
    ),
    "give --teacher": (
        "eval s --data d.jsonl --device cpu --metric agreement",
        "eval s --data d.jsonl --device cpu --metric agreement --teacher t",
    ),
    "give --lora 16": (f"{PLAN} --set lora.alpha=8", f"{PLAN} --set lora.alpha=8 --lora 16"),
    "{} --help lists the commands": ("xyzzy", "--help"),
    "{} --help lists the flags": ("distill --xyzzy", "distill --help"),
    "see {} --help": ("losses show", "losses show --help"),
    "add --kind compact, or leave it out": (
        "cache --teacher t --data d.jsonl --top-k 4 --device cpu --dry-run",
        "cache --teacher t --data d.jsonl --top-k 4 --device cpu --dry-run --kind compact",
    ),
    "give one, such as -o report.html": ("report run run", "report run -o report.html"),
    "make it with: kd eval {} --data test.jsonl": (
        "compare run bare",
        "eval bare --data d.jsonl --device cpu --metric perplexity",
    ),
}
"""Fix -> the line that is answered with it, and the line that is typed then."""

ELSEWHERE = {
    "--set top_k=N), or start vLLM with --max-logprobs": (),
    "add --data": ("eval",),
    "add --eval-data": ("cache",),
    "add --gpus N": ("distill", "plan"),
    "add --server-url": ("eval",),
    "give --eval-data": ("compare",),
    "give the rows with --eval-data, or measure the model alone with kd eval": ("compare",),
    "give the runs' rows with --eval-data": ("compare",),
    "give --set data.corpus=FILE": TRAIN,
    "add --executor ray": ("compare",),
    "add --executor slurm": ("compare",),
    "if you trust it add --ray-address {}": ("compare",),
    "add --to": ("compare",),
    "add perplexity to monitor.metrics": ("distill", "plan"),
    "add them: kd cache with the same rows, template and length": TRAIN,
    "bring back what the run was made from; kd compare sets two different runs side by side": ("rerun",),
    "build another with kd cache, or leave the teacher cache out": MEASURE,
    "build it for these rows with kd cache, or leave the teacher cache out": MEASURE,
    "choose another -o": ("distill", "compare", "cache", "generate", "eval", "toy", "demo"),
    "choose another -o; filters may change": ("generate",),
    "choose with --set server.model=NAME": ("distill", "eval", "compare", "cache", "generate", "doctor", "judge"),
    "compare runs made alike, or train them together with kd compare OBJECTIVE ...": ("compare",),
    "did you mean --columns {}?": DATA,
    "do not use this tokenizer's template; --template alpaca or plain": DATA,
    "end other programs, or raise the limits that ulimit -u and ulimit -v show": (),
    "evaluate again with kd eval": ANY,
    "evaluate with a metric of texts, such as --metric rougeL": ("eval",),
    "free space; kd cache --store-dtype bf16 or --kind compact keeps less": ("cache", *TRAIN),
    "give --dtype fp32": ("doctor",),
    "give --kind compact": ("cache",),
    "give --metric {}": MEASURE,
    "give --set server.send=ids, if the server's tokenizer is the student's": ("distill", "generate"),
    "give --to table.tex": ("compare",),
    "give -o FOLDER": ("judge",),
    "give a folder of kd compare -o, or of kd distill": ("report",),
    "give a folder that kd compare -o wrote": ("compare", "report"),
    "give a folder that kd compare wrote": ("compare", "report"),
    "give a folder that kd distill wrote": ANY,
    "give a model, a run, or --predictions": ("eval",),
    "give development rows: --set data.dev=FILE": MEASURE,
    "give development rows: data.dev=FILE or data.dev_share=0.1": ("distill", "compare"),
    "give held-out rows with --eval-data, or run kd eval RUN --tasks afterwards": TRAIN,
    "give its folder alone: kd compare STUDY {}": ("compare",),
    "give its folder: kd compare STUDY --status": ("compare",),
    "give one, such as -o cache": ("cache",),
    "give one, such as -o runs/akl": ("distill",),
    "give one, such as -o study": ("compare",),
    "give one, such as -o text": ("generate",),
    "give them, or --set data.dev_share=0.1": ("distill", "compare"),
    "install one, such as g++ with Python's headers, name it in CXX, or leave hardware.compile out": TRAIN,
    "kd cache --kind compact with this teacher, --student and --data; then add --teacher-cache": TRAIN,
    "kd metrics list shows them": ("distill", "compare"),
    "leave --edge out": ("eval",),
    "leave --executor out, or use --executor local": ("compare",),
    "leave --gpus out under a launcher": ("distill",),
    "leave --teacher-cache out, or leave the source out": TRAIN,
    "leave --teacher-cache out: the teacher runs beside the student": TRAIN,
    "leave hardware.compile out": TRAIN,
    "leave it out; a protocol sets data.template, the lengths and evaluation.*": ("eval",),
    "leave the row out, or choose another --template": DATA,
    "let words follow the thoughts, or use --template plain": DATA,
    "lower --lr, or look at those rows; the last checkpoint is intact": TRAIN,
    "lower edge.prompt_tokens and edge.new_tokens": ("eval",),
    "lower server.concurrency, or look at the server's log; {}": ("distill", "cache", "generate", "eval", "judge"),
    "make answers first: kd eval MODEL --data FILE --metric rougeL -o FOLDER": ("judge",),
    "make it again with kd compare": ("compare", "report"),
    "make it again with the same kd cache line": TRAIN,
    "make it with kd compare": ("compare", "report"),
    "make it with kd eval": ANY,
    "make it work in Python first, or leave train.report_to out": TRAIN,
    "make one with kd cache": TRAIN,
    "mend the plug-in; --debug shows the traceback": ("distill", "compare", "eval", "generate", "toy", "inspect batch"),
    "mend the plug-in; kd losses check {} says more": TRAIN,
    "name linear layers below the head, such as q_proj,v_proj, or leave lora.targets out": TRAIN,
    "or use kd distill": ("compare",),
    "pip install -c {} kdcli": ("doctor",),
    "raise server.timeout, or lower server.concurrency; {}": ("distill", "cache", "generate", "eval", "judge"),
    "read it, and if you trust it add --plugin {}": (
        "distill", "compare", "eval", "generate", "rerun", "inspect batch",
    ),
    "read {}; give --set max_tokens=1024, or another --set prompt_file=FILE": ("judge",),
    "rename the column, or --columns {}={}": DATA,
    "repair the turns, leave the row out, or use --template plain": DATA,
    "repeat it with: kd distill -c {} -o {}": ("rerun",),
    "repeat the settings of config.yaml there, or choose another -o": TRAIN,
    "restore it, or repeat the command line; where it was changed on purpose, copy it and give the copy with -c": TRAIN,
    "restore the file; settings changed on purpose belong in a copy elsewhere, given with -c": TRAIN,
    "return [t] values, not their mean; kd losses check finds such mistakes": TRAIN,
    "run it again with --debug": TRAIN,
    "run kd compare -o again": ("compare", "report"),
    "run this on a login node, or try --slurm cluster=local": ("compare",),
    "see kd metrics show": ANY,
    "serve a teacher of the student's tokenizer, ask for fewer tokens (--set server.top_k=N, of a cache ": ("distill",),
    "set a smaller --max-new-tokens": MEASURE,
    "set data.max_length to at most {}": DATA,
    "set data.max_prompt_length below {}": DATA,
    "set data.max_prompt_length={}": MEASURE,
    "set something, such as evaluation.generation.temperature": ("eval",),
    "start kd compare once; --gpus N gives each cell N processes": ("compare",),
    "start the comparison again with kd compare -c {}: finished cells are kept": ("compare",),
    "take it out, give it the name that the template reads, or leave such rows out with --skip-bad": DATA,
    "try each task alone, with --debug": MEASURE,
    "use --gpus {}, or --device cpu": ("distill", "plan", "compare"),
    "use --set hardware.shard=ddp, which keeps every model whole": TRAIN,
    "use --set hardware.shard=ddp, or lower data.max_length": TRAIN,
    "use --template plain or auto": DATA,
    "use a tokenizer with a tokenizer.json, or another --template": DATA,
    "use another template, such as --template alpaca or plain": DATA,
    "use that version, or choose another -o": TRAIN,
    "wait for it to end, or choose another -o": ("distill", "compare", "cache", "generate"),
    "{}--columns {}=NAME": DATA,
}  # fmt: skip
"""Fix -> the commands that may say it; none where it names another program's flags."""

CONFIGS = {
    "distill": DistillConfig, "plan": DistillConfig, "inspect batch": DistillConfig, "eval": EvalConfig,
    "compare": CompareConfig, "cache": CacheConfig, "generate": GenerateConfig, "doctor": DoctorConfig,
    "judge": JudgeConfig,
}  # fmt: skip


def test_every_fix_is_typed_here_or_held_against_the_commands_that_say_it():
    missing = sorted(fixes() - set(SCENARIOS) - set(ELSEWHERE))
    assert not missing, f"give each a line of SCENARIOS or, where it cannot be typed here, of ELSEWHERE: {missing}"
    gone = sorted((set(SCENARIOS) | set(ELSEWHERE)) - fixes())
    assert not gone, f"no longer said: {gone}"


@pytest.mark.parametrize("fix", ELSEWHERE)
def test_every_name_in_a_fix_is_one_of_the_commands_that_say_it(fix):
    named = [name for name in COMMAND.findall(fix) if name]
    for name in named:
        assert name in TABLE or name in {key.split(" ")[0] for key in TABLE}, f"there is no kd {name}"
    for said_by in ELSEWHERE[fix]:
        flags = set().union(*(TABLE[name] for name in named if name in TABLE), TABLE[said_by])
        assert set(FLAG.findall(fix)) <= flags | {"--set"}, f"kd {said_by} says it"
        known = set().union(*(leaves(CONFIGS[name]) for name in (*named, said_by) if name in CONFIGS))
        settings = {one or two for one, two in SETTING.findall(fix)} - {"evaluation."}
        assert settings <= known or said_by not in CONFIGS, f"kd {said_by} says it"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("typed")
    tiny.folder(made / "t", seed=1)
    tiny.folder(made / "s", seed=2)
    tiny.rows(made / "d.jsonl", 10)
    (made / "p.jsonl").write_text('{"prediction": "a", "reference": "a"}\n')
    (made / "odd.jsonl").write_text('{"ask": "say a:", "say": " aa."}\n' * 2)
    (made / "judged.jsonl").write_text('{"prompt": "a", "prediction": "b", "reference": "c"}\n')
    (made / "scores.jsonl").write_text('{"prompt": "a", "score": 7, "reference_score": 9}\n')
    for line in (f"distill {RUN} --max-steps 2 -o run --eval-data d.jsonl --metric perplexity", BARE):
        assert kd(*line.split(), folder=made).code == 0
    return made


DEAR = ("add --tune lr=1e-4,3e-4", "give --set data.dev=FILE", "give one, such as -o report.html")


@pytest.mark.parametrize(
    "fix", [pytest.param(fix, marks=pytest.mark.full) if fix in DEAR else fix for fix in SCENARIOS]
)
def test_a_fix_that_is_typed_succeeds(fix, home):
    wrong, right = (line.split() for line in SCENARIOS[fix])
    answer = kd(*wrong, folder=home)
    assert answer.code != 0
    said = re.escape(fix).replace(r"\{\}", ".+")
    assert re.search(f"Fix: .*{said}", answer.err), answer.err
    words = {*FLAG.findall(fix), *COMMAND.findall(fix)} - {"-c"}
    assert not words or any(word in " ".join(["kd", *right]) for word in words), "the line does what the fix says"
    typed = kd(*right, folder=home)
    assert typed.code == 0, typed.err


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
    assert found == [("cli/studies.py", "flag"), ("plugins.py", "one_line(name, 200)")], "write typed(...)"


def _is_quoted(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("typed", "quoted")
