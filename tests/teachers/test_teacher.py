"""A teacher behind a server says what the same teacher says here, cut to its likeliest tokens."""

import json
import math

import pytest
import torch

import loopback
import running
import tiny
from kdcli.config.schema import CacheConfig, DataConfig, DistillConfig, ServerConfig
from kdcli.data.batching import collate
from kdcli.distill import compat
from kdcli.distill.prepare import objective_of, prepare_run
from kdcli.distill.run import distill
from kdcli.errors import InputError, KDError, MachineError, UsageError
from kdcli.events import silent
from kdcli.loading.session import Session
from kdcli.losses.topk import top_k_with_tail
from kdcli.models.packing import find_valid
from kdcli.teachers import load as teachers
from kdcli.teachers.base import LiveTeacher
from kdcli.teachers.cached import TeacherView
from kdcli.teachers.remote import RemoteTeacher, coarse_of
from teaching import script

VOCAB = running.VOCAB

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


def served(url, top_k=5, **settings):
    config = ServerConfig(url=url, **{"retries": 2, "wait": 0.01, "timeout": 20.0, **settings})
    return RemoteTeacher(config, tiny.tokenizer(), VOCAB, top_k)


def batch():
    return collate(running.dataset(5).examples, [0, 1, 2, 3, 4], 0)


@pytest.mark.parametrize("form", ["vllm", "numbers", "texts"])
def test_a_served_teacher_equals_the_same_teacher_here(form):
    """Texts: the tiny tokenizer writes every token its own way, so that texts do as well as numbers."""
    one = batch()
    packing = find_valid(one.labels)
    side = LiveTeacher(running.model("teacher", seed=2)).side(one, packing)
    want = top_k_with_tail(side.head.logits(side.hidden, side.head.rows), 5)
    with loopback.serving(script(form)) as server:
        found = served(server.url).side(one, packing)
    assert torch.equal(found.ids, want.ids)
    torch.testing.assert_close(found.log_probs, want.log_probs, rtol=0, atol=2e-5)


def each(change):
    """Spoil every place but the first, of which nothing is known."""
    return lambda places: [None, *(change(place) for place in places[1:])]


@pytest.mark.parametrize(
    "wrong, what",
    [
        (lambda places: places[:-1], "tokens where"),
        (each(lambda place: {number + 1: value for number, value in place.items()}), "tokenizer"),
        (each(lambda place: dict.fromkeys(place, -0.1)), "add up"),
        (each(lambda place: dict.fromkeys(place, math.nan)), r"add up|finite|number"),
        (each(lambda place: dict([*place.items()][:2])), r"another tokenizer|knows 2"),
    ],
    ids=["short", "shifted", "mass", "nan", "few"],
)
def test_nonsense_is_refused_in_one_line(wrong, what):
    one = batch()
    with loopback.serving(script(wrong=wrong)) as server, pytest.raises(InputError, match=what) as caught:
        served(server.url).side(one, find_valid(one.labels))
    assert "\n" not in str(caught.value)


def test_another_tokenizer_of_the_same_size_is_refused():
    one = batch()
    words = [*tiny.WORDS[:4], *reversed(tiny.WORDS[4:])]
    with loopback.serving(script()) as server:
        teacher = RemoteTeacher(ServerConfig(url=server.url, retries=0), tiny.tokenizer(words), VOCAB, 5)
        with pytest.raises(InputError, match="another tokenizer"):
            teacher.side(one, find_valid(one.labels))


def test_a_server_that_fails_for_a_while_is_asked_again():
    one = batch()
    first = [loopback.Reply("busy", status=503), loopback.Reply("not json")]
    with loopback.serving(script(first=first)) as server:
        served(server.url).side(one, find_valid(one.labels))


def test_a_server_that_stalls_is_given_up():
    one = batch()
    stall = [loopback.Reply("{}", delay=5.0)] * 3
    with loopback.serving(script(first=stall)) as server, pytest.raises(MachineError, match=r"no reply within"):
        served(server.url, timeout=0.2, retries=1).side(one, find_valid(one.labels))


def test_more_tokens_than_the_server_gives_are_refused_with_its_words():
    one = batch()
    with loopback.serving(script(most=4)) as server, pytest.raises(InputError, match="max allowed: 4"):
        served(server.url).side(one, find_valid(one.labels))


def test_bins_add_up_even_where_the_server_rounds_above_one():
    view = coarse_of([{1: math.log(0.7), 2: math.log(0.3001)}])
    assert view.log_probs.exp().sum().item() == pytest.approx(1.0)
    assert view.log_probs[0, -1].item() < math.log(1e-7)


@pytest.fixture
def setting(tmp_path):
    student = tiny.folder(tmp_path / "student", seed=1)
    rows = tiny.rows(tmp_path / "rows.jsonl", 12)
    return student, rows, tmp_path


def cache_of(url, student, rows, output, **more):
    config = CacheConfig(
        teacher=url, student=str(student), data=DataConfig(train=str(rows), template="plain"), kind="compact", top_k=5,
        output=str(output), **more,
    )  # fmt: skip
    return teachers.cache(config, silent)


