"""What writing takes, against a count of the tokens that do go through the models."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

import running
from kdcli.config.schema import TrainConfig
from kdcli.models.head import trunk_of
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.token_counts import TokenCounts

MODELS = {"student": running.model("student", seed=1), "teacher": running.model("teacher", seed=2)}


def context(folder=None, **changes):
    train = TrainConfig(batch_size=4, max_steps=6)
    plain = SourceContext(
        running.dataset(12), train, pad_id=0, vocab=running.VOCAB, longest=40, folder=folder, **MODELS
    )
    return replace(plain, **changes)


@contextmanager
def counted():
    """Count the tokens that go through each trunk."""
    seen = dict.fromkeys(MODELS, 0)

    def hook(who):
        def count(module, args, kwargs):
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            seen[who] += ids.numel()

        return count

    with ExitStack() as stack:
        for who, model in MODELS.items():
            stack.callback(trunk_of(model.model).register_forward_pre_hook(hook(who), with_kwargs=True).remove)
        yield seen


@pytest.mark.parametrize(
    "spec",
    [
        "student:max_new_tokens=9",
        "student:rate=0.5,per=sequence,max_new_tokens=9",
        "replay:phi=1,max_new_tokens=9",
        "mixture:first=(student:max_new_tokens=9),second=dataset,per=sequence",
        "rollout:alpha=0.3,rollouts=8,epochs=1,max_new_tokens=9",
        "rollout:alpha=0,rollouts=8,epochs=1,max_new_tokens=9",
    ],
)
def test_what_a_step_takes_is_what_went_through_the_models(spec):
    windows, written = build_source(spec).open(context()), 0
    for step in range(4):
        with counted() as seen:
            windows.window(step)
        assert (windows.effort.student_read, windows.effort.teacher_read) == (seen["student"], seen["teacher"])
        written += windows.generated
    assert written > 0
    assert windows.made.tokens == 0


@pytest.mark.parametrize(
    "spec", ["answers=3,max_new_tokens=9", "decode=greedy,max_new_tokens=9", "prompts=bos,max_new_tokens=9"]
)
def test_what_a_text_takes_is_what_went_through_the_teacher(tmp_path, spec):
    source = build_source(f"teacher:{spec}")
    with counted() as seen:
        first = source.open(context(tmp_path)).made
    assert first.effort.teacher_read == first.fresh_effort.teacher_read == seen["teacher"]
    assert first.tokens == first.fresh > 0
    assert first.seconds > 0
    with counted() as seen:
        again = source.open(context(tmp_path)).made
    assert seen["teacher"] == 0
    assert (again.tokens, again.effort) == (first.tokens, first.effort)
    assert (again.fresh, again.fresh_effort, again.seconds) == (0, TokenCounts(), 0.0)


def test_heads_speak_once_a_token():
    windows = build_source("student:max_new_tokens=9").open(context())
    windows.window(0)
    assert windows.effort.student_said == windows.generated


def test_beams_are_counted_by_hand(tmp_path):
    windows = build_source("teacher:decode=beam,beams=3,answers=2,max_new_tokens=5").open(context(tmp_path))
    read = said = 0
    for row, example in enumerate(running.dataset(12).examples):
        lengths = [one.targets for one in windows._text.sentences if one.row == row]
        read += 3 * (example.prompt_length + max(lengths) - 1) + sum(example.prompt_length + n - 1 for n in lengths)
        said += 3 * max(lengths) + sum(lengths)
    assert windows.made.effort == TokenCounts(0, 0, read, said)


def test_both_parts_of_a_mixture_count(tmp_path):
    spec = "mixture:first=(teacher:max_new_tokens=6),second=(student:max_new_tokens=6),per=sequence"
    windows = build_source(spec).open(context(tmp_path))
    alone = build_source("teacher:max_new_tokens=6").open(context(tmp_path)).made
    assert (windows.made.tokens, windows.made.effort) == (alone.tokens, alone.effort)
    with counted() as seen:
        windows.window(0)
    assert windows.effort == TokenCounts(seen["student"], windows.generated)
