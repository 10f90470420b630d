"""A teacher's text by itself: what is written, kept, found again, and refused."""

import json
import signal

import pytest

import cutters
import study
import tiny
from kdcli.cli.app import run
from kdcli.comparison.cost import cost_of
from kdcli.config.schema import DataConfig, EvalSettings, GenerateConfig, HardwareConfig
from kdcli.data.dataset import load_dataset
from kdcli.distill.generate import generate
from kdcli.distill.run import distill
from kdcli.end_tokens import EndTokens
from kdcli.errors import ExperimentChangedError, IntegrityError, InterruptedRunError, KDError, UsageError
from kdcli.events import silent
from kdcli.sources.teacher_text.store import LocalGenerator
from kdcli.study.verify import verify
from killing import forked, killed_when

SOURCE = "teacher:max_new_tokens=12,answers=2,temperature=0.8"
CHAT = "{% for turn in messages %}#{{ turn.content }}{% endfor %}{% if add_generation_prompt %}#{% endif %}"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


def prompts(path, form="prompt", count=9):
    """Rows without answers, in one of the forms."""
    rows = {
        "prompt": lambda letter: {"prompt": f"say {letter}:"},
        "instruction": lambda letter: {"instruction": f"say {letter}", "input": "now"},
        "messages": lambda letter: {"messages": [{"role": "user", "content": f"say {letter}"}]},
    }
    path.write_text("".join(json.dumps(rows[form](chr(97 + at))) + "\n" for at in range(count)))
    return path


def config(parts, output, source=SOURCE, **changes):
    return GenerateConfig(
        **{
            "teacher": str(parts.teacher),
            "source": source,
            "data": DataConfig(train=str(prompts(parts.root / "prompts.jsonl"))),
            "hardware": HardwareConfig(device="cpu"),
            "output": None if output is None else str(output),
            **changes,
        }
    )


def raw(folder):
    """Everything the teacher wrote."""
    (path,) = folder.glob("teacher-*/text.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", ["prompt", "instruction", "messages"])
def test_rows_read_as_the_prompts_did_with_the_answers_of_the_teacher(parts, tmp_path, form):
    teacher = parts.teacher
    if form == "messages":
        teacher = tiny.folder(tmp_path / "chatty", seed=1)
        text = tiny.tokenizer()
        text.chat_template = CHAT
        text.save_pretrained(teacher)
    template = "plain" if form == "instruction" else "auto"
    data = DataConfig(train=str(prompts(tmp_path / "p.jsonl", form)), template=template)
    record = generate(config(parts, tmp_path / "text", teacher=str(teacher), data=data), silent)
    text = tiny.tokenizer()
    if form == "messages":
        text.chat_template = CHAT
    read = load_dataset(str(record.rows), text, DataConfig(template=template), ends=EndTokens((2,)))
    made, told = raw(tmp_path / "text"), [line["made"] for line in lines(record.rows)]
    assert record.kept == len(read) == len(told) > 9
    by_place = {(one["row"], one["answer"]): one for one in made}
    for example, about in zip(read.examples, told, strict=True):
        one = by_place[about["row"], about["answer"]]
        assert example.ids[: example.prompt_length] == tuple(one["ids"][: one["prompt_tokens"]])
        assert example.references[0].strip() == one["response"].strip()
    assert record.same == sum(
        example.ids[: len(one["ids"])] == tuple(one["ids"])
        for example, one in zip(read.examples, [by_place[a["row"], a["answer"]] for a in told], strict=True)
    )


def test_counts_are_those_of_the_text(parts, tmp_path):
    source = f"{SOURCE},min_tokens=6,max_nll=3.8,answers=4"
    record = generate(config(parts, tmp_path, source.replace("answers=2,", "")), silent)
    made = raw(tmp_path)
    short = [one for one in made if len(one["ids"]) - one["prompt_tokens"] < 6]
    unlikely = [one for one in made if one not in short and one["nll"] > 3.8]
    rest = [one for one in made if one not in short and one not in unlikely]
    apart = {tuple(one["ids"]): one for one in reversed(rest)}
    full = [one for one in apart.values() if one["response"].strip()]
    assert short
    assert unlikely
    assert record.dropped.get("too short") == len(short)
    assert record.dropped.get("too unlikely") == len(unlikely)
    assert record.dropped.get("twice", 0) == len(rest) - len(apart)
    assert record.dropped.get("empty", 0) == len(apart) - len(full)
    assert record.kept == len(full)
    assert record.answers == 9 * 4
    assert record.tokens == record.written == sum(len(one["ids"]) - one["prompt_tokens"] for one in made)
    assert record.open == sum(not one["ended"] for one in full)


