import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.errors import InputError, KDError, UsageError
from kdcli.losses.atkd import AdaptiveTeachingKD
from kdcli.losses.build import build_objective
from kdcli.losses.divergences.decoupled import TargetKD
from kdcli.losses.wrappers.combine import Sum
from kdcli.registry import catalog
from kdcli.registry.build import spec_of
from kdcli.registry.registry import LOSSES
from kdcli.registry.spec import parse_objective

GUEST = '''
from typing import Annotated, ClassVar

import torch
from pydantic import Field, field_validator

from kdcli.losses.base import DistillLoss
from kdcli.losses.divergences.base import Divergence


class Free(Divergence):
    """Takes any number."""

    name = "free"
    size: float = 1.0

    def divergence(self, log_q, log_p):
        return self.size * (log_q - log_p).abs().sum(-1)


class Strict(Free):
    """Needs an option, and has a say on another."""

    name = "strict"
    must: float
    word: str = "a"

    @field_validator("word")
    @classmethod
    def _short(cls, word):
        if len(word) > 1:
            raise ValueError("word must be one letter")
        return word


class Crashing(Free):
    """Fails while being built."""

    def model_post_init(self, context):
        raise RuntimeError("no luck\\nat all")


class Leaving(Free):
    """Leaves while being built."""

    def model_post_init(self, context):
        raise SystemExit(3)


class Unfinished(DistillLoss):
    """Has no token_loss."""

    name = "unfinished"


class Nameless(DistillLoss):
    """Has no name."""

    def token_loss(self, tok):
        return tok.student.sum(1)
'''


@pytest.fixture
def guest(tmp_path):
    path = tmp_path / "guest.py"
    path.write_text(GUEST)
    return path


@pytest.mark.parametrize("name", catalog.LOSSES)
def test_every_registered_loss_builds_and_prints_back(name):
    loss = build_objective(name)
    assert spec_of(loss) == name
    assert hash(loss) == hash(build_objective(name))
    assert type(loss).model_validate_json(loss.model_dump_json()) == loss
    assert pickle.loads(pickle.dumps(loss)) == loss


def test_a_parsed_objective_is_taken_and_its_source_left_alone():
    assert build_objective(parse_objective("fkl@student:rate=0.5")) == build_objective("fkl")


def test_values_are_read_in_their_type():
    loss = build_objective("decoupled:alpha=.5,reverse=true,temperature=2")
    assert (loss.alpha, loss.reverse, loss.temperature) == (0.5, True, 2.0)


@pytest.mark.parametrize(
    "typed, canonical",
    [
        ("kl", "fkl"),
        ("Forward-KL", "fkl"),
        ("1.0*fkl", "fkl"),
        ("0.5*fkl", "0.5*fkl"),
        ("0.5*sft+0.50*kd:temperature=2.00", "0.5*ce+0.5*fkl:temperature=2.0"),
        ("akl:mu=.5", "akl"),
        ("akl:mu=.7,head_rule=official", "akl:mu=0.7,head_rule=official"),
        ("atkd:hard=akl,hard.mu=0.7", "atkd:hard=(akl:mu=0.7)"),
        ("atkd:hard=(akl:mu=0.7),hard.flip=true", "atkd:hard=(akl:mu=0.7,flip=true)"),
        ("atkd:easy=(0.5*ce+0.5*rkl),k=.3", "atkd:easy=(0.5*ce+0.5*rkl),k=0.3"),
        ("atkd:hard=atkd,hard.hard=akl,hard.hard.mu=.7", "atkd:hard=(atkd:hard=(akl:mu=0.7))"),
    ],
)
def test_canonical_spec(typed, canonical):
    assert spec_of(build_objective(typed)) == canonical
    assert build_objective(canonical) == build_objective(typed)


