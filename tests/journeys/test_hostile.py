"""Whatever a folder, a row, a setting or a server holds: no code of it is run, and nothing leaves the output folder."""

import shutil

import pytest

import hostile
from hostile import (
    RUN,
    TRAIN,
    Hostile,
    adapter,
    both,
    code_beside,
    complaint,
    fifo,
    header,
    in_teacher,
    link,
    pickled,
    record,
    sharded,
    teacher,
    template,
    text,
    tokenizer,
    torch_pickled,
    without,
)  # fmt: skip
from kdcli.storage.atomic import MANIFEST
from shell import kd
from wrong import edit_json

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

CHAT = TRAIN.replace("train.jsonl", "chat.jsonl")
ASK = "--set server.model=m --set server.timeout=3 --set server.retries=1 --set server.wait=0.01"
GENERATE = f"generate --teacher URL --student student {ASK} --data train.jsonl -o out/text --device cpu"
AGAIN = f"{TRAIN} --eval-data test.jsonl --metric perplexity"
ROWS = TRAIN.replace("train.jsonl", "rows.jsonl")
SCORE = "eval out/run --data test.jsonl --metric perplexity --device cpu"
YAML = "distill -c run.yaml -o out/run"
OTHER = "verify out/run"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SLOW = {"type": "Split", "pattern": {"Regex": "^(a|a?)+$"}, "behavior": "Isolated", "invert": False}
GROWING = {
    "type": "Sequence",
    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}] * 7,
}
CODE_MAP = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
LONG = 2**40


def nothing(home):
    """Leave the folder as it is: what is hostile is somewhere else."""


def ninefold(one, other):
    return f"{other}: &{other} [{','.join([f'*{one}'] * 9)}]\n"


def tokenizer_config(**changes):
    return lambda home: edit_json(home / "teacher" / "tokenizer_config.json", **changes)


