"""The demo's road, on a fraction of its steps."""

import json
from dataclasses import replace
from functools import cache

import pytest

import study
from kdcli.config.schema import HardwareConfig, TrainConfig
from kdcli.demo import demo as demonstration
from kdcli.demo import synthetic
from kdcli.demo.demo import demo, study_config
from kdcli.events import silent
from kdcli.study.results import read_comparison

LOSSES = demonstration.LOSSES[:2]
PICTURES = ("curves", "fits", "answers")


@pytest.fixture(scope="module")
def small():
    """Two steps instead of hundreds, 24 held-out prompts instead of 192."""
    with pytest.MonkeyPatch.context() as patch:
        steps = {"max_steps": 2, "save_every": 2}
        patch.setattr(demonstration, "_train", lambda **chosen: TrainConfig(**{**chosen, **steps, "batch_size": 8}))
        patch.setattr(demonstration, "_hardware", lambda: HardwareConfig(device="cpu", threads=1))
        patch.setattr(demonstration.synthetic, "split", few)
        patch.setattr(demonstration, "fit", only_fkl)
        patch.setattr(demonstration, "LOSSES", LOSSES)
        yield


def few(seed, test, dev, split=synthetic.split):
    train, _, _ = split(seed, test, dev)
    return train[32:200], train[24:32], train[:24]


@cache
def only_fkl(loss, fit=demonstration.fit):
    return fit("fkl") if loss == "fkl" else replace(only_fkl("fkl"), name=loss)


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "demo"
    return demo(output, silent), output


def test_it_ends_with_a_table_and_pictures(done):
    found, output = done
    assert [row.label for row in found.rows] == list(LOSSES)
    assert found.exit_code == 0
    names = {path.name for path in output.iterdir()}
    assert {"table.md", "table.csv", "table.json", "results.parquet", "study.yaml", "teacher", "student"} <= names
    assert {f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg")} <= names


def test_the_budget_is_equal(done):
    found, _ = done
    assert len({(row.steps, row.tokens) for row in found.rows}) == 1


def test_it_says_what_one_seed_can_say_and_what_to_type(done):
    found, output = done
    assert "1 training seed" in found.notes[0]
    assert found.notes[-1] == f"next: kd compare -c {output / 'study.yaml'} --seeds 0,1,2"


def test_a_student_cut_from_the_teacher_stands_beside_a_random_one_of_its_size(done):
    _, output = done
    found = read_comparison(output / "students")
    assert [row.label for row in found.rows] == [f"fkl [student={one}]" for one in demonstration.STUDENTS]
    cut, drawn = found.rows
    assert cut.parameters == drawn.parameters
    assert [one.role for one in found.references].count("before") == 2
    assert (output / "students" / "report.html").is_file()
    said = demonstration._about_students(found)
    assert f"{cut.parameters:,} parameters, 2 steps of fkl" in said
    assert f"{cut.scores['perplexity'].mean:.3g} after" in said


def test_train_and_test_prompts_are_apart(done):
    _, output = done
    prompts = {
        name: {json.loads(line)["prompt"] for line in (output / "data" / f"{name}.jsonl").read_text().splitlines()}
        for name in ("train", "dev", "test")
    }
    assert not prompts["train"] & (prompts["dev"] | prompts["test"])
    assert len(prompts["test"]) == 24


def test_the_teacher_has_about_a_million_parameters_and_the_student_far_fewer(done):
    _, output = done
    sizes = {
        name: (output / name / "model" / "model.safetensors").stat().st_size / 4 for name in ("teacher", "student")
    }
    assert 0.8e6 < sizes["teacher"] < 1.2e6
    assert sizes["student"] < 0.15 * sizes["teacher"]


def test_again_uses_what_is_there(done):
    found, output = done
    before = study.tree(output)
    again = demo(output, silent)
    assert study.tree(output) == before
    assert again == found


def test_the_study_file_is_the_study(done):
    from kdcli.config.resolve import resolve
    from kdcli.config.schema import CompareConfig

    _, output = done
    assert resolve(CompareConfig, file=output / "study.yaml") == study_config(output)


def test_a_study_that_has_grown_is_left_alone(done, tmp_path):
    """The demo again, after ``kd compare -c demo/study.yaml --seeds 0,1``, keeps both seeds."""
    from kdcli.study.compare import compare

    _, output = done
    grown = study_config(output).model_copy(update={"seeds": (0, 1)})
    compare(grown, silent)
    before = study.tree(output)
    again = demo(output, silent)
    assert {row.seeds for row in again.rows} == {(0, 1)}
    assert study.tree(output) == before
