"""A diagnosis of a teacher behind a server: that it teaches, and that it is who it is said to be."""

import math

import pytest

import loopback
import tiny
from kdcli.cli.app import run
from kdcli.config.schema import DataConfig, DoctorConfig, HardwareConfig, ServerConfig
from kdcli.diagnostics.doctor import diagnose
from kdcli.events import silent
from teaching import script

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("doctor")
    tiny.folder(home / "teacher", seed=2)
    tiny.folder(home / "student", seed=1)
    words = [*tiny.WORDS[:4], *reversed(tiny.WORDS[4:])]
    tiny.folder(home / "stranger", seed=1, words=words)
    tiny.rows(home / "rows.jsonl", 12)
    return home


def config(home, url, **changes):
    return DoctorConfig(
        **{
            "teacher": url, "local_teacher": str(home / "teacher"), "student": str(home / "student"), "top_k": 6,
            "server": ServerConfig(retries=0, timeout=20.0), "hardware": HardwareConfig(device="cpu"),
            "data": DataConfig(train=str(home / "rows.jsonl"), template="plain"), "output": str(home), **changes,
        }
    )  # fmt: skip


def line(diagnosis, name):
    return next(check for check in diagnosis.checks if check.name == name)


@pytest.mark.parametrize("form", ["vllm", "numbers"])
def test_a_server_that_says_what_the_teacher_says_here_is_ok(home, form):
    with loopback.serving(script(form)) as server:
        found = diagnose(config(home, server.url), silent)
    assert found.exit_code == 0
    assert line(found, "server").state == "ok"
    assert f"teacher-7b at {server.url} gives 6 tokens a place" in line(found, "server").what
    numbers = line(found, "server's numbers")
    assert numbers.state == "ok"
    assert numbers.what.startswith("top-1 agreement 100.00%, KL ")
    kl, gap = (float(numbers.what.split(mark)[1].split()[0].rstrip(",")) for mark in ("KL ", "largest gap "))
    assert kl < 1e-8
    assert gap < 1e-5


def test_a_server_of_other_weights_fails_as_an_input(home):
    with loopback.serving(script(model=tiny.model(seed=9))) as server:
        found = diagnose(config(home, server.url), silent)
    failed = [check for check in found.checks if check.state == "fail"]
    assert [check.name for check in failed] == ["server's numbers"]
    assert found.exit_code == failed[0].exit_code == 3
    assert "serve the same weights" in failed[0].fix


def test_a_server_with_a_temperature_is_warned_of_with_the_distance(home):
    """At temperature 1/2 every likeliest token stays the likeliest, and the numbers do not."""

    def cold(places):
        return [None, *({number: 3 * value for number, value in place.items()} for place in places[1:])]

    with loopback.serving(script(wrong=cold)) as server:
        found = diagnose(config(home, server.url), silent)
    numbers = line(found, "server's numbers")
    assert (found.exit_code, numbers.state) == (0, "warn")
    assert "without a temperature" in numbers.fix
    assert float(numbers.what.split("KL ")[1].split()[0]) > 0.05


def test_a_server_of_another_tokenizer_fails(home):
    with loopback.serving(script()) as server:
        found = diagnose(config(home, server.url, student=str(home / "stranger")), silent)
    failed = line(found, "server")
    assert (failed.state, failed.exit_code, found.exit_code) == ("fail", 3, 3)
    assert "another tokenizer" in failed.what
    assert "server's numbers" not in {check.name for check in found.checks}


def test_without_a_local_copy_the_numbers_are_not_vouched_for(home):
    with loopback.serving(script()) as server:
        found = diagnose(config(home, server.url, local_teacher=None), silent)
    assert found.exit_code == 0
    assert (line(found, "server").state, line(found, "server's numbers").state) == ("ok", "warn")


@pytest.mark.parametrize(
    ("reply", "code"),
    [(loopback.Reply("down", status=503), 4), (loopback.Reply({"choices": [{"text": ""}]}), 3)],
    ids=["down", "no log-probabilities"],
)
def test_a_server_that_will_not_do_is_one_line_with_its_code(home, reply, code):
    def answer(asked, before):
        return loopback.models("m") if asked.path.endswith("/models") else reply

    with loopback.serving(answer) as server:
        found = diagnose(config(home, server.url), silent)
    failed = line(found, "server")
    assert (failed.state, found.exit_code) == ("fail", code)
    assert "\n" not in failed.what
    assert failed.fix


def test_the_command_prints_the_line_and_leaves_with_its_code(home, capsys):
    with loopback.serving(script(model=tiny.model(seed=9))) as server:
        code = run(
            ["doctor", "--teacher", server.url, "--local-teacher", str(home / "teacher"), "--student",
             str(home / "student"), "--data", str(home / "rows.jsonl"), "--top-k", "6", "--device", "cpu"]
        )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 3
    said = next(row for row in out.splitlines() if "server's numbers" in row)
    assert said.startswith("fail")
    share = float(said.split("agreement ")[1].split("%")[0])
    assert share < 50
    assert math.isfinite(share)
