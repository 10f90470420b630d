"""A training that waits for its teacher: asked per micro-batch, heard once, the same after a kill."""

import json
from itertools import count

import pytest

import loopback
import study
import tiny
from kdcli.config.schema import ServerConfig
from kdcli.distill.run import distill
from kdcli.errors import KDError, MachineError, UsageError
from kdcli.events import silent
from kdcli.teachers.remote import LogProbStore
from killing import forked, killed_when
from teaching import script

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PATIENT = {"retries": 1, "wait": 0.01, "timeout": 20.0, "top_k": 6}
SPEC = "rkl@student:rate=0.7,max_new_tokens=6"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


def config(parts, url, name, loss=SPEC, **changes):
    settings = parts.run(name, loss, max_steps=12, save_every=3)
    data = settings.data.model_copy(update={"eval": None})
    server = ServerConfig(**{**PATIENT, **changes.pop("server", {})})
    return settings.model_copy(update={"teacher": url, "server": server, "data": data, **changes})


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def teacher():
    return script(model=tiny.model(seed=1))


def test_every_token_known_a_live_server_teaches_as_the_teacher_itself(parts):
    """With all but one token asked for, the bins are the whole distribution."""
    known = len(tiny.WORDS) - 1
    here = distill(config(parts, str(parts.teacher), "here"), silent)
    with loopback.serving(script(model=tiny.model(seed=1), most=known)) as server:
        there = distill(config(parts, server.url, "there", server={"top_k": known}), silent)
    assert losses(there.folder) == pytest.approx(losses(here.folder), abs=2e-5)
    assert there.identity["teacher.seen"] == f"top {known} and the rest in one bin, asked while training"
    assert not (there.folder / "asked").exists()


def noisy(model):
    """A server whose numbers are never twice the same."""
    numbers = count(1)

    def answer(asked, before):
        def wrong(places):
            shift = 1e-3 * next(numbers)
            return [None, *({number: value - shift for number, value in place.items()} for place in places[1:])]

        return script(model=model, wrong=wrong)(asked, before)

    return answer


