"""Sequences drawn from a mixture of two models: drawing, scoring, what they look like, and how they are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdcli.config import GenerationConfig
from kdcli.data.examples import Example
from kdcli.generate import answers
from kdcli.generate.answers import Asked
from kdcli.generate.mixture import mixed_answers
from kdcli.losses.supplied import BEHAVIOUR_LOGP, STUDENT_LOGP
from kdcli.models.scoring import label_log_probs
from kdcli.models.twin import twin
from kdcli.sources.base import Ground
from kdcli.sources.writing import SAID, Written, continued, draw_seed, room

_GROUP = 4
"""Tokens in the groups whose repetition is counted."""


@dataclass(frozen=True)
class Rollout:
    """One drawn sequence.

    Args:
        place: its number in the round.
        row: the training row whose prompt it answers.
        example: prompt and answer.
        ended: whether the end token was drawn.
        behaviour: log-probability of each token of the answer under the mixture, ``[n]``.
        student: the same under the student that drew it.
        teacher: the same under the teacher.
    """

    place: int
    row: int
    example: Example
    ended: bool
    behaviour: Tensor
    student: Tensor
    teacher: Tensor

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return self.example.ids

    @property
    def targets(self) -> int:
        """Tokens drawn."""
        return len(self.example.ids) - self.example.prompt_length

    @property
    def written(self) -> Written:
        """The sequence to train on, with its facts."""
        facts = {BEHAVIOUR_LOGP: self.behaviour, STUDENT_LOGP: self.student}
        return Written(self.example, self.row, "rollout", facts)

    @staticmethod
    def text(example: Example) -> Written:
        """Return a text of the corpus; nobody drew it, so its log-probabilities stand at 0 and are not read."""
        nothing = torch.zeros(len(example.ids) - example.prompt_length)
        return Written(example, -1, "corpus", {BEHAVIOUR_LOGP: nothing, STUDENT_LOGP: nothing})


def drawn(
    prompts: Mapping[int, int], ground: Ground, sampling: GenerationConfig, *, alpha: float, number: int
) -> list[Rollout]:
    """Draw one sequence for each prompt, and score it with both models.

    A sequence follows from both models, the run's seed, the round and its place in it, whatever else is drawn.

    Args:
        prompts: place in the round -> training row.
        ground: both models, seed, real ids, longest sequence, precision, and who is told of tokens.
        sampling: length; temperature 1 and nothing cut off.
        alpha: the teacher's share.
        number: of the round, from 0.

    Raises:
        InputError: a prompt that leaves no room for an answer, or a recurrent model.
        NumericsError: a model's logits are not finite.
    """
    student, teacher = ground.student, ground.teacher
    assert student is not None, "the source declares needs().student"
    assert teacher is not None, "the source declares needs().teacher"
    if not prompts:
        return []
    examples, places = ground.dataset.examples, list(prompts)
    seed = draw_seed(ground.train.seed, SAID, number)
    asked = [
        Asked(one.question, place, (seed,), room(one, ground))
        for place, one in ((place, examples[row]) for place, row in prompts.items())
    ]
    speaking = student if ground.autocast is None else twin(student, ground.autocast)
    shared = {"rows": ground.vocab, "report": ground.report}
    if alpha > 0:
        coming = mixed_answers(speaking, teacher, alpha, asked, sampling, **shared)
    else:
        coming = answers(speaking, asked, sampling, **shared)
    said = {place: answer for place, _, answer in coming}
    found = []
    for at, place in enumerate(places):
        row = prompts[place]
        example = continued(examples[row], said[at])
        found.append(_scored(place, row, example, said[at].ended, alpha, ground))
    return found


def _scored(place: int, row: int, example: Example, ended: bool, alpha: float, ground: Ground) -> Rollout:
    assert ground.student is not None
    assert ground.teacher is not None
    vocab = ground.vocab or min(ground.student.vocab, ground.teacher.vocab)
    log_q, log_p = (
        label_log_probs(model, example.ids, example.prompt_length, vocab, ground.autocast)
        for model in (ground.student, ground.teacher)
    )
    return Rollout(place, row, example, ended, mixture_logp(log_q, log_p, alpha), log_q, log_p)


def mixture_logp(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    """Return log(alpha p + (1 - alpha) q) of tokens whose log-probabilities are given.

    >>> round(mixture_logp(torch.tensor(0.5).log(), torch.tensor(0.1).log(), 0.25).exp().item(), 4)
    0.4
    """
    if alpha in (0.0, 1.0):
        return log_p if alpha else log_q
    share = torch.tensor(alpha, dtype=torch.float64)
    return torch.logaddexp(log_q + torch.log1p(-share).item(), log_p + torch.log(share).item())


def summary(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return what a round's sequences are like, as means over sequences.

    Args:
        rollouts: at least one.

    Returns:
        length in tokens, end token left out, share of 4-grams said before, share that drew the end token, and the
        sequence KL(q || p) by k3: the sum over tokens of (q/p~) (p/q - 1 - log p/q).
    """
    said = [list(one.ids[one.example.prompt_length :]) for one in rollouts]
    texts = [ids[:-1] if one.ended else ids for one, ids in zip(rollouts, said, strict=True)]
    found = {
        "length": [float(len(ids)) for ids in texts],
        "repetition": [repeated(ids) for ids in texts],
        "ended": [float(one.ended) for one in rollouts],
        "sequence_kl": [_k3(one) for one in rollouts],
    }
    return {f"rollout.{name}": sum(values) / len(values) for name, values in found.items()}


def _k3(one: Rollout) -> float:
    gap = (one.teacher - one.student).double()
    weight = torch.exp((one.student - one.behaviour).double())
    return (weight * (torch.expm1(gap) - gap)).sum().item()


def repeated(ids: Sequence[int]) -> float:
    """Return the share of a sequence's 4-grams that occurred in it before.

    >>> repeated([1, 2, 3, 4, 1, 2, 3, 4])
    0.2
    """
    grams = [tuple(ids[at : at + _GROUP]) for at in range(len(ids) - _GROUP + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def packed(number: int, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """Lay a round out in tensors for a checkpoint."""
    columns = {
        "number": [number],
        "rows": [one.row for one in rollouts],
        "sizes": [one.targets for one in rollouts],
        "ended": [int(one.ended) for one in rollouts],
        "said": [token for one in rollouts for token in one.ids[one.example.prompt_length :]],
    }
    logps = {name: torch.cat([getattr(one, name) for one in rollouts]) for name in ("behaviour", "student", "teacher")}
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in columns.items()} | logps


def unpacked(state: Mapping[str, Tensor], examples: Sequence[Example]) -> tuple[int, list[Rollout]]:
    """Read a round back; prompts are those of the training rows."""
    sizes = state["sizes"].tolist()
    said = state["said"].split(sizes)
    logps = [state[name].split(sizes) for name in ("behaviour", "student", "teacher")]
    found = []
    for place, (row, ended) in enumerate(zip(state["rows"].tolist(), state["ended"].tolist(), strict=True)):
        prompt = examples[row].question
        ids = (*prompt, *said[place].tolist())
        example = replace(examples[row], ids=ids, prompt_length=len(prompt), response="", asked=())
        found.append(Rollout(place, row, example, bool(ended), *(part[place] for part in logps)))
    return int(state["number"]), found