CASES = {
    # model folders
    "code of an unknown kind": Hostile(code_beside("evil.py", teacher(model_type="evil", auto_map=CODE_MAP))),
    "code of a known kind": Hostile(code_beside("evil.py", teacher(auto_map=CODE_MAP)), codes=(0, 3)),
    "code of a tokenizer": Hostile(
        code_beside("evil.py", tokenizer_config(auto_map=CODE_MAP, tokenizer_class="Evil")), codes=(0, 3)
    ),
    "code of generation": Hostile(
        code_beside("custom_generate/generate.py", in_teacher("generation_config.json", '{"custom_generate": "."}')),
        codes=(0, 3),
    ),
    "code of another repository": Hostile(
        teacher(auto_map={"AutoModelForCausalLM": "evil/repo--evil.Evil"}), codes=(0, 3)
    ),
    "kernels of another repository": Hostile(teacher(_attn_implementation="evil/kernels:attend"), codes=(0, 3)),
    "experts of another repository": Hostile(teacher(_experts_implementation="evil/kernels:experts"), codes=(0, 3)),
    "a path as kind": Hostile(teacher(model_type="../../private/diary")),
    "a name of code as type": Hostile(teacher(dtype="os.system", torch_dtype="os.system"), codes=(0, 3)),
    "a quantizer": Hostile(teacher(quantization_config={"quant_method": "gptq", "bits": 4, "dataset": "evil/repo"})),
    "a pickle alone": Hostile(without("model.safetensors", pickled("pytorch_model.bin"))),
    "a zipped pickle alone": Hostile(without("model.safetensors", torch_pickled("pytorch_model.bin"))),
    "a pickle beside": Hostile(pickled("pytorch_model.bin"), codes=(0,)),
    "pickles of training beside": Hostile(both(pickled("training_args.bin"), pickled("optimizer.pt")), codes=(0,)),
    "an index of pickles": Hostile(
        without(
            "model.safetensors",
            both(pickled("a.bin"), in_teacher("pytorch_model.bin.index.json", '{"weight_map": {"x": "a.bin"}}')),
        )
    ),
    "a shard outside": Hostile(sharded("../private/weights.safetensors")),
    "a shard at the root": Hostile(sharded("HOME/private/weights.safetensors")),
    "a config without end": Hostile(link("teacher/config.json", "/dev/zero")),
    "a config that is a pipe": Hostile(fifo("teacher/config.json")),
    "weights that are a pipe": Hostile(fifo("teacher/model.safetensors")),
    "weights without end": Hostile(link("teacher/model.safetensors", "/dev/zero")),
    "ten million layers": Hostile(teacher(num_hidden_layers=10**7)),
    "a huge width": Hostile(teacher(hidden_size=2**31)),
    "a huge vocabulary": Hostile(teacher(vocab_size=2**40)),
    "a config nested deep": Hostile(in_teacher("config.json", "[" * 200_000)),
    "a config of 70 MB": Hostile(in_teacher("config.json", b"{" + b" " * (70 * 2**20) + b"}")),
    "a header of a terabyte": Hostile(header({}, LONG)),
    "overlapping tensors": Hostile(
        header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")})
    ),
    "a tensor beyond the end": Hostile(
        header({"model.embed_tokens.weight": {"dtype": "F32", "shape": [2**30, 2**10], "data_offsets": [0, 2**42]}})
    ),
    "a rotation of text": Hostile(teacher(rope_scaling={"rope_type": "evil", "factor": "9" * 5000}), codes=(0, 3)),
    "an adapter of a hub's model": Hostile(adapter(base_model_name_or_path="evil/repo"), codes=(3, 4)),
    "an adapter of an address": Hostile(adapter(base_model_name_or_path="http://127.0.0.1:9/model"), codes=(3, 4)),
    "an adapter with code": Hostile(
        adapter(base_model_name_or_path="teacher", auto_mapping={"base_model_class": "system", "parent_library": "os"}),
        codes=(0, 3),
    ),
    "a name with escapes": Hostile(
        lambda home: (home / "teacher").rename(home / "\x1b[31mteacher"),
        TRAIN.replace(" teacher", " '\x1b[31mteacher'"),
        codes=(0, 3),
    ),
    # tokenizers and templates
    **{
        f"a template that reaches {name}": Hostile(template(content), CHAT)
        for name, content in {
            "classes": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
            "globals": "{{ cycler.__init__.__globals__.os.system('true') }}",
            "attributes by a filter": "{{ (messages|attr('__class__')).__mro__ }}",
            "a module": "{{ namespace.__init__.__globals__['os'].popen('true').read() }}",
            "classes by a format": "{{ '{0.__class__.__mro__.x}'.format(messages) }}",
            "a file": "{% include '/etc/passwd' %}",
            "a file by import": "{% import '/etc/passwd' as x %}{{ x }}",
        }.items()
    },
    "a template without end": Hostile(template(ENDLESS), CHAT),
    "a template of three gigabytes": Hostile(template("{{ 'x' * 3000000000 }}"), CHAT),
    "a template with escapes": Hostile(template("{{ raise_exception('\x1b[31mred') }}"), CHAT),
    "a splitter without end": Hostile(
        both(
            tokenizer(pre_tokenizer=SLOW),
            text("rows.jsonl", '{"prompt": "%s", "completion": "b"}\n' % ("a" * 40 + "b")),
        ),
        ROWS,
        codes=(0, 3),
    ),
    "a normalizer that grows": Hostile(tokenizer(normalizer=GROWING)),
    "a tokenizer nested deep": Hostile(in_teacher("tokenizer.json", '{"a":' * 100_000)),
    "a tokenizer without end": Hostile(link("teacher/tokenizer.json", "/dev/zero")),
    # rows
    "a pickle as rows": Hostile(
        lambda home: hostile.pickled("rows.pkl")(home), ROWS.replace("rows.jsonl", "teacher/rows.pkl")
    ),
    "a page as rows": Hostile(nothing, ROWS.replace("rows.jsonl", "http://127.0.0.1:9/rows.jsonl")),
    "a script as rows": Hostile(
        lambda home: text("scripted/scripted.py", hostile.wrote(home))(home), ROWS.replace("rows.jsonl", "scripted")
    ),
    "rows without end": Hostile(link("rows.jsonl", "/dev/zero"), ROWS),
    "rows that are a pipe": Hostile(fifo("rows.jsonl"), ROWS),
    "rows nested deep": Hostile(text("rows.jsonl", '{"prompt": ' + "[" * 100_000 + "\n"), ROWS),
    "rows with escapes": Hostile(text("rows.jsonl", '{"\\u001b[31m": 1}\n'), ROWS),
    "rows that unpack to gigabytes": Hostile(hostile.parquet_bomb, ROWS.replace("jsonl", "parquet")),
    "rows zipped small": Hostile(hostile.zipped_rows, ROWS.replace("jsonl", "jsonl.gz")),
    "formulas in a table": Hostile(
        text("rows.csv", "prompt,completion\n=cmd|' /C calc'!A0,b\n"), ROWS.replace("jsonl", "csv"), codes=(0,)
    ),
    # settings
    "settings that make objects": Hostile(text("run.yaml", "loss: !!python/object/apply:os.system ['true']\n"), YAML),
    "settings that multiply": Hostile(
        text("run.yaml", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(map(ninefold, "abcdefgh", "bcdefghi"))), YAML
    ),
    "settings without end": Hostile(link("run.yaml", "/dev/zero"), YAML),
    # runs
    "a log that is a link": Hostile(
        link(f"{RUN}/error.log", "private/diary.txt"), f"{AGAIN} --lr 7", codes=(8,), trained=True
    ),
    "a record that is a link": Hostile(
        link(f"{RUN}/status.json", "private/diary.txt"), AGAIN, codes=(3, 6, 8), trained=True
    ),
    "a lock that is a link": Hostile(
        link(f"{RUN}/.lock", "private/diary.txt"), AGAIN, codes=(0, 3, 4, 5, 6), trained=True
    ),
    "metrics that are a link": Hostile(
        link(f"{RUN}/metrics.jsonl", "private/diary.txt"), OTHER, codes=(3, 6), trained=True
    ),
    "metrics that are a link, reported": Hostile(
        link(f"{RUN}/metrics.jsonl", "private/diary.txt"),
        "report out/run -o out/page.html",
        codes=(0, 3, 6),
        trained=True,
    ),
    "a model that is a link": Hostile(link(f"{RUN}/model", "private"), OTHER, codes=(3, 6), trained=True),
    "a model that is a link, evaluated": Hostile(link(f"{RUN}/model", "private"), SCORE, codes=(3, 6), trained=True),
    "a model that is a pickle": Hostile(hostile.evil_checkpoint, SCORE, codes=(3, 6), trained=True),
    "a record that leads outside": Hostile(
        record(f"model/{MANIFEST}", files={"../../../private/diary.txt": {"size": 1, "sha256": "0"}}),
        OTHER,
        codes=(3, 6),
        trained=True,
    ),
    "a run that is a link": Hostile(
        lambda home: (shutil.rmtree(home / RUN), (home / RUN).symlink_to(home / "private")),
        TRAIN,
        codes=(3, 4),
        trained=True,
    ),
    "leftovers that are links": Hostile(
        link(f"{RUN}/.tmp-1-abc", "private"), "clean out/run", codes=(0, 3), trained=True
    ),
    "settings of a run that make objects": Hostile(
        text(f"{RUN}/config.yaml", "loss: !!python/object/apply:os.system ['true']\n"),
        "rerun out/run -o out/again",
        codes=(3, 6),
        trained=True,
    ),
    "a study that is a link": Hostile(
        both(text("private/study.json", '{"schema": 1}'), link("out/study/study.json", "private/study.json")),
        "compare out/study --status",
        codes=(6,),
    ),
    # servers
    "a server that leads elsewhere": Hostile(nothing, GENERATE, (3, 4), hostile.redirected),
    "a server that leads to a file": Hostile(nothing, GENERATE, (3, 4), hostile.to_a_file),
    "a server that drips": Hostile(nothing, GENERATE, (3, 4), hostile.dripping),
    "a server without measure": Hostile(nothing, GENERATE, (3, 4), hostile.huge),
    "a server's packed bomb": Hostile(nothing, GENERATE, (3, 4), hostile.bomb),
    "a server that nests deep": Hostile(nothing, GENERATE, (3, 4), hostile.deep),
    "a server of other kinds": Hostile(nothing, GENERATE, (3, 4), hostile.other_kinds),
    "a server with escapes": Hostile(nothing, GENERATE, (0, 3), hostile.escapes),
    "a server with cookies": Hostile(nothing, GENERATE, (0,), hostile.cookie),
    "a server that refuses at length": Hostile(nothing, GENERATE, (3, 4), hostile.refused),
    "a server that lets wait": Hostile(nothing, GENERATE, (3, 4), hostile.wait_long),
}
SAMPLE = (
    "code of an unknown kind", "a zipped pickle alone", "a config that is a pipe", "a template that reaches globals",
    "a record that is a link", "a model that is a link, evaluated", "a server that leads elsewhere",
)  # fmt: skip


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    bare = hostile.base(tmp_path_factory.mktemp("hostile"))
    trained = shutil.copytree(bare, tmp_path_factory.mktemp("trained") / "home")
    answer = kd(*TRAIN.split(), "--eval-data", "test.jsonl", "--metric", "perplexity", "--quiet", folder=trained)
    assert answer.code == 0, answer.err
    return {False: bare, True: trained}


