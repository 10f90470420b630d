"""Measuring runs, model folders and answers made elsewhere."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from rouge_score.rouge_scorer import RougeScorer

import study
from kdcli.config.resolve import resolve
from kdcli.config.schema import DataConfig, EvalConfig, EvalSettings, GenerationConfig
from kdcli.distill.run import distill
from kdcli.errors import InputError, IntegrityError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.results import read_results, read_scores
from kdcli.events import silent
from kdcli.statistics import over_examples
from shell import kd


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="module")
def run(parts):
    return distill(parts.run(max_steps=4), silent)


@pytest.fixture(scope="module")
def record(parts):
    return evaluate_run(parts.evaluation(parts.student, output=str(parts.root / "out")), silent)


def texts(metrics=("rougeL", "exact_match"), **generation):
    return EvalSettings(metrics=metrics, generation=GenerationConfig(max_new_tokens=6, seeds=(1, 2), **generation))


def test_any_model_folder_can_be_measured(record, parts):
    assert record.examples == 10
    assert [info.name for info in record.infos][:1] == ["rougeL"]
    assert record.estimates["perplexity"].mean > 1
    assert record.estimates["perplexity"].unit == "examples"
    assert record.estimates["distinct_1"].low is None


def test_results_read_back_to_the_same_record(record):
    assert read_results(record.folder) == record


def test_samples_hold_every_answer_and_value(record):
    table = pq.read_table(record.folder / "samples.parquet").to_pydict()
    assert len(table["prompt"]) == 10
    assert all(len(answers) == 2 for answers in table["predictions"])
    assert table["references"][0] == [" a."]
    assert np.mean(table["rougeL"]) == pytest.approx(record.estimates["rougeL"].mean)


def test_stored_statistics_give_the_same_scores(record):
    for name, score in read_scores(record.folder).items():
        assert over_examples(score) == record.estimates[name]


def test_every_score_says_how_it_was_taken(record):
    for info in record.infos:
        assert "n:10" in info.settings
        assert ("temp:0.7" in info.settings) == (info.input_kind == "texts")


def test_the_same_evaluation_gives_the_same_numbers(record, parts):
    again = evaluate_run(parts.evaluation(parts.student), silent)
    assert again.folder is None
    assert again.estimates == record.estimates


def test_a_run_keeps_its_evaluations(run, parts):
    before = study.tree(run.folder / "eval" / "test")
    found = evaluate_run(parts.evaluation(run.folder, evaluation=texts()), silent)
    assert study.tree(run.folder / "eval" / "test") == before
    assert found.folder.parent == run.folder / "eval"
    assert found.folder.name.startswith("test-")
    assert set(found.estimates) == {"rougeL", "exact_match"}


def test_an_evaluation_is_used_again_only_for_the_same_model(parts):
    run = distill(parts.run("changing", max_steps=1), silent)
    config = parts.evaluation(run.folder)
    before = study.tree(run.folder)
    assert evaluate_run(config, silent, reuse=True) == run.evaluation
    assert study.tree(run.folder) == before
    other = distill(parts.run("other", max_steps=6), silent)
    assert other.evaluation is not None
    for path in other.model.iterdir():
        (run.model / path.name).write_bytes(path.read_bytes())
    assert evaluate_run(config, silent, reuse=True).estimates == other.evaluation.estimates


def test_only_texts_need_no_teacher(parts):
    found = evaluate_run(parts.evaluation(parts.student, teacher=None, evaluation=texts()), silent)
    assert found.protocol["teacher"] is None


def test_a_missing_teacher_is_one_line(parts):
    with pytest.raises(UsageError, match="kl_to_teacher needs a teacher") as caught:
        evaluate_run(parts.evaluation(parts.student, teacher=None), silent)
    assert caught.value.exit_code == 2


def test_the_default_metrics_do_without_a_teacher(parts):
    settings = EvalSettings(generation=GenerationConfig(max_new_tokens=2, seeds=(1,)))
    found = evaluate_run(parts.evaluation(parts.student, teacher=None, evaluation=settings), silent)
    assert "agreement" not in found.estimates
    assert any("kl_to_teacher left out" in note for note in found.notes)


def test_a_teacher_measured_against_itself_is_at_distance_zero(parts):
    settings = EvalSettings(metrics=("kl_to_teacher", "agreement"))
    found = evaluate_run(parts.evaluation(parts.teacher, evaluation=settings), silent)
    assert found.estimates["kl_to_teacher"].mean == 0.0
    assert found.estimates["agreement"].mean == 100.0


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_answers_made_elsewhere(tmp_path):
    rows = [
        {"prediction": "the cat", "reference": "the cat"},
        {"prediction": "a dog", "references": ["a cow", "the dog"]},
    ]
    config = EvalConfig(
        predictions=write(tmp_path / "answers.jsonl", rows), evaluation=texts(), output=str(tmp_path / "out")
    )
    found = evaluate_run(config, silent)
    assert found.estimates["exact_match"].mean == 50.0
    assert found.estimates["rougeL"].mean == 75.0
    assert read_results(tmp_path / "out") == found


def minillm_number(rows):
    """Rouge-L as the authors' script computes it: best reference, mean over rows, times 100, 4 decimals."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    total = 0.0
    for row in rows:
        total += max(
            scorer.score(prediction=row["prediction"], target=one)["rougeL"].fmeasure for one in row["references"]
        )
    return round(100.0 * total / len(rows), 4)


