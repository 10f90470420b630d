"""A server that writes a teacher's text: what it wrote, what it cannot, and what a stop leaves behind."""

import json
import signal
from itertools import count

import pytest
import torch

import loopback
import study
import tiny
from kdcli.config.schema import DataConfig, GenerateConfig, HardwareConfig, ServerConfig
from kdcli.distill.generate import generate
from kdcli.distill.run import distill
from kdcli.errors import ExperimentChangedError, InputError, InterruptedRunError, KDError, UsageError
from kdcli.events import silent
from killing import forked, killed_when

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PATIENT = {"retries": 1, "wait": 0.01, "timeout": 20.0}
SAMPLED = "teacher:max_new_tokens=8,answers=2"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


def completed(body, model, *, likely=True, words=tiny.WORDS):
    """What a server of a tiny model answers: greedy at temperature 0, else drawn from the request's seed."""
    text, draw = tiny.tokenizer(words), torch.Generator().manual_seed(body["seed"])
    prompt = body["prompt"]
    ids = [*prompt] if isinstance(prompt, list) else text(prompt)["input_ids"]
    said, logps, ended = [], [], False
    with torch.no_grad():
        while len(said) < body["max_tokens"] and not ended:
            logp = model(torch.tensor([ids + said])).logits[0, -1].double().log_softmax(-1)
            drawn = torch.multinomial((logp / max(body["temperature"], 1e-3)).softmax(-1), 1, generator=draw).item()
            token = int(logp.argmax()) if body["temperature"] == 0 else int(drawn)
            said.append(token)
            logps.append(logp[token].item())
            ended = token == 2
    choice = {
        "text": text.decode([token for token in said if token != 2]),
        "finish_reason": "stop" if ended else "length",
    }
    if likely and body.get("logprobs"):
        named = body.get("return_tokens_as_token_ids")
        names = [f"token_id:{token}" if named else text.decode([token]) for token in said]
        choice["logprobs"] = {"tokens": names, "token_logprobs": logps, "top_logprobs": None}
    return loopback.Reply({"choices": [choice]})


def script(model=None, *, first=(), refuses=(), likely=True, words=tiny.WORDS):
    """A server of a tiny model; ``first`` are replies given before it works, ``refuses`` fields it does not know."""
    model, waiting = model or tiny.model(seed=1), [*first]

    def answer(asked, before):
        if asked.path.endswith("/models"):
            return loopback.models("teacher-7b")
        if waiting:
            return waiting.pop(0)
        bad = next((name for name in refuses if name in asked.body), None)
        if bad is not None:
            return loopback.Reply({"error": f"unknown field {bad}"}, status=400)
        return completed(asked.body, model, likely=likely, words=words)

    return answer


def config(parts, url, output, source=SAMPLED, rows=8, **changes):
    server = {**PATIENT, **changes.pop("server", {})}
    return GenerateConfig(
        **{
            "teacher": url, "student": str(parts.student), "source": source, "server": ServerConfig(**server),
            "data": DataConfig(train=str(parts.train), limit=rows), "hardware": HardwareConfig(device="cpu"),
            "output": str(output), **changes,
        }
    )  # fmt: skip


