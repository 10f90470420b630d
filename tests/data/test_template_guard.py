import time

import pytest

from kdcli.data.check import Row
from kdcli.data.template_guard import try_template
from kdcli.errors import InputError

ROWS = [Row("a", ("b",), "r.jsonl line 1"), Row("a" * 9, ("b",), "r.jsonl line 2")]


def test_an_endless_template_is_stopped():
    def endless(_):
        while True:
            pass

    started = time.monotonic()
    with pytest.raises(InputError, match=r"TOK-09.*exceeded 0.3 s"):
        try_template(ROWS, endless, seconds=0.3)
    assert time.monotonic() - started < 5


def test_a_greedy_template_is_stopped_and_the_longest_row_is_tried():
    def greedy(row):
        if len(row.prompt) > 5:
            bytearray(2**31)

    with pytest.raises(InputError, match=r"TOK-09.*exceeded 512 MiB"):
        try_template(ROWS, greedy)
    try_template(ROWS[:1], greedy)


def test_other_faults_are_left_to_the_real_rendering():
    def broken(_):
        raise ValueError("later")

    try_template(ROWS, broken)
    try_template([], broken)
