"""``kd data rationales``: which words, where they go, how often they are in the answer, and what is refused."""

import json
import math
import signal

import pytest

import study
import tiny
from kdcli.config.schema import RationalesConfig
from kdcli.config.sections import DataConfig, HardwareConfig
from kdcli.errors import ExperimentChangedError, InterruptedRunError, KDError
from kdcli.events import silent
from kdcli.rows.rationales import chance_of_a_hit, rationales
from kdcli.study.verify import verify
from shell import kd

ROWS = [
    {"id": 1, "prompt": "pick: red or blue?", "completion": "red"},
    {"id": 2, "prompt": "pick: a cat, a dog?", "completion": "the dog"},
    {"id": 3, "prompt": "?!", "completion": "no"},
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def config(parts, rows, name="out", **changes):
    return RationalesConfig(
        **{
            "teacher": str(parts.teacher),
            "by": "first",
            "words": 2,
            "data": DataConfig(train=str(rows)),
            "hardware": HardwareConfig(device="cpu"),
            "output": str(rows.parent / name),
            **changes,
        }
    )


def lines(record):
    return [json.loads(line) for line in record.file.read_text().splitlines()]


def plain(row):
    return {name: value for name, value in row.items() if name != "made"}


def test_two_tasks_are_made_of_a_row(parts, rows):
    record = rationales(config(parts, rows), silent)
    assert [plain(row) for row in lines(record)] == [
        {"id": 1, "prompt": "[label] pick: red or blue?", "completion": "red"},
        {"id": "1#rationale", "prompt": "[rationale] pick: red or blue?", "completion": "pick, red"},
        {"id": 2, "prompt": "[label] pick: a cat, a dog?", "completion": "the dog"},
        {"id": "2#rationale", "prompt": "[rationale] pick: a cat, a dog?", "completion": "pick, a"},
        {"id": 3, "prompt": "[label] ?!", "completion": "no"},
    ]
    assert (record.asked, record.rows, record.wordless) == (3, 5, 1)
    assert record.hit_rate == pytest.approx(1 / 3)
    # of pick, red, or, blue one of four is in the answer; of pick, a, cat, dog one of four; of nothing, none
    assert record.chance == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert all(check.passed for check in verify(rows.parent))


def test_words_may_stand_before_the_answer_or_behind_the_prompt(parts, rows):
    record = rationales(config(parts, rows, into="target"), silent)
    assert [row["completion"] for row in lines(record)] == ["pick, red => red", "pick, a => the dog", " => no"]
    behind = rationales(config(parts, rows, into="input", hint_dropout=0.0), silent)
    assert [row["prompt"] for row in lines(behind)] == [
        "pick: red or blue? Important: pick, red",
        "pick: a cat, a dog? Important: pick, a",
        "?!",
    ]
    assert behind.fresh == 0, "words are weighed once"


def test_a_hint_is_left_out_of_a_share_of_the_rows(parts, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {at}", "completion": "x"}) + "\n" for at in range(400)))
    record = rationales(config(parts, path, into="input", hint_dropout=0.3), silent)
    kept = [row["made"]["hint"] for row in lines(record)]
    assert abs(sum(kept) / 400 - 0.7) < 0.08
    assert kept == [
        row["made"]["hint"] for row in lines(rationales(config(parts, path, into="input", hint_dropout=0.3), silent))
    ]


def test_forms_keep_their_shape(parts, tmp_path):
    path = tmp_path / "alpaca.jsonl"
    path.write_text(json.dumps({"instruction": "choose one", "input": "red blue", "output": ["red", "rot"]}) + "\n")
    (label, reason) = lines(rationales(config(parts, path, words=3), silent))
    assert plain(label) == {"instruction": "[label] choose one", "input": "red blue", "output": ["red", "rot"]}
    assert plain(reason)["output"] == "choose, one, red"
    (behind,) = lines(rationales(config(parts, path, "in", into="input", hint_dropout=0.0), silent))
    assert behind["input"] == "red blue Important: choose, one"


def test_of_a_conversation_only_the_users_words_count_and_no_template(parts, tmp_path):
    folder = tiny.folder(tmp_path / "chat", seed=1)
    text = tiny.tokenizer()
    text.chat_template = "{% for turn in messages %}system {{ turn.content }}{% endfor %}"
    text.save_pretrained(folder)
    path = tmp_path / "rows.jsonl"
    turns = [("system", "be kind"), ("user", "a red hat"), ("assistant", "red")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": said} for role, said in turns]}) + "\n")
    (label, reason) = lines(rationales(config(parts, path, teacher=str(folder), words=9), silent))
    assert [turn["content"] for turn in label["messages"]] == ["be kind", "[label] a red hat", "red"]
    assert reason["messages"][-1]["content"] == "a, red, hat"
    assert reason["made"]["words"] == ["a", "red", "hat"]


@pytest.mark.parametrize("by", ["grad", "grad_x_input", "ig:steps=4", "occlusion", "random", "rare"])
def test_every_way_gives_words_of_the_prompt_and_the_same_again(parts, rows, by):
    record = rationales(config(parts, rows, by=by), silent)
    for row, source in zip([row for row in lines(record) if row["made"]["task"] == "label"], ROWS, strict=True):
        assert len(row["made"]["words"]) == (0 if source["id"] == 3 else 2)
        assert all(word in source["prompt"] for word in row["made"]["words"])
        assert all(math.isfinite(value) for value in row["made"]["weights"].values())
    before = record.file.read_bytes()
    again = rationales(config(parts, rows, by=by), silent)
    assert (again.fresh, again.file.read_bytes()) == (0, before)
    assert (record.gap is not None) == (by == "ig:steps=4")


def test_numbers_and_rows_that_mislead_come_with_a_warning(parts, rows):
    heard = study.Heard()
    rationales(config(parts, rows, by="ig:steps=4,baseline=zero"), heard)
    (warning,) = heard.messages("warning")
    assert "miss completeness" in warning
    assert "ig:steps=64" in warning
    heard = study.Heard()
    rationales(config(parts, rows, into="input", hint_dropout=0.0), heard)
    (warning,) = heard.messages("warning")
    assert "--hint-dropout" in warning
    heard = study.Heard()
    rationales(config(parts, rows, into="input"), heard)
    assert heard.messages("warning") == []


def test_it_goes_on_after_a_signal(parts, rows):
    def interrupt(event):
        if event.kind == "progress" and event.done == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="1 of 3 rows, saved"):
        rationales(config(parts, rows, by="grad"), interrupt)
    assert rationales(config(parts, rows, by="grad"), silent).fresh == 2


def test_chance_is_that_of_drawing():
    """Against counting all draws of 2 of 5 words of which 2 occur in the answer: 7 of 10 hit."""
    assert chance_of_a_hit(5, 2, 2) == pytest.approx(0.7)
    assert chance_of_a_hit(0, 0, 2) == 0.0


WRONG = {
    "no such way": ({"by": "lime"}, "CLI-06", 2),
    "no such option": ({"by": "ig:step=3"}, "CLI-09", 2),
    "no steps": ({"by": "ig:steps=0"}, "CLI-06", 2),
    "no teacher": ({"teacher": None}, "CLI-20", 2),
    "several teachers": ({"teacher": "0.5*A+0.5*B"}, "CLI-22", 2),
    "a server": ({"teacher": "http://localhost:1/v1"}, "SERVE-11", 2),
    "no data": ({"data": DataConfig()}, "CLI-20", 2),
    "no folder": ({"output": None}, "CLI-20", 2),
    "no model": ({"teacher": "nowhere"}, "MOD-01", 3),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_end_in_one_line(parts, rows, monkeypatch, case):
    monkeypatch.chdir(rows.parent)
    changes, code, exit_code = WRONG[case]
    with pytest.raises(KDError) as caught:
        rationales(config(parts, rows, **changes), silent)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.fix


def test_texts_without_prompts_and_other_rows_are_refused(parts, rows, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "once"}\n')
    with pytest.raises(KDError) as caught:
        rationales(config(parts, texts), silent)
    assert caught.value.code == "ROWS-08"
    rationales(config(parts, rows, "same"), silent)
    rows.write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(ExperimentChangedError, match="of other rows"):
        rationales(config(parts, rows, "same"), silent)


def test_the_command(parts, rows):
    line = ("data", "rationales", "--teacher", str(parts.teacher), "--data", str(rows), "--by", "first", "--device")
    said = kd(*line, "cpu", "--words", "2", "-o", "cmd", folder=rows.parent)
    assert said.code == 0, said.err
    assert "33.3 % of the rationales" in said.out
    assert "by chance 33.3 %" in said.out
