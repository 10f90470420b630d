"""How probability is spread over the valid answers to one prompt: the truth, the teacher, each student."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcli.config import CompareConfig
from kdcli.data.dataset import Example, TokenDataset
from kdcli.data.tokens import encode_pairs, prompt_prefix
from kdcli.engine.devices import Device, prepare
from kdcli.engine.events import Event, Report, silent
from kdcli.engine.token_facts import token_facts
from kdcli.models.load import LanguageModel, load_model
from kdcli.runs.folder import model_of
from kdcli.runs.style import COLOURS, GREY, look, panels, save
from kdcli.runs.synthetic import Task

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
        report: told what happens.
    """
    report(Event("stage", f'drawing the answers to "{task.prompt}"'))
    device = prepare(config.hardware)
    spreads = [
        spread(label, load_model(model_of(path), device=device.device, role="teacher"), task, device)
        for label, path in (references | models).items()
    ]
    names = [*task.answers, "other"]
    with look():
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


def telling_task(tasks: list[Task]) -> Task:
    """Return the task with the most spread-out choice among at most eight short answers."""
    few = [task for task in tasks if len(task.answers) <= 8] or tasks
    return max(few, key=lambda task: (task.entropy, task.prompt))
