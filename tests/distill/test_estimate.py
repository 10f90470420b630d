"""The estimate of memory against what training takes, in a fresh process for each shape."""

import json
import os
import subprocess
import sys

import pytest

import tiny

SHAPES = {
    "the process": ("llama", 0, {}, {"hidden_size": 8}, 1, 4),
    "weights and logits": (
        "gpt2",
        32000,
        {"n_embd": 256, "n_head": 4},
        {"n_embd": 192, "n_head": 4},
        5,
        16,
    ),
    "activations": (
        "llama",
        0,
        {"hidden_size": 192, "intermediate_size": 512, "max_position_embeddings": 512, "num_hidden_layers": 4},
        {"hidden_size": 192, "intermediate_size": 512, "max_position_embeddings": 512, "num_hidden_layers": 6},
        240,
        8,
    ),
}
SCRIPT = """
import json, sys
from kdcli.config.schema import DataConfig, DistillConfig, HardwareConfig, TrainConfig
from kdcli.events import silent
from kdcli.distill.run import distill
from kdcli.distill.plan import estimate
from kdcli.distill.prepare import prepare_run
from kdcli.loading.session import Session
root, batch = sys.argv[1], int(sys.argv[2])
config = DistillConfig(
    teacher=f"{root}/teacher", student=f"{root}/student", data=DataConfig(train=f"{root}/rows.jsonl"),
    train=TrainConfig(max_steps=2, batch_size=batch), hardware=HardwareConfig(device="cpu", threads=1),
    output=f"{root}/run",
)
session = Session()
prepared = prepare_run(config, session)
expected = estimate(prepared).peak_bytes
print(json.dumps([expected, distill(config, silent, session=session, prepared=prepared).peak_bytes]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    ["weights and logits", *(pytest.param(one, marks=pytest.mark.full) for one in ("the process", "activations"))],
)
def test_the_peak_is_within_a_fifth_of_the_estimate(shape, tmp_path):
    family, words, teacher, student, length, batch = SHAPES[shape]
    vocabulary = tiny.WORDS + [f"w{at}" for at in range(words - len(tiny.WORDS))]
    tiny.folder(tmp_path / "teacher", family, words=vocabulary, seed=1, **teacher)
    tiny.folder(tmp_path / "student", family, words=vocabulary, seed=2, **student)
    rows = [{"prompt": "say a:", "completion": " " + chr(97 + at % 26) * length} for at in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(batch)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected, measured = json.loads(done.stdout.splitlines()[-1])
    assert 0.8 * measured <= expected <= 1.2 * measured
