"""What a run leaves when it is done, and what it never does: follow a link, make again what was removed."""

import shutil
from contextlib import contextmanager

import pytest

from kdcli.distill.run import distill
from kdcli.errors import ExperimentChangedError, InputError, IntegrityError, MachineError
from kdcli.events import silent
from kdcli.storage import atomic, lock
from kdcli.storage.digests import write_digests
from kdcli.storage.run_dir import RunFolder
from kdcli.study import results
from kdcli.study.clean import clean
from kdcli.study.compare import compare
from study import Parts, tree

SHORT = {"max_steps": 3, "save_every": 1}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("run-access"))


@pytest.fixture(scope="module")
def done(parts):
    return distill(parts.run("done", **SHORT), silent)


def test_a_finished_run_keeps_no_checkpoint_unless_asked(parts, done):
    assert not list(done.folder.glob("checkpoint-*"))
    kept = distill(parts.run("kept", **SHORT, keep=2, keep_finished=True), silent)
    assert [path.name for path in sorted(kept.folder.glob("checkpoint-*"))] == [
        "checkpoint-00000002", "checkpoint-00000003",
    ]  # fmt: skip
    asked_again = distill(parts.run("kept", **SHORT), silent)
    assert asked_again.already_done
    assert not list(kept.folder.glob("checkpoint-*"))
    with pytest.raises(ExperimentChangedError, match="steps was 3 and is now 6"):
        distill(parts.run("kept", max_steps=6), silent)


def left_over(folder):
    """What kills leave beside a finished run: temporary folders, a checkpoint, answers that the evaluation holds."""
    shutil.copytree(folder / "model", folder / ".tmp-0123456789abcdef")
    shutil.copytree(folder / "eval" / "test", folder / "eval" / ".tmp-0123456789abcdef")
    shutil.copytree(folder / "model", folder / "checkpoint-00000003")
    shutil.copy(folder / "eval" / "test" / "answers.jsonl", folder / "eval" / ".test.answers.jsonl")


def without_lock(folder):
    return {name: data for name, data in tree(folder).items() if name != ".lock"}


def test_the_same_line_removes_what_kills_left_beside_a_finished_run(parts, done):
    before = without_lock(done.folder)
    left_over(done.folder)
    assert distill(parts.run("done", **SHORT), silent).already_done
    assert without_lock(done.folder) == before


def test_a_folder_that_was_set_aside_is_put_back(parts, done):
    before = without_lock(done.folder)
    (done.folder / "model").rename(done.folder / ".tmp-old-0123456789abcdef-model")
    assert distill(parts.run("done", **SHORT), silent).already_done
    assert without_lock(done.folder) == before


def test_a_finished_run_is_read_where_nothing_may_be_removed(parts, done, monkeypatch):
    left_over(done.folder)

    @contextmanager
    def read_only(folder):
        raise atomic.disk_error(OSError(30, "Read-only file system"), folder)
        yield

    with monkeypatch.context() as patch:
        patch.setattr(lock, "hold", read_only)
        assert distill(parts.run("done", **SHORT), silent).already_done
    assert (done.folder / "checkpoint-00000003").is_dir()
    distill(parts.run("done", **SHORT), silent)


def test_a_temporary_that_a_process_is_writing_is_not_swept(tmp_path):
    seen = []

    def fill(folder):
        atomic.remove_temporaries(tmp_path)
        seen.append(folder.is_dir())

    atomic.commit_folder(tmp_path / "model", fill)
    assert seen == [True]
    (tmp_path / ".tmp-0123456789abcdef").mkdir()
    atomic.remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_answers_that_no_evaluation_holds_are_kept(parts, done):
    path = done.folder / "eval" / ".test.answers.jsonl"
    whole = (done.folder / "eval" / "test" / "answers.jsonl").read_text()
    atomic.write_file(path, whole)
    assert atomic.digest_file(path)
    shutil.copy(path, done.folder / "eval" / ".other.answers.jsonl")
    distill(parts.run("done", **SHORT), silent)
    assert [item.name for item in sorted((done.folder / "eval").iterdir())] == [".other.answers.jsonl", "test"]
    (done.folder / "eval" / ".other.answers.jsonl").unlink()


