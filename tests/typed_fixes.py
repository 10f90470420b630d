"""Wrong lines, the fix that each is answered with, and the lines that the fix leads to, which succeed."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import exported
import loopback
import teaching
import tiny
import vision
from damage import flip
from kdcli.comparison.tables_store import read_tidy
from kdcli.config.schema import (
    BalanceConfig,
    CacheConfig,
    CompareConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    FederateConfig,
    GenerateConfig,
    HardwareConfig,
    JudgeConfig,
    RationalesConfig,
    ScoreConfig,
    ServerConfig,
    SplitConfig,
)
from kdcli.distill.generate import generate
from kdcli.distill.run import distill
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.judge.judge import judge
from kdcli.evaluation.results import read_curves, read_results
from kdcli.events import silent
from kdcli.federated.federate import federate
from kdcli.rows.balance import balance
from kdcli.rows.rationales import rationales
from kdcli.rows.score import score
from kdcli.rows.split import split
from kdcli.storage.digests import update_digest
from kdcli.storage.lock import hold
from kdcli.study.compare import compare
from kdcli.study.study_dir import read_study
from kdcli.teachers.load import cache
from kdcli.teachers.token_store import TokenStore
from loopback import Asked, Reply
from shell import kd
from wrong import BUILDERS, edit_json

Spoil = Callable[[Path, pytest.MonkeyPatch], object]


@dataclass(frozen=True)
class Typed:
    """One fix that is typed.

    Args:
        wrong: line that is answered with the fix, URL being the server of the tests; or a call of the library.
        right: lines that are typed then and succeed; {0}, {1} are what the message puts into the fix.
        before: makes the wrong state, in a copy of the folder; may patch this process.
        mended: what the fix asks to do by hand before the lines are typed.
    """

    wrong: str | Callable[[], object]
    right: tuple[str, ...]
    before: Spoil | None = None
    mended: Spoil | None = None


def typed(
    wrong: str | Callable[[], object], *right: str, before: Spoil | None = None, mended: Spoil | None = None
) -> Typed:
    return Typed(wrong, right, before, mended)


def _settings(kind: type[Any]) -> Any:
    """Return settings of a command as ``RUN`` gives them, without an output."""
    data = DataConfig(train="d.jsonl", eval="e.jsonl")
    if kind in (SplitConfig, BalanceConfig):
        return kind(data=data, **({"by": "completion", "budget": 10} if kind is BalanceConfig else {}))
    students: dict[str, Any] = {} if kind in (CacheConfig, GenerateConfig, RationalesConfig) else {"student": "s"}
    scores = {"by": ("length",)} if kind is ScoreConfig else {}
    return kind(teacher="t", data=data, hardware=HardwareConfig(device="cpu"), **students, **scores)


RUN = "--teacher t --student s --data d.jsonl --device cpu"
PLAN = f"plan {RUN}"
TRAIN = f"distill {RUN} --max-steps 1"
BARE = f"{TRAIN} -o bare"
MEASURED = "eval s --data d.jsonl --device cpu --metric perplexity"
STUDY = f"compare fkl rkl {RUN} --eval-data e.jsonl --max-steps 1 --metric perplexity -o study"
NEW = STUDY.replace("-o study", "-o new")
COMPARE = f"compare fkl rkl {RUN} --eval-data d.jsonl --dry-run"
CACHE = "cache --teacher t --data d.jsonl --device cpu"
SCORE = "data score --student s --data d.jsonl --device cpu -o scored"
SPLIT = "data split --data d.jsonl -o parts"
STAGE = "data balance --data d.jsonl --by completion"
WRITE = "generate --teacher t --device cpu --data d.jsonl --source teacher:max_new_tokens=4"
SHOWS = "generate --teacher t --device cpu --dry-run --data d.jsonl --shots 1"
SUPERNET = "supernet --teacher t --data d.jsonl --device cpu --max-steps 1"
MADE_SUPERNET = f"{TRAIN.replace('student s', 'student supernet:widths=0.5+1')} -o made"
FEDERATE = "federate --teacher t --student s --data d.jsonl --device cpu --max-steps 1 --rounds 1"
EDGE = "--set edge.prompt_tokens=4 --set edge.new_tokens=2 --set edge.repeats=1"
SERVED = "--server-url URL/toy/v1 --set server.wait=0 --set server.retries=0"
ASKED = "--set server.wait=0 --set server.retries=0"


def build(home: Path) -> None:
    """Make everything that right lines start from: models, rows, runs, a study, a cache."""
    tiny.folder(home / "t", seed=1)
    tiny.folder(home / "s", seed=2)
    tiny.rows(home / "d.jsonl", 10)
    tiny.rows(home / "e.jsonl", 4)
    (home / "edge.yaml").write_text("memory: 1GiB\nflops: 1e9\n")
    (home / "p.jsonl").write_text('{"prediction": "a", "reference": "a"}\n')
    (home / "odd.jsonl").write_text('{"ask": "say a:", "say": " aa."}\n' * 2)
    (home / "judged.jsonl").write_text('{"prompt": "a", "prediction": "b", "reference": "c"}\n')
    (home / "scores.jsonl").write_text('{"prompt": "a", "score": 7, "reference_score": 9}\n')
    measured = "--max-steps 2 --eval-data e.jsonl --metric perplexity"
    for line in (
        f"distill {RUN} {measured} -o run",
        f"distill {RUN} {measured} --loss rkl -o other",
        BARE,
        STUDY,
        f"{CACHE} -o c",
    ):
        answer = kd(*line.split(), folder=home)
        assert answer.code == 0, answer.err


def server() -> loopback.Script:
    """A server with a path for every manner: two has two models, slow and busy fail at first, teach teaches."""
    teach = teaching.script(model=tiny.model(seed=1))
    open_now = [0]

    def answer(asked: Asked, before: int) -> Reply:
        manner = asked.path.split("/")[1]
        if manner == "absent":
            return Reply("no such page", 404)
        if manner == "strict" and asked.body and asked.body["model"] != "toy":
            return Reply("there is no such model", 400)
        if manner == "teach":
            return teach(asked, before)
        if asked.path.endswith("/models"):
            return loopback.models(*(("toy", "other") if manner == "two" else ("toy",)))
        if manner == "judge":
            return loopback.chat("7 8\nBecause." if asked.body["max_tokens"] >= 1024 else "Let us see:")
        if manner == "slow":
            return Reply(loopback.completion(" a.").body, delay=0.4)
        if manner == "busy":
            open_now[0] += 1
            alone = open_now[0] == 1
            time.sleep(0.05)
            open_now[0] -= 1
            return loopback.completion(" a.") if alone else Reply("busy", 429)
        return loopback.completion(" a.")

    return answer


# ---- wrong states


def wrong(*names: str) -> Spoil:
    """States of the tests of wrong inputs, in a folder whose parts have other names."""
    links = {"teacher": "t", "student": "s", "train.jsonl": "d.jsonl", "test.jsonl": "e.jsonl", "cache": "c"}

    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        for name, here in links.items():
            (home / name).symlink_to(here)
        for name in names:
            BUILDERS[name](home)

    return make


def write(name: str, text: str) -> Spoil:
    return lambda home, patch: (home / name).write_text(text)


def rows(name: str, *found: object) -> Spoil:
    return write(name, "".join(json.dumps(row) + "\n" for row in found))


LABELS = rows("labels.jsonl", *({"text": f"{word} {at}", "label": word} for at in range(4) for word in ("cat", "saw")))
CLASSES = "distill --student tiny:kind=bow --data labels.jsonl --loss ce --device cpu --max-steps 1"


def changed(name: str, more: str = "# more\n") -> Spoil:
    """Add a line to a text file; the first state is kept beside it."""

    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        shutil.copy(home / name, home / f"{Path(name).name}.kept")
        (home / name).write_text((home / name).read_text() + more)

    return make


def restored(name: str) -> Spoil:
    return lambda home, patch: shutil.copy(home / f"{Path(name).name}.kept", home / name)


def damaged(pattern: str) -> Spoil:
    """Let one bit of the files of a pattern fall over."""

    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        found = sorted(home.glob(pattern))
        assert found
        for path in found:
            flip(path, 8 * (path.stat().st_size - 1))

    return make


def removed(pattern: str) -> Spoil:
    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        for path in sorted(home.glob(pattern)):
            path.unlink()

    return make


def lines(*typed_lines: str) -> Spoil:
    """Type lines that succeed."""

    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        for line in typed_lines:
            answer = kd(*line.split(), folder=home)
            assert answer.code == 0, answer.err

    return make


def both(*parts: Spoil) -> Spoil:
    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        for part in parts:
            part(home, patch)

    return make


def environ(**values: str) -> Spoil:
    return lambda home, patch: [patch.setenv(name, value) for name, value in values.items()]


def undone(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.undo()


def chat_template(text: str) -> Spoil:
    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        for name in ("t", "s"):
            core = tiny.tokenizer()
            core.chat_template = text
            core.save_pretrained(home / name)

    return make


def metadata(value: bytes | None) -> Spoil:
    """Give a study's results other metadata."""

    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        path = home / "study" / "results.parquet"
        table = pq.read_table(path)
        facts = dict(table.schema.metadata or {})
        facts = dict.fromkeys(facts, value) if value is not None else None
        pq.write_table(table.replace_schema_metadata(facts), path)
        update_digest(path)

    return make


