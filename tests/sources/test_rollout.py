"""Rounds of sequences drawn from both models: what they hold, and that a killed run ends as one that nobody touched."""

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest
import torch

import running
from kdcli.config.schema import TrainConfig
from kdcli.data.batching import IGNORED
from kdcli.data.tokenize import Example
from kdcli.losses.token_facts import ORIGIN_SHARE, code_of
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.rollout import Rollout, mixture_logp, packed, repeated, summary, unpacked
from kdcli.sources.sequences import TrainingSequence, batches
from kdcli.training.trainer import train

STEPS = 8


def context(**changes):
    settings = TrainConfig(**{"batch_size": 4, "max_steps": 40, "micro_tokens": 60, **changes.pop("train", {})})
    parts = {"student": running.model("student", seed=1), "teacher": running.model("teacher", seed=2)}
    return SourceContext(
        running.dataset(20), settings, pad_id=0, vocab=running.VOCAB, longest=24,
        corpus=running.dataset(9, seed=5), **{**parts, **changes},
    )  # fmt: skip


def opened(spec="rollout:rollouts=8,epochs=2,max_new_tokens=9", **changes):
    return build_source(spec).open(context(**changes))


def tokens(batches, origin):
    """Sequence ids, label ids and facts of every sequence of an origin."""
    found = []
    for batch in batches:
        for row in range(len(batch.input_ids)):
            valid = batch.labels[row] != IGNORED
            if batch.facts["origin"][row][valid][0] == code_of(origin):
                ids = [
                    *batch.input_ids[row][batch.attention_mask[row] == 1].tolist(),
                    batch.labels[row][valid][-1].item(),
                ]
                facts = {name: fact[row][valid] for name, fact in batch.facts.items()}
                found.append((tuple(ids), batch.labels[row][valid], facts))
    return found


def test_a_round_is_read_as_often_as_asked_and_each_sequence_once_an_epoch():
    windows = opened()
    assert (windows.steps_per_round, windows.steps_per_epoch) == (4, 12)
    rounds = [
        Counter(ids for step in range(4) for ids, *_ in tokens(windows.window(4 * r + step), "rollout")) for r in (0, 1)
    ]
    for found in rounds:
        assert sum(found.values()) == 16
        assert all(count % 2 == 0 for count in found.values())
    first, second = ([ids for ids, *_ in tokens(windows.window(4 + at), "rollout")] for at in (0, 2))
    assert first != second, "another order at each inner epoch"
    assert rounds[0] != rounds[1]


def test_every_prompt_is_answered_once_before_any_is_answered_again():
    windows = opened("rollout:rollouts=7,epochs=1,max_new_tokens=2")
    rows = [row for number in range(20) for row in windows._prompts(number)]
    for turn in range(7):
        assert sorted(rows[20 * turn : 20 * turn + 20]) == list(range(20))


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_facts_are_the_log_probabilities_of_both_models(alpha):
    land = context()
    windows = build_source(f"rollout:alpha={alpha},rollouts=8,epochs=1,max_new_tokens=9").open(land)
    found = [one for step in (0, 1) for one in tokens(windows.window(step), "rollout")]
    assert len(found) == 8
    for ids, labels, facts in found:
        whole = torch.tensor([ids])
        with torch.no_grad():
            q, p = (side.model.eval()(whole).logits[0].double().softmax(-1) for side in (land.student, land.teacher))
        places = torch.arange(len(ids) - len(labels) - 1, len(ids) - 1)
        of_q, of_p = q[places, labels], p[places, labels]
        torch.testing.assert_close(facts["student_logp"].double(), of_q.log(), rtol=1e-4, atol=1e-5)
        mixed = (alpha * of_p + (1 - alpha) * of_q).log()
        torch.testing.assert_close(facts["behaviour_logp"].double(), mixed, rtol=1e-4, atol=1e-5)
        assert (facts["origin_share"] == 1.0).all()


def test_the_corpus_comes_in_turn_with_every_step_and_shares_are_those_of_the_step():
    windows = opened("rollout:rollouts=8,epochs=2,max_new_tokens=9,corpus=3")
    seen = []
    for step in range(6):
        batches = windows.window(step)
        corpus, drawn = tokens(batches, "corpus"), tokens(batches, "rollout")
        assert (len(corpus), len(drawn)) == (3, 4)
        assert windows.origins() == {"rollout": 4, "corpus": 3}
        sizes = [sum(len(labels) for _, labels, _ in part) for part in (drawn, corpus)]
        for part, size in zip((drawn, corpus), sizes, strict=True):
            for _, _, facts in part:
                assert facts["origin_share"].tolist() == pytest.approx([size / sum(sizes)] * len(facts["origin"]))
        seen += [ids for ids, *_ in corpus]
    texts = [example.ids for example in running.dataset(9, seed=5).examples]
    assert sorted(seen) == sorted(texts * 2)


def test_shares_count_sequences_where_sequences_are_averaged():
    windows = opened("rollout:rollouts=8,epochs=2,max_new_tokens=9,corpus=3", train={"reduce": "sequence"})
    (_, _, facts), *_ = tokens(windows.window(0), "corpus")
    assert facts["origin_share"][0].item() == pytest.approx(3 / 7)


def test_sequences_depend_on_the_round_and_its_student_but_not_on_how_they_are_computed():
    def texts(**changes):
        windows = opened(**changes)
        return {ids for step in (0, 1) for ids, *_ in tokens(windows.window(step), "rollout")}

    assert texts() == texts(train={"micro_tokens": 1}) == texts()
    assert texts() != texts(student=running.model("student", seed=3))
    assert texts() != texts(train={"seed": 1})


