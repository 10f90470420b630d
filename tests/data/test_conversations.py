"""Conversations as users have them: calls of tools, thoughts, other tools' layouts; every key is read or refused."""

import json
from typing import Any

import pytest

import tiny
from kdcli.config.schema import DataConfig
from kdcli.data.dataset import load_dataset
from kdcli.data.rows import read_rows
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError
from shell import kd

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = (
    "{% if tools %}tools {{ tools | length }} {{ tools[0].function.name }}\n{% endif %}"
    "{% for m in messages %}#{{ m.role }}\n"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}call {{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant\n{% endif %}"
)
BARE = (
    "{% for m in messages %}#{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant\n{% endif %}"
)
KEYED = (
    "{% for m in messages %}#{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant\n{% endif %}"
)
OPENING = (
    "{% for m in messages %}#{{ m.role }}\n{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant\n<think>\n{% endif %}"
)
OPENING_KEYED = (
    "{% for m in messages %}#{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n"
    "</think>\n\n{% endif %}{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant\n<think>\n{% endif %}"
)
WORDS = [*tiny.WORDS, *'<>/{}"_=']


def tokenizer(template):
    made = tiny.tokenizer(WORDS)
    made.chat_template = template
    return made


def load(tmp_path, chat, *rows, **config):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset(str(path), tokenizer(chat), DataConfig(**config), ends=EndTokens((2,)))


def row(*turns, **more):
    said = [dict(zip(("role", "content"), turn[:2], strict=True)) | dict(*turn[2:]) for turn in turns]
    return {"messages": said, **more}


def said(template, example):
    return "".join(WORDS[token] for token in example.ids[example.prompt_length :])


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_a_call_of_a_tool_is_learnt_whatever_its_content(tmp_path, content):
    turns = [{"role": "user", "content": "add"}, {"role": "assistant", **content, "tool_calls": [CALL]}]
    (one,) = load(tmp_path, TOOLS, {"messages": turns}).examples
    assert said(TOOLS, one) == 'call add {"a": 1}</s>'
    assert one.references == ('call add {"a": 1}',)
    whole: Any = tokenizer(TOOLS).apply_chat_template(turns, tokenize=True)
    assert list(one.ids) == whole["input_ids"][: len(one.ids)]


def test_a_call_before_the_answer_stands_in_the_prompt(tmp_path):
    turns = [("user", "add"), ("assistant", None, {"tool_calls": [CALL]}), ("tool", "2"), ("assistant", "two")]
    (one,) = load(tmp_path, TOOLS, row(*turns)).examples
    assert one.prompt == '#user\nadd</s>\n#assistant\ncall add {"a": 1}</s>\n#tool\n2</s>\n#assistant\n'
    assert said(TOOLS, one) == "two</s>"


def test_tools_of_a_row_reach_the_template_also_as_json(tmp_path):
    tools = [{"type": "function", "function": {"name": "add"}}]
    for given in (tools, json.dumps(tools)):
        (one,) = load(tmp_path, TOOLS, row(("user", "a"), ("assistant", "b"), tools=given)).examples
        assert one.prompt.startswith("tools 1 add\n")


@pytest.mark.parametrize(
    "template, given, named",
    [
        (BARE, row(("user", "a"), ("assistant", "b", {"tool_calls": [CALL]})), 'messages[1] has "tool_calls"'),
        (BARE, row(("user", "a", {"name": "bob"}), ("assistant", "b")), 'messages[0] has "name"'),
        (BARE, row(("user", "a"), ("assistant", "b", {"thinking": "c"})), 'messages[1] has "thinking"'),
        (BARE, row(("user", "a"), ("assistant", "b"), tools=[CALL]), 'the row has "tools"'),
        (BARE, row(("user", "a"), ("assistant", "b"), chat_template_kwargs={"style": "x"}), 'the row has "style"'),
    ],
)  # fmt: skip
def test_a_key_that_the_template_does_not_read_is_refused_by_name(tmp_path, template, given, named):
    good = row(("user", "a"), ("assistant", "b"))
    with pytest.raises(InputError, match=r"DATA-25.*r.jsonl line 2") as caught:
        load(tmp_path, template, good, given)
    assert named in caught.value.what
    assert "of turns it reads content, role" in caught.value.what
    assert len(load(tmp_path, template, good, given, skip_bad=True)) == 1


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content"])
def test_a_template_that_is_no_chat_template_reads_role_and_content_alone(tmp_path, key):
    with pytest.raises(InputError, match=rf'DATA-25.*messages\[1\] has "{key}", which a template that is no chat'):
        load(tmp_path, TOOLS, row(("user", "a"), ("assistant", "b", {key: "c"})), template="plain")


def test_keys_without_a_value_say_nothing(tmp_path):
    """Tables give every turn every key, most of them empty."""
    empty = {"tool_calls": None, "name": None, "reasoning_content": "", "documents": []}
    (one,) = load(tmp_path, BARE, row(("user", "a", empty), ("assistant", "b", empty))).examples
    assert said(BARE, one) == "b</s>"


def test_a_null_content_is_not_learnt_as_a_word(tmp_path):
    template = BARE.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": "call"}]
    (one,) = load(tmp_path, template, {"messages": turns}).examples
    assert said(template, one) == "call</s>"


def test_thoughts_under_their_own_key_are_learnt(tmp_path):
    given = row(("user", "a"), ("assistant", "b", {"reasoning_content": "so c"}))
    (one,) = load(tmp_path, KEYED, given).examples
    assert said(KEYED, one) == "<think>\nso c\n</think>\n\nb</s>"
    (one,) = load(tmp_path, OPENING_KEYED, given).examples
    assert one.prompt.endswith("#assistant\n<think>\n")
    assert said(OPENING_KEYED, one) == "so c\n</think>\n\nb</s>"


@pytest.mark.parametrize("thoughts", ["<think>\nso c\n</think>\n\nb", "<think>\nso c</think>b"])
def test_thoughts_within_the_answer_are_learnt_where_the_template_drops_them_from_history(tmp_path, thoughts):
    (one,) = load(tmp_path, OPENING, row(("user", "a"), ("assistant", thoughts))).examples
    assert one.prompt.endswith("#assistant\n<think>\n")
    assert said(OPENING, one) == thoughts.removeprefix("<think>\n") + "</s>"
    closed = OPENING.replace("#assistant\n<think>\n", "#assistant\n")
    (one,) = load(tmp_path, closed, row(("user", "a"), ("assistant", thoughts))).examples
    assert one.prompt.endswith("#assistant\n")
    assert said(closed, one) == thoughts + "</s>"


def test_an_answer_without_thoughts_under_a_prompt_that_opens_them_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r'TOK-15.*prompt opens "<think>", and the answer has no reasoning'):
        load(tmp_path, OPENING, row(("user", "a"), ("assistant", "b")))
    (one,) = load(tmp_path, OPENING, row(("user", "a"), ("assistant", "<think>\n\n</think>\n\nb"))).examples
    assert said(OPENING, one) == "\n</think>\n\nb</s>"


