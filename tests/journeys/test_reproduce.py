"""A study is reported, verified and made again, and a run is carried to the hub's door."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

import study
from kdcli.config.schema import EvalSettings, GenerationConfig
from kdcli.events import silent
from kdcli.report.page import report
from kdcli.storage.digests import update_digest
from kdcli.storage.run_dir import RunFolder
from kdcli.study.compare import compare
from kdcli.study.finished import load
from pages import Page
from shell import kd

LOSSES = ("fkl", "0.5*ce+0.5*akl", "atkd")
METRICS = EvalSettings(
    metrics=("rougeL", "perplexity", "ece", "kl_to_teacher"),
    generation=GenerationConfig(max_new_tokens=6, seeds=(1,), temperature=0.7),
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def made(parts):
    settings = parts.study(*LOSSES, seeds=(0, 1), max_steps=4, save_every=4, keep_finished=True)
    config = settings.model_copy(update={"evaluation": METRICS})
    comparison = compare(config, silent)
    return parts.root / "study", comparison


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "study"))


@pytest.fixture(scope="module")
def page(made):
    text = (made[0] / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def cell(folder: Path, label: str = "atkd") -> Path:
    return next(path for path in sorted(folder.glob("cells/*")) if path.name.startswith(f"{label}-s0"))


def test_the_page_holds_every_section(page):
    sections = ["verdict", "ranking", "differences", "start", "findings", "training", "adaptive", "calibration"]
    sections += ["lengths", "pareto", "answers", "settings", "manifest"]
    assert re.findall(r'<section id="(\w+)">', page[0]) == sections
    assert page[1].open == []


def test_the_page_runs_and_fetches_nothing(page):
    text, parsed = page
    assert parsed.tags.count("script") == 1
    assert not {"iframe", "object", "embed", "link", "img", "form", "base"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on") or name in ("style", "src", "srcset")]
    assert all(link.startswith("#") for link in parsed.links)
    policy = next(value for _, name, value in parsed.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    script = re.search("<script>(.*?)</script>", text, re.DOTALL)[1]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert not re.search(r"https?:|fetch|import|XMLHttp|eval|innerHTML|document\.write", script)
    assert "url(" not in style
    assert "@import" not in style


def test_ids_are_unique_and_every_link_leads_somewhere(page):
    text, parsed = page
    assert len(set(parsed.ids)) == len(parsed.ids)
    inside = re.findall(r"url\(#([\w-]+)\)", text) + [link[1:] for link in parsed.links]
    assert set(inside) <= set(parsed.ids)


def test_every_picture_says_what_it_shows(page):
    _, parsed = page
    labels = [value for tag, name, value in parsed.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == parsed.tags.count("svg") > 12
    assert all(labels)
    assert "Reliability diagram of fkl" in " ".join(labels)


def test_the_pages_numbers_are_the_tables(made, page):
    from kdcli.statistics.rounding import number

    for row in made[1].rows:
        for info in made[1].scores:
            assert number(row.scores[info.name]) in page[1].texts


def test_the_same_study_gives_the_same_page(made, tmp_path):
    folder, _ = made
    answer = kd("report", str(folder), "-o", str(tmp_path / "again.html"))
    assert answer.code == 0, answer.err
    assert answer.out.strip() == str(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (folder / "report.html").read_bytes()


def test_single_runs_have_a_page_too(made, tmp_path):
    run = cell(made[0])
    assert kd("report", str(run), "-o", str(tmp_path / "one.html")).code == 0
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert re.search(r"<h1>teacher \(.*\) → student \(.*\): atkd</h1>", text)
    assert 'id="differences"' not in text


def test_what_has_no_data_has_no_section(made):
    comparison, groups, _ = load([made[0]])
    bare = [type(group)(group.label, group.runs) for group in groups if group.label == "fkl"]
    text = report(comparison, bare)
    assert 'id="adaptive"' not in text
    assert 'id="ranking"' in text


@pytest.mark.parametrize("wrong", ["nothing-here", "empty"])
def test_a_folder_that_is_no_study_is_refused(tmp_path, wrong):
    (tmp_path / "empty").mkdir()
    answer = kd("report", str(tmp_path / wrong))
    assert answer.code == 3
    assert len(answer.error_lines) == 1


def test_an_untouched_study_verifies(made):
    before = study.tree(made[0])
    answer = kd("verify", str(made[0]))
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert sum(" model " in line for line in lines) == sum(" evaluation cells/" in line for line in lines) == 6
    assert sum(" evaluation reference/" in line for line in lines) == 2
    assert study.tree(made[0]) == before


DAMAGE = {
    "weights": lambda run: run / "model" / "model.safetensors",
    "card": lambda run: run / "model" / "README.md",
    "checkpoint": lambda run: next(run.glob("checkpoint-*")) / "manifest.json",
    "results": lambda run: next(run.glob("eval/*")) / "results.json",
    "samples": lambda run: next(run.glob("eval/*")) / "samples.parquet",
    "settings": lambda run: run / "config.yaml",
    "manifest": lambda run: run / "manifest.json",
    "status": lambda run: run / "status.json",
    "metrics": lambda run: run / "metrics.jsonl",
    "timing": lambda run: run / "timing.jsonl",
    "table": lambda run: run.parents[1] / "table.md",
    "page": lambda run: run.parents[1] / "report.html",
    "digests": lambda run: run.parents[1] / "digests.json",
}


CARRIERS = ("digests", "status")  # once gone, nothing asks for what they held


@pytest.mark.parametrize(
    "what, how", [*((what, "changed") for what in DAMAGE), *((what, "gone") for what in DAMAGE if what not in CARRIERS)]
)
def test_damage_is_found_and_named(copy, what, how):
    path = DAMAGE[what](cell(copy))
    if how == "gone":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    answer = kd("verify", str(copy))
    assert answer.code == 6
    assert len(answer.error_lines) == 1
    assert str(path.parent if path.name == "manifest.json" else path) in answer.err or path.name == "digests.json"
    assert "DAMAGED" in answer.out
    found = json.loads(kd("verify", str(copy), "--json").out)
    assert sum(bool(one["problem"]) for one in found) == 1


def test_a_stray_file_in_a_model_is_found(copy):
    (cell(copy) / "model" / "extra.bin").write_bytes(b"x")
    assert kd("verify", str(copy)).code == 6


def test_nothing_to_verify_is_said(tmp_path):
    assert kd("verify", str(tmp_path)).code == 3
    assert kd("verify", str(tmp_path / "gone")).code == 3


def test_a_page_written_again_still_verifies(copy):
    (copy / "report.html").write_text("changed")
    assert kd("verify", str(copy)).code == 6
    update_digest(copy / "report.html")
    assert kd("verify", str(copy)).code == 0


def test_sealing_one_file_again_hides_no_damage_in_another(copy):
    (copy / "table.md").write_text("better numbers")
    update_digest(copy / "report.html")
    answer = kd("verify", str(copy))
    assert answer.code == 6
    assert "table.md" in answer.out + answer.err


@pytest.mark.parametrize("name", ["study.yaml", "study.json"])
def test_settings_of_a_study_are_sealed(copy, name):
    path = copy / name
    path.write_text(path.read_text() + " ")
    assert kd("verify", str(copy)).code == 6


def test_a_run_made_again_is_bit_identical(made, tmp_path):
    run = cell(made[0], "fkl")
    answer = kd("rerun", str(run), "-o", str(tmp_path / "again"), "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["identical"]
    assert found["weights"] == found["weights_again"]
    assert kd("verify", str(tmp_path / "again")).code == 0


def test_a_run_whose_teacher_changed_is_not_made_again(made, parts, tmp_path):
    import tiny

    folder = made[0]
    teacher = parts.root / "teacher"
    kept = Path(shutil.copytree(teacher, tmp_path / "kept"))
    try:
        tiny.folder(teacher, seed=9)
        answer = kd("rerun", str(cell(folder)), "-o", str(tmp_path / "again"))
    finally:
        shutil.rmtree(teacher)
        shutil.move(kept, teacher)
    assert answer.code == 8
    assert "teacher" in answer.err
    assert not (tmp_path / "again").exists()


def test_a_run_is_not_made_again_over_itself(made):
    run = cell(made[0])
    assert kd("rerun", str(run), "-o", str(run)).code == 2


def test_weights_that_differ_are_said(made, tmp_path):
    """Another model of the same size stands in for a machine that rounds otherwise."""
    run = Path(shutil.copytree(cell(made[0], "fkl"), tmp_path / "run"))
    other = cell(made[0]) / "model"
    shutil.rmtree(run / "model")
    shutil.copytree(other, run / "model")
    answer = kd("rerun", str(run), "-o", str(tmp_path / "again"))
    assert answer.code == 6
    assert "the weights differ" in answer.out


def test_the_model_card_is_in_the_model_and_has_the_scores(made):
    from huggingface_hub import ModelCard

    run = cell(made[0])
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.to_dict()["library_name"] == "transformers"
    names = {result.metric_name for result in card.data.eval_results}
    assert {"rougeL", "perplexity", "ece"} <= names
    assert "lam mean_easy(DKD)" in card.text
    assert RunFolder(run).manifest()["identity"]["data"] in card.text


def test_what_adaptive_objectives_do_is_logged(made):
    def lines(label):
        text = (cell(made[0], label) / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    for line in lines("0.5ce-0.5akl"):
        assert 0 < line["akl.head_weight"] < 1
        assert line["loss"] == pytest.approx(line["ce"] + line["akl"])
    for line in lines("atkd"):
        assert 0 < line["atkd.easy_share"] < 1
        assert line["loss"] == pytest.approx(line["easy"] + line["hard"])
    assert not any("_" in name and name != "gradient_norm" for name in lines("fkl")[0])
