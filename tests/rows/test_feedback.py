"""``kd generate --into rows --feedback``: what prompts show, what answers become, and GOLD's loop of the page."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import markov
from kdcli.cli.loop import read_loop
from kdcli.config.schema import DataConfig, GenerateConfig, HardwareConfig
from kdcli.distill.generate import generate
from kdcli.errors import ExperimentChangedError, KDError
from kdcli.events import silent
from kdcli.sources.teacher_text.store import LocalGenerator
from kdcli.study.verify import verify
from shell import kd

PAGE = Path(__file__).parents[2] / "docs" / "rows.md"
TEMPLATE = r"{instruction}\n\n{feedback}\n\nPrompt:"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    markov.folder(root / "T")
    markov.folder(root / "G", markov.GARBAGE)
    markov.student(root / "S")
    return root


@pytest.fixture
def home(models, tmp_path):
    for name in ("T", "G", "S"):
        (tmp_path / name).symlink_to(models / name)
    asked = [{"prompt": f"Ask for {word}."} for word in ("colours", "animals", "rivers")]
    write(tmp_path / "instructions.jsonl", asked)
    write(tmp_path / "fed.jsonl", [{"prompt": f"w{at}", "completion": "r0"} for at in range(6)])
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def config(home, name="text", **changes):
    data = DataConfig(train=str(home / "instructions.jsonl"), template=changes.pop("template", TEMPLATE))
    return GenerateConfig(
        **{
            "teacher": str(home / "T"),
            "source": "teacher:answers=6,max_new_tokens=8",
            "into": "rows",
            "feedback": str(home / "fed.jsonl"),
            "data": data,
            "hardware": HardwareConfig(device="cpu"),
            "output": str(home / name),
            **changes,
        }
    )


def asked(home, name="text"):
    """Row -> the prompt that the teacher got."""
    (path,) = (home / name).glob("teacher-*/text.jsonl")
    return {one["row"]: one["prompt"] for one in lines(path)}


def test_prompts_show_a_few_rows_each_and_rows_say_which(home):
    record = generate(config(home, shots=2), silent)
    prompts = asked(home)
    fed = [(row["prompt"], row["completion"]) for row in lines(home / "fed.jsonl")]
    shown = {}
    for row, prompt in prompts.items():
        head, body = prompt.split("\n\n", 1)
        assert head == f"Ask for {('colours', 'animals', 'rivers')[row]}."
        shown[row] = re.findall(r"Prompt: (\w+)\nResponse: (\w+)\n\n", body)
        assert len(set(shown[row])) == 2
        assert set(shown[row]) <= set(fed)
        assert prompt.endswith("\n\nPrompt:")
    assert len({tuple(one) for one in shown.values()}) > 1
    for row in lines(record.rows):
        places = [int(place.removeprefix("fed.jsonl line ")) for place in row["made"]["feedback"]]
        assert [fed[at - 1] for at in places] == shown[row["made"]["row"]]


def test_the_rows_are_those_of_the_answers_each_once_and_none_of_the_feedback(home):
    record = generate(config(home), silent)
    (path,) = (home / "text").glob("teacher-*/text.jsonl")
    said = [re.fullmatch(r" (w\d+)\nResponse: (r\d)", one["response"]).groups() for one in lines(path)]
    fed = {(row["prompt"], row["completion"]) for row in lines(home / "fed.jsonl")}
    expected = [pair for at, pair in enumerate(said) if pair not in fed and pair not in said[:at]]
    assert [(row["prompt"], row["completion"]) for row in lines(record.rows)] == expected
    assert len(said) == 18
    assert (record.kept, record.dropped.get("rows twice", 0)) == (len(expected), 18 - len(expected) - twice(record))
    assert all(check.passed for check in verify(home))


def twice(record):
    return record.dropped.get("twice", 0)


def test_the_form_of_the_feedback_is_that_of_the_rows(home):
    write(home / "fed.jsonl", [{"instruction": f"w{at}", "output": "r0"} for at in range(6)])
    record = generate(config(home), silent)
    assert {tuple(row) for row in lines(record.rows)} == {("instruction", "output", "made")}
    write(
        home / "turns.jsonl",
        [{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "r1"}]}],
    )
    record = generate(config(home, "turns", feedback=str(home / "turns.jsonl")), silent)
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in lines(record.rows))


def test_answers_may_be_shown_rows_too(home):
    record = generate(config(home, into="answers"), silent)
    assert {row["prompt"] for row in lines(record.rows)} == {
        row["prompt"] for row in lines(home / "instructions.jsonl")
    }
    assert all("Response: r0" in prompt for prompt in asked(home).values())


def test_one_more_byte_of_feedback_is_noticed_even_in_a_row_that_no_prompt_shows(home, monkeypatch):
    generate(config(home, shots=1), silent)
    monkeypatch.setattr(LocalGenerator, "write", lambda *_: pytest.fail("asked again"))
    before = (home / "text" / "rows.jsonl").read_bytes()
    assert generate(config(home, shots=1), silent).written == 0
    assert (home / "text" / "rows.jsonl").read_bytes() == before
    with pytest.raises(ExperimentChangedError) as caught:
        generate(config(home, shots=2), silent)
    assert caught.value.code == "TEXT-03"
    text = (home / "fed.jsonl").read_text()
    (home / "fed.jsonl").write_text(text + "\n")  # the rows stay as they are
    with pytest.raises(ExperimentChangedError) as caught:
        generate(config(home, shots=1), silent)
    assert (caught.value.code, caught.value.exit_code) == ("TEXT-03", 8)


WRONG = {
    "no place": ({"template": "{instruction}"}, "TEXT-05", 2, "no {feedback}"),
    "no feedback": ({"feedback": None}, "TEXT-05", 2, "no rows are given"),
    "no file": ({"feedback": "nowhere.jsonl"}, "DATA-01", 3, "nowhere"),
    "agree": ({"source": "teacher:agree=true"}, "TEXT-05", 2, "no such row"),
    "garbage": ({"teacher": "G"}, "TEXT-04", 3, "hold none, 0 rows are doubles"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_end_in_one_line(home, monkeypatch, case):
    monkeypatch.chdir(home)
    changes, code, exit_code, said = WRONG[case]
    with pytest.raises(KDError) as caught:
        generate(config(home, **changes), silent)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert said in str(caught.value)
    assert caught.value.fix
    assert not (home / "text" / "rows.jsonl").exists()


def test_rows_that_cannot_be_shown_are_refused(home):
    write(home / "fed.jsonl", [{"prompt": "a\nResponse: b", "completion": "c"}])
    with pytest.raises(KDError, match="none of the rows can be shown") as caught:
        generate(config(home), silent)
    assert caught.value.code == "TEXT-06"


def gold(home, **replaced):
    """The loop of the page, in two rounds of two steps."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    found = yaml.safe_load(next(text for text in blocks if "{feedback}" in text)) | {"rounds": 2}
    for key in ("first", "each"):
        for old, new in replaced.items():
            found[key] = [line.replace(old.replace("_", " "), new) for line in found[key]]
        found[key] = [f"{line} --device cpu{' --max-steps 2' * ('kd distill' in line)}" for line in found[key]]
    (home / "gold.yaml").write_text(yaml.safe_dump(found, width=1000))
    return read_loop(home / "gold.yaml")


