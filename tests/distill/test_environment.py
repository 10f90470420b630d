"""What is recorded of a run's surroundings."""

import os
import subprocess

from kdcli.distill import fingerprint


def test_asking_for_the_revision_writes_nothing(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b", *words], check=True)

    source = tmp_path / "src" / "kdcli" / "runs" / "environment.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    os.utime(source, (1, 1))  # the index now holds an outdated time, which git would renew
    before = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setattr(fingerprint, "__file__", str(source))
    revision = fingerprint._revision()
    assert revision is not None
    assert len(revision) == 12
    assert (tmp_path / ".git" / "index").read_bytes() == before
    source.write_text("changed")
    assert fingerprint._revision() == f"{revision}-dirty"
