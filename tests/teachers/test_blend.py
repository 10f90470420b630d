import pytest

from kdcli.errors import UsageError
from kdcli.loading.info import Blend, read_blend, refuse_blend


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a+b", Blend(("a", "b"), (0.5, 0.5))),
        ("3*org/a + 1*b", Blend(("org/a", "b"), (0.75, 0.25))),
        ("log(0.5*a+0.5*b)", Blend(("a", "b"), (0.5, 0.5), "log")),
        ("org/name", None),
    ],
)
def test_what_is_written_is_what_is_read(text, expected):
    assert read_blend(text) == expected


def test_a_folder_with_a_plus_in_its_name_is_one_teacher(tmp_path):
    (tmp_path / "a+b").mkdir()
    assert read_blend(str(tmp_path / "a+b")) is None


@pytest.mark.parametrize("text", ["a+", "0*a+b", "-1*a+b", "a*b+c", "2*+c"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError, match="no share of a teacher"):
        read_blend(text)


def test_weights_and_space_are_part_of_what_it_is():
    blends = [Blend(("a", "b"), (0.5, 0.5)), Blend(("a", "b"), (0.4, 0.6)), Blend(("a", "b"), (0.5, 0.5), "log")]
    assert len({blend.digest(["x", "y"]) for blend in blends}) == 3


def test_one_teacher_is_asked_for():
    refuse_blend("a", "a cache remembers one teacher", "--teacher-cache", "leave it out")
    with pytest.raises(UsageError, match="several teachers"):
        refuse_blend("a+b", "a cache remembers one teacher", "--teacher-cache", "leave it out")
