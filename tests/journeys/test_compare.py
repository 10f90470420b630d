"""Comparisons: cells that are found again, failures that stop nothing, kills that change nothing."""

import json
import signal

import pandas as pd
import pytest

import study
from kdcli.distill.run import distill
from kdcli.errors import InputError, InterruptedRunError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import Event, silent
from kdcli.storage.digests import update_digest
from kdcli.study import results
from kdcli.study.compare import compare, plan_compare
from kdcli.study.executors import local
from kdcli.study.finished import compare_runs, load
from kdcli.study.study_dir import read_study
from kdcli.study.tuning import read_tuning
from shell import kd


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def done(parts):
    heard = study.Heard()
    return compare(parts.study("fkl", "rkl", seeds=(0, 1)), heard, command="kd compare fkl rkl --seeds 0,1"), heard


@pytest.fixture(autouse=True)
def no_pictures(done, monkeypatch):
    """Draw for the first comparison only."""
    monkeypatch.setattr(results, "publish", lambda *parts: None)


def cells(parts, name="study"):
    return sorted(path.name for path in (parts.root / name / "cells").iterdir())


def test_a_comparison_holds_every_cell(done, parts):
    found, heard = done
    assert [row.label for row in found.rows] == ["fkl", "rkl"]
    assert [row.seeds for row in found.rows] == [(0, 1), (0, 1)]
    assert found.exit_code == 0
    assert len(cells(parts)) == 4
    assert "4 runs: 0 done, 0 to resume, 4 to run" in heard.messages("note")
    names = {path.name for path in found.folder.iterdir()}
    assert {"table.md", "table.csv", "table.json", "results.parquet", "curves.png", "curves.svg"} <= names


def test_several_seeds_give_intervals_over_seeds(done):
    found, _ = done
    fkl, rkl = found.rows
    for info in found.scores:
        one, two = fkl.scores[info.name], rkl.scores[info.name]
        assert (one.unit, one.count) == (two.unit, two.count), (info.name, one, two)
        assert one.unit in ("seeds", "seeds and examples")
        assert one.count == 2
        assert fkl.differences[info.name] is None
        assert rkl.differences[info.name].mean == pytest.approx(two.mean - one.mean)
    assert not any("1 training seed" in note for note in found.notes)


def test_the_tables_hold_the_records_numbers(done):
    found, _ = done
    every = pd.read_parquet(found.folder / "results.parquet")
    tidy = every[every.role == "contender"]
    assert len(tidy) == 4 * len(found.scores)
    assert len(every) == len(tidy) + sum(len(row.scores) for row in found.references)
    for row in found.rows:
        for info in found.scores:
            values = tidy[(tidy.objective == row.label) & (tidy.score == info.name)].value
            assert values.mean() == pytest.approx(row.scores[info.name].mean)
    assert {"samples.parquet", "costs.csv", "table.tex", "table.html"} <= {path.name for path in found.folder.iterdir()}
    table = pd.read_csv(found.folder / "table.csv", float_precision="round_trip")
    assert table[table.role == "contender"]["mean"].tolist() == [
        row.scores[info.name].mean for row in found.rows for info in found.scores
    ]


def test_repeating_it_trains_nothing_and_changes_no_number(done, parts):
    found, _ = done
    before, folder = study.tree(found.folder / "cells"), found.folder
    table, document = (folder / "table.md").read_bytes(), (folder / "table.json").read_bytes()
    heard = study.Heard()
    compare(parts.study("fkl", "rkl", seeds=(0, 1)), heard, command="kd compare fkl rkl --seeds 0,1")
    assert "4 runs: 4 done, 0 to resume, 0 to run" in heard.messages("note")
    assert study.tree(folder / "cells") == before
    assert (folder / "table.md").read_bytes() == table
    assert (folder / "table.json").read_bytes() == document


def test_another_seed_only_adds_cells(done, parts):
    before = study.tree(parts.root / "study" / "cells")
    heard = study.Heard()
    compare(parts.study("rkl", "fkl", seeds=(1, 2)), heard)
    assert "4 runs: 2 done, 0 to resume, 2 to run" in heard.messages("note")
    after = study.tree(parts.root / "study" / "cells")
    assert {name: after[name] for name in before} == before


def test_another_metric_measures_again_but_trains_nothing(done, parts):
    config = parts.study("fkl", "rkl", seeds=(0,))
    evaluation = config.evaluation.model_copy(update={"metrics": ("perplexity",)})
    found = compare(config.model_copy(update={"evaluation": evaluation}), silent)
    assert [info.name for info in found.scores] == ["perplexity", "nll"]
    weights = next((parts.root / "study" / "cells").glob("fkl-s0-*/model/model.safetensors"))
    assert weights.stat().st_mtime < found.folder.joinpath("table.md").stat().st_mtime


