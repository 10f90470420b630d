import json
import math

import numpy as np
import pytest

from kdcli.metrics.curve import Curve, as_json, from_json, series


def curve(y=(0.5, 0.25)) -> Curve:
    one = series("student", [1, 2], y, low=[0.4, 0.2], high=np.array([0.6, 0.3]), count=[3, 4])
    return Curve("kl", "KL by position", "token", "nats", (one,), "line")


def test_json_and_back_is_the_same_curve():
    text = json.dumps(as_json(curve()), allow_nan=False)
    assert from_json(json.loads(text)) == curve()
    ticks = Curve("q", "Q", "length", "Rouge-L", (series("a", [0, 1], [1, 2]),), "points", ("1-3", "4-9"))
    assert from_json(json.loads(json.dumps(as_json(ticks)))) == ticks


def test_what_json_cannot_hold_becomes_null_and_nan():
    document = as_json(curve(y=(math.nan, math.inf)))
    assert document["series"][0]["y"] == [None, None]
    assert all(math.isnan(value) for value in from_json(document).series[0].y)


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 x but 1 low"):
        series("a", [0, 1], [0, 1], low=[0])
