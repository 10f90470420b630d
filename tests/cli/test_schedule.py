"""The kd schedule command: its table, its files, and what it refuses."""

import json

import pytest

import shell

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
NODE = """memory: 64MiB
flops: 2e8
epoch_seconds: 0.5
uplink: {seconds: 0.1, bandwidth_hz: 1e6}
downlink: {seconds: 0.1, bandwidth_hz: 1e6}
quantisers:
  bf16: {quality: 1.0}
  int4: {quality: 0.8, slowdown: 0.5}
requests: {prompt: [8, 64], answer: [4, 32], deadline: [0.5, 2.0]}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "edge.yaml").write_text(NODE)
    return tmp_path


def run(folder, *arguments, model="config.json", device="edge.yaml"):
    return shell.kd("schedule", model, "--device", device, *arguments, folder=folder)


def test_every_rule_has_a_line_and_none_beats_the_search(folder):
    done = run(
        folder, "--arrivals", "poisson:12", "--seconds", "5", "--policy", "dftsp,static:4,edf,sjf,none", "--json"
    )
    assert done.code == 0, done.err
    rules = {one["rule"]: one for one in json.loads(done.out)["rules"]}
    assert list(rules) == ["dftsp", "static:4", "edf", "sjf", "none"]
    assert len({one["requests"] for one in rules.values()}) == 1
    assert rules["dftsp"]["nodes"] > 0 == rules["edf"]["nodes"]
    assert rules["none"]["served"] < rules["dftsp"]["served"]
    table = run(folder, "--arrivals", "poisson:12", "--seconds", "5")
    assert "nodes searched" in table.out
    assert "static:8" in table.out


def test_numbers_and_pictures_are_written_and_the_same_again(folder):
    line = ("--arrivals", "poisson:6", "--seconds", "3", "--policy", "dftsp,edf", "-o", "plan")
    assert run(folder, *line).code == 0
    names = sorted(path.name for path in (folder / "plan").iterdir())
    pictures = ("arrivals", "deadlines", "quantisers", "search")
    assert names == sorted(["schedule.json", *(f"{name}.{kind}" for name in pictures for kind in ("png", "svg"))])
    before = (folder / "plan" / "schedule.json").read_bytes()
    assert run(folder, *line).code == 0
    assert (folder / "plan" / "schedule.json").read_bytes() == before
    curves = {one["name"]: one for one in json.loads(before)["curves"]}
    nodes, sets = (one["y"] for one in curves["search"]["series"])
    assert nodes[-1] < sets[-1]


def test_a_trace_is_replayed(folder):
    rows = [{"arrival": 0.1 * at, "prompt": 16, "answer": 8, "deadline": 2.0} for at in range(10)]
    (folder / "trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run(folder, "--requests", "trace.jsonl", "--policy", "dftsp", "--json", "-o", "plan")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rules"][0]["requests"] == 10
    assert not (folder / "plan" / "arrivals.png").exists()  # a trace has no rate to vary


@pytest.mark.parametrize(
    ("line", "code", "exit_code", "where"),
    [
        ((), "CLI-20", 2, "kd schedule"),
        (("--arrivals", "poisson:8", "--requests", "x"), "CLI-20", 2, "kd schedule"),
        (("--arrivals", "poisson:0"), "CLI-06", 2, "--arrivals"),
        (("--arrivals", "normal:3"), "CLI-06", 2, "--arrivals"),
        (("--arrivals", "poisson:8", "--policy", "dftps"), "SCH-03", 2, "--policy"),
        (("--arrivals", "poisson:8", "--policy", ","), "SCH-03", 2, "--policy"),
        (("--arrivals", "poisson:8", "--policy", "static:0"), "SCH-03", 2, "--policy"),
        (("--arrivals", "poisson:8", "--seconds", "0"), "CLI-06", 2, "--seconds"),
        (("--requests", "absent.jsonl"), "DATA-01", 3, "absent.jsonl"),
    ],
)
def test_lines_that_cannot_be_are_refused(folder, line, code, exit_code, where):
    done = run(folder, *line)
    assert done.code == exit_code
    assert done.err.count("kd: error[") == 1
    assert f"error[{code}]: {where}" in done.err


@pytest.mark.parametrize(
    ("old", "new", "code", "where"),
    [
        ("memory: 64MiB", "memory: much", "SCH-01", "edge.yaml line 1"),
        ("flops: 2e8", "flops: -1", "SCH-01", "edge.yaml line 2"),
        ("epoch_seconds: 0.5", "epoch: 0.5", "SCH-01", "edge.yaml line 3"),
        ("bandwidth_hz: 1e6}\nq", "bandwidth: 1e6}\nq", "SCH-01", "edge.yaml line 5"),
        ("int4: {", "int3: {", "SCH-01", "edge.yaml"),
        ("prompt: [8, 64]", "prompt: [64, 8]", "SCH-01", "edge.yaml"),
        ("memory: 64MiB", "memory: 1kB", "SCH-04", "config.json"),
    ],
)
def test_nodes_that_cannot_be_name_their_line(folder, old, new, code, where):
    assert old in NODE
    (folder / "edge.yaml").write_text(NODE.replace(old, new))
    done = run(folder, "--arrivals", "poisson:8")
    assert done.code == 3
    assert f"error[{code}]: {where}" in done.err


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"prompt": 4}', '{"prompt": 0, "answer": 1, "deadline": 1}', '{"prompt": 1, "size": 2}', "[" * 200],
)
def test_requests_that_cannot_be_name_their_line(folder, line):
    good = '{"prompt": 4, "answer": 4, "deadline": 1}'
    (folder / "trace.jsonl").write_text(f"{good}\n{line}\n")
    done = run(folder, "--requests", "trace.jsonl")
    assert done.code == 3
    assert "error[SCH-02]: trace.jsonl line 2" in done.err
