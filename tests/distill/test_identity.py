import pytest

from kdcli.distill.fingerprint import changes, environment, guest_code, short_hash
from kdcli.distill.prepare import objective_of
from kdcli.losses.build import build_objective

GUEST = '''
from typing import ClassVar
from kdcli.losses.divergences.base import Divergence
from kdcli.losses.divergences.ops import kl
class Mine(Divergence):
    """Mine."""
    name: ClassVar[str] = "mine"
    formula: ClassVar[str] = "f"
    reference: ClassVar[str] = "r"
    cost: ClassVar[str] = "c"
    def divergence(self, log_q, log_p):
        return kl(log_p, log_q)
'''


def test_built_in_losses_have_no_code_of_their_own():
    assert guest_code(build_objective("0.5*ce+0.5*atkd:hard=rkl")) is None


@pytest.mark.parametrize("spec", ["{}", "0.5*ce+0.5*{}", "atkd:hard={}"])
def test_a_guests_code_counts_however_deep(tmp_path, spec):
    digests = []
    for number, body in enumerate((GUEST, GUEST + "# changed\n")):
        path = tmp_path / str(number) / "mine.py"
        path.parent.mkdir()
        path.write_text(body)
        digests.append(guest_code(build_objective(spec.format(f"{path}:Mine"))))
    assert None not in digests
    assert digests[0] != digests[1]


def test_the_hash_follows_the_contents_not_their_order():
    assert short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1}) != short_hash({"a": 1, "b": 3})


@pytest.mark.parametrize(
    ("text", "label"),
    [("kl", "fkl"), ("1.0*akl:mu=0.5", "akl"), ("fkl@dataset", "fkl"), ("0.5*ce+.5*kd", "0.5*ce+0.5*fkl")],
)
def test_two_spellings_are_one_objective(text, label):
    assert objective_of(text)[1] == label


def test_changes_of_version_and_threads_are_said():
    now = environment()
    assert changes(now, now) == []
    before = now | {"kd": "0.0.1", "threads": 99, "libraries": now["libraries"] | {"torch": "1.0"}}
    said = changes(before, now)
    assert [line.split()[0] for line in said] == ["kd", "threads", "torch"]