def test_one_seed_concludes_nothing_about_objectives(parts):
    found = compare(parts.study("fkl", "rkl", name="one"), silent, command="kd compare fkl rkl -o one")
    assert "1 training seed" in found.notes[0]
    assert found.notes[-1] == f"next: kd compare -o {parts.root / 'one'} --seeds 0,1,2"
    perplexity = found.rows[1].differences["perplexity"]
    assert (perplexity.unit, perplexity.count) == ("examples", 10)
    assert perplexity.low < perplexity.mean < perplexity.high


def test_one_failing_cell_stops_no_other(parts, monkeypatch):
    def failing(config, report, **options):
        if config.loss == "rkl" and config.train.seed == 0:
            raise RuntimeError("cosmic ray")
        return distill(config, report, **options)

    monkeypatch.setattr(local, "distill", failing)
    found = compare(parts.study("fkl", "rkl", seeds=(0, 1), name="failing"), silent)
    assert [(one.loss, one.seed, one.exit_code) for one in found.failed] == [("rkl", 0, 1)]
    assert "cosmic ray" in found.failed[0].message
    assert found.exit_code == 1
    assert [row.seeds for row in found.rows] == [(0, 1), (1,)]
    assert found.rows[1].differences["perplexity"].unit == "examples"
    assert "failed: rkl seed 0" in (found.folder / "table.md").read_text()


def test_a_failed_baseline_is_replaced_and_said(parts, monkeypatch):
    def failing(config, report, **options):
        if config.loss == "fkl":
            raise RuntimeError("no")
        return distill(config, report, **options)

    monkeypatch.setattr(local, "distill", failing)
    found = compare(parts.study("fkl", "rkl", "jsd", name="without-baseline"), silent)
    assert found.baseline == "rkl"
    assert found.notes[0] == "the baseline fkl has no finished run: differences are taken to rkl"


def test_a_signal_goes_through(parts):
    def signalling(event: Event) -> None:
        if event.kind == "progress" and event.message == "rkl · seed 0: training" and event.done == 2:
            signal.raise_signal(signal.SIGINT)

    config = parts.study("fkl", "rkl", name="stopped")
    with pytest.raises(InterruptedRunError) as caught:
        compare(config, signalling, command="kd compare again")
    assert (caught.value.exit_code, caught.value.fix) == (130, "go on with: kd compare again")
    states = dict(plan_compare(config).cells)
    assert sorted(states.values()) == ["done", "to resume at step 2"]


def test_a_plan_names_cells_and_writes_nothing(parts):
    plan = plan_compare(parts.study("fkl", "jsd:beta=0.1", seeds=(0, 1), name="planned"))
    assert not (parts.root / "planned").exists()
    assert [name.rpartition("-")[0] for name, _ in plan.cells] == [
        "fkl-s0",
        "fkl-s1",
        "jsd-beta0.1-s0",
        "jsd-beta0.1-s1",
    ]
    assert {state for _, state in plan.cells} == {"to run"}


def test_variations_are_contenders_and_share_their_cells(parts):
    config = parts.study("fkl", seeds=(0,), name="varied")
    first = compare(config.model_copy(update={"vary": ("lr=1e-3,5e-3",)}), silent)
    assert [row.label for row in first.rows] == ["fkl [lr=0.001]", "fkl [lr=0.005]"]
    heard = study.Heard()
    found = compare(config.model_copy(update={"vary": ("lr=5e-3,1e-2",)}), heard)
    assert found.baseline == "fkl [lr=0.005]"
    assert "2 runs: 1 done, 0 to resume, 1 to run" in heard.messages("note")
    assert found.rows[0].scores == first.rows[1].scores


