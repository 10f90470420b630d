import pytest

import tiny
from kdcli.data.rows import Row
from kdcli.data.templates import render, template_digest
from kdcli.errors import InputError, UsageError

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TALK = Row(
    "hi",
    ("yes",),
    "r.jsonl line 5",
    "messages",
    messages=({"role": "user", "content": "hi"},),
)
TASK = Row("Add.", ("3",), "r.jsonl line 1", "instruction")
TASK_INPUT = Row("Add.", ("3",), "r.jsonl line 1", "instruction", "1 and 2")


def tokenizer(template: str | None = None):
    made = tiny.tokenizer()
    made.chat_template = template
    return made


def test_alpaca_without_and_with_input():
    assert render(TASK, "auto", tokenizer()) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd.\n\n### Response:\n",
        "3",
    )
    assert render(TASK_INPUT, "alpaca", tokenizer()) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n",
        "3",
    )


def test_plain_takes_prompt_and_completion_as_they_are():
    assert render(Row("say a:", (" a",), "w"), "auto", tokenizer()) == ("say a:", " a")
    assert render(Row("", ("once",), "w", "text"), "auto", tokenizer()) == ("", "once")
    assert render(TASK_INPUT, "plain", tokenizer()) == ("Add.\n1 and 2\n", "3")


def test_custom_text_fills_in_once_and_only_its_own_names():
    row = Row("use {input} {x}", ("3",), "w", "instruction", "{instruction}")
    assert (
        render(row, "Q: {instruction}\\nI: {input}\\nA:", tokenizer())[0] == "Q: use {input} {x}\nI: {instruction}\nA:"
    )
    assert render(TASK_INPUT, "Q: {instruction} A:", tokenizer())[0] == "Q: Add.\n\n1 and 2 A:"


def test_chat_answer_is_what_the_whole_has_beyond_the_prompt():
    assert render(TALK, "auto", tokenizer(CHATML)) == ("<|user|>\nhi</s>\n<|assistant|>\n", "yes</s>\n")
    prompt, answer = render(TASK_INPUT, "chat", tokenizer(CHATML))
    assert (prompt, answer) == ("<|user|>\nAdd.\n\n1 and 2</s>\n<|assistant|>\n", "3</s>\n")


@pytest.mark.parametrize(
    "template, code, said",
    [
        ("{{ raise_exception('roles must alternate') }}", "TOK-10", 'the chat template says "roles must alternate"'),
        ("{% for m in %}", "TOK-10", "the chat template says"),
        ("{{ messages.nothing.there }}", "TOK-10", "the chat template says"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "TOK-08", "reach Python internals"),
        ("{{ messages | length }}", "TOK-10", "changes the prompt once the answer follows"),
        (None, "TOK-10", "has no chat template"),
    ],
)
def test_chat_template_faults_are_one_line_naming_the_row(template, code, said):
    with pytest.raises(InputError) as caught:
        render(TALK, "auto", tokenizer(template))
    assert caught.value.code == code
    assert said in caught.value.what
    assert caught.value.where == "r.jsonl line 5"
    assert "\n" not in str(caught.value)


def test_templates_that_do_not_exist_or_do_not_apply():
    with pytest.raises(UsageError, match=r'unknown template "alpca".*did you mean alpaca'):
        render(TASK, "alpca", tokenizer())
    with pytest.raises(UsageError, match=r"plain text has no instruction"):
        render(Row("", ("once",), "w", "text"), "alpaca", tokenizer())


def test_the_digest_of_templates_follows_their_words_not_their_order():
    chat, other = tokenizer(CHATML), tokenizer(CHATML.replace("user", "human") + " ")
    assert template_digest(["alpaca", "plain", "plain"], chat) == template_digest(["plain", "alpaca"], chat)
    digests = [template_digest([name], chat) for name in ("alpaca", "plain", "chat", "Q: {instruction}")]
    assert len({*digests, template_digest(["chat"], other)}) == 5
    assert template_digest(["alpaca"], other) == digests[0]
    assert all(len(digest) == 8 for digest in digests)
