import tiny
from kdcli.students.made import footprint


def test_sizes_are_those_of_the_built_model(tmp_path):
    for family in ("llama", "gpt2"):
        path = str(tiny.folder(tmp_path / family, family))
        model = tiny.model(family)
        found = footprint(path, None, rows=2, length=8, keep=True)
        assert found.parameters == sum(one.numel() for one in model.parameters())
        assert found.tied == (family == "gpt2")
        assert (found.width, found.head) == (16, 16 * len(tiny.WORDS))
        assert found.trunk < found.parameters
        twice = footprint(path, None, rows=4, length=8, keep=True)
        assert found.activations > 0
        assert 1.5 < twice.activations / found.activations <= 2.0
        assert footprint(path, None, rows=2, length=8, keep=False).activations == 0


def test_a_random_student_is_sized_without_being_built(tmp_path):
    teacher = str(tiny.folder(tmp_path / "teacher"))
    found = footprint("random:layers=1,width=8,heads=2", teacher, rows=1, length=4, keep=False)
    assert found.width == 8
