import json
import os
import shutil

import pytest

from kdcli import durable
from kdcli.errors import IntegrityError, MachineError


def fill(text):
    def write(folder):
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(text.encode() * 3)

    return write


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def kill_at(monkeypatch, number):
    """Die at the n-th call of any operation that changes the disk."""
    calls = {"left": number}

    def wrap(real):
        def call(*args, **kwargs):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise Killed
            return real(*args, **kwargs)

        return call

    for owner, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (os, "mkdir"), (durable, "_exchange")):
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    return calls


@pytest.fixture(params=["exchange", "two renames"])
def one_operation(request, tmp_path, monkeypatch):
    """Whether this system swaps two names at once; the second time it is made to be one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(durable.ctypes, "CDLL", lambda *_, **__: object())
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    return durable._exchange(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_at_any_operation_leaves_a_whole_folder_or_none(tmp_path, replaces, one_operation):
    died = 0
    for number in range(1, 60):
        home = tmp_path / str(number)
        home.mkdir()
        final = home / "checkpoint"
        if replaces:
            durable.commit_folder(final, fill("old"))
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number)
            try:
                durable.commit_folder(final, fill("new"), {"step": 7})
            except Killed:
                died += 1
        durable.sweep(home)
        assert final.exists() or not (replaces and one_operation)
        if final.exists():
            manifest = durable.verify_folder(final)
            assert (final / "a.txt").read_text() == ("new" if manifest.get("step") == 7 else "old")
        assert [path.name for path in home.iterdir()] in ([], ["checkpoint"])
    assert 8 < died < 59


def test_a_full_disk_is_one_error_and_keeps_the_old_bytes(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    durable.write_file(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left") as caught:
        durable.write_file(path, "new")
    assert caught.value.exit_code == 4
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def damage_flip(folder):
    path = folder / "sub" / "b.bin"
    raw = bytearray(path.read_bytes())
    raw[1] ^= 4
    path.write_bytes(raw)


def damage_truncate(folder):
    path = folder / "a.txt"
    path.write_bytes(path.read_bytes()[:-1])


def damage_missing(folder):
    (folder / "a.txt").unlink()


def damage_extra(folder):
    (folder / "c.txt").write_text("x")


def damage_symlink(folder):
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to("/etc/hostname")


def edit(change):
    def damage(folder):
        path = folder / durable.MANIFEST
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return damage


DAMAGES = {
    "digest differs": damage_flip,
    "another size": damage_truncate,
    "is missing": damage_missing,
    "not in the manifest": damage_extra,
    "not a regular file": damage_symlink,
    "outside its folder": edit(lambda manifest: manifest["files"].update({"../x": {}})),
    "schema 9": edit(lambda manifest: manifest.update(schema=9)),
    "lists no files": edit(lambda manifest: manifest.pop("files")),
    "not JSON": lambda folder: (folder / durable.MANIFEST).write_text("{"),
    "not an object": lambda folder: (folder / durable.MANIFEST).write_text("[]"),
    "larger than 4 MiB": lambda folder: (folder / durable.MANIFEST).write_text(" " * (2**22 + 1)),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_found_and_named(tmp_path, message):
    folder = tmp_path / "checkpoint"
    durable.commit_folder(folder, fill("good"))
    durable.verify_folder(folder)
    DAMAGES[message](folder)
    with pytest.raises(IntegrityError, match=message):
        durable.verify_folder(folder)


def test_a_linked_folder_is_not_followed(tmp_path):
    durable.commit_folder(tmp_path / "real", fill("good"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(IntegrityError, match="is a link"):
        durable.verify_folder(tmp_path / "link")


def test_digest_depends_on_names_and_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("x")
    second.write_text("y")
    one = durable.digest_files([first, second])
    assert one == durable.digest_files([second, first])
    second.write_text("z")
    assert durable.digest_files([first, second]) != one
