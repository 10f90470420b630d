"""Model cards, and the way to the hub."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

import study
from kdcli.distill.model_card import CARD, check_repository, model_card, push, renew_card
from kdcli.distill.prepare import prepare_run
from kdcli.errors import UsageError
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.events import silent
from kdcli.loading.session import Session
from kdcli.statistics import Estimate
from kdcli.storage import atomic
from shell import kd

HOSTILE = (
    "a\n---\nlicense: mit",
    "<script>x</script>",
    "x | y `z`",
    "\x1b[31m[link](http://x)",
    "{{ 7*7 }}",
    "=cmd: &a *b",
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def prepared(parts):
    return prepare_run(parts.run(loss="0.5*ce+0.5*akl"), Session())


def evaluation(name="test"):
    infos = (ScoreInfo(name, "higher", name, "sig|a:1", "texts"),)
    return EvalRecord(
        name,
        "m",
        None,
        7,
        {name: Estimate(12.5, 12.0, 13.0, 7, "examples", 0.2)},
        infos,
        {"name": "greedy", "hash": "abc"},
        "d",
    )


def test_the_card_names_what_the_student_was_made_from(prepared):
    card = ModelCard(model_card(prepared, evaluation("rougeL")))
    assert card.data.tags == ["distillation", "kd"]
    (result,) = card.data.eval_results
    assert result.metric_value == 12.5
    assert result.metric_args == {
        "interval_95": [12.0, 13.0], "examples": 7, "settings": "sig|a:1", "protocol": "greedy-abc"
    }  # fmt: skip
    code = card.text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "check them before you share it" in card.text
    for text in ("teacher", prepared.dataset.digest, prepared.pair.teacher.digest, "| optimizer steps | 8 |"):
        assert text in card.text
    assert "arXiv:2404.02657" in card.text
    assert str(prepared.pair.teacher.path) not in card.content


def test_models_of_the_hub_are_base_models(prepared):
    named = replace(prepared, teacher="org/big", pair=replace(prepared.pair, student="org/small"))
    assert ModelCard(model_card(named)).data.base_model == ["org/small", "org/big"]
    assert ModelCard(model_card(prepared)).data.base_model is None


def test_rows_of_the_hub_and_a_licence_stand_in_the_head(prepared, tmp_path):
    (tmp_path / CARD).write_text("---\nlicense: apache-2.0\n---\n# S\n")
    data = prepared.data.model_copy(update={"train": "org/rows"})
    named = replace(prepared, data=data, pair=replace(prepared.pair, student=str(tmp_path)))
    card = ModelCard(model_card(named))
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["org/rows"])
    assert "before you share" not in card.text
    (tmp_path / CARD).write_text("---\nlicense: [a, b]\n---\n")
    assert ModelCard(model_card(named)).data.license is None


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_only_text(prepared, text):
    pair = replace(prepared.pair, student=text, teacher=replace(prepared.pair.teacher, path=text))
    content = model_card(replace(prepared, teacher=text, pair=pair, label=text), evaluation(text))
    head, body = content.split("---\n")[1], content.split("\n---\n", 1)[1]
    data = yaml.safe_load(head)
    assert set(data) == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert "\x1b" not in content
    assert "<script" not in body
    assert not re.search(r"(?<!\\)\]\(http", body)
    rows = [line for line in body.splitlines() if line.startswith("| objective |")]
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)


def test_a_renewed_card_keeps_the_folder_whole(tmp_path):
    def fill(target):
        (target / "model.safetensors").write_bytes(b"weights")
        (target / CARD).write_text("old")

    folder = tmp_path / "model"
    atomic.commit_folder(folder, fill, {"kind": "model", "seed": 3})
    renew_card(folder, "new")
    manifest = atomic.verify_folder(folder)
    assert (folder / CARD).read_text() == "new"
    assert manifest["seed"] == 3
    assert set(manifest["files"]) == {"model.safetensors", CARD}
    before = (folder / CARD).stat().st_ino
    renew_card(folder, "new")
    assert (folder / CARD).stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_damaged_model_gets_no_new_card(tmp_path):
    folder = tmp_path / "model"
    atomic.commit_folder(folder, lambda target: (target / "w").write_bytes(b"1"), {})
    (folder / "w").write_bytes(b"2")
    with pytest.raises(Exception, match="digest differs"):
        renew_card(folder, "new")
    assert not (folder / CARD).exists()


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b/c", "-x/y", "https://x/y"])
def test_what_cannot_be_a_repository_is_refused(name):
    with pytest.raises(UsageError, match="not the name of a repository"):
        check_repository(name)


def test_a_wrong_repository_stops_before_anything_is_trained(parts, tmp_path):
    arguments = (
        "distill",
        "--teacher",
        str(parts.teacher),
        "--student",
        str(parts.student),
        "--data",
        str(parts.train),
    )
    answer = kd(*arguments, "-o", str(tmp_path / "run"), "--push-to-hub", "a b/c")
    assert answer.code == 2
    assert not (tmp_path / "run").exists()


@pytest.fixture
def hub(monkeypatch):
    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **more: calls.append(("create", name)))

    def upload(self, **given):
        calls.append(("upload", given["repo_id"], given["folder_path"], tuple(given["ignore_patterns"])))
        return "https://hub/me/student"

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return calls


def test_pushing_is_last_and_its_failure_is_the_machines(parts, tmp_path, hub, monkeypatch):
    arguments = (
        "distill",
        "--teacher",
        str(parts.teacher),
        "--student",
        str(parts.student),
        "--data",
        str(parts.train),
    )
    arguments += ("--max-steps", "2", "--eval-data", str(parts.test), "--metric", "perplexity")
    arguments += ("-o", str(tmp_path / "run"), "--push-to-hub", "me/student")
    answer = kd(*arguments)
    assert answer.code == 0, answer.err
    model = str(tmp_path / "run" / "model")
    assert hub == [("create", "me/student"), ("upload", "me/student", model, ("manifest.json",))]
    assert "pushed to https://hub/me/student" in answer.err
    assert answer.out.splitlines()[-1] == model

    def refuse(self, name, **more):
        raise ConnectionError("no \x1b[31mnetwork")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    answer = kd(*arguments)
    assert answer.code == 4
    (said,) = answer.error_lines
    assert "not pushed to me/student, the run is complete: ConnectionError: no \\x1b[31mnetwork" in said
    assert said.endswith(f"hf upload me/student {model}")
    assert answer.out.splitlines()[-1] == model
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_nothing_is_pushed_unless_asked(hub, tmp_path):
    heard = study.Heard()
    push(tmp_path, "me/student", heard)
    assert heard.messages("warning") == []
    assert silent is not heard
