import subprocess
import sys

import pytest

from kdcli.errors import UsageError
from kdcli.metrics.describe import cards, describe
from kdcli.registry.registry import METRICS


def test_listing_imports_none_of_the_heavy_libraries():
    code = (
        "import sys; from kdcli.metrics.describe import cards; print(len(cards()));"
        "print(sorted({'evaluate', 'datasets', 'numpy', 'torch', 'rouge_score'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(len(METRICS.names())), "[]"]


@pytest.mark.parametrize("name", METRICS.names())
def test_what_is_read_is_what_the_class_says(name):
    card, found = describe(name), METRICS.resolve(name)
    assert card.name == found.name == name
    assert card.scores == found.scores
    assert card.input_kind == found.input_kind
    assert card.options == found.options
    assert card.description == found.description
    assert card.settings == found().signature
    assert card.needs_teacher == (found.input_kind != "texts" and found.needs_teacher())
    assert card.doc.split("\n")[0] == found.__doc__.split("\n")[0]


def test_aliases_lead_to_the_same_card():
    assert describe("rouge") == describe("rougeL")
    assert "em" in describe("exact_match").aliases


def test_the_direction_is_one_word_where_scores_agree():
    assert describe("rougeL").direction == "higher"
    assert describe("kl_to_teacher").direction == "lower"


def test_only_comparisons_with_the_teacher_need_one():
    assert {card.name for card in cards() if card.needs_teacher} == {
        "kl_to_teacher", "agreement", "teacher_distance", "on_policy_kl", "on_policy_distance", "on_policy_calibration",
        "exposure_bias", "speculative",
    }  # fmt: skip


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match="rougel") as caught:
        describe("rougel")
    assert "rougeL" in caught.value.fix


GUEST = '''
from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Score, ratio


class Guest(TextMetric):
    """A guest."""

    name, description, scores = "guest", "says nothing", {"guest": "neither"}

    def measure(self, predictions, references):
        return [Score("guest", None, ratio(), "neither", corpus=1.0)]
'''


def test_a_guest_is_described_through_its_class(tmp_path):
    path = tmp_path / "guest.py"
    path.write_text(GUEST, encoding="utf-8")
    card = describe(f"{path}:Guest")
    assert (card.name, card.doc, card.settings, card.input_kind) == ("guest", "A guest.", "guest", "texts")


EARLIER = '''
from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Score, ratio


class Ended(TextMetric):
    """How many answers ended, as a plug-in of an earlier version has it."""

    name, description, scores, eats = "ended", "answers that ended", {"ended": "neither"}, "texts"
    also_reads = ("ended",)

    def __init__(self, *, blind=False):
        super().__init__()
        if blind:
            self.also_reads = ()

    def measure(self, predictions, references, ended=((True,),)):
        return [Score("ended", None, ratio(), "neither", corpus=float(sum(map(sum, ended))))]
'''


def test_a_metric_of_an_earlier_version_is_read_by_the_names_it_uses(tmp_path):
    (tmp_path / "guest.py").write_text(EARLIER, encoding="utf-8")
    path = f"{tmp_path / 'guest.py'}:Ended"
    found = METRICS.resolve(path)
    assert describe(path).input_kind == describe(path).eats == found().input_kind == found().eats == "texts"
    assert found().extra_inputs == found().also_reads == ("ended",)
    (score,) = found().scores_from_texts([["a"], ["b"]], [["a"], ["b"]], ended=[[True], [False]])
    assert score.value == 1.0
    assert found(blind=True).extra_inputs == ()
