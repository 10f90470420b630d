"""A judge on this machine, and scores given elsewhere, against numbers worked out by hand."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopback
from kdcli.config.schema import JudgeConfig, ServerConfig
from kdcli.errors import InputError, KDError, MachineError, UsageError
from kdcli.evaluation.judge.judge import judge
from kdcli.evaluation.judge.prompt import DEFAULT, JudgePrompt, read_pair
from kdcli.evaluation.judge.verdicts import Verdicts, scores_of
from kdcli.evaluation.results import read_results
from kdcli.events import silent
from kdcli.metrics.score import total
from loopback import Reply, chat

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

ROWS = [
    {"prompt": "one?", "prediction": "good", "reference": "fine"},
    {"prompt": "two?", "prediction": "bad", "reference": "fine"},
    {"prompt": "three?", "prediction": "same", "reference": "same"},
]
WORTH = {"good": 9, "fine": 6, "bad": 2, "same": 5}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers_in(content):
    return re.findall(r"<answer_\d>\n(.*?)\n</answer_\d>", content, re.DOTALL)


def fair(asked, before):
    if asked.path.endswith("/models"):
        return loopback.models("judge-1")
    first, second = answers_in(asked.body["messages"][0]["content"])
    return chat(f"{WORTH[first]} {WORTH[second]}\nBecause.")


def vain(asked, before):
    """Give a point more to whatever stands first."""
    first, second = answers_in(asked.body["messages"][0]["content"])
    return chat(f"{WORTH[first] + 1} {WORTH[second]}")


def config(tmp_path, server=None, rows=ROWS, **changes):
    where = ServerConfig(url=server.url, model="judge-1", wait=0.0, retries=1) if server else ServerConfig()
    fields = {"answers": write(tmp_path / "answers.jsonl", rows), "server": where}
    return JudgeConfig(**{**fields, **({"output": str(tmp_path / "judged")} if server else {}), **changes})


def means(record):
    return {name: estimate.mean for name, estimate in record.estimates.items()}


def test_scores_in_both_orders(tmp_path):
    with loopback.serving(fair) as server:
        record = judge(config(tmp_path, server), silent)
    found = means(record)
    assert found["judge_score"] == pytest.approx(16 / 3)
    assert found["judge_ratio"] == pytest.approx(100 * 16 / 17)
    assert found["judge_win_rate"] == 50.0
    assert found["judge_consistency"] == 100.0
    assert found["judge_first_bonus"] == 0.0
    assert len(server.asked) == 5  # the two orders of two equal texts are one question
    assert record.estimates["judge_ratio"].low is not None


def test_a_judge_that_favours_the_first_is_balanced_and_found_out(tmp_path):
    with loopback.serving(vain) as server:
        found = means(judge(config(tmp_path, server), silent))
    assert found["judge_ratio"] == pytest.approx(100 * (9.5 + 2.5 + 5.5) / (6.5 + 6.5 + 5.5))
    assert found["judge_first_bonus"] == 1.0
    assert found["judge_consistency"] == pytest.approx(100 * 2 / 3)
    assert found["judge_win_rate"] == 50.0


def test_everything_that_changes_the_number_is_in_its_settings(tmp_path):
    with loopback.serving(fair) as server:
        record = judge(config(tmp_path, server, temperature=0.5), silent)
        assert [asked.body["temperature"] for asked in server.asked] == [0.5] * 5
        assert {asked.body["model"] for asked in server.asked} == {"judge-1"}
    for part in ("judge:judge-1", "temp:0.5", "orders:both", f"template:{JudgePrompt().digest}", "n:3"):
        assert part in record.infos[0].settings.split("|")


def test_the_judgement_reads_back_and_its_replies_are_kept(tmp_path):
    with loopback.serving(fair) as server:
        record = judge(config(tmp_path, server), silent)
        assert read_results(tmp_path / "judged") == record
        kept = (tmp_path / "judged.replies.jsonl").read_text().splitlines()
        assert len(kept) == 5
        assert "Because." in json.loads(json.loads(kept[0])["reply"])["choices"][0]["message"]["content"]
        assert means(judge(config(tmp_path, server), silent)) == means(record)
        assert len(server.asked) == 5


def test_a_stopped_judge_goes_on(tmp_path):
    def failing(asked, before):
        return fair(asked, before) if before < 3 else Reply(status=503)

    with loopback.serving(failing) as server, pytest.raises(MachineError, match="SERVE-04"):
        judge(config(tmp_path, server), silent)
    assert not (tmp_path / "judged").exists()
    assert len((tmp_path / "judged.replies.jsonl").read_text().splitlines()) == 3


def test_replies_without_scores_are_left_out_and_counted(tmp_path):
    def shy(asked, before):
        said = answers_in(asked.body["messages"][0]["content"])
        return chat("I would rather not say") if said[0] == "bad" else fair(asked, before)

    with loopback.serving(shy) as server:
        record = judge(config(tmp_path, server), silent)
    assert means(record)["judge_ratio"] == pytest.approx(100 * 14 / 11)
    assert any("1 of 3 answers left out" in note for note in record.notes)


def test_a_judge_without_a_single_score_is_one_line(tmp_path):
    with (
        loopback.serving(lambda asked, before: chat("no comment")) as server,
        pytest.raises(InputError, match=r"JUDGE-05.*no reply holds two scores") as caught,
    ):
        judge(config(tmp_path, server), silent)
    assert caught.value.exit_code == 3


def test_several_answers_to_a_prompt(tmp_path):
    rows = [{"prompt": "a?", "predictions": ["good", "bad"], "reference": "fine"}]
    with loopback.serving(fair) as server:
        found = means(judge(config(tmp_path, server, rows=rows), silent))
    assert found["judge_score"] == 5.5
    assert found["judge_win_rate"] == 50.0


def test_own_prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("{prompt}<answer_1>\n{first}\n</answer_1><answer_2>\n{second}\n</answer_2>")
    with loopback.serving(fair) as server:
        record = judge(config(tmp_path, server, prompt_file=str(path)), silent)
    first = min(one.body["messages"][0]["content"] for one in server.asked)  # requests are under way together
    assert first.startswith("one?<answer_1>")
    assert f"template:{JudgePrompt().digest}" not in record.infos[0].settings


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"prediction": "a", "reference": "b"}], "line 1: the prompt is missing"),
        ([{"prompt": "p", "prediction": "a", "reference": " "}], "line 1: the reference is missing or empty"),
        ([{"prompt": "p", "prediction": "a"}], "reference"),
        ([{"prompt": "p", "prediction": " ", "reference": "b"}], "every answer is empty"),
        ([], "no rows"),
    ],
)
def test_answers_no_judge_can_compare(tmp_path, rows, what):
    with loopback.serving(fair) as server, pytest.raises(InputError) as caught:
        judge(config(tmp_path, server, rows=rows), silent)
    assert what in str(caught.value)
    assert server.asked == []


def test_one_judge_is_needed(tmp_path):
    with pytest.raises(UsageError, match=r"JUDGE-04.*no judge"):
        judge(config(tmp_path), silent)
    with pytest.raises(UsageError, match=r"JUDGE-04.*two judges"):
        judge(config(tmp_path, scores="x").model_copy(update={"server": ServerConfig(url="http://a")}), silent)
    with pytest.raises(UsageError, match="CLI-20"):
        judge(JudgeConfig(), silent)
    with pytest.raises(InputError, match=r"JUDGE-03.*no evaluation"):
        judge(JudgeConfig(answers=str(tmp_path), scores="x"), silent)


IMPORTED = [{"id": 1, "score": 4, "reference_score": 8}, {"id": 0, "score": 9, "reference_score": 6}]


def test_scores_given_elsewhere(tmp_path):
    scores = write(tmp_path / "scores.jsonl", [*IMPORTED, {"id": 2, "score": 5.5, "reference_score": 5.5}])
    record = judge(config(tmp_path, scores=scores, output=str(tmp_path / "out")), silent)
    assert means(record) == {
        "judge_score": pytest.approx(18.5 / 3),
        "judge_ratio": pytest.approx(100 * 18.5 / 19.5),
        "judge_win_rate": 50.0,
    }
    assert read_results(tmp_path / "out") == record


@pytest.mark.parametrize(
    "lines",
    [
        [{"prompt": "two?", "score": 1}, {"prompt": "one?", "score": 4}, {"prompt": "three?", "score": 7}],
        [{"score": 4}, {"scores": [1]}, {"score": 7}],
    ],
    ids=["by prompt", "by order"],
)
def test_scores_find_their_examples(tmp_path, lines):
    record = judge(config(tmp_path, scores=write(tmp_path / "scores.jsonl", lines)), silent)
    assert means(record) == {"judge_score": 4.0}


def test_examples_without_a_score_are_said(tmp_path):
    record = judge(config(tmp_path, scores=write(tmp_path / "scores.jsonl", IMPORTED)), silent)
    assert means(record)["judge_ratio"] == pytest.approx(100 * 13 / 14)
    assert record.notes == ("1 of 3 examples have no score and count for nothing",)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([{"id": 3, "score": 1}], "id 3, but there are 3 examples"),
        ([{"id": 0, "score": 1}, {"id": 0, "score": 1}], "line 2: the example has been scored before"),
        ([{"id": 0, "score": "high"}], "score"),
        ([{"id": 0, "score": float("nan")}], "score"),
        ([{"id": 0}], "score"),
        ([{"id": 0, "scores": [1, 2]}], "2 scores for 1 answers"),
        ([{"id": 0, "scores": []}], "scores"),
        ([{"prompt": "what?", "score": 1}], "no examples have the prompt"),
        ([{"score": 1}], "1 scores without id or prompt for 3 examples"),
        ([{"id": 0, "score": 1, "reference_score": 2}, {"id": 1, "score": 1}], "reference_score is missing"),
        ([[1]], "line 1"),
        ([], "no scores"),
    ],
)
def test_scores_that_cannot_be_used_are_named_by_line(tmp_path, lines, what):
    with pytest.raises(InputError) as caught:
        judge(config(tmp_path, scores=write(tmp_path / "scores.jsonl", lines)), silent)
    assert what in str(caught.value)
    assert caught.value.code == "JUDGE-02"


def test_scores_that_are_not_there(tmp_path):
    with pytest.raises(KDError, match=r"JUDGE-02.*not found"):
        judge(config(tmp_path, scores=str(tmp_path / "none.jsonl")), silent)


@pytest.mark.parametrize(
    ("reply", "pair"),
    [
        ("7 8", (7.0, 8.0)),
        ("\n 7, 8.5 \nExplanation 3", (7.0, 8.5)),
        ("[10, 1]", (10.0, 1.0)),
        ("**7/10** **8/10**", (7.0, 8.0)),
        ("Answer 1: 7\nAnswer 2: 8", (7.0, 8.0)),
        ("Assistant 2 score: 8; Assistant 1 score: 7", (7.0, 8.0)),
        ("<think>1 1</think>\n9 2", (9.0, 2.0)),
        ("0 5", None),
        ("7 11", None),
        ("7", None),
        ("7 8 9", None),
        ("", None),
        ("Answer 1: 7", None),
        ("nan 5", None),
    ],
)
def test_replies_are_read(reply, pair):
    assert read_pair(reply) == pair


@given(st.text(max_size=40))
def test_no_answer_can_fill_a_place_of_the_prompt(text):
    filled = JudgePrompt().fill("q", text, "b")
    assert filled == DEFAULT.replace("{prompt}", "q").replace("{second}", "b").replace("{first}", text)


@given(st.text("0123456789.,-/ \n:[]", max_size=12))
def test_no_reply_gives_a_score_off_the_scale(text):
    pair = read_pair(text)
    assert pair is None or (len(pair) == 2 and all(1.0 <= score <= 10.0 for score in pair))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 3))
def test_statistics_against_plain_loops(seed, examples, answers):
    draw = np.random.default_rng(seed)
    model = draw.integers(1, 11, (examples, answers, 2)).astype(float)
    reference = draw.integers(1, 11, (examples, answers, 2)).astype(float)
    found = {score.name: score for score in scores_of(Verdicts(model, reference))}
    wins, ours, theirs = [], [], []
    for example in range(examples):
        pairs = [(model[example, one].mean(), reference[example, one].mean()) for one in range(answers)]
        ours.append(np.mean([pair[0] for pair in pairs]))
        theirs.append(np.mean([pair[1] for pair in pairs]))
        wins.append(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
    assert found["judge_ratio"].value == pytest.approx(100 * sum(ours) / sum(theirs))
    assert found["judge_win_rate"].value == pytest.approx(100 * np.mean(wins))
    assert total(found["judge_score"].sums)[1] == examples
    swapped = {score.name: score for score in scores_of(Verdicts(model[..., ::-1], reference[..., ::-1]))}
    assert swapped["judge_first_bonus"].value == pytest.approx(-found["judge_first_bonus"].value)
    assert swapped["judge_consistency"].value == found["judge_consistency"].value


def test_an_example_counts_once_however_many_of_its_answers_were_judged():
    model = np.array([[[9.0, 7.0], [5.0, np.nan]], [[2.0, 2.0], [2.0, 2.0]], [[np.nan, 1.0], [np.nan, np.nan]]])
    found = {score.name: score for score in scores_of(Verdicts(model, np.full((3, 2, 2), 4.0)))}
    assert found["judge_score"].value == (8.0 + 2.0) / 2
    assert found["judge_ratio"].value == 100 * (8.0 + 2.0) / (4.0 + 4.0)
    assert found["judge_win_rate"].value == 50.0
    assert found["judge_first_bonus"].value == (1.0 + 0.0) / 2