def raw(folder):
    (path,) = folder.glob("teacher-*/text.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("send", ["text", "ids"])
def test_a_server_writes_what_the_same_teacher_writes_here(parts, tmp_path, send):
    source = "teacher:decode=greedy,max_new_tokens=8"
    here = generate(config(parts, str(parts.teacher), tmp_path / "here", source), silent)
    with loopback.serving(script()) as server:
        there = generate(config(parts, server.url, tmp_path / "there", source, server={"send": send}), silent)
        kinds = {type(one.body["prompt"]) for one in server.asked if one.body}
    assert kinds == {str if send == "text" else list}
    near, far = raw(tmp_path / "here"), raw(tmp_path / "there")
    assert [one["ids"] for one in near] == [one["ids"] for one in far]
    assert [one["nll"] for one in near] == pytest.approx([one["nll"] for one in far], rel=1e-4)
    assert here.kept == there.kept > 0
    assert [one["response"] for one in near] == [one["response"] for one in far]


def test_a_server_of_another_tokenizer_writes_words_that_the_student_reads(parts, tmp_path):
    words = [*tiny.WORDS[:4], *reversed(tiny.WORDS[4:])]
    with loopback.serving(script(words=words)) as server:
        generate(config(parts, server.url, tmp_path), silent)
    own, other = tiny.tokenizer(), tiny.tokenizer(words)
    for one in raw(tmp_path):
        said = [token for token in one["ids"][one["prompt_tokens"] :] if token > 3]  # special tokens aside
        assert said == own(one["response"])["input_ids"]
        assert not said or said != other(one["response"])["input_ids"]
        assert one["ended"] == (one["ids"][-1] == 2)


def test_every_answer_has_a_seed_of_its_own_and_its_settings(parts, tmp_path):
    with loopback.serving(script()) as server:
        generate(config(parts, server.url, tmp_path, f"{SAMPLED},temperature=0.7,top_p=0.9,seed=3"), silent)
        bodies = [one.body for one in server.asked if one.body]
    assert len({body["seed"] for body in bodies}) == len(bodies) == 16
    assert {(body["temperature"], body["top_p"], body["max_tokens"], body["model"]) for body in bodies} == {
        (0.7, 0.9, 8, "teacher-7b")
    }
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["made_of"]["teacher"].startswith(f"teacher-7b at {server.url}, asked with text, read by ")
    assert about["made_of"]["options"]["temperature"] == 0.7


def lines(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(".teacher-*.jsonl"))


def test_a_killed_writer_asks_the_unanswered_prompts_only(parts, tmp_path):
    with loopback.serving(script()) as server:
        whole = generate(config(parts, server.url, tmp_path / "whole"), silent)
        settings = config(parts, server.url, tmp_path / "killed", server={"concurrency": 2})
        killed_when(forked(generate, settings, silent), lambda: lines(tmp_path / "killed") >= 5)
        left = lines(tmp_path / "killed")
        before = len(server.asked)
        again = generate(settings, silent)
        asked = [one for one in server.asked[before:] if one.body]
    assert 5 <= left < 16
    assert len(asked) == 16 - left
    assert again.rows.read_bytes() == whole.rows.read_bytes()


def test_a_signal_ends_it_with_what_came_saved(parts, tmp_path):
    def interrupt(event):
        if event.kind == "progress" and event.done == 3:
            signal.raise_signal(signal.SIGTERM)

    with loopback.serving(script()) as server:
        with pytest.raises(InterruptedRunError, match="stopped after") as caught:
            generate(config(parts, server.url, tmp_path), interrupt)
        assert caught.value.exit_code == 143
        assert lines(tmp_path) >= 3
        assert generate(config(parts, server.url, tmp_path), silent).answers == 16


STALL = loopback.Reply("{}", delay=5.0)
NOTHING = {"choices": [{"text": "", "finish_reason": "length"}]}
POSITIVE = {"choices": [{"text": "a", "finish_reason": "stop", "logprobs": {"token_logprobs": [0.5]}}]}
UNKNOWN = {"choices": [{"text": "a", "finish_reason": "stop", "logprobs": {"token_logprobs": [None]}}]}


@pytest.mark.parametrize(
    ("reply", "code", "exit_code", "said"),
    [
        (STALL, "SERVE-03", 4, "no reply within"),
        (loopback.Reply(""), "SERVE-06", 3, "not JSON"),
        (loopback.Reply('{"choices": [{"te'), "SERVE-06", 3, "not JSON"),
        (loopback.Reply({"choices": []}), "SERVE-06", 3, "choices"),
        (loopback.Reply(NOTHING), "SERVE-06", 3, "the text is empty"),
        (loopback.Reply(POSITIVE), "SERVE-06", 3, "above 0"),
        (loopback.Reply(UNKNOWN), "SERVE-06", 3, "missing"),
        (loopback.Reply("busy", status=503), "SERVE-04", 4, "status 503"),
        (loopback.Reply("who are you", status=401), "SERVE-05", 3, "status 401"),
    ],
    ids=["stall", "empty", "cut", "no choice", "no text", "positive", "unknown", "busy", "refused"],
)
def test_a_reply_that_will_not_do_is_one_line_and_what_came_is_kept(parts, tmp_path, reply, code, exit_code, said):
    good, numbers = script(), count()

    def answer(asked, before):
        return reply if asked.body and next(numbers) >= 3 else good(asked, before)

    settings = {"timeout": 0.3, "retries": 1, "concurrency": 1}
    with loopback.serving(answer) as server, pytest.raises(KDError, match=said) as caught:
        generate(config(parts, server.url, tmp_path, server=settings), silent)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert "\n" not in str(caught.value)
    assert lines(tmp_path) == 3


def test_likelihoods_are_asked_for_and_missed_by_name(parts, tmp_path):
    with loopback.serving(script(refuses=["logprobs"])) as server:
        record = generate(config(parts, server.url, tmp_path / "without"), silent)
        assert record.kept > 0
        assert {one["nll"] for one in raw(tmp_path / "without")} == {None}
        with pytest.raises(InputError, match="max_nll needs log-probabilities") as caught:
            generate(config(parts, server.url, tmp_path / "without", f"{SAMPLED},max_nll=2"), silent)
        assert caught.value.code == "SRC-02"
        asked = len(server.asked)
        with pytest.raises(InputError, match="max_nll needs log-probabilities"):
            generate(config(parts, server.url, tmp_path / "fresh", f"{SAMPLED},max_nll=2"), silent)
        assert sum(bool(one.body) for one in server.asked[asked:]) == 2
    with loopback.serving(script()) as server:
        kept = generate(config(parts, server.url, tmp_path / "with", f"{SAMPLED},max_nll=3.9"), silent)
    assert 0 < kept.kept < 16
    assert kept.kept <= sum(one["nll"] <= 3.9 for one in raw(tmp_path / "with"))


def test_empty_answers_are_left_out_and_nothing_else_is_refused(parts, tmp_path):
    nothing = loopback.Reply({"choices": [{"text": "", "finish_reason": "stop"}]})
    with loopback.serving(script(first=[nothing] * 3)) as server:
        record = generate(config(parts, server.url, tmp_path / "few"), silent)
    assert record.dropped["empty"] + record.dropped.get("twice", 0) >= 3
    with loopback.serving(script(first=[nothing] * 99)) as server, pytest.raises(InputError, match="has a word"):
        generate(config(parts, server.url, tmp_path / "none"), silent)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"student": None}, "SERVE-10", "no tokenizer"),
        ({"student": "random:layers=1,width=8,heads=1"}, "SERVE-10", "no tokenizer"),
        ({"source": "teacher:decode=beam"}, "SERVE-10", "token by token"),
        ({"source": "teacher:prompts=bos", "data": DataConfig(), "count": 3}, "SERVE-11", "server.send=ids"),
    ],
    ids=["student", "random", "beam", "bos"],
)
def test_what_a_server_cannot_write_is_refused_by_name(parts, tmp_path, changes, code, said):
    with loopback.serving(script()) as server:
        with pytest.raises(UsageError, match=said) as caught:
            generate(config(parts, server.url, tmp_path, **changes), silent)
        assert not [one for one in server.asked if one.body]
    assert caught.value.code == code


