"""The contract, on every registered score at several settings."""

import inspect
import json
import math

import pytest
import torch

import running
from kdcli.registry import catalog
from kdcli.registry.build import spec_of
from kdcli.registry.registry import SCORES
from kdcli.scores.base import Score, ScoreContext, ScoredRow
from kdcli.scores.build import build_score, describe

SETTINGS = {
    "nll": ["nll:of=teacher"],
    "ifd": ["ifd:of=teacher"],
    "energy": ["energy:of=teacher"],
    "el2n": ["el2n:of=teacher"],
    "tracin": ["tracin:per=token"],
    "length": ["length:unit=words", "length:unit=characters"],
    "teacher_right": [],
    "log_ratio": [],
}
EVERY = [*catalog.SCORES, *(spec for specs in SETTINGS.values() for spec in specs)]
ROWS = running.dataset(6).examples
HELD_OUT = running.dataset(3, seed=9).examples


@pytest.fixture(scope="module")
def models():
    return {"student": running.model("student", seed=1), "teacher": running.model("teacher", seed=2, family="gpt2")}


def context(score, models):
    """What the score declares, and nothing else."""
    needs = score.needs()
    given = {side: model for side, model in models.items() if needs.reads(side)}
    return ScoreContext(given, HELD_OUT if needs.held_out else ())


def test_every_registered_score_has_settings_of_its_own():
    assert list(SETTINGS) == list(catalog.SCORES)
    assert all(SCORES.resolve(name).name == name for name in catalog.SCORES)


@pytest.mark.parametrize("spec", EVERY)
def test_it_is_a_score_with_a_page(spec):
    score = build_score(spec)
    assert isinstance(score, Score)
    assert ">>>" in (inspect.getdoc(type(score)) or "")
    assert all(field.description for field in type(score).model_fields.values())
    card = describe(score.name)
    assert card.what
    assert card.formula
    assert card.reference
    assert type(score)() is not None, "every option has a default"


@pytest.mark.parametrize("spec", EVERY)
def test_its_spec_and_its_json_build_it_again(spec):
    score = build_score(spec)
    assert spec_of(score) == spec
    assert type(score)(**json.loads(score.model_dump_json())) == score
    assert hash(score) == hash(build_score(spec))


@pytest.mark.parametrize("spec", EVERY)
def test_a_number_depends_on_its_row_alone_and_touches_nothing(spec, models):
    score = build_score(spec)
    for model in models.values():
        model.model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    several = context(score, models)
    forward = [score.value(ScoredRow(one, several)) for one in ROWS]
    backward = [score.value(ScoredRow(one, several)) for one in reversed(ROWS)][::-1]
    alone = [score.value(ScoredRow(one, context(score, models))) for one in ROWS]
    assert forward == backward == alone
    assert all(isinstance(value, float) and math.isfinite(value) for value in forward)
    assert score.name == "length" or len(set(forward)) > 1
    assert torch.equal(torch.get_rng_state(), before)
    for model in models.values():
        assert model.model.training
        assert all(parameter.grad is None for parameter in model.model.parameters())
