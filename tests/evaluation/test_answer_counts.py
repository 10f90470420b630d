"""What is said of answers beside their scores: how many were cut or empty, and when they are not scored at all."""

import json
from dataclasses import replace

import numpy as np
import pytest

import evaluated as evaluated_runs
import study
from kdcli.comparison.tables_store import ComparisonMeta
from kdcli.config.schema import CompareConfig, DataConfig, EvalSettings, GenerationConfig
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.distill.model_card import _scores
from kdcli.evaluation.answers import TextSamples
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.judge.inputs import load_answers
from kdcli.evaluation.records import AnswerCounts
from kdcli.evaluation.results import read_results
from kdcli.evaluation.scoring import answer_counts, build_metrics, choose_metrics, score_texts, without_prompts
from kdcli.events import silent
from kdcli.metrics.diversity import length_unit
from kdcli.report.answer_curves import make_buckets
from kdcli.study.cells import tuned_by
from kdcli.study.results import conclude
from mutations import mend_folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("counted"))


def evaluated(parts, output, rows, **settings):
    path = output.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings.setdefault("generation", GenerationConfig(max_new_tokens=3, temperature=0.0))
    config = parts.evaluation(
        parts.student, teacher=None, output=str(output), data=DataConfig(eval=str(path)),
        evaluation=EvalSettings(**settings), pictures=False,
    )  # fmt: skip
    return evaluate_run(config, silent)


def test_a_record_that_does_not_say_what_a_score_is_computed_from_is_read(parts, tmp_path):
    rows = [{"prompt": "say a:", "completion": "a"}]
    found = evaluated(parts, tmp_path / "found", rows, metrics=("perplexity",))
    path = tmp_path / "found" / "results.json"
    document = json.loads(path.read_bytes())
    for entry in document["scores"]:
        del entry["eats"]
    path.write_text(json.dumps(document))
    mend_folder(path)
    assert read_results(tmp_path / "found").infos == found.infos


def test_cut_answers_are_counted_and_kept_in_the_record(parts, tmp_path):
    rows = [{"prompt": f"say {letter}:", "completion": letter} for letter in "abcd"]
    found = evaluated(parts, tmp_path / "found", rows, metrics=("rougeL",))
    counts = found.answers
    assert (counts.answers, counts.most) == (4, 3)
    lines = [json.loads(line) for line in (tmp_path / "found" / "answers.jsonl").read_text().splitlines()]
    assert counts.cut == sum(not line["ended"] for line in lines) > 0
    assert f"{counts.cut} of 4 answers were cut at 3 tokens, before an end token" in found.remarks
    assert read_results(tmp_path / "found").remarks == found.remarks
    judged = load_answers(str(tmp_path / "found"), references=True, limit=3)
    assert answer_counts(judged.texts, judged.most) == AnswerCounts(3, counts.empty, sum(
        not line["ended"] for line in lines[:3]
    ), 3)  # fmt: skip
    assert any("answers were cut at 3 tokens" in line for line in _scores(found)), "under the card's table, too"


def test_default_metrics_of_answers_are_left_out_where_no_row_has_a_prompt(parts, tmp_path):
    found = evaluated(parts, tmp_path / "plain", [{"text": "once upon"}, {"text": "a time"}])
    assert not any(info.input_kind == "texts" for info in found.infos)
    assert "perplexity" in found.estimates
    assert "rougeL left out: the rows have no prompt to answer" in found.notes
    asked = evaluated(parts, tmp_path / "asked", [{"text": "once upon"}], metrics=("rougeL",))
    assert "rougeL" in asked.estimates
    assert any(note.startswith("1 of 1 rows have no prompt: rougeL") for note in asked.notes)


def rows(*prompts):
    return TokenDataset(tuple(Example((1, 5, 2), 1, prompt, ("a",), "") for prompt in prompts))


def test_metrics_of_answers_stay_where_some_row_has_a_prompt():
    settings = EvalSettings()
    chosen = choose_metrics(settings, teacher=True)
    assert without_prompts(chosen, settings, rows("say", "say")) == chosen
    some = without_prompts(chosen, settings, rows("say", ""))
    assert [metric.name for metric in some.texts] == ["rougeL"]
    assert some.notes[-1].startswith("1 of 2 rows have no prompt")