def test_a_run_finds_the_text_again_and_trains_on_it(parts, tmp_path, monkeypatch):
    data = DataConfig(train=str(parts.train))
    generate(config(parts, tmp_path / "text", data=data), silent)
    monkeypatch.setattr(LocalGenerator, "write", lambda *_: pytest.fail("written again"))
    settings = parts.run("finds", f"ce@{SOURCE}", max_steps=2)
    made = settings.data.model_copy(update={"teacher_text": str(tmp_path / "text"), "eval": None})
    assert distill(settings.model_copy(update={"data": made}), silent).steps == 2


def test_a_run_of_another_tokenizer_finds_the_text_too(parts, tmp_path, monkeypatch):
    stranger = str(cutters.folder(tmp_path / "student", "bytes-300", seed=2, hidden_size=8))
    data = DataConfig(train=str(parts.train))
    record = generate(config(parts, tmp_path / "text", data=data, student=stranger), silent)
    assert record.kept > 0
    alone = generate(config(parts, tmp_path / "alone", data=data), silent)
    assert [one["ids"] for one in raw(tmp_path / "text")] == [one["ids"] for one in raw(tmp_path / "alone")]
    assert alone.kept == record.kept
    monkeypatch.setattr(LocalGenerator, "write", lambda *_: pytest.fail("written again"))
    settings = parts.run("across", f"ce@{SOURCE}", max_steps=2)
    made = settings.data.model_copy(update={"teacher_text": str(tmp_path / "text"), "eval": None})
    scores = EvalSettings(metrics=("perplexity",))
    done = distill(settings.model_copy(update={"data": made, "student": stranger, "evaluation": scores}), silent)
    assert cost_of(done).generated_tokens == record.tokens


def test_the_same_line_again_writes_nothing_and_filters_may_change(parts, tmp_path, monkeypatch):
    first = generate(config(parts, tmp_path), silent)
    rows = first.rows.read_bytes()
    monkeypatch.setattr(LocalGenerator, "write", lambda *_: pytest.fail("written again"))
    again = generate(config(parts, tmp_path), silent)
    assert (again.written, again.speed, first.rows.read_bytes()) == (0, 0.0, rows)
    fewer = generate(config(parts, tmp_path, f"{SOURCE},ended=true"), silent)
    assert fewer.kept < first.kept
    assert fewer.open == 0
    assert all(check.passed for check in verify(tmp_path))
    with pytest.raises(ExperimentChangedError, match="another teacher, of other end tokens, prompts or options"):
        generate(config(parts, tmp_path, f"{SOURCE},seed=1"), silent)


def test_damage_is_found(parts, tmp_path):
    record = generate(config(parts, tmp_path), silent)
    path = record.text / "text.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"ended": true', b'"ended": TRUE', 1))
    with pytest.raises(IntegrityError, match=r"size|digest"):
        generate(config(parts, tmp_path), silent)
    record.rows.write_bytes(record.rows.read_bytes()[:-1])
    assert sum(not check.passed for check in verify(tmp_path)) == 2


def done(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(".teacher-*.jsonl"))


