"""The client against a server on this machine: answers, patience, and every way a server can fail."""

import gzip
import socket
import time

import pytest

import loopback
from kdcli.config.schema import ServerConfig
from kdcli.errors import InputError, KDError, MachineError, UsageError
from kdcli.remote.client import Client, Request
from kdcli.remote.replies import ReplyStore
from kdcli.remote.schema import CompletionReply, read_chat, read_completion
from loopback import Reply, completion

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

KEY = "sk-very-secret-42"


def questions(count=3):
    return [Request("completions", {"prompt": f"p{number}"}) for number in range(count)]


def patient(server, **changes):
    return ServerConfig(**{"url": server.url, "wait": 0.01, "retries": 2, "timeout": 5.0, **changes})


def ask(config, asked, kept=None, read=read_completion):
    return [answer for _, answer in sorted(Client(config, kept).ask(asked, read), key=lambda pair: pair[0])]


def echo(asked, before):
    return completion(asked.body["prompt"] + "!")


def test_answers_come_as_they_are_ready_with_the_number_of_their_question():
    def script(asked, before):
        time.sleep(0.05 if asked.body["prompt"] == "p0" else 0.0)
        return echo(asked, before)

    with loopback.serving(script) as server:
        found = [*Client(patient(server)).ask(questions(20), read_completion)]
    assert [said.text for _, said in sorted(found)] == [f"p{number}!" for number in range(20)]
    assert sorted(found)[0] == (0, CompletionReply("p0!", True, 3))
    assert found[0][0] != 0


def test_no_more_requests_at_once_than_allowed():
    def script(asked, before):
        time.sleep(0.01)
        return echo(asked, before)

    with loopback.serving(script) as server:
        ask(patient(server, concurrency=3), questions(24))
    assert 2 <= server.most_at_once <= 3


def test_the_key_travels_in_the_header_only(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with loopback.serving(echo) as server:
        client = Client(patient(server), ReplyStore(tmp_path / "kept"))
        [*client.ask(questions(1), read_completion)]
    assert server.asked[0].key == f"Bearer {KEY}"
    assert KEY not in (tmp_path / "kept").read_text()
    assert KEY not in repr(client.connection.address)


def test_the_variable_of_the_key_can_be_named(monkeypatch):
    monkeypatch.setenv("OTHER", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with loopback.serving(echo) as server:
        ask(patient(server, key_variable="OTHER"), questions(1))
        ask(patient(server), questions(1))
    assert [asked.key for asked in server.asked] == [f"Bearer {KEY}", None]


@pytest.mark.parametrize(
    "trouble",
    [
        Reply("busy", status=429),
        Reply("", status=429, headers={"Retry-After": "0"}),
        Reply("dead", status=500),
        Reply("", status=503),
        Reply("<html>"),
        Reply({"choices": []}),
        Reply({"choices": [{"text": None}]}),
        Reply({"error": {"message": "x"}}),
        Reply("[]"),
        Reply(""),
        Reply(b"\xff\xfe\x00"),
        Reply("short", headers={"Content-Length": "999"}, delay=0.0),
    ],
    ids=lambda reply: f"{reply.status}-{reply.text[:12] if not isinstance(reply.body, bytes) else 'bytes'}",
)
def test_trouble_that_passes_is_waited_for(trouble):
    with loopback.serving(lambda asked, before: trouble if before < 2 else completion("there")) as server:
        found = ask(patient(server, timeout=0.3), questions(1))
    assert found[0].text == "there"
    assert len(server.asked) == 3


FATAL = [
    (Reply("busy", status=429), "SERVE-04", MachineError, "status 429: busy"),
    (Reply("dead", status=500), "SERVE-04", MachineError, "status 500: dead"),
    (Reply("late", delay=9.0), "SERVE-03", MachineError, "no reply within 0.2 s"),
    (Reply("x" * 99, drip=0.05), "SERVE-03", MachineError, "no reply within 0.2 s"),
    (Reply("<html>"), "SERVE-06", InputError, "not JSON"),
    (Reply({"choices": []}), "SERVE-06", InputError, "choices"),
    (Reply({"choices": [{"text": 3}]}), "SERVE-06", InputError, "choices.0.text"),
    (Reply("no such model", status=404), "SERVE-05", InputError, "status 404: no such model"),
    (Reply("wrong key", status=401), "SERVE-05", InputError, "status 401"),
    (Reply("", status=302, headers={"Location": "http://127.0.0.1:1/"}), "SERVE-05", InputError, "status 302"),
    (Reply("x" * (17 * 2**20)), "SERVE-07", InputError, "larger than 16 MiB"),
    (
        Reply(gzip.compress(b"x" * (64 * 2**20)), headers={"Content-Encoding": "gzip"}),
        "SERVE-07",
        InputError,
        "larger than 16 MiB",
    ),
]


@pytest.mark.parametrize(("reply", "code", "kind", "what"), FATAL, ids=[f"{row[1]}-{n}" for n, row in enumerate(FATAL)])
def test_a_failure_that_stays_is_one_line(reply, code, kind, what, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    limit = 0.2 if code == "SERVE-03" else 5.0
    with loopback.serving(lambda asked, before: reply) as server:
        with pytest.raises(KDError) as caught:
            ask(patient(server, timeout=limit, retries=1), questions(1))
        url = server.url
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert what in str(caught.value)
    assert caught.value.where == url
    assert len(str(caught.value).splitlines()) == 1


def test_attempts_are_bounded():
    with loopback.serving(lambda asked, before: Reply(status=500)) as server:
        with pytest.raises(MachineError):
            ask(patient(server, retries=3), questions(1))
        assert len(server.asked) == 4


def test_a_refusal_is_not_asked_again():
    with loopback.serving(lambda asked, before: Reply(status=400)) as server:
        with pytest.raises(InputError):
            ask(patient(server), questions(1))
        assert len(server.asked) == 1


def test_a_server_that_repeats_the_key_does_not_get_it_printed(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        loopback.serving(lambda asked, before: Reply(f"bad key {KEY}\x1b[31m", status=401)) as server,
        pytest.raises(InputError) as caught,
    ):
        ask(patient(server), questions(1))
    assert KEY not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_nobody_there():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        config = ServerConfig(url=f"http://127.0.0.1:{held.getsockname()[1]}", wait=0.0, retries=1)
        with pytest.raises(MachineError, match="SERVE-02") as caught:
            ask(config, questions(1))
    assert caught.value.exit_code == 4


def test_what_was_answered_is_kept(tmp_path):
    path = tmp_path / "out.replies.jsonl"

    def failing(asked, before):
        return echo(asked, before) if asked.body["prompt"] != "p7" else Reply(status=500)

    with loopback.serving(failing) as server:
        config = patient(server, retries=0, concurrency=1)
        with pytest.raises(MachineError):
            ask(config, questions(10), ReplyStore(path))
        assert len(ReplyStore(path)) == 7
        asked_before = len(server.asked)
        with pytest.raises(MachineError):
            ask(config, questions(10), ReplyStore(path))
        assert len(server.asked) == asked_before + 1


def test_a_half_written_reply_is_asked_again(tmp_path):
    path = tmp_path / "kept"
    with loopback.serving(echo) as server:
        config = patient(server, concurrency=1)
        first = ask(config, questions(4), ReplyStore(path))
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])
        assert ask(config, questions(4), ReplyStore(path)) == first
        assert len(server.asked) == 5
    assert path.read_bytes() == whole


def test_a_damaged_line_is_asked_again(tmp_path):
    path = tmp_path / "kept"
    with loopback.serving(echo) as server:
        config = patient(server, concurrency=1)
        first = ask(config, questions(4), ReplyStore(path))
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([lines[0], b'{"key": 3}\n', b"[" * 99999 + b"\n", lines[3]]))
        assert ask(config, questions(4), ReplyStore(path)) == first
        assert len(server.asked) == 6
        assert len(ReplyStore(path)) == 4