def test_tuning_reads_the_test_rows_once_and_for_winners_only(parts):
    config = parts.study("fkl", "rkl", seeds=(0,), name="tuned")
    config = config.model_copy(update={"tune": ("lr=1e-5,1e-2",), "tune_by": "nll"})
    heard = study.Heard()
    found = compare(config, heard)
    tuning = read_tuning(found.folder)
    assert [(trial.label, trial.tried, trial.chosen) for trial in tuning.trials] == [
        ("fkl", "lr=1e-05", False),
        ("fkl", "lr=0.01", True),
        ("rkl", "lr=1e-05", False),
        ("rkl", "lr=0.01", True),
    ]
    assert (tuning.rows, tuning.tried, tuning.score) == (2, 2, "nll")
    assert (tuning.seeds, tuning.reported) == ((1000,), (0,))
    assert "chosen: fkl: lr=0.01; rkl: lr=0.01" in found.notes[0]
    assert not any("too good" in note for note in found.notes)
    read = {path.parents[2].name for path in found.folder.glob("cells/*/eval/test/results.json")}
    lost = {path.parents[1].name for path in found.folder.glob("cells/*/dev/results.json")} - read
    assert (len(read), len(lost)) == (2, 4)
    assert not any((found.folder / "cells" / name / "dev").exists() for name in read)
    cells = read_study(found.folder).cells
    assert [(entry.evaluation, entry.seed) for entry in cells] == [("dev", 1000)] * 4 + [("eval/test", 0)] * 2
    assert [[*group.runs] for group in load([found.folder])[1]] == [[0], [0]]
    again = compare(config, study.Heard())
    assert again.rows == found.rows
    plan = plan_compare(config)
    assert plan.facts["training time"].text == "none: every run is done"
    assert "2 more of the values that win" in plan.facts["runs"].text
    assert read_tuning(compare(parts.study("fkl", "rkl", name="tuned"), silent).folder) is None


def test_a_study_tuned_with_the_seeds_it_reports_goes_on_with_them_and_says_so(parts):
    """As studies were before: no seeds for tuning in the settings, and cells with the seeds of the table."""
    config = parts.study("fkl", "rkl", seeds=(0,), name="tuned-before")
    config = config.model_copy(update={"tune": ("lr=1e-5,1e-2",), "tune_by": "nll", "tune_seeds": (0,)})
    found = compare(config, silent)
    assert any("seeds 0 chose the values and are reported" in note for note in found.notes)
    assert [[*group.runs] for group in load([found.folder])[1]] == [[0], [0]]
    cells = sorted(path.name for path in (found.folder / "cells").iterdir())
    again = compare(config.model_copy(update={"tune_seeds": None}), silent)
    assert again.rows == found.rows
    assert sorted(path.name for path in (found.folder / "cells").iterdir()) == cells
    document = json.loads((found.folder / "tuning.json").read_text())
    for name in ("seeds", "reported"):
        del document[name]
    (found.folder / "tuning.json").write_text(json.dumps(document))
    update_digest(found.folder / "tuning.json")
    assert read_tuning(found.folder).seeds == ()


def test_the_status_of_a_study_is_read_from_its_files(parts, done):
    answer = kd("compare", str(parts.root / "study"), "--status", "--json")
    found = json.loads(answer.out)
    assert answer.code == 0
    assert set(found["counts"]) == {"done"}
    assert {(cell["step"], cell["total"]) for cell in found["cells"]} == {(8, 8)}
    missing = kd("compare", "--status", "-o", str(parts.root / "nothing"))
    assert (missing.code, "no such folder" in missing.error_lines[0]) == (2, True)


def test_a_study_goes_on_by_its_folder_alone(parts, monkeypatch):
    config = parts.study("fkl", "rkl", seeds=(0,), name="alone")
    whole = compare(config, silent)
    before = (whole.folder / "table.md").read_bytes()
    answer = kd("compare", "-o", str(whole.folder), "--json")
    assert answer.code == 0, answer.err
    assert [row["label"] for row in json.loads(answer.out)["rows"]] == ["fkl", "rkl"]
    assert (whole.folder / "table.md").read_bytes() == before


@pytest.mark.parametrize(
    ("losses", "what"),
    [(("fkl",), "needs two objectives"), (("fkl", "kl"), "given twice"), (("fkl", "akll"), "akll")],
)
def test_settings_that_compare_nothing(parts, losses, what):
    with pytest.raises(UsageError, match=what):
        compare(parts.study(*losses, name="nothing"), silent)
    assert not (parts.root / "nothing").exists()


@pytest.fixture(scope="module")
def apart(parts):
    """Runs made one by one."""
    return {loss: distill(parts.run(f"apart-{loss}", loss=loss), silent).folder for loss in ("fkl", "rkl")}


def test_finished_runs_compare(apart, parts):
    found = compare_runs([apart["fkl"], apart["rkl"]], "rkl", silent)
    assert found.baseline == "rkl"
    assert found.folder is None
    assert [row.label for row in found.rows] == ["fkl", "rkl"]
    assert found.rows[0].differences["perplexity"].count == 10


