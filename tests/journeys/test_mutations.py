"""Whatever a file has become, a command ends in one line with a documented exit code."""

import json
import shutil

import pytest
import yaml

from damage import Workplace
from mutations import Target, complaints, mend_folder, without_digests

PER_TARGET, ALL_PER_TARGET = 10, 240
DISTILL = ("distill", "--teacher", "teacher", "--student", "student", "--device", "cpu", "--max-steps", "1", "--quiet")
PLAN = (*DISTILL, "--data", "train.jsonl", "--dry-run")
SCORE = ("eval", "--predictions", "answers.jsonl", "--metric", "exact_match", "--quiet")
RUN = "run"

TARGETS = {
    "settings": Target("run.yaml", ("distill", "-c", "run.yaml", "--dry-run", "--quiet")),
    "rows": Target("train.jsonl", PLAN),
    "cache": Target("cache/cache.json", (*PLAN, "--teacher-cache", "cache")),
    "index": Target("cache/shard-00000/index.json", ("verify", "cache", "--quiet"), mend_folder),
    "manifest": Target(f"{RUN}/manifest.json", ("compare", RUN, "other", "--quiet")),
    "status": Target(f"{RUN}/status.json", ("compare", RUN, "other", "--quiet")),
    "metrics": Target(f"{RUN}/metrics.jsonl", ("report", RUN, "-o", "page.html", "--quiet")),
    "results": Target(f"{RUN}/eval/test/results.json", ("compare", RUN, "other", "--quiet"), mend_folder),
    "curves": Target(f"{RUN}/eval/test/samples.parquet", ("compare", RUN, "other", "--quiet"), mend_folder),
    "student": Target(f"{RUN}/model/manifest.json", ("verify", RUN, "--quiet")),
    "study": Target("study/study.json", ("compare", "study", "--status")),
    "study settings": Target("bare/study.yaml", ("compare", "bare", "--dry-run", "--quiet")),
    "digests": Target("study/digests.json", ("compare", "study", "--to", "table.md")),
    "tables": Target("bare/results.parquet", ("compare", "bare", "--to", "table.md")),
    "tokenizer": Target("teacher/tokenizer.json", PLAN),
    "tokenizer settings": Target("teacher/tokenizer_config.json", PLAN),
    "config": Target("teacher/config.json", PLAN),
    "generation": Target("teacher/generation_config.json", PLAN),
    "answers": Target("answers.jsonl", SCORE),
    "protocol": Target("protocol.yaml", (*SCORE, "--protocol", "protocol.yaml")),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("mutations"))
    root = place.root
    first, second = sorted((place.study / "cells").iterdir())
    for source, name in ((first, RUN), (second, "other")):
        without_digests(shutil.copytree(source, root / name))
    bare = shutil.copytree(place.study, root / "bare")
    (bare / "digests.json").unlink()
    (bare / "study.json").unlink()
    shutil.copy(place.study / "study.json", bare / "study.json")
    settings = {"teacher": "teacher", "student": "student", "loss": "0.5*ce+0.5*akl:mu=0.6",
                "data": {"train": "train.jsonl", "eval": "test.jsonl", "max_length": 64},
                "train": {"max_steps": 2, "lr": 1e-3}, "hardware": {"device": "cpu"}}  # fmt: skip
    (root / "run.yaml").write_text(yaml.safe_dump(settings))
    (root / "protocol.yaml").write_text(
        "evaluation:\n  bins: 5\n  generation:\n    seeds: [1, 2]\n    temperature: 0.7\n"
    )
    lines = [{"prompt": f"p{n}", "prediction": "a b", "references": ["a", "a b"], "ended": True} for n in range(4)]
    (root / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not (root / "teacher" / "generation_config.json").is_file():
        (root / "teacher" / "generation_config.json").write_text('{"eos_token_id": 2, "bos_token_id": 1}')
    return root


@pytest.mark.parametrize("name", TARGETS)
def test_a_spoilt_file_ends_in_one_line(home, name):
    assert complaints(home, TARGETS[name], range(PER_TARGET)) == []


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
def test_each_of_many_spoilt_files_ends_in_one_line(home, name):
    assert complaints(home, TARGETS[name], range(PER_TARGET, PER_TARGET + ALL_PER_TARGET)) == []