def made_up_rows(count):
    draw = random.Random(4)
    words = ["running", "runs", "cats", "cat", "the", "easily", "organised", "42", "U.S.", "a", "été", "jump-over"]

    def text():
        return " ".join(draw.choices(words, k=draw.randint(0, 20)))

    return [{"prediction": text(), "references": [text() for _ in range(draw.randint(1, 3))]} for _ in range(count)]


def test_the_minillm_number_of_given_answers_is_that_of_the_authors_script(tmp_path):
    rows = made_up_rows(60)
    path = write(tmp_path / "answers.jsonl", rows)
    said = kd("eval", "--predictions", path, "--protocol", "minillm", "--metric", "rougeL", "--json")
    value = json.loads(said.out)["estimates"]["rougeL"]["mean"]
    assert round(value, 4) == minillm_number(rows)
    assert 10 < value < 90


def test_the_minillm_number_of_five_seeds_is_the_mean_of_the_scripts_five(tmp_path):
    draw, rows = random.Random(5), made_up_rows(40)
    said = [[row["prediction"], *draw.choices([other["prediction"] for other in rows], k=4)] for row in rows]
    lines = [
        {"predictions": all_five, "references": row["references"]} for all_five, row in zip(said, rows, strict=True)
    ]
    path = write(tmp_path / "answers.jsonl", lines)
    heard = kd("eval", "--predictions", path, "--protocol", "minillm", "--metric", "rougeL", "--json")
    seeds = [
        minillm_number([{**row, "prediction": several[seed]} for row, several in zip(rows, said, strict=True)])
        for seed in range(5)
    ]
    value = json.loads(heard.out)["estimates"]["rougeL"]["mean"]
    assert value == pytest.approx(sum(seeds) / 5, abs=1e-4)
    assert len(set(seeds)) == 5
    assert "takes 5 answers" not in heard.err


def test_a_named_protocol_is_in_every_score_and_a_change_in_its_name(tmp_path):
    path = write(tmp_path / "answers.jsonl", made_up_rows(5))
    flags = {"predictions": path, "protocol": "minillm", "metric": "rougeL"}
    plain = evaluate_run(resolve(EvalConfig, flags=flags), silent)
    assert plain.protocol["name"] == "minillm"
    assert f"|protocol:minillm-{plain.protocol['hash']}|" in plain.infos[0].settings
    assert "|answers:given|" in plain.infos[0].settings
    assert "protocol minillm takes 5 answers to each prompt; the file holds 1" in plain.notes
    changed = evaluate_run(resolve(EvalConfig, flags=flags, sets=["evaluation.generation.top_p=0.9"]), silent)
    assert changed.protocol["name"] == "minillm*"
    assert changed.protocol["hash"] != plain.protocol["hash"]


def test_a_models_scores_name_template_lengths_and_protocol(record, parts):
    data = DataConfig(eval=str(parts.test), template="q: {instruction} a:")
    other = evaluate_run(parts.evaluation(parts.student, data=data, evaluation=texts()), silent)
    for found in (record, other):
        settings = found.infos[0].settings
        assert f"|tmpl:{found.protocol['template']}|" in settings
        assert f"|protocol:custom-{found.protocol['hash']}|" in settings
    assert record.protocol["template"] != other.protocol["template"]