def check(name, homes, tmp_path):
    case = CASES[name]
    home = shutil.copytree(homes[case.trained], tmp_path / "home", symlinks=True)
    case.make(home)
    assert complaint(home, case) == ""


@pytest.mark.parametrize("name", SAMPLE)
def test_some_hostile_inputs_do_nothing(name, homes, tmp_path):
    check(name, homes, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in CASES if name not in SAMPLE])
def test_hostile_inputs_do_nothing(name, homes, tmp_path):
    check(name, homes, tmp_path)


def test_there_are_sixty_of_them():
    assert len(CASES) >= 60
    assert set(SAMPLE) < set(CASES)


@pytest.mark.parametrize(
    "deed, seen",
    [
        ("import pickle; pickle.loads(open('teacher/pytorch_model.bin', 'rb').read())", "os.system"),
        ("open('private/diary.txt').read()", "read private/diary.txt"),
        ("open('elsewhere', 'w').close()", "open elsewhere"),
        ("import os; os.remove('train.jsonl')", "os.remove train.jsonl"),
        ("import socket; socket.getaddrinfo('localhost', 80)", "socket.getaddrinfo localhost"),
        ("exec(compile('1', str(__import__('os').getcwd()) + '/evil.py', 'exec'))", "exec "),
        ("while True: pass", "ended with"),
        ("bytearray(2**33)", "MemoryError"),
    ],
)
def test_the_watch_sees(deed, seen, homes, tmp_path, monkeypatch):
    """Each kind of deed that must not be done is reported where it is done."""
    home = shutil.copytree(homes[False], tmp_path / "home")
    pickled("pytorch_model.bin")(home)
    monkeypatch.setattr(hostile, "kd", lambda *command, folder: doing(deed, folder))
    monkeypatch.setattr(hostile, "SECONDS", 1)
    assert seen in complaint(home, Hostile(lambda home: None))


def doing(deed, folder):
    import contextlib

    from shell import Answer

    with contextlib.chdir(folder):
        exec(deed, {})
    return Answer(3, "", "kd: error[X-01]: x. Fix: y")