HOLDERS: list[int] = []


def busy(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Let another process hold the lock of a run folder."""
    (home / "fresh").mkdir()
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with hold(home / "fresh"):
            os.write(told, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    HOLDERS.append(pid)


def free(home: Path, patch: pytest.MonkeyPatch) -> None:
    os.kill(HOLDERS[-1], signal.SIGKILL)
    os.waitpid(HOLDERS.pop(), 0)


BARE_CHAT = (
    "{% for m in messages %}#{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant\n{% endif %}"
)
TALK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
TAKES_ALL = "{% for m in messages %}{{ 'x' * 40000000 }}{% endfor %}"
LOSS = '''
from typing import ClassVar
from kdcli.losses.base import DistillLoss
from kdcli.losses.base import log_softmax

class Mine(DistillLoss):
    """Cross-entropy to the teacher's probabilities, per token.

    >>> Mine().name
    'mine'
    """

    name: ClassVar[str] = "mine"
    formula: ClassVar[str] = "-sum_j p_j log q_j"
    reference: ClassVar[str] = "none"
    cost: ClassVar[str] = "one pass"

    def token_loss(self, tok):
        BODY
'''
GOOD = "return -(log_softmax(tok.teacher).exp() * log_softmax(tok.student)).sum(-1)"
LATER = f"if tok.student.shape[-1] != 13:\n            FAULT\n        {GOOD}"


def plug_in(body: str) -> Spoil:
    """Write a loss; a command in a process of its own reads it anew, and so does the next one in this process."""

    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        (home / "mine.py").write_text(LOSS.replace("BODY", body))
        for name in [name for name, module in sys.modules.items() if _is_mine(module)]:
            del sys.modules[name]

    return make


def _is_mine(module: object) -> bool:
    return str(getattr(module, "__file__", "")).endswith("/mine.py")


def _talk(said: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]}


THOUGHTS = BARE_CHAT.replace(
    "{{ m.content }}", "{{ m.content.split('</think>')[-1] if '</think>' in m.content else m.content }}"
)
RUN6 = f"distill {RUN} --max-steps 6 --set train.save_every=2 --set train.log_every=1"
ASKS = f"--teacher URL/teach/v1 --student s --data d.jsonl --device cpu {ASKED}"


SERVED_CACHE = f"cache {ASKS} -o served --kind compact"


@dataclass(frozen=True)
class _Usage:
    free: int


def _fails(*given: object, **named: object) -> None:
    raise RuntimeError("the tracker is away")


def pictures(*changed: dict[str, object]) -> Spoil:
    """Make a model of images, and rows of which the last ones are spoilt."""

    def make(home: Path, patch: pytest.MonkeyPatch) -> None:
        vision.folder(home / "v", "llava", seed=1)
        vision.rows(home / "p.jsonl", 2)
        row = vision.row(["pictures/0-0-0.png"], "what?", "a")
        with (home / "p.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps({**row, **more}) + "\n" for more in changed))

    return make


SEEN = "eval v --data p.jsonl --device cpu --metric perplexity"

SCENARIOS: dict[str, Typed] = {
    "repair the row, or leave such rows out with --skip-bad": typed(
        SEEN, f"{SEEN} --skip-bad", before=pictures({"images": ["gone.png"]})
    ),
    'give a part {"type": "image"} for each, or leave such rows out with --skip-bad': typed(
        SEEN, f"{SEEN} --skip-bad", before=pictures({"images": ["pictures/0-0-0.png"] * 2})
    ),
    "give kd distill or kd eval models of images and text, or take the images out of the rows": typed(
        SEEN.replace("eval v", "eval s"), SEEN, before=pictures()
    ),
    "give a folder, --predictions FILE or --server-url URL": typed("eval", "eval --predictions p.jsonl --metric em"),
    "give --data, or {}": typed(
        "student cut:layers=1,by=influence,sparse=0.5,method=wanda --teacher t -o made",
        "student cut:layers=1,by=influence,sparse=0.5,method=wanda --teacher t --data d.jsonl -o made",
        "student cut:layers=1,by=magnitude,sparse=0.5,method=magnitude --teacher t -o another",
    ),
    "leave --lora out, or leave --keep-zeros out": typed(
        f"distill {RUN} --loss fkl --lora 2 --keep-zeros --dry-run",
        f"distill {RUN} --loss fkl --keep-zeros --dry-run",
        f"distill {RUN} --loss fkl --lora 2 --dry-run",
    ),
    "add --update low-rank": typed(f"{SUPERNET} --rank 2 -o made", f"{SUPERNET} --rank 2 --update low-rank -o made"),
    "choose --depths among {}": typed(f"{SUPERNET} --depths 0.3,1 -o made", f"{SUPERNET} --depths {{0}} -o made"),
    "choose --widths among {}": typed(f"{SUPERNET} --widths 0.3,1 -o made", f"{SUPERNET} --widths {{0}} -o made"),
    "give --widths 0.5,1": typed(f"{SUPERNET} --widths 1 -o made", f"{SUPERNET} --widths 0.5,1 -o made"),
    "give --loss akl or another objective of one pass": typed(
        f"{SUPERNET} --loss atkd -o made", f"{SUPERNET} --loss akl -o made"
    ),
    "give --loss fkl, and --set supernet.alpha=0 where only cross-entropy is wanted": typed(
        f"{SUPERNET} --loss ce -o made", f"{SUPERNET} --loss fkl --set supernet.alpha=0 -o made"
    ),
    "give --set supernet.stages=0,0.5,0.5": typed(
        f"{SUPERNET} --set supernet.stages=1,0,0 -o made", f"{SUPERNET} --set supernet.stages=0,0.5,0.5 -o made"
    ),
    'give --pick "params<={}"': typed(
        "student SN --pick params<=9 -o made",
        "student SN --pick params<={0} -o made",
        before=lines(f"{SUPERNET} -o SN"),
    ),
    'write --pick "params<=1e6" or --pick width=0.5,depth=1': typed(
        "student SN --pick heads=1 -o made",
        "student SN --pick params<=1e6 -o made",
        "student SN --pick width=0.5,depth=1 -o small",
        before=lines(f"{SUPERNET} -o SN"),
    ),
    "give its folder: kd student FOLDER --pick width=0.5 -o small": typed(
        "student --pick width=0.5 -o small", "student SN --pick width=0.5 -o small", before=lines(f"{SUPERNET} -o SN")
    ),
    "give the folder that kd supernet wrote": typed(
        "student t --pick width=0.5 -o made",
        f"{SUPERNET} -o SN",
        "student SN --pick width=0.5 -o made",
    ),
    "train it with kd supernet; kd student FOLDER --pick makes a student of one of its sizes": typed(
        f"distill {RUN.replace('student s', 'student supernet:widths=0.5+1')} --dry-run",
        f"{SUPERNET} -o SN",
        "student SN --pick width=0.5 -o made",
    ),
    "leave it out; kd supernet has --update low-rank": typed(
        f"{MADE_SUPERNET} --lora 2", MADE_SUPERNET, f"{SUPERNET} --update low-rank -o SN"
    ),
    "leave --teacher-cache out": typed(f"{MADE_SUPERNET} --teacher-cache c", MADE_SUPERNET),
    "leave hardware.gpus out, and start one process": typed(
        f"{SUPERNET} --set hardware.gpus=2 -o made", f"{SUPERNET} -o made"
    ),
    "leave train.gradient_checkpointing out": typed(
        f"{SUPERNET} --set train.gradient_checkpointing=true -o made", f"{SUPERNET} -o made"
    ),
    "leave monitor.every out, or train all weights": typed(
        f"{MADE_SUPERNET.replace('0.5+1', '0.5+1,update=low-rank')} --set data.dev=e.jsonl --set monitor.every=1 "
        "--set monitor.metrics=perplexity",
        MADE_SUPERNET.replace("0.5+1", "0.5+1,update=low-rank"),
        f"{MADE_SUPERNET} --set data.dev=e.jsonl --set monitor.every=1 --set monitor.metrics=perplexity -o another",
    ),
    "give --to safetensors:int8, which keeps it as it is": typed(
        "export t --to gguf --data d.jsonl -o made", "export t --to safetensors:int8 --data d.jsonl -o made"
    ),
    "give --to safetensors:int8": typed(
        "export mistral --to gguf --data d.jsonl -o made",
        "export mistral --to safetensors:int8 --data d.jsonl -o made",
        before=lambda home, patch: tiny.folder(home / "mistral", "mistral", **tiny.SIZES["llama"]),
    ),
    "give --to onnx:int8": typed(
        "export gpt2 --to safetensors:int8 --data d.jsonl -o made",
        "export gpt2 --to onnx:int8 --data d.jsonl -o made",
        before=lambda home, patch: exported.folder(home / "gpt2", "gpt2"),
    ),
    "give --data FILE": typed(
        "export t --to safetensors:int8 -o made", "export t --to safetensors:int8 --data d.jsonl -o made"
    ),
    "give --data, or set it in a file read with -c": typed("eval s --metric perplexity --device cpu", MEASURED),
    "give {}, or set it in a file read with -c": typed("distill --student s --data d.jsonl", PLAN),
    "add --eval-data, or use kd eval afterwards": typed(
        f"{PLAN} --metric perplexity", f"{PLAN} --metric perplexity --eval-data d.jsonl"
    ),
    "name another, or use kd distill": typed(COMPARE.replace("fkl rkl", "fkl"), f"distill {RUN} --loss fkl --dry-run"),
    "leave --student out": typed(
        f"{COMPARE} --vary student=s,cut:layers=1",
        f"{COMPARE.replace('--student s ', '')} --vary student=s,cut:layers=1",
    ),
    "give it to --vary": typed(
        f"{COMPARE.replace('--student s ', '')} --tune student=s,cut:layers=1",
        f"{COMPARE.replace('--student s ', '')} --vary student=s,cut:layers=1",
    ),
    "add --tune lr=1e-4,3e-4": typed(
        f"{COMPARE} --dev-data d.jsonl", f"{COMPARE} --dev-data d.jsonl --tune lr=1e-4,3e-4"
    ),
    "give --seeds": typed(f"{COMPARE} --set train.seed=3", f"{COMPARE} --seeds 3"),
    "give one; use --set key=value": typed(f"{PLAN} -c a -c b", f"{PLAN} --set train.lr=1e-4"),
    "write --set train.lr=1e-4": typed(f"{PLAN} --set train.lr", f"{PLAN} --set train.lr=1e-4"),
    "name some of: kd metrics list": typed("eval s --data d.jsonl --set evaluation.metrics=[]", "metrics list"),
    "say which is which, as in --columns prompt=question,completion=answer": typed(
        f"{PLAN} --data odd.jsonl", f"{PLAN} --data odd.jsonl --columns prompt=ask,completion=say"
    ),
    "use --template alpaca, plain, or a text with {instruction}": typed(
        f"{PLAN} --template chat", f"{PLAN} --template plain"
    ),
    "use --device cpu": typed(f"{PLAN} --device cuda", PLAN),
    "add --resume auto to go on, or choose another -o": typed(f"{BARE} --resume never", f"{BARE} --resume auto"),
    "give --data, or --source teacher:prompts=bos with --count N": typed(
        "generate --teacher t --device cpu --dry-run",
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --count 2",
    ),
    "give --count N": typed(
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos",
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --count 2",
    ),
    "leave --count out, or use --limit": typed(
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --count 2 --data d.jsonl",
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --limit 2 --data d.jsonl",
    ),
    "give --feedback FILE, or take it out": typed(
        f"{SHOWS} --template '{{instruction}} {{feedback}}'",
        f"{SHOWS} --template '{{instruction}} {{feedback}}' --feedback e.jsonl",
        f"{SHOWS} --template '{{instruction}}'",
    ),
    'give a text that holds both, as in --template "{instruction}\\n{feedback}\\n"': typed(
        f"{SHOWS} --feedback e.jsonl", f'{SHOWS} --feedback e.jsonl --template "{{instruction}}\\n{{feedback}}\\n"'
    ),
    "leave it out, or give prompts with --data": typed(
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --count 2 --feedback e.jsonl",
        "generate --teacher t --device cpu --dry-run --source teacher:prompts=bos --count 2",
        f"{SHOWS} --feedback e.jsonl --template '{{instruction}} {{feedback}}'",
    ),
    "give -o {}": typed(
        "generate --teacher t --device cpu --data d.jsonl -o text.jsonl --dry-run",
        "generate --teacher t --device cpu --data d.jsonl -o text --dry-run",
    ),
    "give --scores FILE or --server-url URL": typed("judge judged.jsonl", "judge judged.jsonl --scores scores.jsonl"),
    "give kd distill --eval-every N, with --eval-data or --set data.dev_share=0.1": typed(
        f"{PLAN} --loss fkl@replay", f"{PLAN} --loss fkl@replay --eval-every 1 --eval-data d.jsonl"
    ),
    "give --set monitor.every=N": typed(
        f"{PLAN} --set monitor.patience=2 --eval-data d.jsonl",
        f"{PLAN} --set monitor.patience=2 --eval-data d.jsonl --set monitor.every=1",
    ),
    "give --eval-data, or --set data.dev_share=0.1": typed(
        f"{PLAN} --eval-every 1", f"{PLAN} --eval-every 1 --set data.dev_share=0.2"
    ),
    "give --set data.dev=FILE": typed(
        "eval s --data d.jsonl --device cpu --metric token_temperature",
        "eval s --data d.jsonl --device cpu --metric token_temperature --set data.dev=d.jsonl",
    ),
    "give --teacher": typed(
        "eval s --data d.jsonl --device cpu --metric agreement",
        "eval s --data d.jsonl --device cpu --metric agreement --teacher t",
    ),
    "give --lora 16": typed(f"{PLAN} --set lora.alpha=8", f"{PLAN} --set lora.alpha=8 --lora 16"),
    "{} --help lists the commands": typed("xyzzy", "--help"),
    "{} --help lists the flags": typed("distill --xyzzy", "distill --help"),
    "see {} --help": typed("losses show", "losses show --help"),
    "add --kind compact, or leave it out": typed(
        "cache --teacher t --data d.jsonl --top-k 4 --device cpu --dry-run",
        "cache --teacher t --data d.jsonl --top-k 4 --device cpu --dry-run --kind compact",
    ),
    "give --device edge.yaml": typed(
        "schedule s --arrivals poisson:8 --seconds 1", "schedule s --arrivals poisson:8 --seconds 1 --device edge.yaml"
    ),
    "give --requests trace.jsonl or --arrivals poisson:8": typed(
        "schedule s --device edge.yaml", "schedule s --device edge.yaml --seconds 1 --arrivals poisson:8"
    ),
    "write --arrivals poisson:8": typed(
        "schedule s --device edge.yaml --arrivals 8", "schedule s --device edge.yaml --seconds 1 --arrivals poisson:8"
    ),
    # ---- flags of other tools
    **{
        fix: typed(f"{PLAN} --{flag}", f"{PLAN} {right}")
        for flag, fix, right in (
            ("bf16", "give --dtype bf16", "--dtype bf16"),
            ("fp16", "give --dtype bf16 (mixed precision in fp16 needs a GPU: --dtype fp16)", "--dtype bf16"),
            ("tf32", "give --matmul-precision high", "--matmul-precision high"),
            ("torch-dtype bfloat16", "give --dtype NAME", "--dtype bf16"),
            ("logging-steps 5", "give --set train.log_every=N", "--set train.log_every=5"),
            ("save-steps 5", "give --set train.save_every=N", "--set train.save_every=5"),
            ("save-total-limit 2", "give --set train.keep=N", "--set train.keep=2"),
            ("eval-steps 1", "give --eval-every N", "--eval-every 1 --eval-data e.jsonl"),
            ("warmup-ratio 0.1", "give --set train.warmup=SHARE", "--set train.warmup=0.1"),
            ("warmup-steps 1", "give --set train.warmup=STEPS", "--set train.warmup=1"),
            ("weight-decay 0.1", "give --set train.weight_decay=X", "--set train.weight_decay=0.1"),
            ("max-grad-norm 1", "give --set train.clip=X", "--set train.clip=1"),
            (
                "lr-scheduler-type linear",
                "give --set train.schedule=cosine, linear or constant",
                "--set train.schedule=linear",
            ),
            ("lora-alpha 8", "give --set lora.alpha=X", "--lora 4 --set lora.alpha=8"),
            ("lora-dropout 0.1", "give --set lora.dropout=X", "--lora 4 --set lora.dropout=0.1"),
            (
                "lora-target-modules all",
                "give --set lora.targets=NAME,NAME",
                "--lora 4 --set lora.targets=q_proj,v_proj",
            ),
            ("use-peft", "give --lora RANK", "--lora 4"),
            ("load-in-8bit", "give --set teacher_quantization=int8", "--set teacher_quantization=int8"),
            ("load-in-4bit", "give --set teacher_quantization=nf4", "--set teacher_quantization=nf4"),
            (
                "temperature 2",
                "it is an option of the objective: --loss fkl:temperature=2",
                "--loss fkl:temperature=2",
            ),
            (
                "lmbda 0.5",
                "it is an option of the source: --loss jsd@student:rate=0.5",
                "--loss jsd@student:rate=0.5",
            ),
            ("beta 0.5", "it is an option of the objective: --loss jsd:beta=0.5", "--loss jsd:beta=0.5"),
        )
    },
    # ---- rows
    "as in --parts 8": typed(SPLIT, f"{SPLIT} --parts 8"),
    "as in --parts 8, or --parts 0.9,0.1": typed(
        f"{SPLIT} --parts 1", f"{SPLIT} --parts 8", f"{SPLIT}2 --parts 0.9,0.1"
    ),
    "as in --parts 0.8,0.1,0.1": typed(f"{SPLIT} --parts 0.8,0.1", f"{SPLIT} --parts 0.8,0.1,0.1"),
    "give one, such as -o parts": typed(lambda: split(_settings(SplitConfig), silent), f"{SPLIT} --parts 2"),
    "give one, such as -o scored": typed(lambda: score(_settings(ScoreConfig), silent), f"{SCORE} --by length"),
    "give one, such as -o rationales": typed(
        lambda: rationales(_settings(RationalesConfig), silent),
        "data rationales --teacher t --data d.jsonl --device cpu --by first -o rationales",
    ),
    "give one, such as -o stage1": typed(
        lambda: balance(_settings(BalanceConfig), silent), f"{STAGE} --budget 10 -o stage1"
    ),
    "give the folder of an earlier kd data balance": typed(
        f"{STAGE} --budget 20 --stage 2/2 --before s -o stage2",
        f"{STAGE} --budget 20 --stage 1/2 -o stage1",
        f"{STAGE} --budget 20 --stage 2/2 --before stage1 -o stage2",
    ),
    "as in kd data check train.jsonl": typed("data check", "data check d.jsonl"),
    "give --student, or --teacher": typed(
        "data score --data d.jsonl --device cpu -o scored --by length", f"{SCORE} --by length"
    ),
    "give --keep, or --low and --high": typed(
        f"{SCORE} --by length --keep 0.5 --low 0.1", f"{SCORE} --by length --keep 0.5"
    ),
    "give a --low below --high": typed(
        f"{SCORE} --by length --low 0.8 --high 0.5", f"{SCORE} --by length --low 0.5 --high 0.8"
    ),
    "give one of them, or --metric {}": typed(
        f"{PLAN} --teacher 0.5*t+0.5*t2 --eval-data e.jsonl --metric on_policy_kl,perplexity",
        f"{PLAN} --eval-data e.jsonl --metric on_policy_kl,perplexity --max-new-tokens 8",
        f"{PLAN} --teacher 0.5*t+0.5*t2 --eval-data e.jsonl --metric {{0}}",
        before=lambda home, patch: shutil.copytree(home / "t", home / "t2"),
    ),
    "give one, such as -o report.html": typed("report run run", "report run -o report.html"),
    "make it with: kd eval {} --data test.jsonl": typed(
        "compare run bare", "eval bare --data d.jsonl --device cpu --metric perplexity"
    ),
    # ---- flags
    "add --data": typed(
        f"eval s --edge --limit 2 --device cpu {EDGE}", f"eval s --edge --limit 2 --data d.jsonl --device cpu {EDGE}"
    ),
    "add --eval-data": typed(
        f"{CACHE} --eval-limit 2 --dry-run", f"{CACHE} --eval-limit 2 --dry-run --eval-data e.jsonl"
    ),
    "add --gpus N": typed(f"{PLAN} --shard fsdp2", f"{PLAN} --shard fsdp2 --gpus 2"),
    "add --server-url": typed(
        f"{MEASURED} --server-model toy",
        f"eval --data d.jsonl --metric rougeL --server-model toy {SERVED}",
    ),
    "give --student tiny:kind=bow, or a classifier's folder": typed(
        f"{TRAIN} --task class -o new", f"{CLASSES} --task class -o new", before=LABELS
    ),
    "leave --task out, or give a language model as --student": typed(
        f"{CLASSES} --task text -o new", f"{CLASSES} -o new", f"{TRAIN} --task text -o newer", before=LABELS
    ),
    "add --to": typed("compare study --label x", "compare study --label x --to t.tex"),
    "give --to table.tex": typed("compare study --label x --to t.csv", "compare study --label x --to table.tex"),
    "give one, such as -o cache": typed(lambda: cache(_settings(CacheConfig), silent), f"{CACHE} -o cache"),
    "give one, such as -o runs/akl": typed(lambda: distill(_settings(DistillConfig), silent), f"{TRAIN} -o runs/akl"),
    "give one, such as -o study": typed(lambda: compare(_settings(CompareConfig), silent), f"{COMPARE} -o study2"),
    "give one, such as -o text": typed(
        lambda: generate(_settings(GenerateConfig), silent), f"{WRITE} --limit 2 -o text"
    ),
    "give -o FOLDER": typed(
        lambda: judge(JudgeConfig(answers="judged.jsonl", server=ServerConfig(url="http://127.0.0.1:9/v1")), silent),
        f"judge judged.jsonl --server-url URL/judge/v1 {ASKED} --set max_tokens=1024 -o judged",
    ),
    "give its folder alone: kd compare STUDY {}": typed("compare fkl rkl --status", "compare study {0}"),
    "give its folder: kd compare STUDY --status": typed("compare --status", "compare study --status"),
    "give a folder of kd compare -o, or of kd distill": typed(
        "report s -o r.html", "report study -o r.html", "report run -o r.html"
    ),
    "give a folder that kd compare -o wrote": typed(lambda: read_study(Path("run")), "compare study --status"),
    "give a folder that kd compare wrote": typed(lambda: read_tidy(Path("run")), "compare study --to t.csv"),
    "give a folder that kd distill wrote": typed("rerun s -o again", f"{TRAIN} -o fresh", "rerun fresh -o again"),
    "give a model, a run, or --predictions": typed(
        lambda: evaluate_run(EvalConfig(), silent), MEASURED, "eval --predictions p.jsonl --metric em"
    ),
    "give development rows: --set data.dev=FILE": typed(
        f"plan {RUN} --data odd.jsonl --columns prompt=ask,completion=say --set data.dev_share=0.5 --eval-every 1",
        f"plan {RUN} --data odd.jsonl --columns prompt=ask,completion=say --set data.dev=odd.jsonl --eval-every 1",
    ),
    "kd metrics list shows them": typed(
        f"{COMPARE} --tune lr=1e-4,3e-4 --dev-data d.jsonl --tune-by xyzzy", "metrics list"
    ),
    "add --executor slurm": typed(f"{NEW} --slurm cluster=local", f"{COMPARE} --slurm cluster=local --executor slurm"),
    "add --executor ray": typed(f"{NEW} --ray-address auto", f"{COMPARE} --ray-address auto --executor ray"),
    "if you trust it add --ray-address {}": typed(
        f"{COMPARE} -c ray.yaml",
        f"{COMPARE} -c ray.yaml --ray-address {{0}}",
        before=write("ray.yaml", "execution: {executor: ray, ray_address: auto}\n"),
    ),
    "leave --executor out, or use --executor local": typed(
        f"{NEW} --jobs 2 --executor inline", f"{COMPARE} --jobs 2", f"{COMPARE} --jobs 2 --executor local"
    ),
    "run this on a login node, or try --slurm cluster=local": typed(
        f"{NEW} --executor slurm",
        f"{COMPARE} --executor slurm --slurm cluster=local",
        before=lambda home, patch: patch.setattr(shutil, "which", lambda name: None),
    ),
    "leave --gpus out under a launcher": typed(
        f"{TRAIN} --gpus 3 -o three",
        f"{TRAIN} -o three",
        before=environ(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0"),
        mended=undone,
    ),
    # ---- federations
    "give one, such as --clients 8": typed(f"{FEDERATE} -o f", f"{FEDERATE} --clients 2 -o f"),
    "add --lora 8, or leave it out": typed(
        f"{FEDERATE} --clients 2 --lora-mean product -o f",
        f"{FEDERATE} --clients 2 --lora-mean product --lora 8 -o f",
        f"{FEDERATE} --clients 2 -o f2",
    ),
    "leave it out, or give --lora-mean freeze_a": typed(
        f"{FEDERATE} --clients 2 --lora 8 --set lora.freeze_a=true -o f",
        f"{FEDERATE} --clients 2 --lora 8 --lora-mean freeze_a -o f",
    ),
    "leave --server out, or give --lora-mean factors": typed(
        f"{FEDERATE} --clients 2 --lora 8 --lora-mean exact --server fedadam -o f",
        f"{FEDERATE} --clients 2 --lora 8 --lora-mean exact -o f",
        f"{FEDERATE} --clients 2 --lora 8 --lora-mean factors --server fedadam -o f2",
    ),
    "leave --clients out": typed(
        f"{FEDERATE.replace('d.jsonl', 'kinds.jsonl')} --split column:kind --clients 3 -o f",
        f"{FEDERATE.replace('d.jsonl', 'kinds.jsonl')} --split column:kind -o f",
        before=rows("kinds.jsonl", *({"prompt": "a", "completion": "b", "kind": kind} for kind in "xy")),
    ),
    "give one, such as -o federation": typed(
        lambda: federate(_settings(FederateConfig), silent), f"{FEDERATE} --clients 2 -o f"
    ),
    "give --rounds {}, or choose another -o": typed(
        f"{FEDERATE} --clients 2 -o f",
        f"{FEDERATE.replace('--rounds 1', '')} --clients 2 -o f --rounds {{0}}",
        f"{FEDERATE} --clients 2 -o f2",
        before=lines(f"{FEDERATE.replace('--rounds 1', '--rounds 2')} --clients 2 -o f"),
    ),
    "start kd federate once; --gpus N gives each run of a client N processes": typed(
        f"{FEDERATE} --clients 2 -o f",
        f"{FEDERATE} --clients 2 -o f --gpus 1",
        before=environ(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0"),
        mended=undone,
    ),
    "start kd compare once; --gpus N gives each run N processes": typed(
        NEW, f"{COMPARE} --gpus 2", before=environ(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0"), mended=undone
    ),
    "use --set hardware.shard=ddp, which keeps every model whole": typed(
        f"{PLAN} --gpus 2 --shard fsdp2 --loss fkl+hidden",
        f"{PLAN} --gpus 2 --loss fkl+hidden --set hardware.shard=ddp",
    ),
    "leave hardware.compile out": typed(
        f"{PLAN} --loss fkl+hidden --set hardware.compile=true", f"{PLAN} --loss fkl+hidden"
    ),
    "install one, such as g++ with Python's headers, name it in CXX, or leave hardware.compile out": typed(
        f"{TRAIN} -o compiled --set hardware.compile=true", f"{TRAIN} -o compiled", before=environ(CXX="/nowhere/g++")
    ),
    "name linear layers below the head, such as q_proj,v_proj, or leave lora.targets out": typed(
        f"{TRAIN} --lora 4 --set lora.targets=xyzzy -o l",
        f"{TRAIN} --lora 4 --set lora.targets=q_proj,v_proj -o l",
        f"{TRAIN} --lora 4 -o m",
    ),
    "make it work in Python first, or leave train.report_to out": typed(
        f"{TRAIN} -o told --set train.report_to=tensorboard",
        f"{TRAIN} -o told",
        before=lambda home, patch: patch.setattr("accelerate.Accelerator.init_trackers", _fails),
    ),
    "lower --lr, or look at those rows; the last checkpoint is intact": typed(
        f"distill {RUN} --max-steps 3 --lr 1e30 -o far", f"distill {RUN} --max-steps 3 --lr 1e-4 -o near"
    ),
    "add perplexity to monitor.metrics": typed(
        f"{PLAN} --loss fkl@replay:score=xyzzy --eval-every 1 --eval-data e.jsonl --set monitor.metrics=rougeL",
        f"{PLAN} --loss fkl@replay --eval-every 1 --eval-data e.jsonl --set monitor.metrics=rougeL,perplexity",
    ),
    "give --set data.corpus=FILE": typed(
        f"{PLAN} --loss minillm@rollout:corpus=1",
        f"{PLAN} --loss minillm@rollout:corpus=1 --set data.corpus=d.jsonl",
    ),
    # ---- rows and templates
    "{}--columns {}=NAME": typed(
        f"{PLAN} --data odd.jsonl --columns prompt=asks,completion=say",
        f"{PLAN} --data odd.jsonl --columns prompt=ask,completion=say",
    ),
    "rename the column, or --columns {}={}": typed(
        f"{PLAN} --data near.jsonl",
        f"{PLAN} --data near.jsonl --columns {{0}}={{1}}",
        before=rows("near.jsonl", {"prompt": "a", "completions": "b"}),
    ),
    "did you mean --columns {}?": typed(
        f"{PLAN} --data near.jsonl",
        f"{PLAN} --data near.jsonl --columns {{0}}",
        before=rows("near.jsonl", {"promptt": "a", "completionn": "b"}),
    ),
    "use --template plain or auto": typed(
        f"{PLAN} --data text.jsonl --template alpaca",
        f"{PLAN} --data text.jsonl --template plain",
        f"{PLAN} --data text.jsonl --template auto",
        before=rows("text.jsonl", {"text": "say a: aa."}),
    ),
    "do not use this tokenizer's template; --template alpaca or plain": typed(
        f"{PLAN} --data chat.jsonl",
        f"{PLAN} --data chat.jsonl --template plain",
        before=both(chat_template(TAKES_ALL), rows("chat.jsonl", TALK)),
    ),
    "use another template, such as --template alpaca or plain": typed(
        f"{PLAN} --data chat.jsonl",
        f"{PLAN} --data chat.jsonl --template plain",
        before=both(chat_template("{{ messages | length }}"), rows("chat.jsonl", TALK)),
    ),
    "repair the turns, leave the row out, or use --template plain": typed(
        f"{PLAN} --data chat.jsonl",
        f"{PLAN} --data chat.jsonl --template plain",
        f"{PLAN} --data chat.jsonl --skip-bad",
        before=both(
            chat_template("{% if messages | length > 2 %}{{ raise_exception('alternate') }}{% endif %}" + BARE_CHAT),
            rows("chat.jsonl", TALK, {"messages": TALK["messages"] * 2}),
        ),
    ),
    "let text follow the reasoning, or use --template plain": typed(
        f"{PLAN} --data chat.jsonl",
        f"{PLAN} --data chat.jsonl --template plain",
        f"{PLAN} --data mended.jsonl",
        before=both(
            chat_template(THOUGHTS),
            rows("chat.jsonl", _talk("<think>so</think>")),
            rows("mended.jsonl", _talk("<think>so</think>b")),
        ),
    ),
    "take it out, give it the name that the template reads, or leave such rows out with --skip-bad": typed(
        f"{PLAN} --data chat.jsonl",
        f"{PLAN} --data chat.jsonl --skip-bad",
        f"{PLAN} --data mended.jsonl",
        before=both(
            chat_template(BARE_CHAT),
            rows("chat.jsonl", TALK, {"messages": [{**TALK["messages"][0], "name": "x"}, TALK["messages"][1]]}),
            rows("mended.jsonl", TALK, TALK),
        ),
    ),
    # ---- lengths
    "set data.max_length to at most {}": typed(
        f"{TRAIN} --data long.jsonl --max-length 400 -o long",
        f"{TRAIN} --data long.jsonl -o long --set data.max_length={{0}}",
        before=wrong("long_rows"),
    ),
    "set data.max_prompt_length below {}": typed(
        f"{WRITE} --data long.jsonl --max-length 400 -o text",
        f"{WRITE} --data long.jsonl --max-length 400 --set data.max_prompt_length=20 -o text",
        before=rows("long.jsonl", {"prompt": "a" * 128}, {"prompt": "a"}),
    ),
    "set data.max_prompt_length={}": typed(
        "eval s --teacher t --data more.jsonl --device cpu --metric on_policy_kl --max-new-tokens 20",
        "eval s --teacher t --data more.jsonl --device cpu --metric on_policy_kl --max-new-tokens 20"
        " --set data.max_prompt_length={0}",
        before=rows("more.jsonl", {"prompt": "a" * 115, "completion": "b"}, {"prompt": "a", "completion": "b"}),
    ),
    "set a smaller --max-new-tokens": typed(
        "eval s --teacher t --data e.jsonl --device cpu --metric on_policy_kl --max-new-tokens 128",
        "eval s --teacher t --data e.jsonl --device cpu --metric on_policy_kl --max-new-tokens 8",
    ),
    "lower edge.prompt_tokens and edge.new_tokens": typed(
        "eval s --edge --device cpu --set edge.prompt_tokens=120 --set edge.new_tokens=20",
        f"eval s --edge --device cpu {EDGE}",
    ),
    "leave --edge out": typed(
        f"eval gpt --edge --device cpu {EDGE}",
        "eval gpt --data e.jsonl --device cpu --metric perplexity",
        before=lambda home, patch: tiny.folder(home / "gpt", "openai-gpt", n_embd=16, n_layer=1, n_head=2),
    ),
    "leave it out; a protocol sets data.template, the lengths and evaluation.*": typed(
        f"{MEASURED} --protocol lab.yaml",
        f"{MEASURED} --protocol lab.yaml",
        before=write("lab.yaml", "data: {max_length: 16, limit: 2}\n"),
        mended=write("lab.yaml", "data: {max_length: 16}\n"),
    ),
    "set something, such as evaluation.generation.temperature": typed(
        f"{MEASURED} --protocol lab.yaml",
        f"{MEASURED} --protocol lab.yaml",
        before=write("lab.yaml", "\n"),
        mended=write("lab.yaml", "evaluation: {generation: {temperature: 0.5}}\n"),
    ),
    # ---- the teacher's cache
    "make one with kd cache": typed(f"{PLAN} --teacher-cache new", f"{CACHE} -o new", f"{PLAN} --teacher-cache new"),
    "add them: kd cache with the same rows, template and length": typed(
        f"{TRAIN} --data more.jsonl --teacher-cache c -o more",
        "cache --teacher t --data more.jsonl --device cpu -o c",
        f"{TRAIN} --data more.jsonl --teacher-cache c -o more",
        before=rows("more.jsonl", {"prompt": "never", "completion": "seen"}),
    ),
    "build another with kd cache, or leave the teacher cache out": typed(
        f"{PLAN} --max-length 77 --teacher-cache c",
        f"{CACHE} --max-length 77 -o c77",
        f"{PLAN} --max-length 77 --teacher-cache c77",
        f"{PLAN} --max-length 77",
    ),
    "make it again with the same kd cache line": typed(
        f"{PLAN} --teacher-cache c",
        f"{CACHE} -o c",
        f"{PLAN} --teacher-cache c",
        before=wrong("cache_key_that_is_no_json"),
    ),
    "choose another -o": typed(f"{CACHE} -o s", f"{CACHE} -o c2"),
    "free space; kd cache --store-dtype bf16 or --kind compact keeps less": typed(
        f"{CACHE} -o c3",
        f"{CACHE} --kind compact --top-k 4 -o c3",
        before=lambda home, patch: patch.setattr(shutil, "disk_usage", lambda place: _Usage(5000)),
    ),
    "leave --teacher-cache out, or leave the source out": typed(
        f"{PLAN} --teacher-cache c --loss fkl@student",
        f"{PLAN} --loss fkl@student",
        f"{PLAN} --teacher-cache c --loss fkl",
    ),
    "leave --teacher-cache out: the teacher runs with the student": typed(
        f"{PLAN} --loss uld --teacher-cache c", f"{PLAN} --loss uld", before=wrong("other_tokenizer")
    ),
    "wait for it to end, or choose another -o": typed(
        f"{TRAIN} -o fresh", f"{TRAIN} -o bare2", f"{TRAIN} -o fresh", before=busy, mended=free
    ),
    # ---- runs and studies
    "choose another -o; filters may change": typed(
        f"{WRITE} --limit 2 -o text --source teacher:max_new_tokens=3",
        f"{WRITE} --limit 2 -o text2 --source teacher:max_new_tokens=3",
        before=lines(f"{WRITE} --limit 2 -o text"),
    ),
    "use that version, or choose another -o": typed(
        f"{BARE} --resume auto",
        f"{TRAIN} -o bare2",
        before=lambda home, patch: edit_json(home / "bare" / "manifest.json", schema=99),
    ),
    "repeat the settings of config.yaml there, or choose another -o": typed(
        f"{RUN6} --loss rkl -o run",
        f"{RUN6} -o run",
        f"{RUN6} --loss rkl -o another",
        before=both(lambda home, patch: shutil.rmtree(home / "run"), wrong("stopped_run")),
    ),
    "restore the file; settings changed on purpose belong in a copy elsewhere, given with -c": typed(
        "distill -c bare/config.yaml -o bare",
        "distill -c mine.yaml -o bare3",
        "distill -c bare/config.yaml -o bare",
        before=changed("bare/config.yaml"),
        mended=both(
            lambda home, patch: shutil.copy(home / "bare" / "config.yaml", home / "mine.yaml"),
            restored("bare/config.yaml"),
        ),
    ),
    "restore it, or repeat the command line; where it was changed on purpose, copy it and give the copy with -c": typed(
        "compare -o study",
        STUDY,
        before=changed("study/study.yaml"),
    ),
    "start the comparison again with kd compare -c {}: finished runs are kept": typed(
        "report study -o r.html",
        "compare -c {0} -o study",
        "report study -o r.html",
        before=damaged("study/study.json"),
    ),
    "make it with kd compare": typed("report study -o r.html", STUDY, "report study -o r.html", before=metadata(None)),
    "make it again with kd compare": typed(
        "report study -o r.html", STUDY, "report study -o r.html", before=metadata(b'{"schema": 99}')
    ),
    "make it with kd eval": typed(
        lambda: read_results(Path("s")), "eval s --data e.jsonl --device cpu --metric perplexity -o s"
    ),
    "restore its inputs; to compare two different runs use kd compare": typed(
        "rerun bare -o again",
        "rerun bare -o again",
        "compare run other",
        before=changed("d.jsonl", '{"prompt": "one more", "completion": "b"}\n'),
        mended=restored("d.jsonl"),
    ),
    "compare runs made alike, or train them together with kd compare OBJECTIVE ...": typed(
        "compare run third",
        "compare run other",
        f"{COMPARE} -o alike",
        before=lines(f"distill {RUN} --max-steps 1 --eval-data e.jsonl --metric perplexity --loss rkl -o third"),
    ),
    "give the rows with --eval-data, or measure the model alone with kd eval": typed(
        "compare run other s",
        "compare run other s --eval-data moved.jsonl",
        MEASURED,
        before=lambda home, patch: (home / "e.jsonl").rename(home / "moved.jsonl"),
    ),
    "give the runs' rows with --eval-data": typed(
        "compare run other s --eval-data d.jsonl", "compare run other s --eval-data e.jsonl"
    ),
    "evaluate again with kd eval": typed(
        lambda: read_curves(Path()),
        "eval run --data e.jsonl --device cpu --metric ece",
        before=write("curves.json", "["),
    ),
    # ---- judges
    "make answers first: kd eval MODEL --data FILE --metric rougeL -o FOLDER": typed(
        "judge s --scores scores.jsonl",
        "eval s --data e.jsonl --metric rougeL --max-new-tokens 4 --device cpu -o said",
        f"judge said --server-url URL/judge/v1 {ASKED} --set max_tokens=1024 -o judged",
    ),
    "evaluate with a metric of texts, such as --metric rougeL": typed(
        "judge run --scores scores.jsonl",
        "eval s --data e.jsonl --metric rougeL --max-new-tokens 4 --device cpu -o said",
        f"judge said --server-url URL/judge/v1 {ASKED} --set max_tokens=1024 -o judged",
    ),
    "read {}; give --set max_tokens=1024, or another --set prompt_file=FILE": typed(
        f"judge judged.jsonl --server-url URL/judge/v1 {ASKED} -o judged",
        f"judge judged.jsonl --server-url URL/judge/v1 {ASKED} -o judged --set max_tokens=1024",
    ),
    # ---- servers
    "choose with --set server.model=NAME": typed(
        f"eval --data e.jsonl --metric rougeL --server-url URL/two/v1 {ASKED}",
        f"eval --data e.jsonl --metric rougeL --server-url URL/two/v1 {ASKED} --set server.model=toy",
    ),
    "raise server.timeout, or lower server.concurrency; {}": typed(
        f"eval --data e.jsonl --metric rougeL --limit 1 --server-url URL/slow/v1 {ASKED} --set server.timeout=0.1",
        f"eval --data e.jsonl --metric rougeL --limit 1 --server-url URL/slow/v1 {ASKED} --set server.timeout=10",
    ),
    "lower server.concurrency, or look at the server's log; {}": typed(
        f"eval --data e.jsonl --metric rougeL --server-url URL/busy/v1 {ASKED}",
        f"eval --data e.jsonl --metric rougeL --server-url URL/busy/v1 {ASKED} --set server.concurrency=1",
    ),
    "give --kind compact": typed(
        f"cache --teacher URL/teach/v1 --student s --data d.jsonl --device cpu {ASKED} -o served",
        f"{SERVED_CACHE} --top-k 4",
    ),
    "kd cache --kind compact with this teacher, --student and --data; then add --teacher-cache": typed(
        f"plan {ASKS}",
        f"{SERVED_CACHE} --top-k 4",
        f"plan {ASKS} --teacher-cache served",
    ),
    "give --metric {}": typed(
        f"plan {ASKS} --loss fkl@student --eval-data e.jsonl --metric kl_to_teacher,rougeL",
        f"plan {ASKS} --loss fkl@student --eval-data e.jsonl --metric {{0}}",
    ),
    "give --set server.send=ids, if the server's tokenizer is the student's": typed(
        f"generate --teacher URL/toy/v1 --student s --source teacher:prompts=bos --count 2 {ASKED} -o text",
        f"generate --teacher URL/toy/v1 --student s --source teacher:prompts=bos --count 2 {ASKED} -o text"
        " --set server.send=ids",
    ),
    # ---- plug-ins
    "read it, and if you trust it add --plugin {}": typed(
        "plan -c mine.yaml",
        "plan -c mine.yaml --plugin {0}",
        before=both(
            plug_in(GOOD),
            write(
                "mine.yaml",
                "teacher: t\nstudent: s\ndata: {train: d.jsonl}\nhardware: {device: cpu}\nloss: ./mine.py:Mine\n",
            ),
        ),
    ),
    "give them, or --set data.train=FILE --set data.dev_share=0.1": typed(
        f"{MEASURED} --set evaluation.split=dev",
        f"{MEASURED} --set evaluation.split=dev --set data.train=d.jsonl --set data.dev_share=0.2",
        f"{MEASURED} --set evaluation.split=dev --dev-data e.jsonl",
    ),
    "serve a teacher of the student's tokenizer, ask for fewer tokens (--set server.top_k=N, of a cache "
    "--set top_k=N), or start vLLM with --max-logprobs": typed(
        f"{SERVED_CACHE} --top-k 30",
        f"{SERVED_CACHE} --set top_k=4",
        f"distill {ASKS} --loss fkl@student:max_new_tokens=4 --max-steps 1 -o asked --set server.top_k=5",
    ),
    "check --set server.model=NAME and lengths": typed(
        f"eval --data e.jsonl --metric rougeL --server-url URL/strict/v1 {ASKED} --set server.model=other",
        f"eval --data e.jsonl --metric rougeL --server-url URL/strict/v1 {ASKED} --set server.model=toy",
    ),
    "check the address (it often ends in /v1) and --set server.model=NAME": typed(
        f"eval --data e.jsonl --metric rougeL --server-url URL/absent/v1 {ASKED} --set server.model=toy",
        f"eval --data e.jsonl --metric rougeL --server-url URL/strict/v1 {ASKED} --set server.model=toy",
    ),
    "correct the plug-in; kd losses check {} says more": typed(
        f"{TRAIN} --loss ./mine.py:Mine -o mine",
        "losses check {0}",
        f"{TRAIN} --loss ./mine.py:Mine -o mine",
        before=plug_in("return tok.student.sum()"),
        mended=plug_in(GOOD),
    ),
    "correct the plug-in; --debug shows the traceback": typed(
        f"{TRAIN} --loss ./mine.py:Mine -o mine",
        f"{TRAIN} --loss ./mine.py:Mine -o mine --debug",
        before=plug_in(LATER.replace("FAULT", "1 / 0")),
        mended=plug_in(GOOD),
    ),
    "return [t] values, not their mean; kd losses check finds such mistakes": typed(
        f"{TRAIN} --loss ./mine.py:Mine -o mine",
        "losses check ./mine.py:Mine",
        f"{TRAIN} --loss ./mine.py:Mine -o mine",
        before=plug_in(LATER.replace("FAULT", "return tok.student.mean()")),
        mended=plug_in(GOOD),
    ),
    "build it for these rows with kd cache, or leave the teacher cache out": typed(
        lambda: TokenStore(Path("c")).read(["never"], ["ids"]), f"{CACHE} -o new", f"{PLAN} --teacher-cache new", PLAN
    ),
    "repeat it with: kd distill -c {} -o {}": typed(
        "rerun two -o again", "distill -c {0} -o {1}", before=lines(f"{TRAIN} --gpus 2 -o two")
    ),
}
"""Fix -> what is typed."""