def run(home, steps):
    for step in steps:
        said = kd(*step.words, folder=home)
        assert said.code == 0, (step.words, said.err)


def test_two_rounds_of_the_loop_of_the_page(home, monkeypatch):
    steps = gold(home)
    assert [shlex.join(step.words[:2]).removesuffix(" --student") for step in steps] == [
        "generate --teacher", "distill", "data score", "generate --teacher", "distill",
    ]  # fmt: skip
    run(home, steps)
    line = "data score --student run1 --data text1/rows.jsonl --by energy --device cpu -o all"
    assert kd(*line.split(), folder=home).code == 0
    scored = lines(home / "all" / "rows.jsonl")
    order = sorted(range(len(scored)), key=lambda at: (scored[at]["scores"]["energy"], at))
    low, high = (int(share * len(scored) + 0.5) for share in (0.5, 0.8))
    fed = lines(home / "feedback1" / "rows.jsonl")
    assert len(scored) >= 10
    assert [row["prompt"] for row in fed] == [scored[at]["prompt"] for at in sorted(order[low:high])]
    pairs = {(row["prompt"], row["completion"]) for row in fed}
    for prompt in asked(home, "text2").values():
        shown = re.findall(r"Prompt: (\w+)\nResponse: (\w+)\n\n", prompt)
        assert len(shown) == min(4, len(fed))
        assert set(shown) <= pairs
    assert not pairs & {(row["prompt"], row["completion"]) for row in lines(home / "text2" / "rows.jsonl")}
    kept = {
        path: path.read_bytes()
        for name in ("text2/rows.jsonl", "run2/model/model.safetensors")
        if (path := home / name).is_file()
    }
    assert len(kept) == 2
    monkeypatch.setattr(LocalGenerator, "write", lambda *_: pytest.fail("asked again"))
    run(home, steps)
    assert {path: path.read_bytes() for path in kept} == kept


def test_the_controls_of_the_page_differ_from_the_loop_in_what_they_feed_back_alone(home):
    run(home, gold(home, by_energy="by nll")[:4])
    assert "nll" in lines(home / "feedback1" / "rows.jsonl")[0]["scores"]
    random = gold(
        home, **{"feedback{previous}/rows.jsonl": "text{previous}/rows.jsonl", "-o_text{round}": "-o lot{round}"}
    )
    run(home, [random[3]])
    assert len(lines(home / "lot2" / "rows.jsonl")) >= 1
    fed = {(row["prompt"], row["completion"]) for row in lines(home / "text1" / "rows.jsonl")}
    shown = {
        pair
        for prompt in asked(home, "lot2").values()
        for pair in re.findall(r"Prompt: (\w+)\nResponse: (\w+)\n\n", prompt)
    }
    assert shown <= fed