def test_without_prompts_the_first_token_is_sent(parts, tmp_path):
    source = "teacher:prompts=bos,max_new_tokens=6"
    changes = {"data": DataConfig(), "count": 4, "server": {"send": "ids"}}
    with loopback.serving(script()) as server:
        record = generate(config(parts, server.url, tmp_path, source, **changes), silent)
        assert {tuple(one.body["prompt"]) for one in server.asked if one.body} == {(1,)}
    assert record.answers == 4


def run_of(parts, url, name, loss, **changes):
    settings = parts.run(name, loss, max_steps=4)
    data = settings.data.model_copy(update={"eval": None})
    return settings.model_copy(update={"teacher": url, "server": ServerConfig(**PATIENT), "data": data, **changes})


def test_a_run_trains_on_a_servers_text_and_again_without_it(parts, tmp_path):
    spec = "ce@teacher:max_new_tokens=8"
    with loopback.serving(script()) as server:
        first = distill(run_of(parts, server.url, "far", spec), silent)
        asked = len(server.asked)
        made = first.folder / "made"
        data = parts.data().model_copy(update={"teacher_text": str(made), "eval": None})
        again = distill(run_of(parts, server.url, "again", spec, data=data), silent)
        assert not [one for one in server.asked[asked:] if one.body]
        changed = run_of(parts, server.url, "far", spec, server=ServerConfig(**PATIENT, send="ids"))
        with pytest.raises(ExperimentChangedError, match=r"server\.send"):
            distill(changed, silent)
    assert (again.model / "model.safetensors").read_bytes() == (first.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("minillm@rollout", "token by token"),
        ("ce@curriculum:by=teacher_nll", "token by token"),
        ("ce@teacher:decode=beam", "token by token"),
        ("ce@mixture:first=(teacher:decode=beam)", "token by token"),
    ],
)
def test_sources_that_need_more_than_words_are_refused(parts, loss, said):
    with pytest.raises(UsageError, match=said) as caught:
        distill(run_of(parts, "http://127.0.0.1:9/v1", "refused", loss), silent)
    assert caught.value.code == "SERVE-10"
    assert "@teacher" in caught.value.fix


def test_scores_that_need_the_whole_teacher_are_refused_for_text_too(parts):
    settings = run_of(parts, "http://127.0.0.1:9/v1", "scores", "ce@teacher")
    settings = settings.model_copy(update={"data": parts.data()})
    with pytest.raises(UsageError, match="needs the whole teacher"):
        distill(settings, silent)
