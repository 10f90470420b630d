import os
from pathlib import Path

import pytest

from kdcli.data.files import digest_files, inspect_path
from kdcli.errors import InputError, MachineError


def test_missing_names_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(InputError) as caught:
        inspect_path("trian.jsonl")
    assert str(caught.value) == (
        f"error[DATA-01]: trian.jsonl: not found (looked in {tmp_path}). Fix: data files there: train.jsonl"
    )


@pytest.mark.parametrize("path", ["./owner/name", "/owner/name", "owner/name.jsonl", "a/b/c", "here/name", "name"])
def test_what_looks_like_a_path_is_never_sought_on_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match=r"DATA-01"):
        inspect_path(path)
    assert inspect_path("owner/name").kind == "hub"


def test_pipes_devices_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(InputError, match=r"DATA-13.*not a regular file"):
            inspect_path(path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"DATA-13.*is a folder.*give one file of it: a.jsonl"):
        inspect_path(str(tmp_path / "folder"))
    (tmp_path / "folder" / "load.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match=r"DATA-14.*scripts are never run"):
        inspect_path(str(tmp_path / "folder"))


def test_link_circles_and_impossible_paths(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match=r"DATA-22.*in a circle"):
        inspect_path(str(tmp_path / "a"))
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(InputError, match=r"DATA-01.*is no usable path"):
            inspect_path(path)


def test_permission_is_the_machines_error(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MachineError, match=r"DATA-21.*permission denied \(owner \d+, mode -rw") as caught:
        inspect_path(str(path))
    assert caught.value.exit_code == 4


def test_digest_of_several_files_depends_on_names_and_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1")
    second.write_text("2")
    before = digest_files([first, second])
    second.write_text("3")
    assert digest_files([first, second]) != before
    assert len(before) == 64
