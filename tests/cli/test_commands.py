"""The commands on tiny models, end to end."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from kdcli.cli.compare import run_folders
from kdcli.cli.errors import ARGUMENTS
from kdcli.cli.load_config import command_line
from kdcli.cli.settings import output_schema
from kdcli.errors import InterruptedRunError, UsageError
from kdcli.interface import objective
from shell import kd
from tiny import folder, rows

MODELS = shlex.split("--teacher teacher --student student --data train.jsonl --max-steps 2 --device cpu")
SHORT = [*MODELS, "--eval-data", "test.jsonl", "--metric", "perplexity,kl_to_teacher"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with models, rows, and a finished run of each of two objectives."""
    home = tmp_path_factory.mktemp("commands")
    folder(home / "teacher", seed=1)
    folder(home / "student", seed=2)
    rows(home / "train.jsonl", 16)
    rows(home / "test.jsonl", 4)
    for loss in ("fkl", "rkl"):
        answer = kd("distill", *SHORT, "--loss", loss, "-o", f"runs/{loss}", folder=home)
        assert answer.code == 0, answer.err
    return home


@pytest.fixture
def home(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "home")


def test_distill_ends_with_the_model_and_does_nothing_twice(home):
    answer = kd("distill", *SHORT, "--loss", "forward_kl", "-o", "runs/fkl", folder=home)
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "runs/fkl/model"
    assert "(was finished already): 2 steps" in answer.out
    assert "perplexity ↓" in answer.out


def test_a_run_can_be_fed_back(home):
    again = kd("distill", "-c", "runs/fkl/config.yaml", "-o", "runs/again", "--quiet", folder=home)
    assert again.code == 0, again.err
    weights = "model/model.safetensors"
    assert (home / "runs/again" / weights).read_bytes() == (home / "runs/fkl" / weights).read_bytes()
    assert again.err.splitlines() == [line for line in again.err.splitlines() if line.startswith("warning: ")]


def test_distill_as_json(home):
    record = json.loads(kd("distill", *SHORT, "-o", "runs/fkl", "--json", folder=home).out)
    assert (record["loss"], record["steps"], record["already_done"]) == ("fkl", 2, True)
    assert record["evaluation"]["estimates"]["perplexity"]["mean"] > 1


def test_a_dry_run_shows_the_mask_and_writes_nothing(home):
    before = sorted(home.rglob("*"))
    answer = kd("distill", *MODELS, "--dry-run", folder=home)
    assert answer.code == 0, answer.err
    assert "say a:⟦ a.</s>⟧" in answer.out
    assert json.loads(kd("distill", *MODELS, "--dry-run", "--json", folder=home).out)["examples"]
    assert sorted(home.rglob("*")) == before


def test_eval_of_a_model_and_of_answers(home):
    found = json.loads(kd("eval", "student", "--data", "test.jsonl", "--metric", "ppl", "--json", folder=home).out)
    assert set(found["estimates"]) == {"perplexity", "nll"}
    lines = [{"prediction": "a b", "reference": "a b"}, {"prediction": "a", "reference": ["c", "d"]}]
    (home / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = kd("eval", "--predictions", "answers.jsonl", "--metric", "em", folder=home)
    assert "exact match (%) ↑" in answer.out
    assert " 50 " in answer.out


def test_compare_of_finished_runs(home):
    answer = kd("compare", "runs/fkl", "runs/rkl", folder=home)
    assert answer.code == 0, answer.err
    assert len(answer.out.splitlines()) <= 24
    assert "What would help most: more training seeds." in answer.out
    whole = kd("compare", "runs/fkl", "runs/rkl", "--verbose", folder=home)
    assert "KL to teacher" in whole.out
    assert " memory " in whole.out


def test_compare_trains_what_is_missing(home):
    arguments = ["compare", "fkl", "rkl", *SHORT, "-o", "study"]
    plan = kd(*arguments, "--dry-run", folder=home)
    assert plan.out.count("to run") == 2
    first = kd(*arguments, "--json", folder=home)
    assert first.code == 0, first.err
    found = json.loads(first.out)
    assert [row["label"] for row in found["rows"]] == ["fkl", "rkl"]
    second = json.loads(kd(*arguments, "--json", folder=home).out)
    assert second["rows"] == found["rows"]


def test_an_interrupted_run_says_how_to_go_on(home, monkeypatch):
    def stopped(config, report, *, resume, command):
        raise InterruptedRunError(2, "stopped at step 1 of 2, saved", fix=f"go on with: {command}")

    monkeypatch.setattr("kdcli.distill.run.distill", stopped)
    answer = kd("distill", *SHORT, "-o", "new run", "--resume", "never", folder=home)
    assert answer.code == 130
    assert answer.err.splitlines()[-1] == (
        f"kd: stopped at step 1 of 2, saved; go on with: kd distill {' '.join(SHORT)} -o 'new run'"
    )


@pytest.mark.parametrize(
    "typed, meant",
    [
        (["distill", "--resume", "never", "-o", "a b"], "kd distill -o 'a b'"),
        (["distill", "--resume=never", "--loss", "0.5*ce"], "kd distill --loss '0.5*ce'"),
    ],
)
def test_the_command_that_goes_on(typed, meant):
    token = ARGUMENTS.set(tuple(typed))
    assert command_line() == meant
    ARGUMENTS.reset(token)


def test_names_are_canonical():
    assert objective("0.50*kl+adaptive_kl:mu=0.6") == "0.5*fkl+akl:mu=0.6"
    assert objective("./guests.py:Mine") == "./guests.py:Mine"


def test_folders_and_objectives_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert run_folders(["run", "runs/other"]) == [Path("run"), Path("runs/other")]
    assert run_folders(["fkl", "./mine.py:Mine", "0.5*ce+0.5*./mine.py:Mine"]) == []
    with pytest.raises(UsageError, match="folders only"):
        run_folders(["run", "fkl"])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("run", [*SHORT, "-o", "runs/fkl", "--json"]),
        ("plan", [*MODELS, "--dry-run", "--json"]),
        ("evaluation", shlex.split("runs/fkl --data test.jsonl --metric perplexity --device cpu --json")),
        ("comparison", ["runs/fkl", "runs/rkl", "--json"]),
        ("error", ["--json", "--loss", "akll"]),
        ("error", ["runs/fkl", "--json", "--data", "missing.jsonl"]),
    ],
)
def test_what_json_prints_is_what_its_schema_says(home, kind, words):
    jsonschema = pytest.importorskip("jsonschema")
    command = {"evaluation": "eval", "comparison": "compare"}.get(
        kind, "eval" if "runs/fkl" in words[:1] else "distill"
    )
    answer = kd(command, *words, folder=home)
    found = json.loads(answer.out)
    assert (found["kind"], found["schema_version"]) == (kind, 2)
    jsonschema.Draft202012Validator(output_schema()).validate(found)
    kinds = kinds_of(output_schema())
    assert set(found) <= set(kinds[kind]["properties"])
    if kind == "error":
        assert found["error"]["exit_code"] == answer.code != 0
        assert found["error"]["code"] in answer.err