@pytest.mark.parametrize("decode", ["sample", "beam"])
def test_a_killed_writer_goes_on_with_the_unanswered_prompts(parts, tmp_path, monkeypatch, decode):
    source = f"teacher:decode={decode},answers=2,max_new_tokens=20"
    settings = config(parts, tmp_path / "killed", source)
    whole = generate(config(parts, tmp_path / "whole", source), silent)
    kills = 0
    for wanted in (1, 7):
        pid = forked(generate, settings, silent)
        kills += killed_when(pid, lambda wanted=wanted: done(tmp_path / "killed") >= wanted)
    left = done(tmp_path / "killed")
    asked, write = [], LocalGenerator.write

    def spied(self, source, context, prompts, wanted):
        asked.extend((row, number) for row, numbers in wanted.items() for number in numbers)
        return write(self, source, context, prompts, wanted)

    monkeypatch.setattr(LocalGenerator, "write", spied)
    again = generate(settings, silent)
    assert kills >= 1
    assert 18 - left <= len(asked) < 18
    assert again.rows.read_bytes() == whole.rows.read_bytes()
    assert (again.text / "text.jsonl").read_bytes() == (whole.text / "text.jsonl").read_bytes()


def test_a_signal_ends_it_in_time_and_the_rest_follows(parts, tmp_path):
    whole = generate(config(parts, tmp_path / "whole"), silent)

    def interrupt(event):
        if event.kind == "progress" and event.done == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="of 18 answers, saved") as caught:
        generate(config(parts, tmp_path / "cut"), interrupt, command="kd generate -o cut")
    assert caught.value.exit_code == 130
    assert "kd generate -o cut" in caught.value.fix
    again = generate(config(parts, tmp_path / "cut"), silent)
    assert again.rows.read_bytes() == whole.rows.read_bytes()
    assert 0 < again.written < whole.written


def test_without_prompts_it_starts_from_the_first_token(parts, tmp_path):
    source = "teacher:prompts=bos,max_new_tokens=10"
    record = generate(config(parts, tmp_path, source, data=DataConfig(), count=7), silent)
    assert (record.answers, {one["ids"][0] for one in raw(tmp_path)}) == (7, {1})
    assert all(set(line) == {"text", "made"} for line in lines(record.rows))
    read = load_dataset(str(record.rows), tiny.tokenizer(), DataConfig(), ends=EndTokens((2,)))
    assert all(example.ids[0] == 1 for example in read.examples)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"source": "student"}, "TEXT-01", "a text by itself is the teacher's"),
        ({"source": "teacher:decod=beam"}, "CLI-09", "did you mean decode"),
        ({"data": DataConfig()}, "CLI-20", "no prompts"),
        ({"data": DataConfig(), "source": "teacher:prompts=bos"}, "TEXT-02", "--count N"),
        ({"count": 3}, "TEXT-02", "rows say how many"),
        ({"teacher": "0.5*A+0.5*B"}, "CLI-22", "several teachers"),
        ({"teacher": None}, "CLI-20", "no teacher"),
        ({"output": None}, "CLI-20", "no folder"),
    ],
    ids=["student", "option", "prompts", "count", "both", "several", "teacher", "folder"],
)
def test_what_cannot_be_is_refused_before_weights_are_read(parts, tmp_path, monkeypatch, changes, code, said):
    monkeypatch.setattr("kdcli.loading.session.load_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(KDError) as caught:
        generate(config(parts, **{"output": tmp_path / "text", **changes}), silent)
    assert caught.value.code == code
    assert said in f"{caught.value}"
    assert isinstance(caught.value, UsageError)


def test_the_command_says_what_it_did(parts, tmp_path, capsys):
    line = [
        "generate",
        "--teacher",
        str(parts.teacher),
        "--data",
        str(prompts(tmp_path / "p.jsonl")),
        "--device",
        "cpu",
    ]
    line += ["--source", "teacher:decode=greedy,max_new_tokens=8"]
    assert run([*line, "-o", str(tmp_path / "text"), "--dry-run"]) == 0
    assert "answers          9" in capsys.readouterr().out
    assert not (tmp_path / "text").exists()
    assert run([*line, "-o", str(tmp_path / "text.jsonl")]) == 2
    assert "-o is a folder" in capsys.readouterr().err
    assert run([*line, "-o", str(tmp_path / "text")]) == 0
    said = capsys.readouterr()
    assert "9 answers" in said.out
    assert "tokens/s" in said.out
    assert said.out.splitlines()[-1] == str(tmp_path / "text" / "rows.jsonl")
    assert run([*line, "-o", str(tmp_path / "text"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 0
