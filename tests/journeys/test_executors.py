"""One study on every executor: the same table, byte for byte."""

import pytest

import study
from shell import kd, kd_process

TABLES = ("table.md", "table.json", "table.csv", "table.tex", "table.html", "results.parquet", "samples.parquet")
OPTIONS = [
    *("--teacher", "../teacher", "--student", "../student", "--data", "../train.jsonl"),
    *("--eval-data", "../test.jsonl", "--max-steps", "4", "--batch-size", "4", "--metric", "perplexity"),
    *("--threads", "1", "--device", "cpu", "-o", "study"),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("executors"))


def tables(parts, name, *executor):
    """Run the study in a folder of its own; return the tables' bytes. Ray starts in a process of its own."""
    folder = parts.root / name
    folder.mkdir()
    done = (kd_process if "ray" in executor else kd)("compare", "fkl", "rkl", *OPTIONS, *executor, folder=folder)
    assert done.code == 0, done.err
    return {table: (folder / "study" / table).read_bytes() for table in TABLES}


@pytest.fixture(scope="module")
def inline(parts):
    return tables(parts, "inline")


@pytest.mark.slow
def test_two_jobs_give_the_same_table(parts, inline):
    assert tables(parts, "local", "--jobs", "2") == inline
    logs = sorted(path.name for path in (parts.root / "local" / "study" / "logs").iterdir())
    assert [name.rpartition("-test.log")[1] for name in logs] == ["-test.log", "-test.log"]


@pytest.mark.slow
def test_slurm_gives_the_same_table(parts, inline):
    pytest.importorskip("submitit")
    assert tables(parts, "slurm", "--executor", "slurm", "--slurm", "cluster=local", "--jobs", "2") == inline


@pytest.mark.full
def test_ray_gives_the_same_table(parts, inline):
    pytest.importorskip("ray")
    assert tables(parts, "ray", "--executor", "ray") == inline


@pytest.mark.slow
def test_a_run_of_two_processes_starts_through_the_launcher(parts):
    words = ["distill", "--loss", "fkl", *OPTIONS[:-1], "two", "--gpus", "2", "--set", "train.keep_finished=true"]
    (parts.root / "gpus").mkdir()
    done = kd_process(*words, folder=parts.root / "gpus")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "two/model"
    state = next((parts.root / "gpus" / "two").glob("checkpoint-*/state.json")).read_text()
    assert '"processes": 2' in state
