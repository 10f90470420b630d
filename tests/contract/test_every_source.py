"""The contract, on every registered source at several settings."""

import inspect
import json
from dataclasses import replace

import pytest
import torch

import running
from kdcli.config.schema import TrainConfig
from kdcli.data.batching import IGNORED
from kdcli.losses.token_facts import code_of
from kdcli.registry import catalog
from kdcli.registry.build import spec_of
from kdcli.registry.registry import SOURCES
from kdcli.sources.base import Source, SourceContext
from kdcli.sources.build import build_source

SETTINGS = {
    "dataset": [],
    "teacher": [
        "teacher:answers=3,max_new_tokens=9,temperature=0.8",
        "teacher:decode=greedy,max_new_tokens=9",
        "teacher:decode=beam,beams=3,answers=2,max_new_tokens=6",
        "teacher:prompts=bos,max_new_tokens=9",
    ],
    "student": ["student:rate=0.5,per=sequence,max_new_tokens=7", "student:rate=0.5,temperature=0,top_p=0.9"],
    "mixture": [
        "mixture:per=sequence,second=(student:max_new_tokens=7)",
        "mixture:first=(teacher:max_new_tokens=7),second=(replay:phi=0.7,max_new_tokens=7),decay=0.2",
    ],
    "replay": ["replay:phi=0.7,capacity=6,max_new_tokens=7", "replay:phi=0.9,growth=0,fresh=true,max_new_tokens=7"],
    "curriculum": [
        "curriculum:by=teacher_nll,start=0.5,until=1",
        "curriculum:by=student_nll,pacing=root,first=hard",
        "curriculum:by=teacher_uncertainty,start=0.1",
        "curriculum:start=1",
    ],
    "rollout": [
        "rollout:rollouts=8,epochs=1,max_new_tokens=9",
        "rollout:alpha=0,rollouts=6,epochs=2,max_new_tokens=9,corpus=3",
        "rollout:alpha=1,rollouts=7,epochs=2,max_new_tokens=9,corpus=11",
    ],
}
EVERY = [*catalog.SOURCES, *(spec for specs in SETTINGS.values() for spec in specs)]
STEPS = 6


@pytest.fixture(scope="module")
def models():
    return {"student": running.model("student", seed=1), "teacher": running.model("teacher", seed=2)}


@pytest.fixture
def context(models, tmp_path):
    train = TrainConfig(batch_size=4, max_steps=STEPS, micro_tokens=60)
    return SourceContext(
        running.dataset(20), train, pad_id=0, vocab=running.VOCAB - 3, longest=24, folder=tmp_path,
        corpus=running.dataset(9, seed=5), **models,
    )  # fmt: skip


def sequences(batches):
    """Each sequence's ids, labels and facts, without padding, in the order of its tokens' values."""
    found = []
    for batch in batches:
        for row in range(len(batch.input_ids)):
            size = int(batch.attention_mask[row].sum())
            facts = {name: value[row, :size].tolist() for name, value in batch.facts.items()}
            ids = batch.input_ids[row, :size].tolist()
            found.append((int(batch.example[row]), ids, batch.labels[row, :size].tolist(), sorted(facts.items())))
    return sorted(found, key=repr)


def run_to(windows, steps):
    return [sequences(windows.window(step)) for step in range(steps)]


def test_every_registered_source_has_settings_of_its_own():
    assert list(SETTINGS) == list(catalog.SOURCES)


@pytest.mark.parametrize("spec", EVERY)
def test_it_is_a_source_with_a_page(spec):
    source = build_source(spec)
    assert isinstance(source, Source)
    assert source.summary
    assert source.reference
    assert ">>>" in (inspect.getdoc(type(source)) or "")
    assert all(field.description for field in type(source).model_fields.values())
    assert type(source)() is not None, "every option has a default"