@pytest.mark.parametrize("message", ["training", "answering"])
def test_a_run_folder_that_is_removed_while_it_runs_is_not_made_again(parts, message):
    config = parts.run(f"removed-{message}", **SHORT)

    def remove(event):
        if event.kind == "progress" and event.message == message and event.done:
            shutil.rmtree(config.output, ignore_errors=True)

    with pytest.raises(MachineError, match="No such file or directory") as caught:
        distill(config, remove)
    assert caught.value.exit_code == 4
    assert not (parts.root / f"removed-{message}").exists()


def test_a_study_that_is_removed_while_it_runs_is_not_made_again(parts, monkeypatch):
    monkeypatch.setattr(results, "publish", lambda folder, *rest: write_digests(folder))
    config = parts.study("fkl", "ce", name="removed-study", **SHORT)

    def remove(event):
        if event.kind == "progress" and event.message.endswith("training") and event.done:
            shutil.rmtree(config.output, ignore_errors=True)

    with pytest.raises(MachineError, match="No such file or directory"):
        compare(config, remove)
    assert not (parts.root / "removed-study").exists()


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "timing.jsonl", "eval"])
def test_a_link_inside_a_run_folder_is_refused(parts, name):
    outside, run = parts.root / f"outside-{name}", parts.root / f"linked-{name}"
    outside.mkdir()
    run.mkdir()
    target = outside if name == "eval" else outside / "diary"
    if name != "eval":
        target.write_text("kept")
    before = tree(outside)
    distilled = parts.run(run.name, **SHORT)
    (run / name).symlink_to(target)
    if name != ".lock":  # a folder with a strange file is refused, unless it is a run
        (run / name).rename(outside / "aside")
        with pytest.raises(KeyboardInterrupt):
            distill(distilled, lambda event: (_ for _ in ()).throw(KeyboardInterrupt) if event.done == 2 else None)
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)
        (outside / "aside").rename(run / name)
    with pytest.raises(IntegrityError, match="is a link") as caught:
        distill(distilled, silent)
    assert caught.value.exit_code == 6
    assert tree(outside) == before


def test_a_link_inside_a_study_is_refused(parts):
    outside, folder = parts.root / "outside-cells", parts.root / "linked-study"
    outside.mkdir()
    folder.mkdir()
    (folder / "cells").symlink_to(outside)
    with pytest.raises(IntegrityError, match="cells: is a link"):
        compare(parts.study("fkl", "ce", name=folder.name, **SHORT), silent)
    assert not list(outside.iterdir())


def test_clean_lists_first_and_removes_only_what_nothing_is_read_from(parts, done, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(done.folder, study / "cells" / "one", ignore=shutil.ignore_patterns(".lock"))
    before = tree(study)
    left_over(study / "cells" / "one")
    listed = clean(study, keep_checkpoints=False, dry_run=True)
    assert {one.path for one in listed} == {
        "cells/one/.tmp-0123456789abcdef", "cells/one/eval/.tmp-0123456789abcdef",
        "cells/one/checkpoint-00000003", "cells/one/eval/.test.answers.jsonl",
    }  # fmt: skip
    assert all(one.size > 0 for one in listed)
    assert tree(study) != before
    kept = clean(study, keep_checkpoints=True, dry_run=False)
    assert len(kept) == len(listed) - 1
    assert [one.path for one in clean(study, keep_checkpoints=False, dry_run=False)] == [
        "cells/one/checkpoint-00000003"
    ]
    (study / "cells" / "one" / ".lock").unlink()
    assert tree(study) == before
    assert clean(study, keep_checkpoints=False, dry_run=False) == []


def test_clean_keeps_what_is_asked_for_or_needed_and_touches_nothing_that_kd_did_not_write(parts, tmp_path):
    asked = distill(parts.run("asked-to-keep", **SHORT, keep=2, keep_finished=True), silent)
    assert clean(asked.folder, keep_checkpoints=False, dry_run=False) == []
    assert len(list(asked.folder.glob("checkpoint-*"))) == 2
    started = distill(parts.run("started", **SHORT, keep=2, keep_finished=True), silent)
    RunFolder(started.folder).set_status("failed", steps=3)
    assert clean(started.folder, keep_checkpoints=False, dry_run=False) == []
    (tmp_path / "strange" / "checkpoint-00000001").mkdir(parents=True)
    with pytest.raises(InputError, match="nothing here was written by kd"):
        clean(tmp_path / "strange", keep_checkpoints=False, dry_run=False)
    assert (tmp_path / "strange" / "checkpoint-00000001").is_dir()
