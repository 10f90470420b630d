"""The contract, on every registered loss at several settings, and on losses made of losses."""

from functools import cache

import pytest
import torch

from kdcli.losses.build import build_objective
from kdcli.losses.samples import sample, values_and_grad, with_facts
from kdcli.losses.testing.contract import CHECKS, Finding, check_loss
from kdcli.registry import catalog

SETTINGS = {
    "ce": [],
    "soft_ce": ["soft_ce:temperature=2"],
    "sce": ["sce:alpha=0", "sce:beta=0", "sce:alpha=0.01,beta=2,floor=0.001"],
    "fkl": ["fkl:temperature=2", "fkl:temperature=4,scale_tau2=false"],
    "rkl": ["rkl:temperature=2"],
    "sym_kl": ["sym_kl:w=0", "sym_kl:w=1", "sym_kl:w=0.3,temperature=0.5"],
    "jsd": ["jsd:beta=0.1", "jsd:beta=0.9,temperature=2", "jsd:beta=0.1,normalize=true"],
    "skl": ["skl:alpha=0.5", "skl:alpha=0.9,temperature=2"],
    "srkl": ["srkl:alpha=0.5", "srkl:alpha=0.9,temperature=2"],
    "tvd": ["tvd:temperature=2"],
    "uld": ["uld:temperature=2", "uld:temperature=0.5,scale_tau2=false"],
    "ab": [
        *(f"ab:alpha={a},beta={b}" for a, b in [(0.2, 0.7), (1, 0), (0, 1), (0, 0.5), (0.5, 0), (1, 1), (0, 0)]),
    ],
    "mse_logits": ["mse_logits:centred=false"],
    "hidden": [
        *(f"hidden:kind={kind}" for kind in ("cosine", "pkd", "squarehead")),
        "hidden:map=last:2",
        "hidden:map=0-0/2-1",
    ],
    "attention": ["attention:kind=mse", "attention:kind=scores", "attention:map=1-2"],
    "akl": ["akl:mu=0.8,head_rule=official", "akl:mu=1", "akl:mu=0", "akl:flip=true,temperature=2"],
    "tkd": ["tkd:reverse=true", "tkd:temperature=2"],
    "dkd_div": ["dkd_div:reverse=true,keep_unc=true", "dkd_div:keep_unc=true,temperature=3"],
    "decoupled": ["decoupled:alpha=1,beta=8,temperature=4", "decoupled:reverse=true,alpha=0.3", "decoupled:alpha=0"],
    "atkd": [
        "atkd:base=rkl",
        "atkd:k=0.3,lam=0.5,scope=sequence",
        "atkd:keep_unc=true,temperature=2,scale_tau2=false",
        "atkd:k=0",
        "atkd:k=1,lam=0,base=rkl,keep_unc=true",
        "atkd:lam=0",
        "atkd:hard=akl,hard.mu=0.7",
        "atkd:easy=ce,hard=(0.5*jsd+0.5*tvd)",
        "atkd:easy=(atkd:k=0.3),hard=skl",
    ],
    "minillm": [
        "minillm:variant=lmops",
        "minillm:variant=single",
        "minillm:single_weight=step",
        "minillm:single_weight=prefix,long_weight=prefix,clip=0",
        "minillm:single=false,include_present=true,length_norm=false",
        "minillm:variant=single,single_weight=prefix",
        "minillm:whiten=tokens,long_weight=none,rewards=sampling",
    ],
    "route": [
        "route:student=ce,data=tvd",
        "route:rollout=minillm,corpus=(0.5*ce+0.5*soft_ce)",
        "route:student=atkd,teacher=(0.5*akl+ce)",
    ],
    "weighted": [
        "weighted:loss=akl,by=student_entropy,favour=low,keep=0.3",
        "weighted:loss=(0.5*ce+0.5*rkl),by=disagreement,keep=1,power=1",
        "weighted:loss=jsd,by=teacher_confidence,favour=low,keep=0.7,sharpness=4,scope=sequence",
        "weighted:loss=ce,by=student_nll,keep=1,sharpness=0.5",
        "weighted:loss=atkd,by=position,favour=low,keep=0.6",
        "weighted:loss=tvd,by=teacher_right,keep=1,power=1",
        "weighted:by=student_confidence,keep=1",
        "weighted:by=teacher_nll,favour=low,loss=(weighted:by=position,keep=0.8)",
    ],
    "trusted": [
        "trusted:loss=akl",
        "trusted:loss=atkd",
        "trusted:loss=(0.5*ce+0.5*rkl)",
        "trusted:loss=(weighted:by=student_nll,keep=0.8)",
    ],
    "annealed": [
        "annealed:loss=rkl,start=1,end=8,course=cosine",
        "annealed:loss=atkd,course=exponential",
        "annealed:loss=skl,option=alpha,start=0.1,end=0.9,until=0.9,since=0.2",
        "annealed:loss=tempered,course=step,until=0.5",
    ],
    "ramp": [
        "ramp:loss=akl,start=1,end=0,course=cosine",
        "ramp:loss=atkd,until=0.3",
        "ramp:start=2,end=0.5,course=exponential",
    ],
    "revised": ["revised:loss=akl,eta=0.5", "revised:loss=atkd", "revised:loss=(0.5*ce+0.5*rkl),eta=0.99"],
    "tempered": [
        "tempered:loss=rkl,temperature=0.5",
        "tempered:loss=uld",
        "tempered:loss=atkd",
        "tempered:loss=mse_logits",
    ],
    "truncated": [
        "truncated:top_k=3",
        "truncated:loss=rkl,top_k=0,top_p=0.9",
        "truncated:loss=akl,top_k=5,top_p=0.8,tail=uniform",
        "truncated:loss=jsd,top_k=4,tail=none",
        "truncated:loss=tvd,top_k=0,top_p=0.5,tail=none",
        "truncated:loss=atkd,top_k=3",
        "truncated:loss=(revised:loss=rkl),top_k=3,tail=student",
        "truncated:loss=ab,top_k=2",
        "truncated:loss=uld,top_k=4,tail=uniform",
    ],
}
SUMS = [
    "0.5*ce+0.5*akl:mu=0.6",
    "fkl+rkl+fkl:temperature=2",
    "0.2*atkd+0.8*atkd:base=rkl",
    "0*ce+2*tvd",
    "ce+1.5*uld",
    "0.5*ramp:loss=ce+0.5*annealed:loss=rkl",
    "ce+hidden",
    "ramp:loss=hidden+0.5*ramp:loss=(ce+attention)",
    "0.5*hidden+2*attention+atkd",
    "ce+0.5*trusted:loss=fkl",
]
EVERY = [*catalog.LOSSES, *(spec for specs in SETTINGS.values() for spec in specs), *SUMS]
NO_SURVEY = [spec for spec in EVERY if build_objective(spec).needs().survey == "none"]
LOGITS_ONLY = [spec for spec in NO_SURVEY if not build_objective(spec).needs().features]


