"""From evaluated runs to a comparison: made from tidy tables only, about objectives only with several seeds."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import evaluated
from kdcli.comparison.tables_store import RESULTS, ComparisonMeta
from kdcli.errors import InputError, IntegrityError, UsageError
from kdcli.report.table_view import TableStyle
from kdcli.report.tables import FORMS, render
from kdcli.storage.digests import remove_digests, write_digests
from kdcli.study import stored_comparison
from kdcli.study.export import export
from kdcli.study.results import conclude, read_comparison
from study import tree


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return evaluated.groups(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return conclude(made, ComparisonMeta("fkl", ("a remark",), "kd compare", (0, 1, 2)), folder), folder


def test_several_seeds_are_about_the_objectives(written):
    found, _ = written
    fkl, rkl, akl = found.rows
    assert (fkl.label, fkl.seeds) == ("fkl", (0, 1, 2))
    assert fkl.scores["rougeL"].unit == "seeds and examples"
    assert fkl.differences["rougeL"] is None
    assert akl.differences["rougeL"].p_value < 0.05 <= rkl.differences["rougeL"].p_value
    assert akl.differences["rougeL"].mean == pytest.approx(50.0, abs=20)
    assert (akl.models["rougeL"].unit, akl.models["rougeL"].count) == ("examples", evaluated.EXAMPLES)
    assert akl.best == ("rougeL", "perplexity", "nll")
    assert akl.tied == akl.best
    assert (fkl.tied, rkl.tied) == ((), ())
    assert found.notes[0] == "a remark"
    assert not any("1 training seed" in note for note in found.notes)


def test_what_was_planted_is_traced(written):
    found, _ = written
    shares = found.variance["rougeL"]
    assert shares.seed > 0.5
    assert 0 < shares.sampling < 0.5
    assert found.variance["nll"].sampling == 0.0
    sizes = found.detectable["rougeL"]
    assert 5.0 < sizes.low < sizes.size < sizes.high < 200.0


def test_one_seed_is_about_these_models_and_says_so(tmp_path):
    groups = evaluated.groups(tmp_path, seeds=(7,))
    found = conclude(groups, ComparisonMeta("fkl"), None)
    assert found.notes[0].startswith("1 training seed: no conclusion about objectives can be drawn")
    row = found.rows[2]
    assert row.differences["nll"] == row.models["nll"]
    assert (row.differences["nll"].unit, row.differences["nll"].count) == ("examples", evaluated.EXAMPLES)
    assert found.variance["rougeL"].seed is None
    assert found.folder is None


@pytest.mark.parametrize("text", ["\x1b[2J[/]", "=cmd", "<script>", "\\input{x}", "\ud800"], ids=range(5))
def test_hostile_names_and_answers_reach_no_file_unescaped(tmp_path, text):
    groups = evaluated.groups(tmp_path / "runs", ("fkl", text), (0,), (0.0, 0.1), answer="\x1b[31m=cmd<script>")
    (tmp_path / "study").mkdir()
    found = conclude(groups, ComparisonMeta("fkl"), tmp_path / "study")
    assert len(found.rows) == 2
    for path in (tmp_path / "study").iterdir():
        if path.suffix != ".parquet":
            assert "\x1b" not in path.read_text(encoding="utf-8"), path.name
            assert "<script" not in path.read_text(encoding="utf-8") or path.suffix in (".json", ".csv", ".tex")
    answers = pd.read_parquet(tmp_path / "study" / "samples.parquet").predictions
    assert answers[0][0] == "\x1b[31m=cmd<script>"


def test_runs_that_share_no_seed_are_not_compared(tmp_path):
    ours = evaluated.groups(tmp_path / "a", labels=("fkl",), seeds=(0,), gains=(0.0,))
    theirs = evaluated.groups(tmp_path / "b", labels=("rkl",), seeds=(1,), gains=(0.0,))
    found = conclude([*ours, *theirs], ComparisonMeta("fkl"), None)
    assert found.rows[1].differences["rougeL"] is None
    assert found.rows[1].tied or found.rows[0].tied


def test_the_tables_made_again_have_the_same_bytes(written, tmp_path):
    _, folder = written
    for name in ("results.parquet", "samples.parquet"):
        shutil.copy(folder / name, tmp_path / name)
    again = read_comparison(tmp_path)
    for form in FORMS:
        assert render(again, form).encode() == (folder / f"table.{form}").read_bytes(), form


def test_nothing_in_a_table_depends_on_the_machine(made, written, tmp_path):
    slow = [
        replace(
            group,
            runs={seed: (replace(run, seconds=99.0, peak_bytes=9), found) for seed, (run, found) in group.runs.items()},
        )
        for group in made
    ]
    found = conclude(slow, ComparisonMeta("fkl", ("a remark",), "kd compare", (0, 1, 2)), tmp_path)
    assert found.rows[0].seconds == 99.0
    _, folder = written
    for name in [*(f"table.{form}" for form in FORMS), "results.parquet", "samples.parquet"]:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert (tmp_path / "costs.csv").read_bytes() != (folder / "costs.csv").read_bytes()


def test_what_to_type_next_names_folders_and_enters_no_table(made, written, tmp_path):
    _, folder = written
    elsewhere = conclude(made, ComparisonMeta("fkl", ("a remark",), f"kd compare -o {tmp_path}", (0, 1, 2)), tmp_path)
    assert elsewhere.notes[-1] == f"next: kd compare -o {tmp_path} --seeds 0,1,2,3,4"
    for path in folder.glob("table.*"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "results.parquet").read_bytes() == (folder / "results.parquet").read_bytes()


def test_costs_are_read_back_with_the_tables(written):
    found, folder = written
    again = read_comparison(folder)
    assert [row.seconds for row in again.rows] == [row.seconds for row in found.rows] == [2.5, 2.5, 2.5]
    assert again.rows[0].teacher_passes == 1.0
    costs = pd.read_csv(folder / "costs.csv")
    assert costs["seconds"].tolist() == [1.5, 2.5, 3.5] * 3


def test_the_parquet_files_are_tidy(written):
    found, folder = written
    results, samples = (pd.read_parquet(folder / name) for name in ("results.parquet", "samples.parquet"))
    assert len(results) == 3 * 3 * len(found.scores)
    assert not {"seconds", "peak_bytes"} & set(results.columns)
    means = results.groupby(["objective", "score"]).value.mean()
    assert means["akl", "rougeL"] == pytest.approx(found.rows[2].scores["rougeL"].mean)
    assert len(samples) == 3 * 3 * evaluated.EXAMPLES
    rouge = samples[samples.objective == "akl"].groupby("seed").rougeL.mean()
    assert rouge.mean() == pytest.approx(found.rows[2].scores["rougeL"].mean)
    sums = np.array(samples["nll.sums"].tolist())
    one = ((samples.objective == "fkl") & (samples.seed == 0)).to_numpy()
    nll = sums[one, 0].sum() / sums[one, 1].sum()
    assert results.query("objective == 'fkl' and seed == 0 and score == 'nll'").value.item() == pytest.approx(nll)


def test_every_form_can_be_had_alone(written, tmp_path):
    _, folder = written
    for form in FORMS:
        export(folder, tmp_path / f"mine.{form}")
        assert (tmp_path / f"mine.{form}").read_bytes() == (folder / f"table.{form}").read_bytes()
    export(folder, tmp_path / "mine.parquet")
    assert (tmp_path / "mine.parquet").read_bytes() == (folder / "results.parquet").read_bytes()
    text = export(
        folder, tmp_path / "paper.tex", TableStyle(caption="50% of \\x", label="tab:kd", digits=1)
    ).read_text()
    assert r"\caption{50\% of \textbackslash{}x}" in text
    assert r"\label{tab:kd}" in text
    assert json.loads((folder / "table.json").read_text())["rows"][0]["shown"]["rougeL"] == "58 [37, 77]"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("table.docx", {}),
        ("table", {}),
        ("table.csv", {"label": "tab:x"}),
        ("table.csv", {"caption": "x"}),
        ("table.json", {"layout": "wide"}),
        ("table.csv", {"titles": {"nll": "x"}}),
        ("table.parquet", {"digits": 1}),
        ("table.parquet", {"columns": ("nll",)}),
        ("table.tex", {"columns": ("nll", "nlll")}),
    ],
)
def test_what_no_form_can_hold_is_refused(written, tmp_path, name, options):
    with pytest.raises(UsageError):
        export(written[1], tmp_path / name, TableStyle(**options))
    assert not list(tmp_path.iterdir())


def test_differences_are_taken_to_the_line_that_an_export_names(written, tmp_path):
    _, folder = written
    before = tree(folder)
    own, other = (
        json.loads(export(folder, tmp_path / f"{number}.json", baseline=label).read_text())
        for number, label in enumerate((None, "akl"))
    )
    assert tree(folder) == before
    assert (own["baseline"], other["baseline"]) == ("fkl", "akl")
    one = next(row for row in own["rows"] if row["label"] == "akl")["differences"]["nll"]
    back = next(row for row in other["rows"] if row["label"] == "fkl")["differences"]["nll"]
    assert back["mean"] == pytest.approx(-one["mean"])
    assert [back["low"], back["high"]] == pytest.approx([-one["high"], -one["low"]])
    with pytest.raises(UsageError, match="no line of this comparison"):
        export(folder, tmp_path / "x.tex", baseline="jsd")


def test_the_setup_that_is_recorded_names_models_and_rows(written):
    found, folder = written
    again = read_comparison(folder)
    assert again.setup == found.setup
    assert again.setup.examples == evaluated.EXAMPLES


def test_a_folder_without_a_comparison_is_refused(written, tmp_path):
    with pytest.raises(InputError, match="no results"):
        read_comparison(tmp_path)
    shutil.copy(written[1] / "samples.parquet", tmp_path / "samples.parquet")
    (tmp_path / "results.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(IntegrityError):
        read_comparison(tmp_path)
    shutil.copy(written[1] / "samples.parquet", tmp_path / "results.parquet")
    with pytest.raises(InputError, match="not a comparison"):
        read_comparison(tmp_path)


@pytest.mark.parametrize("name", ["results.parquet", "samples.parquet", "costs.csv"])
def test_a_table_that_is_not_what_was_sealed_makes_no_numbers(written, tmp_path, name):
    folder = shutil.copytree(written[1], tmp_path / "study")
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    for use in (lambda: read_comparison(folder), lambda: export(folder, tmp_path / "table.md")):
        with pytest.raises(IntegrityError, match="digest differs") as caught:
            use()
        assert caught.value.where == str(folder / name)
    assert not (tmp_path / "table.md").exists()


def test_tables_that_a_kill_left_unsealed_are_told_from_damaged_ones(written, tmp_path):
    folder = shutil.copytree(written[1], tmp_path / "study")
    remove_digests(folder)
    with pytest.raises(IntegrityError, match="it was not finished"):
        read_comparison(folder)


def test_the_comparison_that_is_stored_is_the_one_that_the_tables_give(written, tmp_path):
    folder = shutil.copytree(written[1], tmp_path / "study")
    kept = stored_comparison.read(folder)
    (folder / "comparison.json").unlink()
    assert stored_comparison.read(folder) is None
    assert kept == read_comparison(folder)
    assert kept.rows[2].differences["rougeL"].p_value < 0.05


def rewritten(folder):
    found = pq.read_table(folder / "results.parquet")
    pq.write_table(found.set_column(3, "value", [np.add(found["value"], 1.0)]), folder / "results.parquet")


STALE = {
    "tables": rewritten,
    "version": lambda folder: edit(folder, version="0.0"),
    "form": lambda folder: edit(folder, comparison={"rows": 1}),
    "no JSON": lambda folder: (folder / "comparison.json").write_text("{"),
}


def edit(folder, **changes):
    path = folder / "comparison.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_a_stored_comparison_counts_only_while_it_fits(written, tmp_path, change):
    folder = shutil.copytree(written[1], tmp_path / "study")
    change(folder)
    write_digests(folder)
    assert stored_comparison.read(folder) is None
    fresh = read_comparison(folder).rows[0].scores["nll"].mean
    assert fresh == pytest.approx(written[0].rows[0].scores["nll"].mean)


def test_a_stored_comparison_that_was_edited_is_computed_again(written, tmp_path):
    folder = shutil.copytree(written[1], tmp_path / "study")
    edit(folder, comparison=json.loads((folder / "comparison.json").read_text())["comparison"] | {"notes": ["false"]})
    assert stored_comparison.read(folder) is None
    assert read_comparison(folder).notes == stored_comparison.read(written[1]).notes


def test_a_stored_comparison_serves_its_own_baseline_only(written):
    assert stored_comparison.read(written[1], "fkl") is not None
    assert stored_comparison.read(written[1], "akl") is None


ONE_RATE = "one learning rate for all"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({}, True),
        ({"rates": dict.fromkeys(("fkl", "rkl", "akl"), (1e-4, (1e-4,)))}, True),
        ({"rates": {"fkl": (1e-4, (1e-4,)), "rkl": (3e-4, (3e-4,)), "akl": (1e-4, (1e-4,))}}, False),
        ({"tuned": True}, False),
        ({"remarks": ("tuned on nothing of the kind: only a remark",)}, True),
    ],
    ids=["unknown", "one", "several", "tuned", "a remark"],
)
def test_one_learning_rate_is_said_of_lines_that_share_it_however_they_are_called(made, tmp_path, about, said):
    conclude(made, ComparisonMeta("fkl", **about), tmp_path)
    assert any(ONE_RATE in note for note in read_comparison(tmp_path).notes) == said


@pytest.mark.parametrize("remark", ["tuned on 8 development rows by nll", "a remark"])
def test_older_tables_say_in_a_sentence_that_they_were_tuned(made, tmp_path, remark):
    conclude(made, ComparisonMeta("fkl", (remark,)), tmp_path)
    table = pq.read_table(tmp_path / RESULTS)
    ((key, raw),) = ((key, raw) for key, raw in table.schema.metadata.items() if b"remarks" in raw)
    facts = json.loads(raw)
    assert facts["about"].pop("tuned") is False
    pq.write_table(table.replace_schema_metadata({key: json.dumps(facts)}), tmp_path / RESULTS)
    write_digests(tmp_path)
    assert any(ONE_RATE in note for note in read_comparison(tmp_path).notes) == (remark == "a remark")


def test_what_to_type_next_is_told_apart_from_what_was_found(made):
    found = conclude(made, ComparisonMeta("fkl", ("next: a remark",), "kd compare", (0, 1, 2)), None)
    assert found.suggestions == ("next: kd compare --seeds 0,1,2,3,4",)
    assert found.notes[0] == "next: a remark"
    assert found.notes[-1:] == found.suggestions
