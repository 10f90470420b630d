import json

from kdcli.study.cell_progress import read_progress


def write(folder, status, steps=0, pace=0.5):
    folder.mkdir(exist_ok=True)
    (folder / "status.json").write_text(json.dumps(status))
    for name, value in (("metrics.jsonl", {"loss": 1.0}), ("timing.jsonl", {"seconds": pace})):
        lines = [json.dumps({"step": step, **value}) for step in range(1, steps + 1)]
        (folder / name).write_text("".join(f"{line}\n" for line in lines) + '{"step": 99')


def test_a_cell_from_nothing_to_done(tmp_path):
    cell = tmp_path / "cell"
    assert read_progress(cell, "eval/test", held=False).state == "waiting"
    write(cell, {"state": "training", "total": 200}, steps=150)
    running = read_progress(cell, "eval/test", held=True)
    assert (running.state, running.step, running.total, running.seconds_left) == ("running", 150, 200, 25.0)
    assert read_progress(cell, "eval/test", held=False).state == "stopped"
    (cell / "error.log").write_text("no")
    write(cell, {"state": "failed", "total": 200}, steps=3)
    assert read_progress(cell, "eval/test", held=False).state == "failed"
    write(cell, {"state": "done", "steps": 200, "seconds": 99.0}, steps=200)
    (cell / "model").mkdir()
    (cell / "error.log").unlink()
    assert read_progress(cell, "eval/test", held=False).state == "stopped"
    (cell / "eval" / "test").mkdir(parents=True)
    (cell / "eval" / "test" / "results.json").write_text("{}")
    done = read_progress(cell, "eval/test", held=False)
    assert (done.state, done.step, done.seconds, done.seconds_left) == ("done", 200, 99.0, 0.0)


def test_half_written_files_are_no_error(tmp_path):
    (tmp_path / "status.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_bytes(b"[1]\n\xff\n")
    assert read_progress(tmp_path, "dev", held=False).step == 0
