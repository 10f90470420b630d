import json
import shutil

import pytest

import tiny
from kdcli.errors import IntegrityError
from kdcli.loading.session import Session
from kdcli.models.checks import model_digest, open_folder
from kdcli.storage import atomic


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run folder with a student, as training leaves it."""
    root = tmp_path_factory.mktemp("whole")
    source = tiny.folder(root / "source")
    (source / "README.md").write_text("a card\n")
    run = root / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"kind": "run"}')
    atomic.commit_folder(
        run / "model", lambda target: shutil.copytree(source, target, dirs_exist_ok=True) and None, {"kind": "model"}
    )
    return run


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def flip(path, bit):
    raw = bytearray(path.read_bytes())
    raw[bit // 8 % len(raw)] ^= 1 << bit % 8
    path.write_bytes(raw)


def test_a_whole_student_is_what_its_files_say(run):
    before = Session().inspect(str(run)).digest
    (run / "model" / "README.md").write_text("an edited card\n")
    assert Session().inspect(str(run)).digest == before
    (run / "model" / "manifest.json").unlink()
    assert Session().inspect(str(run / "model")).digest == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("inner", ["", "model"])
def test_one_bit_of_any_file_that_is_read_is_found(run, name, inner):
    path = run / "model" / name
    if path.suffix == ".json":
        path.write_bytes(path.read_bytes() + b"\n")
    else:
        flip(path, 8 * path.stat().st_size - 5)
    with pytest.raises(IntegrityError, match="digest differs") as caught:
        Session().inspect(str(run / inner))
    assert caught.value.where == str(path)


def test_a_run_whose_students_manifest_is_gone_is_refused(run):
    (run / "model" / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        Session().inspect(str(run))


def test_a_file_that_the_manifest_lists_must_be_there(run):
    (run / "model" / "tokenizer_config.json").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        model_digest(open_folder(str(run / "model")))


@pytest.mark.parametrize("content", [{"files": ["a"]}, {"version": 3}, {"schema": 1}])
def test_a_manifest_of_another_program_says_nothing(run, content):
    before = model_digest(open_folder(str(run / "model")))
    (run / "model" / "manifest.json").write_text(json.dumps(content))
    assert model_digest(open_folder(str(run / "model"))) == before