@pytest.mark.parametrize("spec", EVERY)
def test_its_spec_and_its_json_build_it_again(spec):
    source = build_source(spec)
    assert build_source(spec_of(source)) == source
    assert type(source)(**json.loads(source.model_dump_json())) == source
    assert hash(source) == hash(build_source(spec))


@pytest.mark.parametrize("spec", EVERY)
def test_the_steps_are_known_without_models(spec, context):
    bare = SourceContext(context.dataset, context.train, pad_id=0, corpus=context.corpus)
    assert build_source(spec).open(bare).total_steps == STEPS
    assert build_source(spec).open(bare).steps_per_epoch >= 1


@pytest.mark.parametrize("spec", EVERY)
def test_a_run_that_resumes_gets_what_it_would_have_got(spec, context):
    whole = run_to(build_source(spec).open(context), STEPS)
    for stop in (1, 3, 5):
        first = build_source(spec).open(context)
        run_to(first, stop)
        state = {name: value.clone() for name, value in first.state().items()}
        second = build_source(spec).open(context)
        second.restore(state)
        assert [sequences(second.window(step)) for step in range(stop, STEPS)] == whole[stop:]


@pytest.mark.parametrize("spec", EVERY)
def test_micro_batches_and_length_of_the_run_change_no_sequence(spec, context):
    whole = run_to(build_source(spec).open(context), 3)
    one = replace(context, train=context.train.model_copy(update={"micro_tokens": 1}))
    assert run_to(build_source(spec).open(one), 3) == whole


@pytest.mark.parametrize("spec", EVERY)
def test_labels_follow_the_ids_and_the_end_is_one_of_them(spec, context):
    end, checked = context.student.ends.default, 0
    for found in run_to(build_source(spec).open(context), STEPS):
        for _, ids, labels, facts in found:
            valid = [label for label in labels if label != IGNORED]
            first = labels.index(valid[0])
            assert labels[:first] == [IGNORED] * first
            assert IGNORED not in labels[first:]
            assert [*ids[1:], labels[-1]][first:] == valid
            assert valid.count(end) <= 1
            assert end not in valid or valid[-1] == end
            assert len(ids) + 1 <= context.longest
            assert dict(facts).keys() == build_source(spec).needs().facts
            checked += end in valid
    assert checked or "decode" in spec  # the likeliest words of a random model do not end


@pytest.mark.parametrize("spec", EVERY)
def test_no_padding_row_is_written_and_nothing_else_is_touched(spec, context):
    torch.manual_seed(5)
    before, modes = torch.get_rng_state(), context.student.model.train().training
    for found in run_to(build_source(spec).open(context), STEPS):
        for _, ids, _, facts in found:
            if set(dict(facts)["origin"]) - {0, code_of("corpus")}:
                assert (
                    max(ids[dict(facts)["origin"].index(max(dict(facts)["origin"])) + 1 :], default=0) < context.vocab
                )
    assert torch.equal(torch.get_rng_state(), before)
    assert context.student.model.training is modes
    assert all(parameter.grad is None for parameter in context.student.model.parameters())


def together(spec, context, world):
    """Every rank's windows, asked in turn; lists are gathered as processes would."""
    from threading import Barrier, Thread

    barrier, shelf, found = Barrier(world), [[] for _ in range(world)], [[] for _ in range(world)]

    def work(rank):
        def gather(items):
            shelf[rank] = items
            barrier.wait()
            joined = [item for part in shelf for item in part]
            barrier.wait()
            return joined

        windows = build_source(spec).open(replace(context, rank=rank, world=world, gather=gather))
        found[rank] = run_to(windows, STEPS)

    threads = [Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("spec", EVERY)
def test_processes_share_a_step_without_gap_or_double(spec, context, models):
    alone = run_to(build_source(spec).open(context), STEPS)
    parts = together(spec, context, 3)
    for step in range(STEPS):
        joined = sorted((one for part in parts for one in part[step]), key=repr)
        assert joined == alone[step]


def test_names_resolve_to_what_they_say():
    for name in catalog.SOURCES:
        assert SOURCES.resolve(name).name == name
