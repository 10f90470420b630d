import itertools
import json
from dataclasses import replace

import pytest
import torch

import running
from kdcli.config.schema import TrainConfig
from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, IntegrityError, UsageError
from kdcli.generation.beam import beam_answers
from kdcli.generation.scoring import response_log_probs
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.teacher_text import store as module
from kdcli.storage import atomic


@pytest.fixture(scope="module")
def teacher():
    return running.model("teacher", seed=2)


def context(teacher, folder=None, **train):
    settings = TrainConfig(**{"batch_size": 4, "max_steps": 10, **train})
    return SourceContext(
        running.dataset(12), settings, pad_id=0, vocab=running.VOCAB - 3, longest=24, teacher=teacher, folder=folder
    )


def texts(windows):
    return [(one.row, one.answer, one.example.ids, one.nll) for one in windows.pool]


def test_every_prompt_is_answered_once_an_epoch(teacher, tmp_path):
    windows = build_source("teacher:answers=2,max_new_tokens=8").open(context(teacher, tmp_path))
    for epoch in (0, 1):
        found = [one for at in range(3) for one in windows.write(3 * epoch + at, windows.members(3 * epoch + at))]
        assert sorted(one.row for one in found) == list(range(12))
        for one in found:
            own = running.dataset(12).examples[one.row]
            assert one.example.ids[: own.prompt_length] == own.ids[: own.prompt_length]
    assert len(windows.by_row[0]) == 2


