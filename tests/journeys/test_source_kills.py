"""``kill -9`` while sequences are written or replayed: the student is that of a run nobody touched."""

import signal

import pytest

import study
from kdcli.config.schema import MonitorConfig
from kdcli.distill.run import distill
from kdcli.errors import InterruptedRunError
from kdcli.events import silent
from kdcli.sources import replay, student
from kdcli.storage.atomic import digest_file
from killing import forked, killed_when

SPECS = {
    "student": "jsd@student:rate=0.7,max_new_tokens=8",
    "replay": "srkl@replay:phi=0.6,growth=0.2,eps=0,capacity=9,max_new_tokens=8",
    "teacher": "ce@teacher:answers=2,max_new_tokens=12",
}


def config(parts, name, spec):
    settings = parts.run(name, spec, max_steps=12, save_every=2)
    monitor = MonitorConfig(every=3, rows=4)
    return settings.model_copy(
        update={"monitor": monitor, "data": settings.data.model_copy(update={"eval": str(parts.test)})}
    )


def progress(folder):
    """Lines written so far, of text and of steps."""
    files = [*folder.glob("metrics.jsonl"), *folder.glob("made/.teacher-*.jsonl"), *folder.glob("made/*/text.jsonl")]
    return sum(path.read_bytes().count(b"\n") for path in files if path.is_file())


def killed_after(pid, folder, lines):
    start = progress(folder)
    return killed_when(pid, lambda: progress(folder) >= start + lines)


@pytest.mark.parametrize("name", SPECS)
def test_a_killed_run_ends_as_if_nobody_had_touched_it(tmp_path, name):
    parts = study.Parts(tmp_path)
    whole = distill(config(parts, "whole", SPECS[name]), silent)
    settings, kills = config(parts, "killed", SPECS[name]), 0
    for lines in (1, 3, 2):
        kills += killed_after(forked(distill, settings, silent), tmp_path / "killed", lines)
    assert kills >= 1
    again = distill(settings, silent)
    for file in ("model.safetensors",):
        assert digest_file(again.model / file) == digest_file(whole.model / file)
    assert (again.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    texts = [sorted(path.read_bytes() for path in run.folder.glob("made/*/text.jsonl")) for run in (again, whole)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == (name == "teacher")


@pytest.mark.parametrize("where", ["while it writes", "between steps"])
@pytest.mark.parametrize("name", ["student", "replay"])
def test_a_run_told_to_stop_ends_as_if_nobody_had_told_it(tmp_path, name, where, monkeypatch):
    parts = study.Parts(tmp_path)
    whole = distill(config(parts, "whole", SPECS[name]), silent)
    settings, stops = config(parts, "stopped", SPECS[name]), 0
    module = {"student": student, "replay": replay}[name]
    plain = module.write

    def signalled(*args, **more):
        found = plain(*args, **more)
        signal.raise_signal(signal.SIGTERM)
        return found

    def signalling(event):
        if event.kind == "progress" and event.message == "training":
            signal.raise_signal(signal.SIGINT)

    for _ in range(20):
        with monkeypatch.context() as patch:
            if where == "while it writes":
                patch.setattr(module, "write", signalled)
            try:
                again = distill(settings, signalling if where == "between steps" else silent)
                break
            except InterruptedRunError:
                stops += 1
    else:
        pytest.fail("every start was stopped without a step")
    assert stops >= 3
    assert digest_file(again.model / "model.safetensors") == digest_file(whole.model / "model.safetensors")
    assert (again.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