def test_a_round_survives_being_laid_out_in_tensors():
    windows = opened()
    windows.window(0)
    number, rollouts = windows._round
    state = packed(number, rollouts)
    again, read = unpacked(state, windows.context.dataset.examples)
    assert again == number
    assert [(one.place, one.row, one.example, one.ended) for one in read] == [
        (one.place, one.row, one.example, one.ended) for one in rollouts
    ]
    for one, two in zip(read, rollouts, strict=True):
        assert torch.equal(one.behaviour, two.behaviour)
        assert torch.equal(one.student, two.student)
    assert summary(read) == summary(rollouts)


def test_what_is_logged_is_what_the_sequences_are():
    windows = opened()
    assert windows.values() == {}
    windows.window(0)
    values = windows.values()
    rollouts = windows._round[1]
    sizes = [one.targets - one.ended for one in rollouts]
    assert values["rollout.length"] == sum(sizes) / len(sizes)
    assert values["rollout.ended"] == sum(one.ended for one in rollouts) / len(rollouts)
    assert values["rollout.sequence_kl"] > 0
    windows.window(1)
    assert windows.values() == values
    assert windows.generated == 0


def test_repetition_counts_groups_said_before():
    assert repeated([]) == repeated([1, 2, 3]) == 0.0
    assert repeated([7] * 6) == pytest.approx(2 / 3)


def test_the_k3_of_a_round_is_the_sequence_kl_in_expectation():
    torch.manual_seed(0)
    q, p = torch.randn(2, 5, dtype=torch.float64).softmax(-1)
    mixed = mixture_logp(q.log(), p.log(), 0.3).exp()
    torch.testing.assert_close(mixed, 0.3 * p + 0.7 * q)
    logps = zip(mixed.log(), q.log(), p.log(), strict=True)
    drawn = [
        Rollout(0, 0, Example((1, token), 1, "", (), ""), False, *(one[None] for one in each))
        for token, each in enumerate(logps)
    ]
    k3 = torch.tensor([summary([one])["rollout.sequence_kl"] for one in drawn], dtype=torch.float64)
    torch.testing.assert_close((mixed * k3).sum(), (q * (q / p).log()).sum())


def training(folder, drawing=lambda tokens: None, **events):
    """A run on rollouts with a corpus beside them."""
    made = running.training(folder, "route:rollout=minillm,corpus=ce", max_steps=STEPS, save_every=2, **events)
    source = build_source("rollout:rollouts=10,epochs=2,max_new_tokens=9,corpus=2")
    land = SourceContext(
        running.dataset(20), made.train, pad_id=0, vocab=running.VOCAB, longest=24, corpus=running.dataset(9, seed=5),
        student=made.student, teacher=running.model("teacher", seed=2), report=drawing,
    )  # fmt: skip
    return replace(made, windows=source.open(land))


class Bomb:
    """Kills its process at its n-th call."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, _):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(folder, *, tokens=0, events=0):
    """Train in a fork that dies at a call; return whether it was killed."""
    pid = os.fork()
    if not pid:
        try:
            train(training(folder, Bomb(tokens), **({"report": Bomb(events)} if events else {})))
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def test_a_run_killed_while_drawing_and_while_training_ends_as_one_that_nobody_touched(tmp_path):
    whole = training(tmp_path / "whole")
    train(whole)
    folder = tmp_path / "killed"
    kills = [{"tokens": 3}, {"events": 5}, {"events": 2}, {"events": 4}, {"tokens": 6}, {"events": 6}]
    assert sum(killed(folder, **kill) for kill in kills) >= 5
    last = training(folder)
    train(last)
    assert running.same(running.weights(last), running.weights(whole))
    assert running.metrics(folder) == running.metrics(tmp_path / "whole")
    assert b'"rollout.sequence_kl"' in running.metrics(folder)
    assert b'"rollout.rho"' in running.metrics(folder)


def test_training_brings_the_student_closer_to_its_teacher(tmp_path):
    made = running.training(tmp_path, "minillm", max_steps=60, lr=3e-3, batch_size=8, micro_tokens=400)
    source = build_source("rollout:rollouts=16,epochs=2,max_new_tokens=9")
    land = SourceContext(
        running.dataset(20), made.train, pad_id=0, vocab=running.VOCAB, longest=24, student=made.student,
        teacher=running.model("teacher", seed=2),
    )  # fmt: skip
    windows = source.open(land)
    windows.window(0)
    before = windows.values()["rollout.sequence_kl"]
    train(replace(made, windows=source.open(land)))
    after = source.open(land)
    after.window(0)
    assert after.values()["rollout.sequence_kl"] < 0.5 * before


def test_every_reading_of_every_round_has_an_order_of_its_own():
    windows, nothing = opened("rollout:rollouts=8,epochs=2"), torch.zeros(3)
    example = Example((1, 5, 6, 7, 2), 2, "", (), "")
    said = [Rollout(place, place, example, True, nothing, nothing, nothing) for place in range(8)]
    orders = [windows._order(number, epoch, said) for number in (0, 1) for epoch in (0, 1)]
    assert all(sorted(row for step in order for row in step) == list(range(8)) for order in orders)
    assert len({str(order) for order in orders}) == 4


def test_the_share_of_an_origin_is_taken_over_all_processes():
    """Three tokens of data here, nine of the student's there."""
    here = replace(context(), gather=lambda mine: [*mine, ("student", 9)])
    (batch,) = batches([TrainingSequence(Example((1, 5, 6, 7, 2), 2, "", (), ""), 0)], here)
    assert set(batch.facts[ORIGIN_SHARE][batch.labels != IGNORED].tolist()) == {0.25}
