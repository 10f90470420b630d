"""kd init writes a settings file that kd compare takes as it is, every line of it explained."""

import pytest

from kdcli.cli import init
from kdcli.config.resolve import iter_settings, resolve
from kdcli.config.schema import CompareConfig
from shell import kd


def test_flags_become_a_file_that_is_read_back(tmp_path):
    line = "init --teacher T --student random:layers=1,width=8,heads=1 --data a.jsonl --eval-data b.jsonl -o my.yaml"
    answer = kd(*line.split(), folder=tmp_path)
    assert answer.code == 0
    assert "kd compare -c my.yaml" in answer.out
    found = resolve(CompareConfig, file=tmp_path / "my.yaml")
    assert (found.teacher, found.student) == ("T", "random:layers=1,width=8,heads=1")
    assert (found.data.train, found.data.eval) == ("a.jsonl", "b.jsonl")
    assert (found.losses, found.seeds) == (("fkl", "rkl", "akl"), (0, 1, 2))
    plain = CompareConfig(losses=found.losses, seeds=found.seeds)
    assert (found.train, found.evaluation, found.hardware, found.lora) == (
        plain.train, plain.evaluation, plain.hardware, plain.lora
    )  # fmt: skip


def test_every_setting_is_explained_and_what_is_commented_out_may_be_used(tmp_path):
    text = init.text({"losses": ["fkl"], "seeds": [0]})
    settings = iter_settings(CompareConfig)
    lines = text.splitlines()
    for path in (*init._SHOWN, *init._OFFERED):
        name = path.rpartition(".")[2]
        places = [i for i, line in enumerate(lines) if line.lstrip("# ").startswith(f"{name}: ")]
        assert any(settings[path].info.description in lines[place - 1] for place in places), path
    live = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and ": " in line and line[2:].lstrip()[0].islower() and
        line[2:].lstrip().partition(":")[0] in {path.rpartition(".")[2] for path in init._OFFERED}
        else line.removeprefix("# ") if line in ("# lora:", "# execution:") else line
        for line in lines
    )  # fmt: skip
    (tmp_path / "all.yaml").write_text(live)
    found = resolve(CompareConfig, file=tmp_path / "all.yaml")
    assert (found.lora.rank, found.train.max_steps, found.execution.jobs) == (16, 600, 4)
    assert found.tune == ("lr=1e-4,3e-4,1e-3",)


def test_a_file_that_exists_is_kept(tmp_path):
    (tmp_path / "study.yaml").write_text("mine")
    answer = kd("init", folder=tmp_path)
    assert (answer.code, "exists already" in answer.err) == (2, True)
    assert (tmp_path / "study.yaml").read_text() == "mine"


def test_in_a_terminal_three_answers_do(tmp_path, monkeypatch):
    answers = iter(["./T", "./S", "rows.jsonl"])
    monkeypatch.setattr("kdcli.cli.init._asks", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda question, default, err: next(answers))
    assert kd("init", folder=tmp_path).code == 0
    found = resolve(CompareConfig, file=tmp_path / "study.yaml")
    assert (found.teacher, found.student, found.data.train) == ("./T", "./S", "rows.jsonl")
    with pytest.raises(StopIteration):
        next(answers)