@cache
def findings(spec: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in check_loss(build_objective(spec))}


def test_every_registered_loss_has_settings_of_its_own():
    assert list(SETTINGS) == list(catalog.LOSSES)


def test_what_needs_no_teacher_is_known_without_its_class():
    assert {
        name for name in catalog.LOSSES if not build_objective(name).needs().anything_of_teacher
    } == catalog.TEACHERLESS


@pytest.mark.parametrize("check", [check.name for check in CHECKS])
@pytest.mark.parametrize("name", catalog.LOSSES)
def test_the_contract_is_kept(name, check):
    finding = findings(name)[check]
    assert finding.passed, finding.detail


@pytest.mark.parametrize("spec", [spec for spec in EVERY if spec not in catalog.LOSSES])
def test_the_contract_is_kept_at_other_settings(spec):
    found = findings(spec)
    assert [finding for finding in found.values() if not finding.passed] == []
    assert list(found) == [check.name for check in CHECKS]


@pytest.mark.parametrize("spec", NO_SURVEY)
def test_entries_at_minus_infinity_are_as_if_not_there(spec):
    loss = build_objective(spec)
    data = sample(loss).to(torch.float64).map(lambda logits: logits[:, :-3])
    wide = data.map(lambda logits: torch.cat((logits, torch.full_like(logits[:, :3], -torch.inf)), 1))
    value, grad = values_and_grad(loss, with_facts(loss, data))
    same, slope = values_and_grad(loss, with_facts(loss, wide))
    torch.testing.assert_close(same, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope[:, :-3], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", [spec for spec in LOGITS_ONLY if "ce" not in spec.split(":")[0].split("+")[0]])
def test_the_gradient_sums_to_zero_and_shifts_change_nothing(spec):
    if spec == "mse_logits:centred=false":
        return
    loss = build_objective(spec)
    data = sample(loss).to(torch.float64)
    value, grad = values_and_grad(loss, data)
    torch.testing.assert_close(grad.sum(1), torch.zeros_like(value), rtol=0, atol=1e-11)
    shifted, _ = values_and_grad(loss, type(data)(data.student + 5, data.teacher - 50, data.labels, data.facts))
    torch.testing.assert_close(shifted, value, rtol=1e-9, atol=1e-11)