def test_cells_of_a_study_compare_as_runs_to_the_same_numbers(done, parts):
    compared, _ = done
    folders = [path for path in sorted((parts.root / "study" / "cells").iterdir()) if "-s2-" not in path.name]
    for folder in folders:
        evaluate_run(parts.evaluation(folder), silent)
    found = compare_runs(folders, "fkl", silent)
    assert [row.scores for row in found.rows] == [row.scores for row in compared.rows]
    assert [row.differences for row in found.rows] == [row.differences for row in compared.rows]


@pytest.mark.parametrize(
    ("change", "field", "values"),
    [
        ({"train": {"max_steps": 9}}, "token budget", ("32 sequences", "36 sequences")),
        ({"train": {"batch_size": 2}}, "token budget", ()),
        ({"data": {"limit": 20}}, "training data", ()),
        ({"data": {"eval_limit": 5}}, "test set", ()),
        ({"evaluation": {"metrics": ("rougeL",)}}, None, ()),
        (
            {"evaluation": {"metrics": ("rougeL",), "bins": 5}},
            "evaluation.bins of the protocols",
            ("custom-", "10", "5"),
        ),
        ({"student": "random:layers=1,width=8,heads=2"}, "student at the start", ("random:layers=1,width=8,heads=2",)),
        ({"teacher": "student", "student": "teacher"}, "teacher", ()),
    ],
)
def test_unlike_runs_are_refused_by_name(apart, parts, change, field, values):
    config = parts.run(f"unlike-{field}-{len(values)}", loss="rkl")
    changes = {}
    for name, value in change.items():
        section = isinstance(value, dict)
        is_folder = name in ("teacher", "student") and not str(value).startswith("random")
        changes[name] = (
            getattr(config, name).model_copy(update=value)
            if section
            else str(parts.root / value)
            if is_folder
            else value
        )
    other = distill(config.model_copy(update=changes), silent).folder
    if field is None:
        assert [info.name for info in compare_runs([apart["fkl"], other], None, silent).scores] == ["rougeL"]
        return
    with pytest.raises(InputError) as caught:
        compare_runs([apart["fkl"], other], None, silent)
    assert caught.value.code == "CMP-01"
    assert caught.value.what.startswith(field)
    assert " differs: " in caught.value.what
    assert all(value in caught.value.what for value in values)
    assert str(other) in caught.value.what


def test_other_rates_are_allowed_and_said(apart, parts):
    other = distill(parts.run("faster", lr=1e-2), silent).folder
    heard = study.Heard()
    found = compare_runs([apart["fkl"], other], None, heard)
    assert [row.label for row in found.rows] == ["fkl (train.lr=0.005)", "fkl (train.lr=0.01)"]
    assert heard.messages("warning") == ["train.lr is not the same in all runs: 0.005, 0.01"]


def test_a_run_given_twice_is_refused(apart):
    with pytest.raises(UsageError, match="the same run"):
        compare_runs([apart["fkl"], apart["fkl"]], None, silent)


def test_a_run_without_evaluation_is_named(apart, parts):
    config = parts.run("bare", loss="rkl")
    data = config.data.model_copy(update={"eval": None})
    bare = distill(config.model_copy(update={"data": data}), silent).folder
    with pytest.raises(InputError, match="no evaluation") as caught:
        compare_runs([apart["fkl"], bare], None, silent)
    assert str(bare) in caught.value.fix


def test_the_command_line_walks_the_same_road(parts, monkeypatch):
    monkeypatch.chdir(parts.root)
    common = ["--teacher", "teacher", "--student", "student", "--data", "train.jsonl", "--eval-data", "test.jsonl"]
    common += ["--max-steps", "4", "--batch-size", "4", "--metric", "perplexity,kl_to_teacher"]
    for loss in ("fkl", "rkl"):
        made = kd("distill", *common, "--loss", loss, "-o", f"typed/{loss}")
        assert (made.code, made.out.splitlines()[-1]) == (0, f"typed/{loss}/model")
    again = kd("distill", *common, "--loss", "fkl", "-o", "typed/fkl")
    assert again.code == 0
    changed = kd("distill", *common, "--loss", "fkl", "--lr", "1e-3", "-o", "typed/fkl")
    assert changed.code == 8
    assert "train.lr was 0.0005 and is now 0.001" in changed.error_lines[0]
    measured = kd("eval", "typed/fkl", "--data", "test.jsonl", "--metric", "perplexity", "--json")
    told = kd("compare", "typed/fkl", "typed/rkl", "--json")
    assert (measured.code, told.code) == (0, 0)
    (first, _) = json.loads(told.out)["rows"]
    assert first["scores"]["perplexity"] == json.loads(measured.out)["estimates"]["perplexity"]
