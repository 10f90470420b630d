import pickle

import pytest
import torch

from kdcli.errors import UsageError
from kdcli.losses.base import DistillLoss, Needs
from kdcli.losses.build import build_objective
from kdcli.losses.divergences.decoupled import DiversityKD, TargetKD
from kdcli.losses.samples import sample, tokens_of, values, values_and_grad, with_facts
from kdcli.losses.wrappers.combine import Sum
from kdcli.registry.build import spec_of


class Labelled(DistillLoss):
    """Needs no teacher; its survey, plan and facts say so loudly."""

    name = "labelled"

    def needs(self):
        return Needs(teacher=False, survey="both", facts=frozenset({"origin"}))

    def survey(self, tok):
        assert tok.teacher is None
        assert set(tok.facts) == {"seq", "origin"}
        return {"unc": tok.student.detach().logsumexp(1)}

    def plan(self, facts):
        assert set(facts) == {"seq", "origin", "unc"}
        return {"scaled": facts["unc"] * 2}

    def token_loss(self, tok):
        assert set(tok.facts) == {"seq", "origin", "unc", "scaled"}
        return -tok.student.log_softmax(1).gather(1, tok.labels[:, None]).squeeze(1) * tok.facts["scaled"]


class Overwriting(TargetKD):
    """Uses what the closed form is allowed: destroys both sides."""

    def parts_and_grad(self, tok):
        answer = super().parts_and_grad(tok)
        tok.student.fill_(torch.nan)
        tok.teacher.fill_(torch.nan)
        return answer


def test_value_and_gradient_are_the_weighted_sums():
    one, two = TargetKD(), DiversityKD(temperature=2)
    loss = Sum(terms=((0.3, one), (2.0, two)))
    data = sample(loss).to(torch.float64)
    value, grad = values_and_grad(loss, data)
    (first, slope), (second, steep) = values_and_grad(one, data), values_and_grad(two, data)
    torch.testing.assert_close(value, 0.3 * first + 2.0 * second)
    torch.testing.assert_close(grad, 0.3 * slope + 2.0 * steep)


def test_closed_form_adds_up_though_terms_overwrite_their_inputs():
    loss = Sum(terms=((0.3, Overwriting()), (2.0, Overwriting(reverse=True)), (1.0, Overwriting())))
    data = sample(loss).to(torch.float64)
    value, grad = values_and_grad(loss, data)
    parts, closed = loss.parts_and_grad(tokens_of(loss, data))
    torch.testing.assert_close(sum(parts.values()), value)
    torch.testing.assert_close(closed, grad)


def test_no_closed_form_unless_every_term_has_one():
    loss = Sum(terms=((1.0, TargetKD()), (1.0, Labelled())))
    data = with_facts(loss, sample(loss))
    assert loss.parts_and_grad(tokens_of(loss, data)) is None


def test_terms_are_named_apart_and_weighted():
    loss = build_objective("0.5*tkd+0.25*dkd_div+0.25*tkd:reverse=true+decoupled+atkd")
    data = with_facts(loss, sample(loss).to(torch.float64))
    parts = loss.parts(tokens_of(loss, data))
    expected = ["tkd", "dkd_div", "tkd_2", "decoupled.tkd", "decoupled.dkd_div", "atkd.easy", "atkd.hard"]
    assert list(parts) == expected
    torch.testing.assert_close(parts["tkd_2"], 0.25 * values(TargetKD(reverse=True), data))
    torch.testing.assert_close(sum(parts.values()), values(loss, data))


def test_a_term_cannot_tell_that_it_is_inside():
    loss = Sum(terms=((1.0, Labelled()), (0.5, build_objective("atkd")), (2.0, Labelled())))
    assert loss.needs() == Needs(teacher=True, survey="both", facts=frozenset({"origin"}))
    data = sample(loss)
    full = with_facts(loss, data, chunk=2)
    assert {"labelled/unc", "labelled/scaled", "atkd/split/hard", "labelled_2/scaled"} <= set(full.facts)
    alone = values(Labelled(), with_facts(Labelled(), data))
    atkd = build_objective("atkd")
    other = values(atkd, with_facts(atkd, sample(atkd)))
    seen = {name: value for name, value in data.facts.items() if name == "seq"}
    other = values(atkd, with_facts(atkd, type(data)(data.student, data.teacher, data.labels, seen)))
    torch.testing.assert_close(values(loss, full), 3.0 * alone + 0.5 * other)


def test_needs_no_teacher_when_no_term_does():
    assert not Sum(terms=((1.0, Labelled()),)).needs().teacher


def test_a_term_of_weight_zero_is_not_computed():
    loss = Sum(terms=((0.0, Labelled()), (1.0, TargetKD())))
    assert loss.needs() == Needs()
    assert list(loss.parts(tokens_of(loss, sample(loss)))) == ["tkd"]
    assert spec_of(build_objective("0*dkd_div+tkd")) == "0.0*dkd_div+tkd"


@pytest.mark.parametrize("spec, says", [("0*tkd", "all weights are 0"), ("-1*tkd", ">= 0"), ("tkd+nan*tkd", "nan")])
def test_weights_that_are_refused(spec, says):
    with pytest.raises(UsageError, match=says):
        build_objective(spec)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_checked_for_library_users_too(weight):
    with pytest.raises(ValueError, match="terms"):
        Sum(terms=((weight, TargetKD()),))


def test_a_sum_in_a_sum_is_opened_up():
    inner = Sum(terms=((0.5, TargetKD()), (0.5, DiversityKD())))
    assert spec_of(Sum(terms=((0.5, inner), (1.0, TargetKD())))) == "0.25*tkd+0.25*dkd_div+tkd"


def test_a_sum_is_hashable_and_survives_json_and_pickle():
    loss = build_objective("0.5*tkd:temperature=2+0.5*atkd:hard=dkd_div")
    assert Sum.model_validate_json(loss.model_dump_json()) == loss
    assert loss.model_dump()["terms"] == ((0.5, "tkd:temperature=2.0"), (0.5, "atkd:hard=dkd_div"))
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert len({loss, build_objective(spec_of(loss))}) == 1