def test_thoughts_that_a_template_reads_and_leaves_out_are_refused(tmp_path):
    template = BARE + "{% if messages[0].reasoning_content %}{% endif %}"
    with pytest.raises(InputError, match=r'TOK-15.*leaves out the answer\'s "reasoning_content"'):
        load(tmp_path, template, row(("user", "a"), ("assistant", "b", {"reasoning_content": "c"})))


def test_rows_in_the_layout_of_sharegpt(tmp_path):
    turns = [("system", "be"), ("human", "hi"), ("gpt", "yo")]
    given = {"conversations": [{"from": decoder, "value": text} for decoder, text in turns], "id": 1}
    (one,) = load(tmp_path, BARE, given).examples
    assert one.prompt == "#system\nbe</s>\n#user\nhi</s>\n#assistant\n"
    assert said(BARE, one) == "yo</s>"
    given["conversations"][1]["from"] = "somebody"
    with pytest.raises(InputError, match=r'DATA-06.*messages\[1\].from is "somebody"; known are human, user'):
        load(tmp_path, BARE, given)


ROW = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    "name, content",
    [
        ("list.jsonl", json.dumps([ROW, ROW])),
        ("list.jsonl", json.dumps([ROW, ROW], indent=1)),
        ("data.json", json.dumps({"data": [ROW, ROW]})),
        ("data.json", json.dumps({"version": "1", "data": [ROW, ROW]}, indent=1)),
        ("data.jsonl", json.dumps({"data": [ROW, ROW]}) + "\n"),
    ],
)
def test_lists_are_read_whatever_the_file_is_called(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    found = read_rows(str(tmp_path / name), DataConfig())
    assert [(one.prompt, one.responses) for one in found.rows] == [("a", ("b",))] * 2
    assert found.rows[1].where == f"{name} item 2"


def test_one_row_over_several_lines_is_a_row(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(ROW, indent=1))
    assert len(read_rows(str(tmp_path / "one.json"), DataConfig()).rows) == 1
    turns = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(turns))
    assert len(read_rows(str(tmp_path / "chat.jsonl"), DataConfig()).rows) == 1


@pytest.mark.parametrize(
    "content, what",
    [
        ({"train": [ROW], "test": [ROW]}, 'lists under "train" and "test"'),
        ({"meta": {"a": 1}, "b": 2}, None),
    ],
)
def test_an_object_that_is_no_table_says_what_to_do(tmp_path, content, what):
    (tmp_path / "o.json").write_text(json.dumps(content, indent=1))
    with pytest.raises(InputError) as caught:
        read_rows(str(tmp_path / "o.json"), DataConfig())
    if what is not None:
        assert what in caught.value.what
        assert "one file each" in caught.value.fix


def test_a_prediction_that_is_null_is_not_called_missing(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prediction": null, "reference": "a"}\n')
    answer = kd("eval", "--predictions", "p.jsonl", "--metric", "em", folder=tmp_path)
    assert answer.code == 3
    assert '"prediction" must be text or a list of texts, got null' in answer.err
    assert 'write "" for an empty answer' in answer.err
