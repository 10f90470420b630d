import numpy as np
import pytest
import scipy.spatial
import scipy.special
import torch

from kdcli.config.schema import HardwareConfig
from kdcli.evaluation.token_facts import token_facts
from kdcli.events import silent
from kdcli.models.devices import prepare
from kdcli.teachers.base import LiveTeacher
from running import VOCAB, dataset, model


def measure(micro_tokens, teacher=True, names=None):
    return token_facts(
        model("student", seed=1),
        LiveTeacher(model("teacher", seed=2)) if teacher else None,
        dataset(9),
        vocab=VOCAB,
        micro_tokens=micro_tokens,
        device=prepare(HardwareConfig(device="cpu")),
        report=silent,
        names=names,
    )


@pytest.fixture(scope="module")
def expected():
    """Every fact from full logits, one row at a time, in numpy."""
    student, teacher = model("student", seed=1).model, model("teacher", seed=2).model
    found = {
        name: []
        for name in (
            "label_logp",
            "top1_prob",
            "top1_correct",
            "brier",
            "kl_from_teacher",
            "kl_to_teacher",
            "agree",
            "jsd",
            "total_variation",
            "top1_by_teacher",
            "brier_by_teacher",
            "nll_by_teacher",
        )
    }
    owners = []
    for index, example in enumerate(dataset(9).examples):
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            q, p = (scipy.special.softmax(m(ids).logits[0].double().numpy(), axis=1) for m in (student, teacher))
        for position in range(example.prompt_length - 1, len(example.ids) - 1):
            label, mine, theirs = example.ids[position + 1], q[position], p[position]
            truth = np.eye(VOCAB)[label]
            found["label_logp"].append(np.log(mine[label]))
            found["top1_prob"].append(mine.max())
            found["top1_correct"].append(mine.argmax() == label)
            found["brier"].append(((mine - truth) ** 2).sum())
            found["kl_from_teacher"].append(scipy.special.rel_entr(theirs, mine).sum())
            found["kl_to_teacher"].append(scipy.special.rel_entr(mine, theirs).sum())
            found["agree"].append(mine.argmax() == theirs.argmax())
            found["jsd"].append(scipy.spatial.distance.jensenshannon(theirs, mine) ** 2)
            found["total_variation"].append(np.abs(theirs - mine).sum() / 2)
            found["top1_by_teacher"].append(theirs[mine.argmax()])
            found["brier_by_teacher"].append(
                sum(theirs[y] * ((mine - row) ** 2).sum() for y, row in enumerate(np.eye(VOCAB)))
            )
            found["nll_by_teacher"].append(
                scipy.special.rel_entr(theirs, mine).sum() + scipy.special.entr(theirs).sum()
            )
            owners.append(index)
    return found, owners


@pytest.mark.parametrize("micro_tokens", [1, 40, 4096])
def test_facts_equal_full_logits_in_the_order_of_the_rows(expected, micro_tokens):
    facts, example = measure(micro_tokens)
    values, owners = expected
    assert example.tolist() == owners
    assert facts.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_allclose(facts[name], np.array(value, dtype=float), rtol=2e-5, atol=2e-7, err_msg=name)


def test_only_the_facts_asked_for_are_measured(expected):
    facts, _ = measure(4096, names={"jsd", "label_logp"})
    assert facts.keys() == {"jsd", "label_logp"}
    np.testing.assert_allclose(facts["jsd"], expected[0]["jsd"], rtol=2e-5, atol=2e-7)


def test_without_a_teacher_there_are_no_comparisons():
    facts, _ = measure(4096, teacher=False)
    assert set(facts) == {"label_logp", "top1_prob", "top1_correct", "brier"}
