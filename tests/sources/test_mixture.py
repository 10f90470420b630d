import math
from dataclasses import replace

import pytest

import running
from kdcli.config.schema import TrainConfig
from kdcli.errors import InputError, UsageError
from kdcli.losses.token_facts import code_of
from kdcli.registry.build import spec_of
from kdcli.sources.base import Source, SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.mixture import MixtureSource


def context(steps, **models):
    train = TrainConfig(batch_size=4, max_steps=steps)
    return SourceContext(running.dataset(20), train, pad_id=0, vocab=running.VOCAB, longest=24, **models)


@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_the_share_decays_as_imitkd_has_it(per):
    windows = build_source(f"mixture:share=1,decay=0.05,per={per}").open(context(2000))
    for start in range(0, 2000, 500):
        drawn = [windows.is_first(step, windows.members(step)) for step in range(start, start + 500)]
        wanted = [0.05 ** (step / 2000) for step in range(start, start + 500)]
        share = sum(sum(one) / len(one) for one in drawn) / 500
        count = 1 if per == "batch" else 4
        deviation = math.sqrt(sum(p * (1 - p) for p in wanted) / count) / 500
        assert abs(share - sum(wanted) / 500) < 3 * deviation


def test_each_part_gives_what_it_would_give_alone():
    student = running.model("student", seed=1)
    base = context(8, student=student)
    mixed = build_source("mixture:per=sequence,second=(student:max_new_tokens=6)").open(base)
    alone = build_source("student:max_new_tokens=6").open(base)
    for step in range(4):
        rows = mixed.members(step)
        first = mixed.is_first(step, rows)
        expected = {one.row: one.example.ids for one in alone.write(step, rows)}
        for one, is_first in zip(mixed.write(step, rows), first, strict=True):
            own = base.dataset.examples[one.row].ids if is_first else expected[one.row]
            assert one.example.ids == own
            assert one.origin == ("data" if is_first else "student")
    assert {code for batch in mixed.window(0) for code in batch.facts["origin"].flatten().tolist()} <= {
        code_of("data"), code_of("student"),
    }  # fmt: skip


def test_the_share_of_an_origin_is_that_of_all_processes():
    student = running.model("student", seed=1)
    alone = context(8, student=student)
    several = replace(alone, gather=lambda mine: [*mine, ("data", 10**6)])
    found = []
    for one in (alone, several):
        (batch, *_) = build_source("mixture:per=sequence,second=(student:max_new_tokens=6)").open(one).window(0)
        found.append(batch.facts["origin_share"][batch.facts["origin"] == code_of("student")])
    assert found[0].numel() == found[1].numel() > 0
    assert found[0].min() > 0.01
    assert found[1].max() < 0.001


def test_generated_tokens_of_both_parts_are_counted():
    student = running.model("student", seed=1)
    spec = "mixture:first=(student:max_new_tokens=6),second=(student:temperature=0,max_new_tokens=6),per=sequence"
    windows = build_source(spec).open(context(8, student=student))
    for step in range(3):
        assert windows.generated == (0 if step == 0 else targets)
        targets = sum(batch.targets for batch in windows.window(step))
    assert windows.generated == targets


@pytest.mark.parametrize("spec, canonical", [
    ("mixture:first=dataset,second=(student:rate=1.0)", "mixture"),
    ("mixture:second=(student:temperature=0.70)", "mixture:second=(student:temperature=0.7)"),
    ("mixture:second=student,second.top_p=0.9", "mixture:second=(student:top_p=0.9)"),
    ("mixture:first=teacher,share=0.25", "mixture:first=teacher,share=0.25"),
])  # fmt: skip
def test_parts_are_spelled_in_parentheses(spec, canonical):
    assert spec_of(build_source(spec)) == canonical
    assert build_source(canonical) == build_source(spec)


@pytest.mark.parametrize("spec, said", [
    ("mixture:first=studnt", "unknown source"),
    ("mixture:second=(student:rate=2)", r"rate must lie in \[0, 1\]"),
    ("mixture:second=(student+dataset)", "not one source"),
    ("mixture:third=student", "has no option"),
])  # fmt: skip
def test_nonsense_is_refused_in_words(spec, said):
    with pytest.raises(UsageError, match=said):
        build_source(spec)


class Claims(Source):
    """Says that it opens windows of rows, and opens none."""

    mixable = True
    name = "claims"
    summary = "none"
    reference = "none"

    def open(self, context):
        return None


def test_a_part_that_opens_no_windows_of_rows_is_told_what_it_must_open():
    with pytest.raises(InputError, match=r"must return kdcli\.sources\.sequences\.RowWindows, got NoneType") as error:
        MixtureSource(first=Claims(), second=build_source("dataset")).open(context(2))
    assert error.value.code == "PLUG-10"