def test_another_question_is_not_answered_by_a_kept_reply(tmp_path):
    kept = ReplyStore(tmp_path / "kept")
    with loopback.serving(echo) as server:
        for body in ({"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2}, {"seed": 1, "prompt": "a"}):
            ask(patient(server), [Request("completions", body)], kept)
    assert len(server.asked) == 2


def test_chat_replies():
    with loopback.serving(lambda asked, before: loopback.chat("hi")) as server:
        assert ask(patient(server), [Request("chat/completions", {})], read=read_chat)[0].text == "hi"
        assert server.asked[0].path == "/v1/chat/completions"


def test_the_only_model_is_the_one_meant():
    with loopback.serving(lambda asked, before: loopback.models("one")) as server:
        assert Client(patient(server)).model() == "one"
        assert Client(patient(server, model="two")).model() == "two"
        assert [asked.path for asked in server.asked] == ["/v1/models"]


@pytest.mark.parametrize("names", [(), ("a", "b")])
def test_several_models_must_be_chosen_from(names):
    with (
        loopback.serving(lambda asked, before: loopback.models(*names)) as server,
        pytest.raises(UsageError, match=r"SERVE-08.*server\.model=NAME"),
    ):
        Client(patient(server)).model()


@pytest.mark.parametrize(
    ("url", "what"),
    [
        (None, "no address"),
        ("ftp://host", "no address of a server"),
        ("http://", "no address of a server"),
        ("http://me:pass@host/v1", "holds a user"),
        ("http://host/v1?key=secret", "holds a user"),
        ("http://host:99999/v1", "[Pp]ort"),
        ("http://ho\nst/v1", "no address of a server"),
    ],
)
def test_an_address_no_server_can_have(url, what):
    with pytest.raises(UsageError, match=f"SERVE-01.*{what}") as caught:
        Client(ServerConfig(url=url))
    assert "secret" not in str(caught.value)
    assert "pass" not in str(caught.value)


def test_a_reader_that_stops_early_ends_the_requests():
    with loopback.serving(echo) as server:
        answers = Client(patient(server, concurrency=1)).ask(questions(50), read_completion)
        next(answers)
        answers.close()
        assert len(server.asked) < 10
