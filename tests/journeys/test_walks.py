"""The walks of the docs, run as they stand on small models: own chat data to a report, a chosen student to its card."""

import json
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from shell import kd

PAGE = (Path(__file__).parents[2] / "docs" / "walks.md").read_text(encoding="utf-8")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][:1] }}:{{ m['content'] }}{{ '#' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SMALL = ["--max-steps", "2", "--batch-size", "4", "--device", "cpu", "--max-new-tokens", "4", "--sampling-seeds", "1"]


def typed(name):
    """The commands of a walk, as words."""
    block = re.search(rf"<!-- walk: {name} -->\n```sh\n(.*?)```", PAGE, re.DOTALL)[1]
    return [shlex.split(line)[1:] for line in block.splitlines()]


def conversations(path, count):
    lines = []
    for index in range(count):
        letter = chr(97 + index % 26)
        turns = [{"role": "user", "content": f"say {letter}"}, {"role": "assistant", "content": letter * 3}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name, seed in (("T", 1), ("S", 2)):
        folder = tiny.folder(tmp_path / name, seed=seed)
        text = tiny.tokenizer()
        text.chat_template = TEMPLATE
        text.save_pretrained(folder)
    conversations(tmp_path / "chat.jsonl", 24)
    conversations(tmp_path / "test.jsonl", 8)
    return tmp_path


def walk(name, home):
    answers = []
    for words in typed(name):
        small = {"plan": SMALL[:6], "distill": SMALL, "compare": SMALL if "--data" in words else []}.get(words[0], [])
        if words[0] == "eval":
            small = SMALL[4:6]
        answers.append(kd(*words, *small, folder=home))
        assert answers[-1].code == 0, (words, answers[-1].err)
    return answers


def test_own_chat_data_to_a_report(home):
    plan, compared, _, _ = walk("chat", home)
    assert "aaa" in plan.out
    assert not {"fkl", "akl", "teacher"} - set(re.findall(r"\w+", compared.out))
    assert (home / "table.tex").read_text().count("\\") > 5
    page = (home / "report.html").read_text(encoding="utf-8")
    assert "akl" in page
    assert "<html" in page


def test_a_chosen_student_to_its_card(home):
    trained, verified, measured = walk("ship", home)
    model = home / "runs" / "chosen" / "model"
    assert trained.out.splitlines()[-1].endswith("runs/chosen/model")
    assert "ok" in verified.out
    assert "perplexity" in measured.out
    card = ModelCard((model / "README.md").read_text(encoding="utf-8"))
    named = {result.metric_name: result.metric_args for result in card.data.eval_results}
    low, high = named["perplexity"]["interval_95"]
    assert low < high
    assert named["perplexity"]["protocol"]
    code = card.text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    tokenizer = AutoTokenizer.from_pretrained(model)
    made = AutoModelForCausalLM.from_pretrained(model).generate(
        **tokenizer("say a", return_tensors="pt"), max_new_tokens=2
    )
    assert made.shape[1] > 5