@given(
    st.floats(1e-6, 1e6),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from(["micro_batch", "sequence"]),
    st.floats(1e-9, 1e9),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_spec_and_json_round_trip_exactly(weight, k, lam, scope, temperature):
    inner = AdaptiveTeachingKD(k=k, lam=lam, scope=scope, temperature=temperature)
    loss = Sum(terms=((weight, inner), (1.0, AdaptiveTeachingKD(hard=inner, easy=TargetKD(temperature=temperature)))))
    assert build_objective(spec_of(loss)) == loss
    assert Sum.model_validate(json.loads(loss.model_dump_json())) == loss


@pytest.mark.parametrize(
    "spec, code, what, fix",
    [
        ("alk", "LOSS-01", 'unknown loss "alk"', "did you mean akl"),
        ("akl:head_mass=1", "CLI-09", 'akl has no option "head_mass"; it has ', "head_rule"),
        ("fkl:mu=1", "CLI-09", 'fkl has no option "mu"; it has temperature, scale_tau2', "remove it"),
        ("akl:mu=1.2", "CLI-06", "mu must lie in [0, 1], got 1.2", "choose mu in [0, 1]"),
        ("akl:mu=a", "CLI-06", "mu must be a finite number, got a", "mu=0.5"),
        ("akl:mu=nan", "CLI-06", "got nan", "mu=0.5"),
        (
            "akl:head_rule=papper",
            "CLI-06",
            "head_rule must be one of paper, official, got papper",
            "did you mean paper",
        ),
        ("akl:flip=perhaps", "CLI-06", "flip must be true or false, got perhaps", "flip="),
        ("akl:mu", "SPEC-01", '"mu" after akl is not key=value', "akl:key=value"),
        ("fkl:temperature=0", "CLI-03", "temperature must be > 0", "for argmax targets use ce"),
        ("fkl:temperature=0.0", "CLI-03", "temperature must be > 0", "for argmax targets use ce"),
        ("fkl:temperature=-1", "CLI-04", "temperature must be a finite number > 0, got -1", ""),
        ("fkl:temperature=nan", "CLI-04", "temperature must be a finite number > 0, got nan", ""),
        ("fkl:temperature=inf", "CLI-04", "temperature must be a finite number > 0, got inf", ""),
        ("fkl:temperature=1e999", "CLI-04", "temperature must be a finite number > 0", ""),
        ("decoupled:alpha=-1", "CLI-06", "alpha must be >= 0, got -1", "choose alpha >= 0"),
        ("decoupled:alpha=0,beta=0", "CLI-06", "nothing is left of the loss", "kd losses show decoupled"),
        ("0*fkl+0*ce", "CLI-06", "all weights are 0", ""),
        ("atkd:hard.mu=0.7", "CLI-09", "hard.mu needs hard=", "atkd:hard=LOSS,hard.mu=0.7"),
        ("atkd:hard=akl,hard.head=a", "CLI-09", 'akl has no option "head"', "did you mean head_rule"),
        ("atkd:hard=(akl:mu=.1),hard.mu=0.7", "SPEC-01", "hard.mu is given twice", "keep one"),
        ("atkd:hard=(akl+ce),hard.mu=0.7", "CLI-09", "hard.mu is ambiguous", "inside the parentheses"),
        ("akl:mu.x=1", "CLI-09", 'akl has no option "mu.x"', ""),
        ("atkd:hard=(akl@student)", "SPEC-01", "inside an option", "behind the objective"),
        ("atkd:hard=alk", "LOSS-01", 'unknown loss "alk"', "akl"),
        ("atkd:hard=0.5", "SPEC-01", "is not a name", ""),
    ],
)
def test_refusals_say_what_is_wrong_and_what_to_type(spec, code, what, fix):
    with pytest.raises(UsageError) as caught:
        build_objective(spec)
    assert caught.value.code == code
    assert what in caught.value.what
    assert fix in caught.value.fix + caught.value.what
    assert caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", catalog.LOSSES)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "text", "\x1b[31m"])
def test_no_number_takes_what_is_not_one(name, value):
    for option, field in LOSSES.resolve(name).model_fields.items():
        if field.annotation is float:
            with pytest.raises(UsageError) as caught:
                build_objective(f"{name}:{option}={value}")
            assert option in caught.value.what
            assert "\x1b" not in str(caught.value)


def test_a_guest_takes_options_and_prints_back(guest):
    loss = build_objective(f"0.5*{guest}:Free:size=2,temperature=3+0.5*ce")
    assert spec_of(loss) == f"0.5*{guest}:Free:temperature=3.0,size=2.0+0.5*ce"
    assert build_objective(spec_of(loss)) == loss


@pytest.mark.parametrize(
    "text, kind, code, says",
    [
        ("Free:size=nan", UsageError, "CLI-06", "size must be a finite number, got nan"),
        ("Free:size=-inf", UsageError, "CLI-06", "size must be a finite number, got -inf"),
        ("Free:sise=1", UsageError, "CLI-09", 'free has no option "sise"'),
        ("Strict", UsageError, "CLI-09", "strict needs the option must"),
        ("Strict:must=1,word=ab", UsageError, "CLI-06", "word must be one letter"),
        ("Crashing", InputError, "PLUG-04", "RuntimeError: no luck"),
        ("Leaving", InputError, "PLUG-08", "SystemExit"),
        ("Unfinished", InputError, "PLUG-04", "token_loss"),
        ("Nameless", InputError, "PLUG-04", "Nameless has no name"),
    ],
)
def test_a_guests_mistakes_are_one_line_too(guest, text, kind, code, says):
    with pytest.raises(kind) as caught:
        build_objective(f"{guest}:{text}")
    assert caught.value.code == code
    assert says in caught.value.what
    assert caught.value.where
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="aklatkdmu=.:,()+*@0519e- hard\x1b", max_size=40))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_text_builds_or_is_refused_as_a_mistake_of_the_user(text):
    said = ""
    try:
        build_objective(text)
    except KDError as error:
        said = str(error)
    assert "\n" not in said
