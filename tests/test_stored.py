import json

import pytest

from kdcli.errors import InputError, IntegrityError, MachineError
from kdcli.evaluation.predictions import read_predictions
from kdcli.evaluation.results import read_results
from kdcli.sources.teacher_text.rows import check_same_text
from kdcli.storage import atomic, stored
from kdcli.storage.digests import verify_digests
from kdcli.storage.run_dir import RunFolder
from kdcli.study.study_dir import read_study
from kdcli.study.tuning import read_tuning
from kdcli.teachers.cache_files import read_key
from kdcli.teachers.remote import _whole_json
from kdcli.teachers.token_store import TokenStore
from kdcli.training.metrics_log import read_metrics

DEEP = ["[" * 900 + "]" * 900, "[" * 100_000]
SHAPES = ["[]", "3", "null", '"text"', "{}", '{"key": 3}', '{"files": 3}', "{", "", *DEEP]
MANIFEST = {"kind": "run", "schema": 1, "identity": {"loss": "fkl", "steps": 2, "train.seed": 0}, "environment": {}}
STUDY = {"schema": 1, "baseline": "fkl", "labels": ["fkl"], "seeds": [0], "cells": [], "chosen": {}}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("content", SHAPES)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("cache.json", read_key),
        ("digests.json", verify_digests),
        ("tuning.json", read_tuning),
        ("about.json", lambda folder: check_same_text(folder, "text")),
        ("status.json", lambda folder: RunFolder(folder).status()),
    ],
)
def test_a_record_of_another_shape_names_its_file(tmp_path, name, read, content):
    write(tmp_path / name, content)
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path)
    assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("field", ["steps", "rows", "zeros", "compressed_bytes", "tokens"])
@pytest.mark.parametrize("value", ["1e-4x", [1], {}, 10**25])
def test_what_a_status_says_of_costs_is_a_number_that_tables_hold(tmp_path, field, value):
    if (field, value) == ("zeros", 10**25):
        value = float("nan")
    write(tmp_path / "status.json", {"state": "done", field: value})
    with pytest.raises(IntegrityError) as caught:
        RunFolder(tmp_path).status()
    assert caught.value.where == str(tmp_path / "status.json")


@pytest.mark.parametrize("content", [one for one in SHAPES if not one.startswith('{"')])
def test_torn_and_foreign_metrics_name_file_and_line(tmp_path, content):
    write(tmp_path / "metrics.jsonl", '{"step": 1, "loss": 0.5, "watched": 2.0}\n' + (content or "{") + "\n")
    with pytest.raises(IntegrityError, match="line 2") as caught:
        read_metrics(tmp_path)
    assert caught.value.where == str(tmp_path / "metrics.jsonl")


def test_metrics_keep_what_else_was_watched(tmp_path):
    line = {"step": 1, "loss": 0.5, "watched": 2.0, "evaluation": {"of": "x", "scores": {"a": None}}}
    write(tmp_path / "metrics.jsonl", json.dumps(line) + "\n")
    assert read_metrics(tmp_path) == [line]


@pytest.mark.parametrize("field", ["identity", "environment"])
def test_a_manifest_that_lacks_a_field_is_named(tmp_path, field):
    write(tmp_path / "manifest.json", {name: value for name, value in MANIFEST.items() if name != field})
    with pytest.raises(IntegrityError, match=field):
        RunFolder(tmp_path).manifest()


@pytest.mark.parametrize("key", ["loss", "steps", "train.seed"])
def test_an_identity_that_lacks_a_key_is_named(tmp_path, key):
    identity = {name: value for name, value in MANIFEST["identity"].items() if name != key}
    write(tmp_path / "manifest.json", MANIFEST | {"identity": identity})
    with pytest.raises(IntegrityError, match=key):
        RunFolder(tmp_path).manifest()


@pytest.mark.parametrize("change", [{"cells": [{}]}, {"cells": 3}, {"labels": None}, {"seeds": ["x"]}, {"chosen": []}])
def test_a_study_of_another_shape_is_named(tmp_path, change):
    write(tmp_path / "study.json", STUDY | change)
    with pytest.raises(IntegrityError, match=next(iter(change))):
        read_study(tmp_path)


@pytest.mark.parametrize(
    "change", [{"scores": [{}]}, {"protocol": 3}, {"notes": "x"}, {"edge": {}}, {"examples": 10**25}]
)
def test_results_of_another_shape_are_named_even_where_their_digest_fits(tmp_path, change):
    document = {
        "name": "test", "model": "m", "examples": 1, "scores": [], "protocol": {}, "model_digest": "d",
        "evaluation": {}, "notes": [], "edge": None,
    }  # fmt: skip
    folder = tmp_path / "eval"
    atomic.commit_folder(folder, lambda target: write(target / "results.json", document | change) and None)
    with pytest.raises(IntegrityError, match=next(iter(change))):
        read_results(folder)


@pytest.mark.parametrize("content", [*SHAPES[:4], '{"key": 3}', '{"key": [1]}', '{"key": [1, "x"]}'])
def test_an_index_of_another_shape_is_damage_even_where_its_digest_fits(tmp_path, content):
    atomic.commit_folder(tmp_path / "shard-00000", lambda target: write(target / "index.json", content) and None)
    store = TokenStore(tmp_path)
    assert len(store) == 0
    assert [error.where for error in store.verify()] == [str(tmp_path / "shard-00000" / "index.json")]
    assert store.drop_damaged() == ["shard-00000"]


def test_what_may_not_be_read_is_the_machines_fault(tmp_path, monkeypatch):
    path = write(tmp_path / "study.json", STUDY)
    monkeypatch.setattr(type(path), "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(MachineError, match="denied"):
        stored.read_record(path, dict[str, int])


@pytest.mark.parametrize("content", DEEP)
def test_a_reply_of_brackets_is_no_reply(content):
    with pytest.raises(ValueError, match="nested too deeply"):
        _whole_json(content.encode())


@pytest.mark.parametrize("name", ["prediction", "reference", "prompt"])
def test_half_a_surrogate_pair_among_predictions_names_its_line(tmp_path, name):
    line = {"prediction": "a", "reference": "b", "prompt": "c"} | {name: "x\ud800"}
    path = write(tmp_path / "answers.jsonl", json.dumps(line) + "\n")
    with pytest.raises(InputError, match=f'"{name}" holds half a surrogate pair at character 2') as caught:
        read_predictions(path)
    assert (caught.value.code, caught.value.where) == ("DATA-08", "answers.jsonl line 1")