def kinds_of(schema):
    return {one["properties"]["kind"]["const"]: one for one in schema["anyOf"][0]["oneOf"]}


PRINTED = [
    ("estimate", ["estimate", "student"]),
    ("diagnosis", ["doctor", "--student", "student", "--device", "cpu"]),
    ("batch", ["inspect", "batch", "fkl", *MODELS[:6]]),
    ("cache-plan", ["cache", *MODELS[:2], "--data", "train.jsonl", "--dry-run", "-o", "kept"]),
    ("cache", ["cache", *MODELS[:2], "--data", "train.jsonl", "-o", "kept"]),
    ("text-plan", ["generate", *MODELS[:2], "--data", "test.jsonl", "--dry-run", "-o", "text"]),
    ("text", ["generate", *MODELS[:2], "--data", "test.jsonl", "--source", "teacher:max_new_tokens=4", "-o", "text"]),
    ("student", ["student", "random:layers=1,width=16,heads=2", *MODELS[:2], "-o", "made"]),
    ("rows", ["data", "check", "train.jsonl"]),
    ("row-scores", ["data", "score", "--data", "train.jsonl", "--by", "nll", *MODELS[2:4], "-o", "scored"]),
    ("split", ["data", "split", "--data", "train.jsonl", "--parts", "2", "-o", "parts"]),
    ("report", ["report", "runs/fkl", "-o", "page.html"]),
    ("objective", ["losses", "show", "akl"]),
    ("metric", ["metrics", "show", "rougeL"]),
    ("source", ["sources", "show", "student"]),
    ("score", ["scores", "show", "tracin"]),
    ("preset", ["presets", "show", "gkd"]),
    ("", ["losses", "list"]),
    ("", ["metrics", "list"]),
    ("", ["sources", "list"]),
    ("", ["scores", "list"]),
    ("", ["presets", "list"]),
    ("", ["losses", "check", "fkl"]),
    ("", ["verify", "runs/fkl"]),
    ("", ["clean", "runs", "--dry-run"]),
    pytest.param("", ["losses", "conformance"], marks=pytest.mark.full),
    pytest.param("toy", ["toy", "fkl", "-o", "toy"], marks=pytest.mark.full),
    pytest.param("rerun", ["rerun", "runs/fkl", "-o", "runs/again"], marks=pytest.mark.full),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "words"), PRINTED, ids=lambda value: " ".join(value[:2]) if value else "")
def test_every_other_command_prints_what_the_schema_says(made, kind, words):
    jsonschema = pytest.importorskip("jsonschema")
    answer = kd(*words, "--json", folder=made)
    found = json.loads(answer.out)
    assert (found["kind"], found["schema_version"]) == (kind, 2) if kind else isinstance(found, list)
    schema = output_schema()
    jsonschema.Draft202012Validator(schema).validate(found)
    if kind:
        assert set(found) <= set(kinds_of(schema)[kind]["properties"])


def test_the_page_names_every_kind_of_document():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("## JSON")[2].partition("<!-- begin")[0]
    assert all(f"`{kind}`" in table for kind in kinds_of(output_schema()))


def test_the_schema_of_settings_is_json_schema_of_its_command(home):
    jsonschema = pytest.importorskip("jsonschema")
    for command, name in (("distill", "train"), ("compare", "losses"), ("eval", "generation")):
        found = json.loads(kd("settings", "schema", command).out)
        jsonschema.Draft202012Validator.check_schema(found)
        assert name in found["properties"] or name in json.dumps(found)
    jsonschema.Draft202012Validator.check_schema(json.loads(kd("settings", "schema", "output").out))
    answer = kd("settings", "schema", "distil")
    assert (answer.code, "did you mean distill?" in answer.error_lines[-1]) == (2, True)
