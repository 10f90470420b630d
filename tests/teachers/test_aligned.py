"""A teacher of another tokenizer in the engine: against full logits, one sequence and one text prefix at a time."""

import json

import pytest
import torch
from torch import Tensor

import cutters
from kdcli.config.schema import DataConfig
from kdcli.data.alignment import NO_OFFSET, TokenAligner, TokenReader
from kdcli.data.batching import IGNORED, Batch, collate
from kdcli.data.dataset import load_dataset
from kdcli.losses.build import build_objective
from kdcli.losses.token_facts import ALIGNED
from kdcli.models.load import LanguageModel, assemble
from kdcli.models.packing import count_valid, find_valid
from kdcli.teachers.base import LiveTeacher, Mixture, live_models
from kdcli.teachers.cross_tokenizer import CrossTokenizerTeacher
from kdcli.teachers.ensemble import EnsembleTeacher
from kdcli.training.step import DistillStep

ROWS = [
    {"prompt": "say a:", "completion": " aaaa. Größe 🙂"},
    {"prompt": "Once upon", "completion": " a time there was a little girl named Lily."},
    {"prompt": "She had", "completion": " a big red ball, and she loved to play with it"},
    {"prompt": "日本", "completion": "语 and 12 + 34 = 46."},
]
OFF = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def model(kind: str, seed: int, role) -> LanguageModel:
    tokenizer = cutters.cutter(kind)
    made = cutters.model(kind, "gpt2", seed=seed, **OFF).double()
    return assemble(made, tokenizer, role, "digest", device=torch.device("cpu"), role=role)


@pytest.fixture(scope="module")
def student():
    return model("bytes-300", 1, "student")


@pytest.fixture(scope="module")
def teacher():
    return model("fallback", 2, "teacher")


@pytest.fixture(scope="module")
def aligner(student, teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sides = []
    for side in (student, teacher):
        config = DataConfig(train=str(path), max_length=128)
        rows = load_dataset(str(path), side.tokenizer, config, ends=side.ends)
        sides.append(TokenReader(side.tokenizer, side.ends, rows))
    return TokenAligner(*sides)


def aligned(teacher, aligner, positions=None) -> CrossTokenizerTeacher:
    inner = LiveTeacher(teacher) if isinstance(teacher, LanguageModel) else teacher
    vocab = len(aligner.other.tokenizer)
    return CrossTokenizerTeacher(inner, aligner, vocab=vocab, pad_id=0, positions=positions)


def batch(aligner, rows=None) -> Batch:
    return collate(aligner.own.rows.examples, list(rows or range(len(ROWS))), 0)


def by_text(teacher, aligner) -> list[tuple[Tensor | None, int, int]]:
    """For each label of each row: the teacher's logits after exactly the text before it, by decoding prefixes."""
    found = []
    own, other = aligner.own, aligner.other
    for mine, theirs in zip(own.rows.examples, other.rows.examples, strict=True):
        logits = teacher.model(torch.tensor([theirs.ids])).logits[0]
        response = theirs.ids[theirs.prompt_length : -1]
        heard = {other.tokenizer.decode(response[:count]).lstrip(): count for count in range(len(response) + 1)}
        body = mine.ids[mine.prompt_length :]
        texts = [own.tokenizer.decode(body[:count]).lstrip() for count in range(len(body))]
        for count, (label, said) in enumerate(zip(body, texts, strict=True)):
            whole = not said.endswith("\ufffd") and said not in texts[count + 1 :]
            place = heard.get(said) if whole else None
            found.append((None if place is None else logits[theirs.prompt_length - 1 + place], label, count))
    return found


@pytest.mark.parametrize("turned", [False, True], ids=["pieces teach bytes", "bytes teach pieces"])
@torch.no_grad()
def test_it_speaks_after_the_same_text_and_is_silent_elsewhere(student, teacher, aligner, turned):
    if turned:
        teacher, aligner = student, TokenAligner(aligner.other, aligner.own)
    whole = batch(aligner)
    seen = aligned(teacher, aligner).output(whole, find_valid(whole.labels))
    expected = by_text(teacher, aligner)
    assert seen.facts[ALIGNED].tolist() == [float(logits is not None) for logits, _, _ in expected]
    assert 0.3 < seen.facts[ALIGNED].mean() < 1.0
    ours = seen.side.head.logits(seen.side.hidden, seen.vocab)
    for row, (logits, _, _) in enumerate(expected):
        if logits is None:
            assert not seen.side.hidden[row].any()
        else:
            torch.testing.assert_close(ours[row], logits, rtol=1e-9, atol=1e-10)


def run(student, teacher, aligner, spec="ce+1.5*uld", rows=None, chunk=None):
    """Gradient and parts of a step over micro-batches of some rows each."""
    student.model.zero_grad()
    step = DistillStep(student, teacher, build_objective(spec), vocab=len(aligner.own.tokenizer), chunk_tokens=chunk)
    window = [batch(aligner, part) for part in rows or [range(len(ROWS))]]
    total: dict[str, float] = {}
    for one in window:
        loss, parts = step(one, count_valid(window)[0])
        loss.backward()
        total = {name: total.get(name, 0.0) + part.item() for name, part in {"loss": loss, **parts}.items()}
    return total, {name: value.grad.clone() for name, value in student.model.named_parameters()}


def close(one, two):
    assert one[0].keys() == two[0].keys()
    for name, value in one[0].items():
        assert value == pytest.approx(two[0][name], rel=1e-6), name
    for name, value in one[1].items():
        torch.testing.assert_close(value, two[1][name], rtol=1e-5, atol=1e-9)


def test_value_and_gradient_are_those_of_full_logits(student, teacher, aligner):
    whole = batch(aligner)
    valid = whole.labels != IGNORED
    student.model.zero_grad()
    z = student.model(whole.input_ids, attention_mask=whole.attention_mask).logits[valid]
    loss, count = 0.0, int(valid.sum())
    with torch.no_grad():
        expected = by_text(teacher, aligner)
    known = 0
    for row, (logits, label, _) in enumerate(expected):
        loss = loss - torch.log_softmax(z[row], 0)[label] / count
        if logits is not None:
            known += 1
            q, p = (side.softmax(0).sort(descending=True).values for side in (z[row], logits))
            wide = max(len(q), len(p))
            q, p = (torch.nn.functional.pad(side, (0, wide - len(side))) for side in (q, p))
            loss = loss + 1.5 * (q - p).abs().sum() / count
    loss.backward()
    slopes = {name: value.grad.clone() for name, value in student.model.named_parameters()}
    found, gradient = run(student, aligned(teacher, aligner), aligner)
    for name, value in gradient.items():
        torch.testing.assert_close(value, slopes[name], rtol=1e-5, atol=1e-8)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert found["uld.aligned"] == pytest.approx(known / count)
    assert found["ce"] + found["uld"] == pytest.approx(loss.item(), rel=1e-6)
    assert max(value.abs().max().item() for value in gradient.values()) > 1e-3


@pytest.mark.parametrize("rows", [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2, 0, 1], [3]]], ids=str)
@pytest.mark.parametrize("spec", ["ce+1.5*uld", "weighted:loss=uld,by=student_entropy,keep=1", "tempered:loss=uld"])
def test_neither_company_nor_padding_nor_chunks_count(student, teacher, aligner, rows, spec):
    there = aligned(teacher, aligner)
    close(run(student, there, aligner, spec), run(student, there, aligner, spec, rows=rows, chunk=3))


