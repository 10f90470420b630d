from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import running
from kdcli.config.schema import TrainConfig
from kdcli.data.batching import IGNORED, collate
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.sources.base import SourceContext
from kdcli.sources.curriculum import CurriculumSource, difficulties
from kdcli.sources.dataset import DatasetSource


def rows(count):
    return TokenDataset(tuple(Example((*range(3, 5 + n), 2), 2, "", (), f"line {n}") for n in range(count)))


def windows(source, count=40, **train):
    config = TrainConfig(**{"batch_size": 4, "max_steps": 20, "micro_tokens": 400, **train})
    return source.open(SourceContext(rows(count), config, pad_id=0))


def drawn(opened):
    return [
        sorted(row for batch in opened.window(step) for row in batch.example.tolist())
        for step in range(opened.total_steps)
    ]


@pytest.fixture(scope="module")
def context():
    models = {"student": running.model("student", seed=1), "teacher": running.model("teacher", seed=2)}
    return SourceContext(running.dataset(9), TrainConfig(max_steps=3), pad_id=0, vocab=running.VOCAB, **models)


def test_all_open_from_the_start_is_plain_shuffling():
    one, two = (windows(source, count=38) for source in (CurriculumSource(start=1.0), DatasetSource()))
    assert one.total_steps == two.total_steps
    for step in range(one.total_steps):
        for left, right in zip(one.window(step), two.window(step), strict=True):
            assert torch.equal(left.input_ids, right.input_ids)
            assert torch.equal(left.example, right.example)


@settings(deadline=None, max_examples=60)
@example(23, 6, 1, 0.0625, 0.875, "linear", 0)  # 6 rows, of then 10 open ones 4 and 2 again: one of 23 never comes
@given(
    st.integers(1, 60),
    st.integers(1, 7),
    st.integers(1, 3),
    st.floats(0.01, 0.99),
    st.floats(0.05, 1.0),
    st.sampled_from(["linear", "root"]),
    st.integers(0, 99),
)
def test_only_open_rows_are_drawn_and_every_row_comes(count, batch, epochs, start, until, pacing, seed):
    source = CurriculumSource(start=start, until=until, pacing=pacing)
    steps = -(-count // batch) * epochs
    opened = windows(source, count, batch_size=batch, max_steps=steps, seed=seed)
    found, seen = drawn(opened), set()
    for step, members in enumerate(found):
        share = source.open_share(step / max(steps - 1, 1))
        assert max(members) < max(share * count + 1, min(batch, count))  # row n is the n-th shortest
        assert len(set(members)) == len(members) == min(batch, max(count, 1), max(members) + count)
        seen |= set(members)
    assert count - len(seen) < (batch if epochs == 1 else 1)


def test_open_rows_are_drawn_about_equally_often_and_easy_ones_first():
    found = drawn(windows(CurriculumSource(start=0.1), count=40, max_steps=40))
    counts = [sum(members.count(row) for members in found) for row in range(40)]
    assert sum(counts) == 160
    assert max(counts) - min(counts) <= 1
    half = [sum(members) / 4 for members in found]
    assert sum(half[:8]) < 0.6 * sum(half[-8:])


def test_hard_first_opens_the_other_end():
    found = drawn(windows(CurriculumSource(start=0.1, until=1.0, first="hard"), count=40))
    assert found[0] == [36, 37, 38, 39]


def test_paces_and_the_share_that_is_logged():
    linear, root = (CurriculumSource(start=0.2, until=0.8, pacing=pacing) for pacing in ("linear", "root"))
    assert [linear.open_share(at) for at in (0.0, 0.4, 0.8, 1.0)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert root.open_share(0.4) == pytest.approx(((0.04 + 1.0) / 2) ** 0.5)
    opened = windows(linear)
    opened.window(0)
    assert opened.values()["curriculum.open"] == 0.2
    opened.window(19)
    assert opened.values()["curriculum.open"] == 1.0


def test_the_way_goes_from_the_first_step_to_the_last():
    opened = windows(CurriculumSource(start=0.2, until=1.0), max_steps=5)
    shares = [opened.window(step) and opened.values()["curriculum.open"] for step in range(5)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("by", ["teacher_nll", "student_nll", "teacher_uncertainty"])
def test_difficulty_is_what_the_whole_model_says(by, context):
    model = context.student if by == "student_nll" else context.teacher
    before = model.model.training
    found = difficulties(by, context)
    for row, one in enumerate(context.dataset.examples):
        batch = collate([one], [0], 0)
        logits = model.model(batch.input_ids).logits[0].double()
        labels = batch.labels[0]
        log_p = logits.log_softmax(-1)[labels != IGNORED].gather(1, labels[labels != IGNORED][:, None])
        expected = (1 - log_p.exp() if by == "teacher_uncertainty" else -log_p).mean().item()
        assert found[row] == pytest.approx(expected, rel=1e-5)
    assert model.model.training is before


def test_length_counts_response_tokens(context):
    assert difficulties("length", context)[:2] == [6.0, 6.0]


def test_measured_once_kept_and_made_again_if_damaged(context, tmp_path, monkeypatch):
    here = replace(context, folder=tmp_path / "made")
    first = difficulties("teacher_nll", here)
    (kept,) = (tmp_path / "made").iterdir()
    text = kept.read_text()

    def refuse(*_):
        raise AssertionError("it was measured again")

    with monkeypatch.context() as patch:
        patch.setattr(type(context.teacher), "hidden", refuse)
        assert difficulties("teacher_nll", here) == first
        for other in (running.dataset(9, seed=1), running.dataset(10)):
            with pytest.raises(AssertionError, match="measured again"):
                difficulties("teacher_nll", replace(here, dataset=other))
    for damage in (text[:-9], text.replace("0", "1", 3), "[]"):
        kept.write_text(damage)
        assert difficulties("teacher_nll", here) == first
        assert kept.read_text() == text


def test_steps_are_counted_without_the_model():
    source = CurriculumSource(by="teacher_nll")
    assert source.needs().teacher
    assert source.needs().offline
    assert windows(source).total_steps == 20
