"""MiniLLM against the exact gradient of the sequence KL: every sequence of a small vocabulary is enumerated."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from kdcli.errors import UsageError
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.samples import sample, values_and_grad, with_facts

END = 2
EXACT = "length_norm=false,clip=0"
WEIGHED = f"{EXACT},single_weight=prefix,long_weight=prefix"


@dataclass
class World:
    """Logits of both sides after every prefix, and every sequence there is."""

    student: torch.Tensor
    teacher: torch.Tensor
    prefixes: dict[tuple[int, ...], int]
    sequences: list[tuple[int, ...]]

    @classmethod
    def random(cls, seed=0, words=3, longest=3, end=None):
        def goes_on(prefix):
            return len(prefix) < longest and not (prefix and prefix[-1] == end)

        every = [prefix for size in range(longest + 1) for prefix in itertools.product(range(words), repeat=size)]
        alive = [prefix for prefix in every if all(goes_on(prefix[:at]) for at in range(len(prefix)))]
        prefixes = {prefix: row for row, prefix in enumerate(prefix for prefix in alive if goes_on(prefix))}
        generator = torch.Generator().manual_seed(seed)
        student, teacher = torch.randn(2, len(prefixes), words, generator=generator, dtype=torch.float64)
        return cls(student, teacher, prefixes, [prefix for prefix in alive if not goes_on(prefix)])

    def rows(self):
        """Row of the prefix, token, and sequence of every token of every sequence."""
        found = [
            (self.prefixes[words[:at]], word, index)
            for index, words in enumerate(self.sequences)
            for at, word in enumerate(words)
        ]
        return tuple(torch.tensor(column) for column in zip(*found, strict=True))

    def exact(self):
        """Sequence KL and its gradient over the student's logits, by enumeration."""
        logits = self.student.clone().requires_grad_()
        row, word, index = self.rows()
        log_q, log_p = (side.log_softmax(-1)[row, word] for side in (logits, self.teacher))
        zero = torch.zeros(len(self.sequences), dtype=torch.float64)
        log_q, log_p = zero.index_add(0, index, log_q), zero.index_add(0, index, log_p)
        value = (log_q.exp() * (log_q - log_p)).sum()
        return value.detach(), torch.autograd.grad(value, logits)[0]

    def expected(self, spec, alpha=0.0, closed=False):
        """Expectation of the loss's gradient when sequences are drawn from the mixture."""
        loss = build_objective(spec)
        row, word, index = self.rows()
        q, p = self.student.softmax(-1), self.teacher.softmax(-1)
        drawn_by = torch.log(alpha * p + (1 - alpha) * q)[row, word]
        chance = torch.zeros(len(self.sequences), dtype=torch.float64).index_add(0, index, drawn_by).exp()
        torch.testing.assert_close(chance.sum(), torch.ones((), dtype=torch.float64))
        facts = {"seq": index, "behaviour_logp": drawn_by, "student_logp": q.log()[row, word]}
        facts["origin"] = torch.ones_like(index)
        tok = Tokens(word, self.student[row], self.teacher[row], facts)
        facts |= loss.survey(tok)
        facts |= loss.plan(facts)
        if closed:
            _, grad = loss.parts_and_grad(Tokens(word, self.student[row], self.teacher[row].clone(), facts))
            weighed = grad * chance[index][:, None]
            return torch.zeros_like(self.student).index_add(0, row, weighed)
        logits = self.student.clone().requires_grad_()
        value = loss.token_loss(Tokens(word, logits[row], self.teacher[row], facts))
        return torch.autograd.grad((value * chance[index]).sum(), logits)[0]


WORLDS = {
    "V=3,T=3": World.random(0),
    "another": World.random(1),
    "with an end": World.random(2, end=END),
    "V=4,T=2": World.random(3, words=4, longest=2),
    "one token": World.random(4, longest=1),
}


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def cosine(one, two):
    return torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0).item()


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("closed", [False, True], ids=["autograd", "closed"])
def test_single_and_long_are_the_exact_gradient_on_the_students_own_words(world, closed):
    close(world.expected(f"minillm:{EXACT}", closed=closed), world.exact()[1])


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_reinforce_with_the_present_reward_is_exact_too(world):
    close(world.expected(f"minillm:single=false,include_present=true,{EXACT}"), world.exact()[1])