def test_a_teacher_of_few_positions_is_silent_on_the_ends(student, teacher, aligner):
    whole = batch(aligner)
    packing = find_valid(whole.labels)
    entire = aligned(teacher, aligner).output(whole, packing)
    for positions in (1, 9, 14, 1000):
        cut = aligned(teacher, aligner, positions).output(whole, packing)
        for row, example in enumerate(aligner.own.rows.examples):
            read = aligner.align(example.ids, example.prompt_length, row)
            expected = [place != NO_OFFSET and read.prompt_length + place <= positions for place in read.places]
            assert cut.facts[ALIGNED][packing.sequence == row].tolist() == [float(one) for one in expected]
        there = cut.facts[ALIGNED] > 0
        torch.testing.assert_close(cut.side.hidden[there], entire.side.hidden[there], rtol=1e-9, atol=1e-10)


def test_a_sequence_no_row_holds_is_read_from_its_tokens(student, teacher, aligner):
    mine = aligner.own.rows.examples[2]
    answer = student.tokenizer.encode(" a little girl", add_special_tokens=False)
    ids = (*mine.ids[: mine.prompt_length], *answer, student.ends.default)
    labels = torch.tensor([[IGNORED] * (mine.prompt_length - 1) + [*answer, student.ends.default]])
    one = Batch(torch.tensor([ids[:-1]]), torch.ones(1, len(ids) - 1, dtype=torch.int64), labels, torch.tensor([2]))
    seen = aligned(teacher, aligner).output(one, find_valid(labels))
    prompt = aligner.other.rows.examples[2]
    text = teacher.tokenizer.encode(prompt.prompt + " a little girl")
    assert text[: prompt.prompt_length] == list(prompt.question)
    with torch.no_grad():
        logits = teacher.model(torch.tensor([text])).logits[0]
    ours = seen.side.head.logits(seen.side.hidden, seen.vocab)
    assert seen.facts[ALIGNED][[0, -1]].tolist() == [1.0, 1.0]
    torch.testing.assert_close(ours[0], logits[prompt.prompt_length - 1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours[-1], logits[-1], rtol=1e-9, atol=1e-10)


def test_nothing_valid_is_nothing_said(student, teacher, aligner):
    one = torch.zeros((1, 1), dtype=torch.int64)
    nothing = Batch(one, one + 1, one + IGNORED, torch.full((1,), -1))
    seen = aligned(teacher, aligner).output(nothing, find_valid(nothing.labels))
    assert seen.facts[ALIGNED].shape == (0,)
    loss, _ = DistillStep(student, aligned(teacher, aligner), build_objective("uld"), vocab=len(student.tokenizer))(
        nothing, 1
    )
    assert loss.item() == 0.0


def test_several_teachers_of_one_other_tokenizer_are_aligned_together(student, teacher, aligner):
    other = model("fallback", 3, "teacher")
    both = aligned(EnsembleTeacher((teacher, other), (0.25, 0.75), "probability"), aligner)
    assert live_models(both) == (teacher, other)
    whole = batch(aligner)
    packing = find_valid(whole.labels)
    seen = both.output(whole, packing)
    assert isinstance(seen.side, Mixture)
    for member, single in zip(seen.side.members, (teacher, other), strict=True):
        alone = aligned(single, aligner).side(whole, packing)
        assert torch.equal(member.hidden, alone.hidden)
    found, _ = run(student, both, aligner, "uld")
    assert 0.0 < found["uld"] < 2.0