def test_tuning_goes_by_what_is_measured():
    assert tuned_by(CompareConfig(), rows("say")).score == "rougeL"
    assert tuned_by(CompareConfig(), rows("", "")).score == "perplexity"
    asked = CompareConfig(evaluation=EvalSettings(metrics=("rougeL",)))
    assert tuned_by(asked, rows("", "")).score == "rougeL"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (AnswerCounts(100, 0, 98, 128), ["98 of 100 answers were cut at 128 tokens, before an end token"]),
        (AnswerCounts(4, 4, 0), ["all 4 answers are empty: scores of their text mean nothing"]),
        (AnswerCounts(4, 1, None), ["1 of 4 answers are empty"]),
        (AnswerCounts(4, 0, 0, 9), []),
    ],
)
def test_counts_are_said(counts, said):
    assert counts.sentences == said


def texts(*answers):
    return TextSamples([[one] for one in answers], [["x"]] * len(answers), [""] * len(answers), [[True]] * len(answers))


CHINESE, THAI, ARABIC = "你好世界你好世界你好世界", "สวัสดีสวัสดีสวัสดี", "مرحبا بالعالم مرحبا بالعالم"


@pytest.mark.parametrize(("answer", "noted"), [(CHINESE, True), (THAI, True), ("こんにちは", True), (ARABIC, False)])
def test_one_note_names_all_metrics_that_split_at_spaces(answer, noted):
    names = ("rougeL", "repetition", "distinct", "self_bleu", "length", "token_f1", "exact_match")
    scored = score_texts(choose_metrics(EvalSettings(metrics=names), teacher=False), texts(answer, answer))
    expected = "repetition, distinct, self_bleu, length, token_f1 split at spaces"
    assert [expected in note for note in scored.notes] == ([True] if noted else [])


def test_rouge_by_words_of_the_reference_splits_at_spaces_too():
    for unit, expected in (("words", True), ("tokens", False)):
        metrics, *_ = build_metrics(EvalSettings(metrics=("rougeL_by_length",), length_unit=unit))
        assert metrics[0].splits_at_spaces == expected


def test_every_metric_of_texts_that_no_space_changes_says_that_it_does_not_split_there():
    """The attribute against what the metric does: glued words must change a metric that splits, and no other."""
    answers = ["the cat sat on the mat the cat sat on the mat", "the cat sat on the mat and the dog ran"]
    glued = [answer.replace(" ", "") for answer in answers]
    names = ("repetition", "distinct", "self_bleu", "length", "token_f1", "exact_match", "truncation_rate")
    metrics, *_ = build_metrics(EvalSettings(metrics=names))
    for metric in metrics:
        with_spaces, without = (
            [score.value for score in metric.scores_from_texts([[one], [other]], [[other], [one]], ended=[[True]] * 2)]
            for one, other in (answers, glued)
        )
        assert (with_spaces != without) == metric.splits_at_spaces, metric.name


def test_a_table_says_of_each_line_how_many_answers_were_cut(tmp_path):
    counts = {"fkl": AnswerCounts(10, 0, 9, 128), "rkl": AnswerCounts(10, 2, 0, 128)}
    groups = [
        replace(group, runs={seed: (run, replace(found, answers=counts[group.label]))
                             for seed, (run, found) in group.runs.items()})
        for group in evaluated_runs.groups(tmp_path, labels=("fkl", "rkl"), seeds=(0, 1), gains=(0.0, 0.0))
    ]  # fmt: skip
    (tmp_path / "study").mkdir()
    notes = conclude(groups, ComparisonMeta("fkl"), tmp_path / "study").notes
    assert "answers cut at 128 tokens, before an end token: fkl 18 of 20, rkl 0 of 20" in notes
    assert "answers empty: fkl 0 of 20, rkl 4 of 20" in notes
    whole = conclude(evaluated_runs.groups(tmp_path / "whole"), ComparisonMeta("fkl"), None).notes
    assert not any(note.startswith("answers ") for note in whole)


def test_lengths_of_a_report_are_counted_in_characters_where_no_spaces_are_written():
    for texts_of, unit, count in ((["one two", "three"], "words", 2), ([CHINESE, THAI], "characters", 12)):
        found, length = length_unit(texts_of)
        assert (found, length(texts_of[0])) == (unit, count)
        assert make_buckets(np.array([4] * 9), unit=found).names == (f"4 {unit}",)