def test_the_text_is_kept_and_found_again_whatever_the_run(teacher, tmp_path, monkeypatch):
    first = build_source("teacher:max_new_tokens=8").open(context(teacher, tmp_path))
    (folder,) = tmp_path.glob("teacher-*")
    atomic.verify_folder(folder)
    lines = [json.loads(line) for line in (folder / "text.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(12))
    assert {"prompt", "response", "ids", "nll", "ended"} <= lines[0].keys()
    monkeypatch.setattr(module, "_make", lambda *_: pytest.fail("written again"))
    again = build_source("teacher:max_new_tokens=8,min_tokens=2").open(context(teacher, tmp_path, seed=9))
    assert set(texts(again)) <= set(texts(first))
    assert len(list(tmp_path.glob("teacher-*"))) == 1


@pytest.mark.parametrize("decode", ["sample", "beam"])
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_writer_that_is_cut_off_goes_on_with_what_is_missing(teacher, tmp_path, monkeypatch, stop, decode):
    spec = f"teacher:decode={decode},max_new_tokens=6,answers=2,beams=3"
    whole = build_source(spec).open(context(teacher, tmp_path / "whole"))
    made = module._make

    def cut(*args):
        yield from itertools.islice(made(*args), stop)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_make", cut)
    with pytest.raises(KeyboardInterrupt):
        build_source(spec).open(context(teacher, tmp_path / "cut"))
    (partial,) = (tmp_path / "cut").glob(".teacher-*.jsonl")
    with partial.open("ab") as file:
        file.write(b'{"row": 3, "answer"')  # what a kill leaves
    asked = []

    def rest(source, base, prompts, known):
        asked.append(len(known))
        return made(source, base, prompts, known)

    monkeypatch.setattr(module, "_make", rest)
    again = build_source(spec).open(context(teacher, tmp_path / "cut"))
    assert asked == [stop]
    assert texts(again) == texts(whole)
    one, other = (
        next(path.glob("teacher-*/text.jsonl")).read_bytes() for path in (tmp_path / "cut", tmp_path / "whole")
    )
    assert one == other
    assert not partial.exists()


def test_damage_is_found(teacher, tmp_path):
    build_source("teacher:max_new_tokens=8").open(context(teacher, tmp_path))
    (path,) = tmp_path.glob("teacher-*/text.jsonl")
    body = bytearray(path.read_bytes())
    body[40] ^= 1
    path.write_bytes(body)
    with pytest.raises(IntegrityError):
        build_source("teacher:max_new_tokens=8").open(context(teacher, tmp_path))


def test_filters_drop_what_they_say_and_duplicates_go(teacher, tmp_path):
    spec = "teacher:max_new_tokens=8,answers=4,temperature=0.7"
    every = build_source(spec).open(context(teacher, tmp_path)).pool
    assert len({one.example.ids for one in every}) == len(every)
    bound = sorted(one.nll for one in every)[len(every) // 2]
    likely = build_source(f"{spec},max_nll={bound}").open(context(teacher, tmp_path)).pool
    assert [one for one in every if one.nll <= bound] == likely
    long = build_source(f"{spec},min_tokens=4").open(context(teacher, tmp_path)).pool
    assert [one for one in every if one.targets >= 4] == long
    ended = build_source("teacher:max_new_tokens=20,answers=4,ended=true").open(context(teacher, tmp_path)).pool
    assert ended
    assert all(one.example.ids[-1] in teacher.ends for one in ended)
    with pytest.raises(InputError, match="passes the filters"):
        build_source(f"{spec},min_tokens=9").open(context(teacher, tmp_path))


def test_without_prompts_the_teacher_starts_from_the_first_token(teacher, tmp_path):
    windows = build_source("teacher:prompts=bos,max_new_tokens=8").open(context(teacher, tmp_path))
    assert all(one.example.ids[0] == 1 and one.example.prompt_length == 1 for one in windows.pool)
    assert len(windows.pool) > 6


def test_the_nll_is_the_mean_over_the_answer(teacher, tmp_path):
    one = build_source("teacher:max_new_tokens=8").open(context(teacher, tmp_path)).pool[3]
    logits = teacher.model(torch.tensor([one.example.ids[:-1]])).logits[0, :, : running.VOCAB - 3].double()
    logp = logits.log_softmax(-1)[range(len(one.example.ids) - 1), list(one.example.ids[1:])]
    assert one.nll == pytest.approx(-logp[one.example.prompt_length - 1 :].mean().item(), rel=1e-5)
    assert len(response_log_probs(teacher, one.example, running.VOCAB - 3)) == one.targets


def test_beam_search_finds_the_likeliest_answers_of_two_tokens(teacher):
    """Brute force over all answers of two tokens, or one that ends."""
    prompt, ids = (1, 5, 9), 12
    small = replace(teacher, ends=EndTokens((2,)))

    def logits(tokens):
        return teacher.model(torch.tensor([tokens])).logits[0, -1, :ids].double().log_softmax(-1)

    first = logits(list(prompt))
    scores = {(): first[2].item()}
    for one in range(ids):
        if one != 2:
            after = logits([*prompt, one])
            scores |= {(one, two) if two != 2 else (one,): (first[one] + after[two]).item() / 2 for two in range(ids)}
    found = beam_answers(small, prompt, width=11, best=1, most=2, ids=ids)
    assert found[0].ids == max(scores, key=scores.get)


@pytest.mark.parametrize("spec, said", [
    ("teacher:decode=greedy,answers=2", "one answer"),
    ("teacher:decode=greedy,prompts=bos", "one and the same text"),
    ("teacher:decode=beam,answers=9", "at most 4"),
    ("teacher:decod=beam", "did you mean decode"),
    ("teacher:top_p=0", r"top_p must lie in \(0, 1\]"),
])  # fmt: skip
def test_nonsense_is_refused_in_words(spec, said):
    with pytest.raises(UsageError, match=said):
        build_source(spec)


def test_texts_of_another_longest_length_are_kept_apart(teacher, tmp_path):
    source = build_source("teacher:max_new_tokens=6")
    one = context(teacher, tmp_path)
    other = replace(one, longest=20)
    prompts = dict(enumerate(one.dataset.examples))
    assert module.folder_name(source, one, prompts) == module.folder_name(source, replace(one), prompts)
    assert module.folder_name(source, one, prompts) != module.folder_name(source, other, prompts)


def test_a_line_cut_in_half_does_not_take_the_next_one_along(teacher, tmp_path, monkeypatch):
    source, here = build_source("teacher:max_new_tokens=6"), context(teacher, tmp_path)
    prompts, whole = module.prompts_of(source, here), module._make
    partial = tmp_path / f".{module.folder_name(source, here, prompts)}.jsonl"
    partial.write_bytes(b'{"prompt": "cut by a ki')

    def dying(*given):
        yield next(whole(*given))
        raise RuntimeError("killed")

    monkeypatch.setattr(module, "_make", dying)
    with pytest.raises(RuntimeError, match="killed"):
        module.teacher_text(source, here)
    assert len(module.read_completions(partial, prompts)) == 1