def test_quality_by_length_and_the_share_without_end(parts):
    metrics = ("rougeL", "rougeL_by_length", "truncation_rate", "length")
    folder = parts.root / "lengths"
    found = evaluate_run(parts.evaluation(parts.student, evaluation=texts(metrics), output=str(folder)), silent)
    samples = pq.read_table(folder / "samples.parquet").to_pydict()
    cut = [100 * (1 - np.mean(ended)) for ended in samples["ended"]]
    assert found.estimates["truncation_rate"].mean == pytest.approx(np.mean(cut))
    assert "rougeL_11_inf" not in found.estimates
    assert "rougeL_by_length: no reference has [11, ∞) tokens" in found.notes
    short = [len(valid[0]) <= 5 for valid in samples["references"]]
    assert found.estimates["rougeL_0_5"].mean == pytest.approx(np.mean(np.array(samples["rougeL"])[short]))
    assert {curve.name for curve in found.curves} == {"rougeL-by-length", "lengths"}
    for name, score in read_scores(folder).items():
        assert over_examples(score) == found.estimates[name]


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        (
            [{"prediction": "", "reference": "a b"}] * 2,
            {"rougeL": 0.0, "token_f1": 0.0, "length": 0.0, "distinct_4": 0.0},
        ),
        ([{"prediction": "x", "reference": "a"}] * 2, {"rougeL": 0.0, "exact_match": 0.0, "repetition": 0.0}),
        ([{"prediction": "", "reference": ""}] * 2, {"rougeL": 0.0, "exact_match": 100.0, "token_f1": 100.0}),
    ],
)
def test_empty_and_all_wrong_answers_get_honest_numbers(tmp_path, rows, values):
    known = ("rougeL", "rouge1", "rouge2", "exact_match", "token_f1", "distinct", "self_bleu", "repetition")
    metrics = known if rows[0]["reference"] == "" else (*known, "length")
    path = write(tmp_path / "answers.jsonl", rows)
    found = evaluate_run(EvalConfig(predictions=path, evaluation=texts(metrics)), silent)
    assert {name: found.estimates[name].mean for name in values} == values


def test_references_without_words_have_no_length_ratio(tmp_path):
    path = write(tmp_path / "answers.jsonl", [{"prediction": "x", "reference": ""}] * 2)
    with pytest.raises(InputError, match="the references hold no words") as caught:
        evaluate_run(EvalConfig(predictions=path, evaluation=texts(("length",))), silent)
    assert caught.value.exit_code == 3


def test_the_end_of_given_answers_counts_only_where_every_line_tells_it(tmp_path):
    rows = [
        {"prediction": "x", "reference": "a", "ended": True},
        {"predictions": ["y"], "reference": "a", "ended": [False]},
    ]
    path = write(tmp_path / "answers.jsonl", rows)
    config = EvalConfig(predictions=path, evaluation=texts(("truncation_rate",)))
    assert evaluate_run(config, silent).estimates["truncation_rate"].mean == 50.0
    write(tmp_path / "answers.jsonl", [rows[0], {"prediction": "y", "reference": "a"}])
    with pytest.raises(InputError, match='"ended" is not known'):
        evaluate_run(config, silent)
    write(tmp_path / "answers.jsonl", [rows[0] | {"ended": [True, False]}])
    with pytest.raises(InputError, match='line 1: "ended" must be true or false, or a list of 1'):
        evaluate_run(config, silent)


def test_answers_made_elsewhere_have_no_tokens(tmp_path):
    path = write(tmp_path / "answers.jsonl", [{"prediction": "a", "reference": "a"}])
    with pytest.raises(UsageError, match="perplexity is measured on a model"):
        evaluate_run(EvalConfig(predictions=path, evaluation=EvalSettings(metrics=("perplexity",))), silent)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"reference": "a"}], 'line 1: field "prediction" is missing'),
        ([{"prediction": "a", "reference": "a"}, {"prediction": 3, "reference": "a"}], 'line 2: "prediction" must be'),
        ([{"prediction": "a"}], 'line 1: field "reference" is missing'),
        ([{"predictions": ["a", "b"], "reference": "a"}, {"prediction": "a", "reference": "a"}], "line 2: 1 pred"),
        ([["a"]], "line 1: not an object"),
        ([], "no rows"),
    ],
)
def test_bad_answers_are_named_by_line(tmp_path, rows, what):
    path = write(tmp_path / "answers.jsonl", rows)
    with pytest.raises(InputError) as caught:
        evaluate_run(EvalConfig(predictions=path, evaluation=texts()), silent)
    assert what in str(caught.value)


def test_damaged_results_are_noticed(run, parts):
    found = evaluate_run(parts.evaluation(run.folder, output=str(parts.root / "damaged")), silent)
    assert found.folder is not None
    path = found.folder / "samples.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError):
        read_scores(found.folder)


def test_nothing_to_measure(parts):
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate_run(EvalConfig(), silent)
    with pytest.raises(UsageError, match="no data"):
        evaluate_run(EvalConfig(model=str(parts.student), data=DataConfig(), evaluation=texts()), silent)
