"""The keys that a chat template reads are found in its syntax."""

import pytest

from kdcli.data.templates import keys_read, try_keys_read


def loop(body: str) -> str:
    return "{% for m in messages %}" + body + "{% endfor %}"


@pytest.mark.parametrize(
    "template, keys",
    [
        (loop("{{ m.role }}{{ m['content'] }}"), {"role", "content"}),
        (loop("{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}{% endif %}"),
         {"tool_calls"}),
        (loop("{% if 'name' in m %}x{% endif %}{{ m.get('reasoning_content', '') }}"), {"name", "reasoning_content"}),
        ("{% set rest = messages[1:] %}{{ messages[0].role }}{% for m in rest %}{{ m.content }}{% endfor %}",
         {"role", "content"}),
        ("{% for m in messages[::-1] %}{% set index = loop.index0 %}{{ messages[index].content }}{% endfor %}",
         {"content"}),
        ("{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.content }}{% endfor %}",
         {"role", "content"}),
        ("{% macro show(turn, last) %}{{ turn.thinking }}{% endmacro %}" + loop("{{ show(m, loop.last) }}"),
         {"thinking"}),
        ("{% set ns = namespace(first=messages[0], seen=false) %}{{ ns.first.role }}", {"role"}),
        ("{% set ns = namespace(last=0) %}{% for m in messages %}{% set ns.last = m %}{% endfor %}{{ ns.last.role }}",
         {"role"}),
        (loop("{% generation %}{{ m.content }}{% endgeneration %}{% if loop.previtem.role %}x{% endif %}"),
         {"content", "role"}),
        ("{{ (messages | last).content }}{{ messages | length }}", {"content"}),
        ("{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
         "{% else %}{% set rest = messages %}{% endif %}"
         "{% for t in rest %}{% if t.role == 'user' %}{% continue %}{% endif %}{{ t['content'] | trim }}{% endfor %}",
         {"role", "content"}),
    ],
)  # fmt: skip
def test_keys_of_turns_are_found_however_a_turn_is_reached(template, keys):
    found = keys_read(template)
    assert found.keys == keys
    assert not found.every_key
    assert "messages" in found.variables


@pytest.mark.parametrize(
    "template",
    [
        loop("{{ m }}"),
        loop("{{ m | tojson }}"),
        "{{ messages | tojson }}",
        loop("{% for key in m %}{{ key }}{% endfor %}"),
        loop("{{ m[which] }}"),
        loop("{% for key, value in m.items() %}{{ value }}{% endfor %}"),
    ],
)
def test_whole_turns_that_are_passed_on_may_show_any_key(template):
    assert keys_read(template).every_key
    assert keys_read(template).reads("anything")


def test_variables_from_outside_and_wrong_syntax():
    found = keys_read("{% if tools %}{{ tools | tojson }}{% endif %}{{ bos_token }}" + loop("{{ m.role }}"))
    assert {"tools", "bos_token", "messages"} <= found.variables
    assert not found.reads("tools")
    assert try_keys_read("{% for m in %}") is None
