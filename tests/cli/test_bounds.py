"""Numbers beyond the machine, beyond arithmetic, and paths that no file system takes."""

import os
import pwd

import pytest

from kdcli.config.resolve import resolve
from kdcli.config.schema import DistillConfig, ServerConfig
from kdcli.distributed import cores
from kdcli.errors import KDError, MachineError, UsageError
from kdcli.losses.build import build_objective
from kdcli.remote.client import Connection
from shell import kd
from tiny import folder, rows

MODELS = "--teacher t --student s --data d.jsonl"
MANY = str(cores() + 1)
LONG = "9" * 399


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("bounds")
    folder(made / "t", seed=1)
    folder(made / "s", seed=2)
    rows(made / "d.jsonl", 8)
    return made


def refused(line, home, code):
    before = sorted(home.rglob("*"))
    answer = kd(*(line.split() if isinstance(line, str) else line), folder=home)
    assert answer.code == code, answer.err
    (said,) = answer.err.splitlines()
    assert len(said) < 1000
    assert sorted(home.rglob("*")) == before
    return said


@pytest.mark.parametrize(
    "line, flag",
    [
        (f"distill {MODELS} --device cpu -o x --gpus 99999", "--gpus"),
        (f"distill {MODELS} --device cpu -o x --gpus {MANY}", "--gpus"),
        (f"distill {MODELS} --device cpu -o x --threads 100000", "--threads"),
        (f"distill {MODELS} --device cpu -o x --threads {MANY}", "--threads"),
        (f"eval s --data d.jsonl --device cpu --threads {MANY} --metric perplexity", "--threads"),
        (f"compare fkl rkl {MODELS} --eval-data d.jsonl --device cpu -o x --jobs {MANY}", "--jobs"),
        (f"compare fkl rkl {MODELS} --eval-data d.jsonl --device cpu -o x --gpus {MANY}", "--gpus"),
    ],
)
def test_more_than_the_machine_has_is_refused(line, flag, home):
    said = refused(line, home, 4)
    assert f"error[HW-01]: {flag}: " in said
    assert f"there are {cores():,} CPU cores. Fix: give {cores():,} at most" in said


def test_connections_are_as_many_as_files_may_be_open():
    url = "http://localhost:8000/v1"
    assert Connection(ServerConfig(url=url, concurrency=8))
    with pytest.raises(MachineError, match="open connections by ulimit -n"):
        Connection(ServerConfig(url=url, concurrency=10**9))


@pytest.mark.parametrize("setting", ["train.max_steps", "train.batch_size", "lora.rank", "data.limit"])
@pytest.mark.parametrize("number", [LONG, str(10**12 + 1), "9" * 5000])
def test_a_whole_number_beyond_any_count_is_refused(setting, number, tmp_path):
    with pytest.raises(UsageError, match="must be"):
        resolve(DistillConfig, sets=[f"{setting}={number}"])
    path = tmp_path / "c.yaml"
    section, _, name = setting.partition(".")
    path.write_text(f"{section}:\n  {name}: {number}\n")
    with pytest.raises(KDError) as caught:
        resolve(DistillConfig, file=path)
    assert caught.value.exit_code == 3
    assert resolve(DistillConfig, sets=[f"{setting}={10**12}"])


@pytest.mark.parametrize(
    "spec",
    ["fkl:temperature=1e300", "akl:temperature=4e38", f"truncated:top_k={LONG}", "tempered:temperature=1e300",
     "fkl+jsd:temperature=1e39"],
)  # fmt: skip
def test_a_number_beyond_float32_is_refused(spec):
    with pytest.raises(UsageError, match="float32"):
        build_objective(spec)


@pytest.mark.parametrize("temperature", ["1e38", "1e-300", "1e-40"])
def test_extreme_temperatures_end_in_numbers_or_in_numerics(temperature, home, tmp_path):
    line = f"distill {MODELS} --device cpu --max-steps 1 --loss fkl:temperature={temperature} -o {tmp_path / 'run'}"
    answer = kd(*line.split(), folder=home)
    assert answer.code in (0, 7), answer.err


PATHS = {
    "5,000 characters": ("x" * 5000, 4, "file name too long"),
    "a name of 300 characters": ("y" * 300, 4, "file name too long"),
    "a file on the way": ("d.jsonl/run", 2, "is not a folder"),
    "a loop of links": ("loop/run", 4, "too many levels of symbolic links"),
    "a user that is not there": ("~nobody-here/x", 2, 'no user "nobody-here" here'),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    "line", [f"distill {MODELS} --device cpu --max-steps 1 -o", "toy fkl rkl -o", "cache --teacher t --data d.jsonl -o"]
)
def test_a_folder_that_cannot_be_is_refused(name, line, home):
    if not (home / "loop").is_symlink():
        (home / "loop").symlink_to("loop")
    path, code, words = PATHS[name]
    before = sorted(home.rglob("*"))
    answer = kd(*line.split(), path, folder=home)
    assert (answer.code, len(answer.error_lines)) == (code, 1), answer.err
    assert words in answer.error_lines[0].lower()
    assert sorted(home.rglob("*")) == before


def test_a_path_with_nul_is_refused(home, tmp_path):
    for text in ("a\0b", "\0"):
        with pytest.raises(UsageError, match="NUL"):
            resolve(DistillConfig, flags={"output": text})
    (tmp_path / "c.yaml").write_text('output: "a\\0b"\n')
    assert kd(*f"distill {MODELS} -c".split(), str(tmp_path / "c.yaml"), folder=home).code == 3


@pytest.mark.parametrize("command", ["toy fkl rkl -o", "report s -o", "rerun s -o", "compare s --to", "demo -o"])
def test_every_folder_to_write_takes_a_user_and_refuses_one_that_is_not_there(command, home):
    assert 'no user "nobody-here" here' in refused([*command.split(), "~nobody-here/x"], home, 2)


def test_a_user_that_is_there_is_their_home(monkeypatch):
    user = pwd.getpwuid(os.getuid())
    assert resolve(DistillConfig, flags={"output": f"~{user.pw_name}/x"}).output == f"{user.pw_dir}/x"


@pytest.mark.parametrize(
    "line",
    [
        "eval s --data d.jsonl --metric ,",
        "eval s --data d.jsonl --set evaluation.metrics=[]",
        "eval --predictions p.jsonl --metric ,,",
        f"distill {MODELS} --eval-data d.jsonl -o x --metric ,",
        f"distill {MODELS} --eval-data d.jsonl -o x --set monitor.metrics=,",
        f"compare fkl rkl {MODELS} --eval-data d.jsonl -o x --metric ,",
        f"distill {MODELS} -o x --set benchmarks.tasks=,",
        f"compare fkl rkl {MODELS} --eval-data d.jsonl -o x --seeds ,",
    ],
)
def test_a_list_that_names_nothing_is_refused(line, home):
    said = refused(line, home, 2)
    assert "names nothing" in said or "no metric is named" in said or "must be" in said
