"""A server as a source of answers, from the command line to the numbers."""

import hashlib
import json

import pytest

import loopback
import tiny
from kdcli.config.schema import GenerationConfig, ServerConfig
from kdcli.evaluation.answer_sources import ServedAnswers
from kdcli.evaluation.answers import Prompt
from kdcli.evaluation.results import read_results
from kdcli.events import silent
from loopback import Reply, completion, models
from shell import kd

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

QUICK = ("--set", "server.wait=0", "--set", "server.retries=1")


@pytest.fixture
def rows(tmp_path):
    return str(tiny.rows(tmp_path / "test.jsonl", 6))


def honest(asked, before):
    """Answer as a function of prompt and seed alone, as a server that keeps its promise does."""
    if asked.path.endswith("/models"):
        return models("toy")
    heard = hashlib.sha256(f"{asked.body['prompt']}{asked.body['seed']}".encode()).hexdigest()
    return completion(f" {heard[:3]}.", "stop" if int(heard, 16) % 2 else "length")


def evaluated(server, rows, *more, seeds="1,2"):
    wanted = ("--metric", "rougeL,truncation_rate", "--sampling-seeds", seeds, "--server-url", server.url)
    return kd("eval", "--data", rows, *wanted, *QUICK, *more)


def test_every_row_and_seed_is_asked_for_once(rows, tmp_path):
    with loopback.serving(honest) as server:
        said = evaluated(server, rows, "-o", str(tmp_path / "out"))
    assert said.code == 0, said.err
    asked = [one.body for one in server.asked if one.body]
    assert len(asked) == len({(one["prompt"], one["seed"]) for one in asked}) == 12
    assert len({one["seed"] for one in asked}) == 12
    assert {(one["model"], one["temperature"], one["n"], one["stream"]) for one in asked} == {("toy", 1.0, 1, False)}
    record = read_results(tmp_path / "out")
    assert record.model == f"toy at {server.url}"
    assert all(f"server:toy at {server.url}" in info.settings for info in record.infos)
    assert 0 < record.estimates["truncation_rate"].mean < 100


def test_a_question_has_its_seed_whatever_else_is_asked():
    def seeds(numbers):
        with loopback.serving(honest) as server:
            source = ServedAnswers(ServerConfig(url=server.url, model="toy"), GenerationConfig())
            questions = [Prompt(number, (1,), f"say {number}", (10, 20)) for number in numbers]
            list(source.answers_for(questions, silent))
        return {(one.body["prompt"], one.body["seed"]) for one in server.asked}

    assert seeds([3]) <= seeds([5, 3, 0])
    assert len(seeds([3])) == 2


def test_an_evaluation_that_a_failing_server_ended_goes_on(rows, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    script = [lambda asked, before: Reply("down", 500) if before > 5 else honest(asked, before), honest]
    with loopback.serving(lambda asked, before: script[0](asked, before)) as server:
        one_at_a_time = ("--set", "server.concurrency=1")
        failed = evaluated(server, rows, "-o", str(torn), *one_at_a_time)
        assert failed.code == 4
        assert "SERVE-04" in failed.error_lines[0]
        script.pop(0)
        before = len(server.asked)
        done = evaluated(server, rows, "-o", str(torn), *one_at_a_time)
        assert done.code == 0, done.err
        assert "5 of 12 answers were made before" in done.err
        assert len(server.asked) - before == 1 + 7
        assert evaluated(server, rows, "-o", str(whole)).code == 0
    assert (torn / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()


@pytest.mark.parametrize(
    "reply, code, what",
    [
        (Reply("dead", 500), 4, "SERVE-04"),
        (Reply("busy", 429), 4, "SERVE-04"),
        (Reply("late", delay=1.0), 4, "SERVE-03"),
        (Reply("{" * 40, drip=0.1), 4, "SERVE-03"),
        (Reply("<html>"), 3, "SERVE-06"),
        (Reply({"choices": []}), 3, "SERVE-06"),
        (Reply({"choices": [{"text": 3}]}), 3, "SERVE-06"),
        (Reply({"choices": [{"message": {"content": "chat"}}]}), 3, "SERVE-06"),
        (Reply("[" * 100_000), 3, "SERVE-06"),
        (Reply("no such model", 404), 3, "SERVE-05"),
    ],
    ids=["500", "429", "stalls", "drips", "html", "no-choices", "number", "chat", "deep", "404"],
)
def test_whatever_a_server_does_is_one_line_with_its_exit_code(rows, reply, code, what):
    def script(asked, before):
        return models("toy") if asked.path.endswith("/models") else reply

    with loopback.serving(script) as server:
        said = evaluated(server, rows, "--set", "server.timeout=0.4", seeds="1")
    assert (said.code, len(said.error_lines)) == (code, 1)
    assert what in said.error_lines[0]


def test_a_model_folder_gives_the_tokens_and_the_server_the_texts(rows, tmp_path):
    folder = tiny.folder(tmp_path / "model", seed=1)
    with loopback.serving(honest) as server:
        said = evaluated(server, rows, str(folder), "--metric", "rougeL,perplexity", "-o", str(tmp_path / "out"))
    assert said.code == 0, said.err
    record = read_results(tmp_path / "out")
    assert [info.name for info in record.infos] == ["rougeL", "truncation_rate", "perplexity", "nll"]
    assert [f"server:toy at {server.url}" in info.settings for info in record.infos] == [True, True, False, False]


@pytest.mark.parametrize(
    "more, code, what",
    [
        (("--metric", "perplexity"), 2, "perplexity is measured on a model"),
        (("--edge",), 2, "--tasks and --edge need the model itself"),
        (("--predictions", "x.jsonl"), 2, "--predictions and --server-url are given"),
    ],
)
def test_what_only_weights_can_tell_is_one_line(rows, more, code, what):
    with loopback.serving(honest) as server:
        said = evaluated(server, rows, *more)
    assert said.code == code
    assert what in said.err


def test_rows_without_a_prompt_cannot_be_asked(tmp_path):
    (tmp_path / "stories.jsonl").write_text(json.dumps({"text": "once upon a time"}) + "\n")
    with loopback.serving(honest) as server:
        said = evaluated(server, str(tmp_path / "stories.jsonl"))
    assert said.code == 3
    assert "SERVE-09" in said.error_lines[0]