@pytest.mark.parametrize("alpha", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_weights_per_decision_are_exact_under_any_mixture(world, alpha):
    exact = world.exact()[1]
    close(world.expected(f"minillm:{WEIGHED}", alpha), exact)
    close(world.expected(f"minillm:{WEIGHED}", alpha, closed=True), exact)
    alone = f"minillm:single=false,include_present=true,long_weight=prefix,{EXACT}"
    close(world.expected(alone, alpha), exact)


def test_the_papers_step_weight_is_not_exact_under_a_mixture():
    world = WORLDS["V=3,T=3"]
    found, exact = world.expected(f"minillm:{EXACT}", 0.2), world.exact()[1]
    assert (found - exact).abs().max() > 1e-3
    assert 0.9 < cosine(found, exact) < 0.999


def test_the_step_weight_of_the_single_part_changes_nothing_in_expectation():
    world = WORLDS["V=3,T=3"]
    close(
        world.expected("minillm:variant=single,single_weight=step", 0.3),
        world.expected("minillm:variant=single", 0.3),
    )


def test_the_single_part_alone_is_biased_but_for_one_token():
    world = WORLDS["V=3,T=3"]
    single, exact = world.expected("minillm:variant=single"), world.exact()[1]
    assert (single - exact).abs().max() > 1e-2
    assert 0.5 < cosine(single, exact) < 0.99
    world = WORLDS["one token"]
    close(world.expected("minillm:variant=single"), world.exact()[1])


def test_a_return_that_holds_the_present_reward_counts_the_single_part_twice():
    world = WORLDS["V=3,T=3"]
    twice = world.expected(f"minillm:include_present=true,{EXACT}")
    close(twice, world.exact()[1] + world.expected("minillm:variant=single"))


def test_a_constant_reward_scale_and_the_clip_do_not_touch_what_they_should_not():
    world = WORLDS["with an end"]
    halved = world.expected(f"minillm:single=false,reward_scale=0.5,{EXACT}")
    close(halved, 2 * world.expected(f"minillm:single=false,{EXACT}"))
    close(world.expected("minillm:length_norm=false"), world.exact()[1])  # rho = 1 lies within the clip


def test_golden_gradients():
    student = torch.tensor([[0, 0], [0.5, -0.5], [0, 1]], dtype=torch.float64)
    teacher = torch.tensor([[1, -1], [2, 0], [0, 0]], dtype=torch.float64)
    sequences = list(itertools.product(range(2), repeat=2))
    world = World(student, teacher, {(): 0, (0,): 1, (1,): 2}, sequences)
    value, gradient = world.exact()
    rest = [[-0.0983059666, 0.0983059666]] * 2
    whole = torch.tensor([[-0.5070840817, 0.5070840817], *rest], dtype=torch.float64)
    assert value.item() == pytest.approx(0.5305567388, abs=1e-10)
    close(gradient, whole, 1e-9)
    close(world.expected(f"minillm:{EXACT}"), whole, 1e-9)
    single = torch.tensor([[-0.5, 0.5], *rest], dtype=torch.float64)
    close(world.expected("minillm:variant=single"), single, 1e-9)
    long = torch.tensor([[-0.0070840817, 0.0070840817], [0, 0], [0, 0]], dtype=torch.float64)
    close(world.expected(f"minillm:single=false,{EXACT}"), long, 1e-9)


def drawn(spec, seed=0):
    loss = build_objective(spec)
    return loss, with_facts(loss, sample(loss, seed=seed).to(torch.float64))


def plainly(data, t, *, gamma, present, scale, bound, then):
    """The return of one token from its definition."""
    log_q, log_p = (side.log_softmax(-1) for side in (data.student, data.teacher))
    label, sequence = data.labels.tolist(), data.facts["seq"].tolist()

    def reward(at):
        q = data.facts["student_logp"][at].item() if then else log_q[at, label[at]].item()
        found = (log_p[at, label[at]].item() - q) / scale
        return max(-bound, min(bound, found)) if bound else found

    later = [at for at in range(t, len(label)) if sequence[at] == sequence[t]][0 if present else 1 :]
    total = sum(gamma**k * reward(at) for k, at in enumerate(later))
    return total / max(len(later), 1)


@pytest.mark.parametrize(
    "spec, options",
    [
        ("minillm:clip=0", {"gamma": 1.0, "present": False, "scale": 1.0, "bound": 0.0, "then": False}),
        (
            "minillm:variant=lmops,whiten=none,clip=0",
            {"gamma": 0.95, "present": True, "scale": 0.5, "bound": 100.0, "then": True},
        ),
        (
            "minillm:gamma=0.5,reward_clip=0.5,clip=0,rewards=sampling",
            {"gamma": 0.5, "present": False, "scale": 1.0, "bound": 0.5, "then": True},
        ),
    ],
)
def test_returns_follow_their_definition(spec, options):
    _, data = drawn(spec)
    expected = [plainly(data, t, **options) for t in range(len(data.labels))]
    close(data.facts["advantage"], torch.tensor(expected, dtype=torch.float64))


def test_lmops_whitens_with_the_padding():
    _, plain = drawn("minillm:variant=lmops,whiten=none")
    _, data = drawn("minillm:variant=lmops")
    longest = data.facts["seq"].bincount().max().item()
    zeros = plain.facts["advantage"].new_zeros(3 * longest - len(plain.labels))
    whole = torch.cat((plain.facts["advantage"], zeros))
    close(
        data.facts["advantage"], ((whole - whole.mean()) / (whole.var(correction=0) + 1e-8).sqrt())[: len(plain.labels)]
    )


def test_a_ratio_beyond_the_clip_is_followed_no_further():
    loss = build_objective("minillm:single=false,clip=0.2")
    logits = torch.zeros(4, 2, dtype=torch.float64)
    facts = {
        "seq": torch.arange(4),
        "advantage": torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64),
        "ratio_to": torch.tensor([0.25, 0.25, 1.0, 1.0], dtype=torch.float64).log(),
        "behaviour_logp": torch.zeros(4, dtype=torch.float64),
        "teacher_logp": torch.zeros(4, dtype=torch.float64),
    }
    student = logits.clone().requires_grad_()
    tok = Tokens(torch.zeros(4, dtype=torch.int64), student, logits, facts)
    value = loss.token_loss(tok)
    (grad,) = torch.autograd.grad(value.sum(), student)
    assert value.tolist() == pytest.approx([-1.2, 2.0, -0.5, 0.8])  # rho = 2, 2, 1/2, 1/2
    assert grad[:, 0].tolist() == pytest.approx([0.0, 1.0, -0.25, 0.0])
    assert tok.logged["minillm.clipped"].tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "spec", ["minillm", "minillm:variant=lmops", "minillm:single_weight=prefix,long_weight=prefix"]
)
def test_neither_returns_nor_weights_have_a_gradient(spec):
    loss, data = drawn(spec)
    assert not any(fact.requires_grad for fact in data.facts.values())
    _, grad = values_and_grad(loss, data)
    assert torch.isfinite(grad).all()
    close(grad.sum(1), torch.zeros(len(grad), dtype=torch.float64), 1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_k3_is_in_expectation_the_kl_on_the_prefixes_drawn(alpha):
    world = WORLDS["with an end"]
    row, word, index = world.rows()
    q, p = world.student.softmax(-1), world.teacher.softmax(-1)
    mixed = alpha * p + (1 - alpha) * q
    chance = torch.zeros(len(world.sequences), dtype=torch.float64)
    chance = chance.index_add(0, index, mixed.log()[row, word]).exp()
    facts = {"seq": index, "behaviour_logp": mixed.log()[row, word], "student_logp": q.log()[row, word]}
    tok = Tokens(word, world.student[row], world.teacher[row], facts)
    loss = build_objective("minillm")
    facts |= loss.survey(tok)
    facts |= loss.plan(facts)
    loss.token_loss(tok)
    k3 = tok.logged["minillm.k3"]
    assert (k3 >= 0).all()
    reverse = (q * (q / p).log()).sum(-1)[row]
    close((chance[index] * k3).sum(), (chance[index] * reverse).sum())
    if alpha == 0:
        close((chance[index] * k3).sum(), world.exact()[0])
    close((chance[index] * tok.logged["minillm.rho"]).sum(), chance[index].sum())


def test_needs_follow_from_what_is_taken():
    assert build_objective("minillm").needs().facts == {"behaviour_logp", "student_logp"}
    assert build_objective("minillm").needs().survey == "both"
    single = build_objective("minillm:variant=single").needs()
    assert (single.facts, single.survey, single.drawn) == (set(), "none", True)
    assert build_objective("minillm:variant=single,single_weight=step").needs().survey == "both"


@pytest.mark.parametrize(
    "spec, says",
    [
        ("minillm:variant=single,gamma=0.9", "gamma would be ignored"),
        ("minillm:single=false,long=false", "neither part is left"),
        ("minillm:single=false,single_weight=step", "single_weight would be ignored"),
        ("minillm:variant=trl", "paper, lmops, single"),
        ("minillm:gamma=2", "in [0, 1]"),
    ],
)
def test_options_that_are_refused(spec, says):
    with pytest.raises(UsageError, match=r"minillm|must") as caught:
        build_objective(spec)
    assert says in str(caught.value)


def test_an_equal_student_gets_no_pull_from_the_long_part():
    loss = build_objective("minillm")
    data = sample(loss).to(torch.float64)
    data = with_facts(loss, type(data)(data.student, data.student.clone(), data.labels, data.facts))
    value, grad = values_and_grad(loss, data)
    assert math.isclose(value.abs().max().item(), 0.0, abs_tol=1e-12)
    close(grad, torch.zeros_like(grad))