def written(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.parametrize("steady", [True, False], ids=["steady", "noisy"])
def test_a_killed_run_hears_again_what_it_had_heard(parts, steady):
    name = f"killed-{steady}"
    model = tiny.model(seed=1)
    with loopback.serving(script(model=model) if steady else noisy(model)) as server:
        settings = config(parts, server.url, name)
        folder = parts.root / name
        killed_when(forked(distill, settings, silent), lambda: len(written(folder)) >= 5)
        before = written(folder)
        assert 5 <= len(before) < 12
        asked = len(server.asked)
        again = distill(settings, silent)
        assert written(folder)[: len(before)] == before
        if steady:
            whole = distill(config(parts, server.url, "whole"), silent)
            assert (again.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
            weights = [run.model / "model.safetensors" for run in (again, whole)]
            assert weights[0].read_bytes() == weights[1].read_bytes()
        assert len(server.asked) > asked


def test_a_server_that_goes_away_ends_the_run_in_one_line_and_the_same_line_goes_on(parts):
    good, numbers = teacher(), count()

    def answer(asked, before):
        return loopback.Reply("down", status=500) if asked.body and next(numbers) > 18 else good(asked, before)

    with loopback.serving(answer) as server:
        settings = config(parts, server.url, "away", server={"retries": 0})
        with pytest.raises(MachineError, match="status 500") as caught:
            distill(settings, silent)
        assert "\n" not in str(caught.value)
        numbers = count(-(10**6))
        done = distill(settings, silent)
        whole = distill(config(parts, server.url, "stayed"), silent)
    assert (done.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("loss", "server", "code", "said"),
    [
        ("rkl@student", {"top_k": 1}, "SERVE-12", "student's own mass leads it; there is 1"),
        ("atkd@student", {}, "SERVE-12", "objective that would work: .*rkl"),
        ("fkl:temperature=2@student", {}, "SERVE-12", "no known mass"),
        ("hidden@student", {}, "", "a server shows neither"),
        ("rkl", {}, "SERVE-10", "kd cache --kind compact"),
    ],
    ids=["one token", "single logits", "temperature", "features", "rows"],
)
def test_what_bins_do_not_define_is_refused_before_a_weight_is_read(parts, monkeypatch, loss, server, code, said):
    monkeypatch.setattr("kdcli.loading.session.load_model", lambda *_, **__: pytest.fail("weights were read"))
    with loopback.serving(teacher()) as there, pytest.raises(UsageError, match=said) as caught:
        distill(config(parts, there.url, "refused", loss, server=server), silent)
    assert caught.value.code.startswith(code)


def test_places_are_found_again_bit_for_bit_and_damage_counts_as_none(tmp_path):
    folder = tmp_path / "rank-0"
    path = folder / "00000000.jsonl"
    first = {(1, 5, 9): [{3: -0.1, 4: -2.7182818284590455}, {7: -1e-300, 8: -3.3333333333333335}]}
    second = {(1, 6): [{9: -0.25, 2: -7.0}]}
    kept = LogProbStore(folder, "top 2 of m at u")
    for found in (first, second):
        kept.add(found)
    again = LogProbStore(folder, "top 2 of m at u")
    assert len(again) == 2
    assert again.find([1, 5, 9]) == first[1, 5, 9]
    assert [*again.find((1, 5, 9))[0]] == [3, 4]
    assert again.find((1, 5)) is None
    assert LogProbStore(folder, "top 2 of other at u").find((1, 6)) is None
    body = path.read_bytes()
    path.write_bytes(body[:40] + b"x" + body[41:])
    assert LogProbStore(folder, "top 2 of m at u").find((1, 5, 9)) is None
    for cut in range(len(body)):
        path.write_bytes(body[:cut])
        half = LogProbStore(folder, "top 2 of m at u")
        half.add(second)
        whole = LogProbStore(folder, "top 2 of m at u")
        assert whole.find((1, 6)) == second[1, 6]
        assert whole.find((1, 5, 9)) in (None, first[1, 5, 9])


def test_a_full_disk_is_said_in_one_line(tmp_path):
    (tmp_path / "asked").write_text("in the way")
    with pytest.raises(KDError, match="cannot be written"):
        LogProbStore(tmp_path / "asked" / "rank-0", "m").add({(1, 2): [{3: -0.1}]})


def test_answers_go_with_the_checkpoints_that_needed_them(tmp_path):
    kept = LogProbStore(tmp_path / "rank-0", "m")
    for number in range(5):
        kept.add({(1, number): [{3: -0.5 - number}]})
        kept.rotate(2)
    kept.add({(1, 9): [{3: -9.0}]})
    there = [kept.find((1, number)) for number in range(5)]
    assert there == [None, None, None, [{3: -3.5}], [{3: -4.5}]]
    assert sorted(path.name for path in (tmp_path / "rank-0").iterdir()) == [f"0000000{n}.jsonl" for n in (3, 4, 5)]
    again = LogProbStore(tmp_path / "rank-0", "m")
    assert len(again) == 3
    assert again.find((1, 9)) == [{3: -9.0}]
    again.rotate(2)
    assert (again.find((1, 3)), again.find((1, 4))) == (None, [{3: -4.5}])


def test_a_run_keeps_answers_for_its_checkpoints_only(parts):
    seen = []

    def look(event):
        if event.kind == "saved":
            seen.append(len([*(parts.root / "long" / "asked" / "rank-0").glob("*.jsonl")]))

    with loopback.serving(teacher()) as server:
        settings = config(parts, server.url, "long")
        train = settings.train.model_copy(update={"save_every": 1, "keep": 1})
        distill(settings.model_copy(update={"train": train}), look)
    assert len(seen) == 12
    assert max(seen) <= 2
