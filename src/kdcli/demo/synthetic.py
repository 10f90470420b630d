"""A synthetic instruction set in which every prompt has several valid answers of known probability.

Seven kinds of task over a small lexicon. The wording of a right answer is a free choice with
uneven odds, so an objective that covers all of the teacher's mass and one that seeks its modes
learn visibly different students; and the entropy of the choice is known exactly, so it can be
told how good the teacher is.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdcli.config.schema import CompareConfig
from kdcli.data.tokenize import Example, TokenDataset, encode_pairs, prompt_prefix
from kdcli.evaluation.token_facts import token_facts
from kdcli.events import Event, Report, silent
from kdcli.models.devices import Device, prepare
from kdcli.models.load import LanguageModel, load_model
from kdcli.plots import COLOURS, GREY, panels, plot_style, save
from kdcli.storage import atomic
from kdcli.storage.locate import model_of


def _words(text: str) -> list[str]:
    return text.split()


NUMBERS = _words("zero one two three four five six seven eight nine ten eleven twelve")
COLOUR_WORDS = _words("red blue green yellow black white brown pink")
THINGS = _words("ball box hat cup door boat kite lamp chair book coat bell")
OPPOSITES = [
    pair.split("-")
    for pair in _words(
        "hot-cold big-small fast-slow high-low light-dark old-young wet-dry hard-soft full-empty open-closed "
        "early-late rich-poor strong-weak loud-quiet near-far thick-thin happy-sad sweet-sour"
    )
]
OPENERS = ("", "Please: ", "Task: ", "Now: ")
KINDS = {
    "animal": _words("dog cat horse fox bear owl"),
    "fruit": _words("apple pear plum fig grape lemon"),
    "colour": COLOUR_WORDS[:6],
    "tool": _words("hammer saw rake axe drill spade"),
    "vehicle": _words("car bus train bike ship plane"),
    "number": NUMBERS[1:7],
}
LOOKS = {
    "fox": _words("red quick sly small"),
    "bear": _words("brown strong big slow"),
    "owl": _words("quiet wise grey old"),
    "horse": _words("fast strong tall brown"),
    "apple": _words("red sweet round small"),
    "lemon": _words("yellow sour round small"),
    "plum": _words("soft sweet blue small"),
    "hammer": _words("hard heavy old short"),
    "saw": _words("sharp long old thin"),
    "train": _words("long fast loud heavy"),
    "ship": _words("big slow white heavy"),
    "plane": _words("fast loud white high"),
    "lamp": _words("light tall white old"),
    "coat": _words("warm long black thick"),
    "bell": _words("loud small round old"),
    "boat": _words("small wet white slow"),
}


@dataclass(frozen=True)
class Task:
    """One prompt and its valid answers.

    Args:
        prompt: the instruction.
        answers: valid answers, likeliest first.
        odds: probability of each answer; they add up to 1.
    """

    prompt: str
    answers: tuple[str, ...]
    odds: tuple[float, ...]

    @property
    def entropy(self) -> float:
        """Nats of choice among the answers.

        >>> round(Task("Name a colour.", ("red", "blue"), (0.5, 0.5)).entropy, 4)
        0.6931
        """
        return -sum(chance * math.log(chance) for chance in self.odds)


def tasks() -> list[Task]:
    """Return every task there is, in a fixed order.

    >>> len(tasks())
    3856
    """
    facts = [
        replace(task, prompt=f"{opener}{task.prompt}")
        for task in itertools.chain(_sums(), _opposites(), _listing(), _describing(), _repeating(), _sorting())
        for opener in OPENERS
    ]
    return [*facts, *_painting()]


def split(seed: int, test: int, dev: int) -> tuple[list[Task], list[Task], list[Task]]:
    """Shuffle the tasks and cut them into train, dev and test; no prompt is in two of them."""
    order = tasks()
    random.Random(seed).shuffle(order)
    return order[test + dev :], order[test : test + dev], order[:test]


def write_rows(path: Path, chosen: Sequence[Task], *, seed: int) -> None:
    """Write training rows: each prompt with up to six answers, drawn by their odds.

    Args:
        path: JSONL to write.
        chosen: the tasks.
        seed: seed of the draws.
    """
    draw = random.Random(seed)
    rows = [
        {"prompt": task.prompt, "completion": answer}
        for task in chosen
        for answer in draw.choices(task.answers, task.odds, k=min(len(task.answers), 6))
    ]
    draw.shuffle(rows)
    atomic.write_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_tests(path: Path, chosen: Sequence[Task], *, seed: int) -> None:
    """Write held-out rows: a drawn answer first (likelihoods are taken on it), then the other valid ones."""
    draw = random.Random(seed)
    lines = []
    for task in chosen:
        (first,) = draw.choices(task.answers, task.odds)
        valid = [first, *(answer for answer in task.answers if answer != first)]
        lines.append(json.dumps({"prompt": task.prompt, "completion": valid}) + "\n")
    atomic.write_file(path, "".join(lines))


def _task(prompt: str, *weighted: tuple[str, float | int]) -> Task:
    merged: dict[str, float | int] = {}
    for answer, weight in weighted:
        merged[answer] = merged.get(answer, 0.0) + weight
    total = sum(merged.values())
    ordered = sorted(merged.items(), key=lambda item: (-item[1], item[0]))
    return Task(prompt, tuple(answer for answer, _ in ordered), tuple(weight / total for _, weight in ordered))


def _sums() -> Iterator[Task]:
    wordings = {
        "plus": ("What is {0} plus {1}?", "Add {0} and {1}.", "How much is {0} plus {1}?", "The sum of {0} and {1}?"),
        "minus": ("What is {0} minus {1}?", "From {0} take {1}.", "How much is {0} minus {1}?", "Take {1} from {0}."),
    }
    for a, b in itertools.product(range(6), repeat=2):
        for word, result in (("plus", a + b), ("minus", a - b)):
            if result < 0:
                continue
            x, y, z = NUMBERS[a], NUMBERS[b], NUMBERS[result]
            for wording in wordings[word]:
                yield _task(wording.format(x, y), (z, 5), (f"it is {z}", 3), (f"{x} {word} {y} is {z}", 2))


def _opposites() -> Iterator[Task]:
    wordings = (
        "What is the opposite of {}?",
        "Say the opposite of {}.",
        "Turn {} around.",
        "The reverse of {}?",
        "Give me the opposite of {}.",
        "If not {}, what?",
    )
    for pair in OPPOSITES:
        for (word, other), wording in itertools.product((pair, pair[::-1]), wordings):
            weighted = ((other, 5), (f"not {word} but {other}", 3), (f"the opposite of {word} is {other}", 2))
            yield _task(wording.format(word), *weighted)


def _sorting() -> Iterator[Task]:
    for pair in itertools.permutations(KINDS["animal"] + KINDS["fruit"], 2):
        one, two = sorted(pair)
        weighted = ((f"{one}, {two}", 6), (f"{one} then {two}", 3), (f"first {one}, last {two}", 1))
        yield _task(f"Sort {' and '.join(pair)}.", *weighted)


def _repeating() -> Iterator[Task]:
    for word, count in itertools.product(THINGS + KINDS["animal"], (2, 3, 4)):
        times = [word] * count
        weighted = ((" ".join(times), 6), (", ".join(times), 3), (f"{word} {NUMBERS[count]} times", 1))
        for wording in ("Repeat {} {} times.", "Say {} {} times."):
            yield _task(wording.format(word, NUMBERS[count]), *weighted)


def _listing() -> Iterator[Task]:
    for kind, members in KINDS.items():
        weights = dict(zip(members, (32, 16, 8, 4, 2, 1), strict=True))
        pairs = [
            (f"{one} and {two}", weights[one] * weights[two] / (63 - weights[one]))
            for one, two in itertools.permutations(members[:5], 2)
        ]
        for wording in ("Name one {}.", "Give me one {}.", "Say any {}.", "Tell me one {}."):
            yield _task(wording.format(kind), *weights.items())
        for wording in ("Name two {}s.", "Give me two {}s.", "Say any two {}s.", "Tell me two {}s."):
            yield _task(wording.format(kind), *pairs)


def _describing() -> Iterator[Task]:
    wordings = ("Describe the {}.", "What is the {} like?", "Say how the {} looks.", "Tell me about the {}.")
    for noun, looks in LOOKS.items():
        weighted = [
            (form.format(noun, look), share * weight)
            for form, share in (("the {} is {}", 6), ("a {1} {0}", 3), ("it is {1}", 1))
            for look, weight in zip(looks, (8, 4, 2, 1), strict=True)
        ]
        for wording in wordings:
            yield _task(wording.format(noun), *weighted)


def _painting() -> Iterator[Task]:
    for thing, (old, new) in itertools.product(THINGS, itertools.permutations(COLOUR_WORDS, 2)):
        weighted = ((f"the {new} {thing}", 5), (f"the {thing} is now {new}", 3), (f"a {new} {thing}, not {old}", 2))
        yield _task(f"Paint the {old} {thing} {new}.", *weighted)


# How probability is spread over the valid answers to one prompt: the truth, the teacher, each student.


NAME = "answers"


@dataclass(frozen=True)
class Spread:
    """One model's probabilities.

    Args:
        label: the model.
        shares: probability of each valid answer, in the task's order.
    """

    label: str
    shares: tuple[float, ...]

    @property
    def elsewhere(self) -> float:
        """Probability of everything that is not a valid answer."""
        return max(0.0, 1.0 - math.fsum(self.shares))


def spread(label: str, model: LanguageModel, task: Task, device: Device) -> Spread:
    """Return the probability of each valid answer, ended by whichever end token."""
    prefix, count, ends = prompt_prefix(model.tokenizer), len(task.answers), model.ends.ids
    pairs = encode_pairs(model.tokenizer, [task.prompt] * count, task.answers, ["demo"] * count)
    examples = tuple(
        Example((*prefix, *pair.ids, end), len(prefix) + pair.border, task.prompt, (text,), "demo")
        for pair, text in zip(pairs, task.answers, strict=True)
        for end in ends
    )
    facts, example = token_facts(
        model, None, TokenDataset(examples), vocab=model.vocab, micro_tokens=4096, device=device, report=silent
    )
    shares = np.exp(np.bincount(example, facts["label_logp"], minlength=len(examples)))
    return Spread(label, tuple(shares.reshape(count, len(ends)).sum(1).tolist()))


def draw_answers(
    folder: Path,
    task: Task,
    references: dict[str, str],
    models: dict[str, str],
    config: CompareConfig,
    report: Report,
) -> list[Spread]:
    """Draw one panel per model against the true odds, as ``answers.png`` and ``answers.svg``.

    Args:
        folder: where the pictures go.
        task: the prompt, its answers and their odds.
        references: label -> model or run folder of what was not trained here, drawn first and in grey.
        models: label -> model or run folder of each contender.
        config: device settings.
        report: called with events.
    """
    report(Event("stage", f'drawing the answers to "{task.prompt}"'))
    device = prepare(config.hardware)
    spreads = [
        spread(label, load_model(model_of(path), device=device.device, role="teacher"), task, device)
        for label, path in (references | models).items()
    ]
    names = [*task.answers, "other"]
    with plot_style():
        figure, axes = panels(len(spreads), columns=len(spreads), width=2.3, height=2.8)
        for index, (one, ax) in enumerate(zip(spreads, axes, strict=True)):
            place = index - len(references)
            colour = "#505050" if place < 0 else COLOURS[place % len(COLOURS)]
            ax.barh(names, [*one.shares, one.elsewhere], color=colour, height=0.62)
            places = range(len(task.odds))
            ax.scatter(task.odds, places, color=GREY, edgecolor="black", marker="D", s=18, zorder=3, label="true odds")
            ax.set_title(one.label, loc="left")
            ax.set_xlim(0, 1.05 * max([*task.odds, *(share for s in spreads for share in (*s.shares, s.elsewhere))]))
            ax.invert_yaxis()
            ax.set_xlabel("probability")
            ax.grid(visible=False, axis="y")
            if index:
                ax.set_yticklabels([])
            else:
                ax.legend(loc="lower right")
        figure.suptitle(f'Valid answers to "{task.prompt}"', x=0.01, ha="left")
        save(figure, folder, NAME)
    return spreads


def most_informative_task(tasks: list[Task]) -> Task:
    """Return the task with the most spread-out choice among at most eight short answers."""
    few = [task for task in tasks if len(task.answers) <= 8] or tasks
    return max(few, key=lambda task: (task.entropy, task.prompt))
