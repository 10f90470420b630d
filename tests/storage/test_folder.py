import json
import os
import socket
import subprocess
import sys

import pytest

from kdcli.errors import BusyError, ExperimentChangedError, InputError, IntegrityError, UsageError
from kdcli.storage import lock
from kdcli.storage.locate import model_of
from kdcli.storage.run_dir import RunFolder

IDENTITY = {"loss": "fkl", "train.seed": 0, "steps": 10}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    made.begin("loss: fkl\n", IDENTITY, {"kd": "0.1.0"})
    made.set_status("training", total=10)
    (made.path / "checkpoint-00000005").mkdir()
    return made


def test_absent_and_empty_folders_may_be_used(tmp_path):
    assert not RunFolder(tmp_path / "absent").check(IDENTITY, resume=True)
    (tmp_path / ".lock").touch()
    (tmp_path / ".tmp-1-model").mkdir()
    assert not RunFolder(tmp_path).check(IDENTITY, resume=False)


def test_its_own_run_may_go_on(folder):
    assert folder.check(IDENTITY, resume=True)


def test_a_changed_value_is_named(folder):
    with pytest.raises(ExperimentChangedError, match="steps was 10 and is now 20"):
        folder.check(IDENTITY | {"steps": 20}, resume=True)


def test_a_run_that_saved_nothing_gives_way(folder):
    (folder.path / "checkpoint-00000005").rmdir()
    other = IDENTITY | {"steps": 20}
    assert folder.check(IDENTITY, resume=True)
    assert not folder.check(other, resume=True)
    folder.begin("loss: fkl\n", other, {"kd": "0.1.0"})
    assert folder.manifest()["identity"] == other
    assert folder.status() == {}


def test_a_run_is_not_overwritten(folder):
    with pytest.raises(UsageError, match=r"holds a run \(step 0 of 10\)") as caught:
        folder.check(IDENTITY, resume=False)
    assert caught.value.code == "CLI-12"


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_other_folders_are_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="not a kd run"):
        RunFolder(tmp_path).check(IDENTITY, resume=True)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file, not a folder"):
        RunFolder(tmp_path / "file").check(IDENTITY, resume=True)


def test_a_newer_schema_is_refused_by_version(folder):
    path = folder.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 9, "environment": {"kd": "9.1"}}))
    with pytest.raises(ExperimentChangedError, match=r"written by kd 9.1 \(schema 9\)"):
        folder.check(IDENTITY, resume=True)


def test_a_damaged_manifest_is_an_integrity_error(folder):
    (folder.path / "manifest.json").write_text('{"kind": "run", ')
    with pytest.raises(IntegrityError):
        folder.check(IDENTITY, resume=True)


def test_the_first_manifest_stays(folder):
    folder.begin("loss: fkl\n", IDENTITY, {"kd": "2.0"})
    assert folder.manifest()["environment"] == {"kd": "0.1.0"}


def test_status_keeps_what_was_there(folder):
    started = folder.status()["started"]
    folder.set_status("done", steps=10)
    status = folder.status()
    assert set(status.pop("files")) == {"config.yaml", "manifest.json"}
    assert len(status.pop("digest")) == 64
    assert status | {"updated": ""} == {
        "started": started, "updated": "", "state": "done", "steps": 10, "total": 10,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["status.json", "manifest.json"])
def test_a_record_carries_its_own_digest(folder, name):
    path = folder.path / name
    path.write_text(path.read_text().replace('"total": 10', '"total": 11').replace('"steps": 10', '"steps": 11'))
    with pytest.raises(IntegrityError, match="digest differs from the one it carries") as caught:
        folder.manifest(), folder.status()
    assert caught.value.where == str(path)


def test_records_of_an_earlier_version_carry_no_digest(folder):
    for name in ("manifest.json", "status.json"):
        path = folder.path / name
        old = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("digest", "files")}
        path.write_text(json.dumps(old))
    assert folder.check(IDENTITY, resume=True)
    assert folder.status()["total"] == 10


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_settings_and_identity_are_covered_before_the_run_is_done(folder, name):
    path = folder.path / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(IntegrityError, match="digest differs") as caught:
        folder.check(IDENTITY, resume=True)
    assert caught.value.where == str(path)


def test_other_settings_of_the_same_experiment_take_their_place(folder):
    folder.begin("loss: fkl\nsave_every: 5\n", IDENTITY, {"kd": "0.1.0"})
    assert folder.check(IDENTITY, resume=True)  # a kill here leaves a file without a digest
    folder.set_status("training")
    assert folder.check(IDENTITY, resume=True)
    (folder.path / "config.yaml").write_text("loss: fkl\nsave_every: 7\n")
    with pytest.raises(IntegrityError):
        folder.check(IDENTITY, resume=True)


def test_what_was_flipped_before_the_end_is_not_sealed_as_right(folder):
    (folder.path / "config.yaml").write_text("loss: fkm\n")
    folder.set_status("done", steps=10)
    with pytest.raises(IntegrityError):
        folder.check_files()
    assert not folder.is_done
    folder.model.mkdir()
    assert folder.is_done


def test_a_run_stands_for_its_student(folder, tmp_path):
    assert model_of(str(folder.path)) == str(folder.model)
    assert model_of("gpt2") == "gpt2"
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "manifest.json"):
        (plain / name).touch()
    assert model_of(str(plain)) == str(plain)


TRY = "import sys; from pathlib import Path; from kdcli.storage import lock\nwith lock.hold(Path(sys.argv[1])): pass"


def test_a_lock_is_held_and_dropped(tmp_path):
    def attempt():
        return subprocess.run([sys.executable, "-c", TRY, str(tmp_path)], capture_output=True, text=True, check=False)

    with lock.hold(tmp_path):
        refused = attempt()
        assert "BusyError" in refused.stderr
        assert f"process {os.getpid()} on {socket.gethostname()} since " in refused.stderr
    assert attempt().returncode == 0


def test_an_unreadable_lock_still_refuses(tmp_path):
    assert isinstance(lock._busy(tmp_path, b"\xff"), BusyError)


def test_a_command_line_of_bytes_that_are_no_text_is_kept(tmp_path):
    made = RunFolder(tmp_path)
    made.begin("loss: fkl\n", IDENTITY, {"argv": ["kd", "caf\udce9"]})
    assert made.manifest()["environment"]["argv"] == ["kd", "caf\udce9"]
