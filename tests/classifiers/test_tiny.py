"""Tiny classifiers: spec, hashed words, parameter counts, and padding that changes nothing."""

import binascii

import pytest
import torch

import classes
from kdcli.classifiers.model import load_classifier, tiny_student
from kdcli.classifiers.tiny import KINDS, HashedWords, make_tiny, parse_tiny, tiny_parameters
from kdcli.errors import UsageError

CPU = torch.device("cpu")
LABELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tiny:kind=mlp", 'unknown kind "mlp".*use one of bow, cnn, lstm'),
        ("tiny:kind=bow,widht=4", 'unknown option "widht".*did you mean width'),
        ("tiny:width=0", "width must be a whole number from 1"),
        ("tiny:vocab=1", "vocab must be a whole number from 2"),
        ("tiny:width=4,width=5", '"width" is given twice'),
        ("tiny:bow", '"bow" is not option=value'),
    ],
)
def test_a_wrong_spec_is_named(spec, said):
    with pytest.raises(UsageError, match=f"SPEC-02.*{said}"):
        parse_tiny(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_are_those_of_the_formula(kind):
    spec = f"tiny:kind={kind},width=12,vocab=70"
    assert tiny_parameters(spec, 3) == sum(one.numel() for one in make_tiny(spec, LABELS, 0).parameters())


def test_the_small_student_of_the_literature_has_about_thirty_thousand_parameters():
    assert tiny_parameters("tiny:kind=bow,width=32,vocab=1000", 8) == 1000 * 32 + 8 * 32 + 8 == 32_264


@pytest.mark.parametrize("kind", KINDS)
def test_batch_and_padding_change_nothing(kind):
    student = tiny_student(f"tiny:kind={kind},width=8,vocab=64", LABELS, seed=0, device=CPU)
    texts = ["a cat", "the dog is on the bread with a nail", "saw", "one two three four five six seven"]
    together = student.class_logits(texts, [""] * 4, 99)
    for place, text in enumerate(texts):
        alone = student.class_logits([text], [""], 99)
        assert together[place] == pytest.approx(alone[0], abs=1e-6)


@pytest.mark.parametrize("family", ["distilbert", "bert", "llama"])
def test_neither_do_they_for_classifiers_of_transformers(tmp_path, family):
    found = load_classifier(str(classes.folder(tmp_path / "m", family)), device=CPU, role="teacher")
    texts = ["a cat", "the dog is on the bread", "saw"]
    together = found.class_logits(texts, [""] * 3, 99)
    for place, text in enumerate(texts):
        ids = found.tokenizer(text, return_tensors="pt")
        own = found.model(input_ids=ids["input_ids"]).logits[0].detach().numpy()
        assert together[place] == pytest.approx(own, abs=1e-5)
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_the_weights_follow_from_the_seed_alone():
    one, same, other = (make_tiny("tiny:kind=lstm,width=4,vocab=9", LABELS, seed) for seed in (0, 0, 1))
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_words_have_the_same_ids_everywhere_and_none_is_that_of_padding():
    words = HashedWords(50)
    expected = [1 + binascii.crc32(word) % 49 for word in (b"cat", b",", b"cat", b"dog", b"!")]
    assert words("Cat, cat DOG!", add_special_tokens=False)["input_ids"] == expected
    assert 0 not in words(" ".join(map(str, range(2000))), add_special_tokens=False)["input_ids"]