def run_of(url, student, rows, where, loss="fkl", **more):
    return DistillConfig.model_validate(
        {
            "teacher": url,
            "student": str(student),
            "loss": loss,
            "data": {"train": str(rows), "template": "plain"},
            "train": {"max_steps": 3, "batch_size": 4},
            "evaluation": {"metrics": ["perplexity"]},
            "output": str(where / "run"),
            **more,
        }
    )


def test_a_cache_from_a_server_trains_after_the_server_is_gone(setting):
    student, rows, where = setting
    with loopback.serving(script()) as server:
        record = cache_of(server.url, student, rows, where / "cache")
        assert record.added == record.sequences > 0
        asked = len(server.asked)
        again = cache_of(server.url, student, rows, where / "cache")
        assert again.added == 0
        assert sum(one.path.endswith("completions") for one in server.asked[asked:]) == 0
    made = json.loads((where / "cache" / "cache.json").read_text())
    assert made["key"]["teacher"] == f"teacher-7b at {server.url}"
    result = distill(run_of(server.url, student, rows, where, "rkl", teacher_cache=str(where / "cache")), silent)
    assert result.steps == 3
    assert result.identity["teacher.seen"] == "top 5 and the rest in one bin"


def test_a_run_from_the_server_equals_one_from_the_same_teachers_own_cache(setting):
    student, rows, where = setting
    local = tiny.folder(where / "teacher", seed=2)
    with loopback.serving(script()) as server:
        cache_of(server.url, student, rows, where / "far")
    cache_of(str(local), student, rows, where / "near")
    near = run_of(str(local), student, rows, where / "n", teacher_cache=str(where / "near"))
    far = run_of(server.url, student, rows, where / "f", teacher_cache=str(where / "far"))
    for config in (near, far):
        distill(config, silent)
    lines = [
        [json.loads(line)["loss"] for line in (where / name / "run" / "metrics.jsonl").read_text().splitlines()]
        for name in ("n", "f")
    ]
    assert lines[1] == pytest.approx(lines[0], abs=2e-5)


@pytest.mark.parametrize(
    "change, what, code",
    [
        ({}, "kd cache --kind compact", "SERVE-10"),
        ({"student": "random:layers=1,width=8,heads=1"}, "random student", "SERVE-10"),
        ({"evaluation": {"metrics": ["kl_to_teacher"]}, "cached": True}, "whole teacher", "SERVE-10"),
        ({"loss": "atkd", "cached": True}, "would work", "CACHE-06"),
        ({"loss": "fkl:temperature=2", "cached": True}, "no known mass", "CACHE-06"),
    ],
    ids=["no cache", "random", "metric", "objective", "temperature"],
)
def test_what_a_server_cannot_do_is_refused_before_a_weight_is_read(setting, change, what, code):
    student, rows, where = setting
    with loopback.serving(script()) as server:
        if change.pop("cached", False):
            cache_of(server.url, student, rows, where / "cache")
            change["teacher_cache"] = str(where / "cache")
        config = run_of(
            server.url, student, rows, where, data={"train": str(rows), "eval": str(rows), "template": "plain"}
        )
        config = DistillConfig.model_validate(config.model_dump() | change)
        with pytest.raises(UsageError, match=what) as caught:
            prepare_run(config, Session())
    assert caught.value.code == code


def faults_of_view(loss, view):
    built, label, source = objective_of(loss)
    config = DistillConfig(teacher="teacher", teacher_cache="cache")
    names = ("teacher", "teacher_cache", "data", "hardware", "lora", "evaluation", "monitor")
    parts = {name: getattr(config, name) for name in names}
    return compat.check(
        compat.Combination(loss=built, label=label, source=source, quantization="none", pair=None, view=view, **parts)
    )


@pytest.mark.parametrize("loss", ["rkl", "jsd", "0.5*ce+0.5*akl"])
def test_one_known_token_is_too_few_for_objectives_led_by_the_student(loss):
    (fault,) = faults_of_view(loss, TeacherView(top_k=1))
    assert (fault.code, fault.where) == ("CACHE-06", "--teacher-cache")
    able = str(fault).partition("would work: ")[2].split(", ")
    assert {"ce", "fkl"} <= set(able)
    assert not {"rkl", "jsd", "hidden", "attention"} & set(able)
    assert not faults_of_view(loss, TeacherView(top_k=2))


def test_forward_kl_learns_from_one_known_token():
    assert not faults_of_view("fkl+0.5*ce", TeacherView(top_k=1))


def test_an_exact_cache_cannot_be_had_from_a_server(setting):
    student, rows, where = setting
    config = CacheConfig(
        teacher="http://127.0.0.1:9/v1", student=str(student), data=DataConfig(train=str(rows)), output=str(where / "c")
    )
    with pytest.raises(KDError, match="compact"):
        teachers.cache(config, silent)
