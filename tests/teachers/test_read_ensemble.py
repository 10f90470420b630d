import pytest

from kdcli.errors import UsageError
from kdcli.loading.info import Ensemble, read_ensemble, require_single


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a+b", Ensemble(("a", "b"), (0.5, 0.5))),
        ("3*org/a + 1*b", Ensemble(("org/a", "b"), (0.75, 0.25))),
        ("log(0.5*a+0.5*b)", Ensemble(("a", "b"), (0.5, 0.5), "log")),
        ("org/name", None),
    ],
)
def test_what_is_written_is_what_is_read(text, expected):
    assert read_ensemble(text) == expected


def test_a_folder_with_a_plus_in_its_name_is_one_teacher(tmp_path):
    (tmp_path / "a+b").mkdir()
    assert read_ensemble(str(tmp_path / "a+b")) is None


@pytest.mark.parametrize("text", ["a+", "0*a+b", "-1*a+b", "a*b+c", "2*+c"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError, match="no share of a teacher"):
        read_ensemble(text)


def test_weights_and_space_are_part_of_what_it_is():
    blends = [
        Ensemble(("a", "b"), (0.5, 0.5)),
        Ensemble(("a", "b"), (0.4, 0.6)),
        Ensemble(("a", "b"), (0.5, 0.5), "log"),
    ]
    assert len({blend.digest(["x", "y"]) for blend in blends}) == 3


def test_one_teacher_is_asked_for():
    require_single("a", "a cache holds one teacher", "--teacher-cache", "leave it out")
    with pytest.raises(UsageError, match="several teachers"):
        require_single("a+b", "a cache holds one teacher", "--teacher-cache", "leave it out")
