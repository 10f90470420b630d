import pytest
import torch

from kdcli.errors import UsageError
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.samples import Sample, sample, tokens_of, values, values_and_grad, with_facts
from kdcli.losses.token_facts import ORIGINS, code_of
from kdcli.registry.build import spec_of


def mixed(loss, origins, *, seed=0):
    """Tokens of given origins, with the share that each has among them."""
    data = sample(build_objective("fkl"), tokens=len(origins), seed=seed).to(torch.float64)
    codes = torch.tensor([code_of(origin) for origin in origins])
    share = torch.stack([(codes == code).double().mean() for code in codes])
    generator = torch.Generator().manual_seed(seed)
    logps = {name: -torch.rand(len(origins), generator=generator) for name in ("behaviour_logp", "student_logp")}
    facts = {**data.facts, **logps, "origin": codes, "origin_share": share}
    return with_facts(loss, Sample(data.student, data.teacher, data.labels, facts))


def part(data, origin):
    rows = torch.nonzero(data.facts["origin"] == code_of(origin)).squeeze(1)
    return data.rows(rows)


MIXED = ["student"] * 3 + ["corpus"] * 1 + ["student"] * 2 + ["corpus"] * 4


@pytest.mark.parametrize("spec", ["route:student=rkl,corpus=(0.3*ce)", "route:student=akl,corpus=(0.3*ce+0.7*jsd)"])
def test_the_mean_over_the_step_is_the_sum_of_each_origins_own_mean(spec):
    loss = build_objective(spec)
    data = mixed(loss, MIXED)
    expected = sum(values(child, part(data, origin)).mean() for origin, child in loss.routes.items())
    torch.testing.assert_close(values(loss, data).mean(), expected)


def test_gradients_by_autograd_and_in_closed_form_are_those_of_the_parts():
    loss = build_objective("route:student=rkl,corpus=(0.3*ce)")
    data = mixed(loss, MIXED)
    value, grad = values_and_grad(loss, data)
    named, closed = loss.parts_and_grad(tokens_of(loss, data))
    torch.testing.assert_close(sum(named.values()), value)
    torch.testing.assert_close(closed, grad)
    for origin, child in loss.routes.items():
        rows = data.facts["origin"] == code_of(origin)
        _, alone = values_and_grad(child, part(data, origin))
        torch.testing.assert_close(grad[rows], alone * len(rows) / rows.sum())


def test_an_origins_objective_plans_over_its_own_tokens_alone():
    loss, alone = build_objective("route:rollout=minillm,corpus=ce"), build_objective("minillm")
    data = mixed(loss, ["rollout"] * 6 + ["corpus"] * 3)
    own = part(data, "rollout")
    own = with_facts(alone, Sample(own.student, own.teacher, own.labels, own.facts))
    torch.testing.assert_close(values(loss, data)[:6] * 6 / 9, values(alone, own))
    corpus = part(data, "corpus")
    torch.testing.assert_close(values(loss, data)[6:] * 3 / 9, values(build_objective("ce"), corpus))


def test_what_an_objective_watches_is_logged_as_the_mean_over_its_own_tokens():
    loss = build_objective("route:rollout=minillm,corpus=ce")
    data = mixed(loss, ["rollout"] * 6 + ["corpus"] * 3)
    tok = tokens_of(loss, data)
    loss.token_loss(tok)
    ratio = tok.logged["rollout.rho"]
    assert ratio[6:].tolist() == [0.0, 0.0, 0.0]
    log_q = data.student.log_softmax(-1).gather(1, data.labels[:, None])[:, 0]
    torch.testing.assert_close(ratio.mean(), torch.exp(log_q - data.facts["behaviour_logp"])[:6].mean())


@pytest.mark.parametrize("origin", ["student", "corpus"])
def test_a_micro_batch_of_one_origin_only(origin):
    loss = build_objective("route:student=atkd,corpus=ce")
    data = mixed(loss, [origin] * 5)
    value, grad = values_and_grad(loss, data)
    torch.testing.assert_close(value, values(loss.routes[origin], data if origin == "corpus" else alone(data)))
    assert torch.isfinite(grad).all()


def alone(data):
    child = build_objective("atkd")
    return with_facts(child, Sample(data.student, data.teacher, data.labels, {"seq": data.facts["seq"]}))


def test_tokens_of_another_origin_count_for_nothing():
    loss = build_objective("route:student=rkl")
    data = mixed(loss, ["student", "data", "student"])
    value, grad = values_and_grad(loss, data)
    assert value[1] == 0
    assert not grad[1].any()


def test_without_options_it_is_f_distills_jensen_shannon():
    loss = build_objective("route")
    assert {origin: spec_of(child) for origin, child in loss.routes.items()} == {
        "student": "0.5*srkl:alpha=0.5",
        "teacher": "0.5*skl:alpha=0.5",
    }
    data = mixed(loss, ["student", "teacher"])
    data = data.rows(torch.tensor([0, 0, 1, 1]))
    data.facts["origin"][:] = torch.tensor([code_of("student"), code_of("teacher")] * 2)
    both = values(build_objective("jsd"), data.rows(torch.tensor([0, 2])))
    torch.testing.assert_close(values(loss, data).view(2, 2).mean(1), both)


def test_it_asks_for_origins_and_for_what_its_objectives_ask():
    needs = build_objective("route:rollout=minillm,corpus=ce").needs()
    assert needs.origins == {"rollout", "corpus"}
    assert needs.facts == {"origin", "origin_share", "behaviour_logp", "student_logp"}
    assert (needs.teacher, needs.survey) == (True, "both")
    assert not build_objective("route:student=ce").needs().teacher


def test_it_survives_its_spec_string():
    loss = build_objective("route:rollout=(minillm:variant=lmops),corpus=(0.5*ce+0.5*soft_ce)")
    assert build_objective(spec_of(loss)) == loss
    assert spec_of(build_objective("route")) == "route"


def test_unknown_origins_are_refused():
    with pytest.raises(UsageError, match="data, student, teacher, rollout, corpus"):
        build_objective("route:buffer=ce")
    assert ORIGINS == ("data", "student", "teacher", "rollout", "corpus")


def test_no_teacher_no_gradient_to_it():
    loss = build_objective("route:student=ce,corpus=ce")
    data = mixed(loss, MIXED)
    tok = Tokens(data.labels, data.student, None, data.facts)
    assert torch.isfinite(loss.token_loss(tok)).all()
