import errno
import json
import os
import resource
import shutil
import stat

import pytest
import torch
from safetensors.torch import save_file

import faults
import power
import tiny
from kdcli.errors import IntegrityError, MachineError
from kdcli.storage import atomic

MANY = [*tiny.WORDS, *(f"word{number}" for number in range(500))]


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
            if calls["left"] <= 0:
                raise Killed
            return real(*args, **kwargs)

        return call

    calls_to = ("replace", "fsync", "write", "mkdir", "unlink", "rmdir")
    for owner, name in (*((os, name) for name in calls_to), (atomic, "_exchange")):
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    return calls


@pytest.fixture(params=["exchange", "two renames"])
def one_operation(request, tmp_path, monkeypatch):
    """A system that swaps two names at once, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.usefixtures("one_operation")
def test_a_kill_at_any_operation_leaves_a_whole_folder_or_none(tmp_path, replaces):
    died = 0
    for number in range(1, 60):
        home = tmp_path / str(number)
        home.mkdir()
        final = home / "checkpoint"
        if replaces:
            atomic.commit_folder(final, fill("old"))
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number)
            try:
                atomic.commit_folder(final, fill("new"), {"step": 7})
            except Killed:
                died += 1
        atomic.remove_temporaries(home)
        assert final.exists() or not replaces
        if final.exists():
            manifest = atomic.verify_folder(final)
            assert (final / "a.txt").read_text() == ("new" if manifest.get("step") == 7 else "old")
        assert [path.name for path in home.iterdir()] in ([], ["checkpoint"])
    assert 8 < died < 59


def test_a_full_disk_is_one_error_and_keeps_the_old_bytes(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    atomic.write_file(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left") as caught:
        atomic.write_file(path, "new")
    assert caught.value.exit_code == 4
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WEAKER = {
    "files are not flushed": lambda handle: not is_file(handle),
    "the new folder is not flushed": lambda handle: ".tmp-" not in place(handle) or is_file(handle),
    "the folder around it is not flushed": lambda handle: ".tmp-" in place(handle),
}


def is_file(handle):
    return stat.S_ISREG(os.fstat(handle).st_mode)


def place(handle):
    return os.readlink(f"/proc/self/fd/{handle}")


def lost_states(home):
    """Return how many states a loss of power may leave while a folder is replaced, and how many hold no whole one."""
    root = home / "root"
    root.mkdir(parents=True)
    atomic.commit_folder(root / "checkpoint", fill("old"))
    work = faults.Work(root, lambda: atomic.commit_folder(root / "checkpoint", fill("new")), home / "beside")
    seen, lost = set(), 0
    for moment in power.moments(work):
        for _, state in power.states(moment):
            if (key := tuple(sorted(state.items()))) in seen:
                continue
            seen.add(key)
            power.put(state, root, home / "beside" / "blobs")
            atomic.remove_temporaries(root)
            try:
                atomic.verify_folder(root / "checkpoint")
            except IntegrityError:
                lost += 1
    return len(seen), lost


def test_a_loss_of_power_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path):
    seen, lost = lost_states(tmp_path)
    assert seen > 50
    assert lost == 0


@pytest.mark.parametrize("kept", WEAKER)
def test_a_loss_of_power_is_seen_where_something_is_not_flushed(tmp_path, monkeypatch, kept):
    flush = atomic._flush
    monkeypatch.setattr(atomic, "_flush", lambda handle: flush(handle) if WEAKER[kept](handle) else None)
    assert lost_states(tmp_path)[1] > 0


def test_a_loss_of_power_is_seen_where_the_old_folder_goes_first(tmp_path, monkeypatch):
    def swap(temporary, final):
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)

    monkeypatch.setattr(atomic, "_swap", swap)
    assert lost_states(tmp_path)[1] > 0


REFUSALS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG]


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("form", ["python", "rust", "rust behind another"])
def test_a_refusal_while_a_folder_is_filled_is_the_machines_and_leaves_nothing(tmp_path, number, form):
    atomic.commit_folder(tmp_path / "model", fill("old"))

    def refuse(folder):
        (folder / "half").write_text("x")
        if form == "python":
            raise OSError(number, os.strerror(number))
        error = RuntimeError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        raise error if form == "rust" else ValueError("the model cannot be saved") from error

    with pytest.raises(MachineError, match=os.strerror(number)) as caught:
        atomic.commit_folder(tmp_path / "model", refuse)
    assert caught.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "a.txt").read_text() == "old"


@pytest.fixture
def small_files():
    """No file may grow beyond 4 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_tensor_file_that_the_system_refuses_is_the_machines_fault(tmp_path):
    """The libraries that write tensors and tokenizers end their own error with the system's number."""
    with pytest.raises(MachineError, match="File too large"):
        atomic.commit_folder(tmp_path / "model", lambda folder: save_file({"a": torch.zeros(9999)}, folder / "a"))
    with pytest.raises(MachineError, match="File too large"):
        atomic.commit_folder(tmp_path / "model", lambda folder: tiny.tokenizer(MANY).save_pretrained(folder))
    with pytest.raises(MachineError, match="File too large"):
        atomic.write_file(tmp_path / "table", b"x" * 9999)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_ours_is_no_refusal_of_the_machine_and_leaves_nothing(tmp_path):
    def wrong(folder):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        atomic.commit_folder(tmp_path / "model", wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_gone_is_not_made_again(tmp_path):
    gone = tmp_path / "run"
    for write in (
        lambda: atomic.commit_folder(gone / "checkpoint", fill("x")),
        lambda: atomic.write_file(gone / "status.json", "x"),
        lambda: atomic.AppendOnlyFile(gone / "metrics.jsonl"),
        lambda: atomic.make_inside(gone, "eval"),
    ):
        with pytest.raises(MachineError, match="No such file or directory"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed_for_writing(tmp_path):
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    (outside / "diary").write_text("kept")
    for name in ("status.json", "metrics.jsonl"):
        (run / name).symlink_to(outside / "diary")
    for name in ("eval", "model"):
        (run / name).symlink_to(outside)
    atomic.write_file(run / "status.json", "new")
    assert (run / "status.json").read_text() == "new"
    atomic.commit_folder(run / "model", fill("new"))
    assert (run / "model" / "a.txt").read_text() == "new"
    for write in (
        lambda: atomic.AppendOnlyFile(run / "metrics.jsonl"),
        lambda: atomic.make_inside(run, "eval", "test"),
    ):
        with pytest.raises(IntegrityError, match="is a link"):
            write()
    assert [path.name for path in outside.iterdir()] == ["diary"]
    assert (outside / "diary").read_text() == "kept"
    assert not atomic.leftovers(run)


def test_a_name_made_ready_by_somebody_else_is_not_written_through(tmp_path, monkeypatch):
    """A temporary name that exists already is an error, whatever it is."""
    (tmp_path / "diary").write_text("kept")
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "00")
    (tmp_path / ".tmp-00").symlink_to(tmp_path / "diary")
    with pytest.raises(MachineError, match="File exists"):
        atomic.commit_folder(tmp_path / "model", fill("x"))
    with pytest.raises(MachineError, match="File exists"):
        atomic.write_file(tmp_path / "table", "x")
    assert (tmp_path / "diary").read_text() == "kept"


def test_lines_keep_what_is_whole(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nhal")
    lines = atomic.AppendOnlyFile(path)
    assert lines.size == 8
    lines.add(b"three\n")
    assert lines.settle() == 14
    lines.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    atomic.AppendOnlyFile(path, 4).close()
    assert path.read_bytes() == b"one\n"
    path.write_bytes(b"x" * 200_000)
    assert atomic.AppendOnlyFile(path).size == 0


def test_a_write_that_failed_is_never_tried_again(tmp_path, monkeypatch):
    lines = atomic.AppendOnlyFile(tmp_path / "lines")
    lines.add(b"one\n")
    tried = []

    def full(*args):
        tried.append(args)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "fsync", full)
    for work in (lambda: lines.add(b"two\n"), lambda: lines.add(b"three\n"), lines.settle):
        with pytest.raises(MachineError):
            work()
    lines.close()
    assert len(tried) == 1


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


def edit(change, *, signed=False):
    def damage(folder):
        path = folder / atomic.MANIFEST
        manifest = json.loads(path.read_text())
        change(manifest)
        manifest |= {"digest": atomic.digest_record(manifest)} if signed else {}
        path.write_text(json.dumps(manifest))

    return damage


DAMAGES = {
    "digest differs": damage_flip,
    "another size": damage_truncate,
    "is missing": damage_missing,
    "not in the manifest": damage_extra,
    "not a regular file": damage_symlink,
    "outside its folder": edit(lambda manifest: manifest["files"].update({"../x": {}}), signed=True),
    "digest differs from the one it carries": edit(lambda manifest: manifest.update(step=9)),
    "schema 9": edit(lambda manifest: manifest.update(schema=9)),
    "lists no files": edit(lambda manifest: manifest.pop("files"), signed=True),
    "not JSON": lambda folder: (folder / atomic.MANIFEST).write_text("{"),
    "not an object": lambda folder: (folder / atomic.MANIFEST).write_text("[]"),
    "larger than 4 MiB": lambda folder: (folder / atomic.MANIFEST).write_text(" " * (2**22 + 1)),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_found_and_named(tmp_path, message):
    folder = tmp_path / "checkpoint"
    atomic.commit_folder(folder, fill("good"))
    atomic.verify_folder(folder)
    DAMAGES[message](folder)
    with pytest.raises(IntegrityError, match=message):
        atomic.verify_folder(folder)


def test_a_linked_folder_is_not_followed(tmp_path):
    atomic.commit_folder(tmp_path / "real", fill("good"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(IntegrityError, match="is a link"):
        atomic.verify_folder(tmp_path / "link")


def test_digest_depends_on_names_and_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("x")
    second.write_text("y")
    one = atomic.digest_files([first, second])
    assert one == atomic.digest_files([second, first])
    second.write_text("z")
    assert atomic.digest_files([first, second]) != one
