"""One bit of any durable file falls over: kd verify names the file, and whoever reads it refuses or is not misled."""

import json
import shutil

import pytest

from damage import (
    Workplace,
    bits,
    flip,
    flipped,
    in_a_fork,
    make_read_only,
    records,
    told_by_run,
    told_by_study,
)
from kdcli.distill.run import distill
from kdcli.errors import KDError
from kdcli.events import silent
from kdcli.loading.session import Session
from kdcli.storage.jsonl import read_lines
from kdcli.study.verify import verify
from kdcli.training.metrics_log import METRICS
from shell import kd

ALL = 24
"""Places tried in each file by ``make test-full``; ``make test`` tries one in files that are told of, and in others."""
TOLD = ("study.json", "results.parquet", "samples.parquet", "costs.csv", "results.json", "metrics.jsonl", "status.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("damage"))


def told(use, folder):
    """What is told of a folder, None if it is refused."""
    try:
        return use(folder)
    except KDError:
        return None


def problems(folder):
    try:
        return [one.problem for one in verify(folder) if not one.passed]
    except KDError as error:
        return [str(error)]


def unseen(folder, count, use=None):
    """Files and places where a bit fell over that kd verify does not find, or that change what is told."""
    assert problems(folder) == []
    whole, missed = use(folder) if use is not None else None, []
    for place, name in enumerate(records(folder)):
        path = folder / name
        if count < ALL and place % 3 and name.name not in TOLD:
            continue
        for bit in bits(name, count, path.stat().st_size):
            with flipped(path, bit):
                found = problems(folder if count == ALL else path.parent)
                used = use is not None and (count == ALL or name.name in TOLD)
                misled = used and told(use, folder) not in (None, whole)
            if not found or misled:
                missed.append((name.as_posix(), bit, found, misled))
    return missed


@pytest.mark.parametrize("count", [1, pytest.param(ALL, marks=pytest.mark.full)])
def test_in_a_study(place, count):
    assert unseen(place.study, count, told_by_study) == []


@pytest.mark.parametrize("count", [1, pytest.param(ALL, marks=pytest.mark.full)])
def test_in_a_finished_run(place, count):
    run = next(iter(sorted((place.study / "cells").iterdir())))
    assert unseen(run, count, told_by_run) == []


@pytest.mark.parametrize("count", [2, pytest.param(ALL, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["cache", "text"])
def test_in_a_teacher_cache_and_in_a_text(place, kind, count):
    assert unseen(getattr(place, kind), count) == []


@pytest.mark.parametrize("count", [1, pytest.param(ALL, marks=pytest.mark.full)])
def test_in_a_student_that_is_used_again(place, count):
    """Whoever looks at a run's student, to measure it or to learn from it, compares it with its manifest."""
    run = next(iter(sorted((place.study / "cells").iterdir())))
    whole, missed = Session().inspect(str(run)).digest, []
    for name in records(run / "model"):
        path = run / "model" / name
        for bit in bits(name, count, path.stat().st_size):
            with flipped(path, bit):
                try:
                    facts = Session().inspect(str(run))
                except KDError:
                    continue
            if facts.digest != whole or name.suffix != ".md":
                missed.append((name.as_posix(), bit))
    assert missed == []


def resumed(place, tmp_path, name, bit):
    """What a stopped run ends with if it goes on after a bit fell over; None if it refuses to."""
    folder = shutil.copytree(place.half, tmp_path / "half")
    try:
        if name is not None:
            flip(folder / name, bit)
        distill(place.settings.model_copy(update={"output": str(folder)}), silent)
        return [(folder / "model" / "model.safetensors").read_bytes(), (folder / METRICS).read_bytes()]
    except KDError:
        return None
    finally:
        shutil.rmtree(folder)


SMALL = ("config.yaml", "manifest.json", "status.json", "metrics.jsonl", "timing.jsonl")


@pytest.mark.parametrize("count", [1, pytest.param(8, marks=pytest.mark.full)])
def test_in_a_run_that_was_stopped(place, tmp_path, count):
    """It is found when the run goes on, or changes no bit: of checkpoints an older whole one is taken."""
    whole = resumed(place, tmp_path, None, 0)
    assert whole is not None
    names = [name for name in records(place.half) if count > 1 or name.as_posix() in SMALL or "state" in name.name]
    missed = []
    for name in names:
        for bit in bits(name, count, (place.half / name).stat().st_size):
            found = resumed(place, tmp_path, name, bit)
            if found is not None and found != whole:
                missed.append((name.as_posix(), bit))
            if found is not None and name.as_posix() in SMALL:
                missed.append((name.as_posix(), bit, "sealed as right"))
    assert missed == []


@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.full)])
def test_in_answers_that_are_kept(place, count):
    """A damaged line is no answer and is asked again; the others stay what they are."""
    answers = next(iter(sorted(place.study.glob("cells/*/eval/*/answers.jsonl"))))
    whole = entries(answers)
    assert whole
    for bit in bits(answers, count, answers.stat().st_size):
        with flipped(answers, bit):
            found = entries(answers)
        assert found.items() <= whole.items()
        assert len(found) >= len(whole) - 2  # an end of line that fell over takes the next line along


def entries(path):
    return {entry["key"]: entry for _, entry in read_lines(path)}


def without_advice(text):
    """A comparison without what to type next, which names the study's folder."""
    found = json.loads(text)
    notes = [note for note in found["notes"] if note not in found["suggestions"]]
    return found | {"notes": notes, "suggestions": [], "suggested": ""}


def read_only(place, *command):
    """What a command says where the study may not be written; None where this machine cannot mount it so."""

    def work():
        return kd(*command, folder=place.root) if make_read_only(place.study) else None

    answer = in_a_fork(work)
    if answer is None:
        pytest.skip("this machine refuses read-only mounts")
    return answer


def test_a_finished_study_is_shown_where_it_may_not_be_written(place):
    before = kd("compare", "study", "--json", folder=place.root)
    shown = read_only(place, "compare", "study", "--json")
    assert (shown.code, shown.err) == (0, "")
    assert without_advice(shown.out) == without_advice(before.out)


@pytest.mark.parametrize(
    "command",
    [
        ("compare", "study", "--status"),
        ("compare", "study", "--to", "table.md"),
        ("report", "study", "-o", "page.html"),
        ("verify", "study"),
    ],
)
def test_looking_at_a_study_writes_nothing_into_it(place, command):
    answer = read_only(place, *command)
    assert answer.code == 0, answer.err


def test_what_was_measured_is_shown_where_nothing_may_be_written(place):
    run = next(iter(sorted((place.study / "cells").iterdir())))
    words = ("--max-new-tokens", "4", "--sampling-seeds", "1", "--metric", "perplexity")
    answer = read_only(place, "eval", str(run), "--data", "test.jsonl", "--device", "cpu", *words)
    assert answer.code == 0, answer.err
    assert "shown" in answer.err
    other = read_only(place, "eval", str(run), "--data", "test.jsonl", "--device", "cpu", "--max-new-tokens", "5")
    assert other.code == 4
    assert len(other.error_lines) == 1
