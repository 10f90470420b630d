"""Two and more ranks give the numbers of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ranks.py")


def launch(folder: Path, ranks: int, spec: str) -> dict[str, torch.Tensor]:
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder), spec],
        check=True,
        capture_output=True,
        timeout=600,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *sys.path]),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        },
    )
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree(tmp_path, ranks):
    spec = "0.5*ce+0.5*akl"
    one = launch(tmp_path / "one", 1, spec)
    many = launch(tmp_path / "many", ranks, spec)
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-9, atol=1e-11)
    logs = [(tmp_path / side / "metrics.jsonl").read_text().splitlines() for side in ("one", "many")]
    for alone, together in zip(*logs, strict=True):
        first, second = json.loads(alone), json.loads(together)
        assert first["tokens"] == second["tokens"]
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
        assert second["gradient_norm"] == pytest.approx(first["gradient_norm"], rel=1e-6)
