"""Several processes train what one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from lorry.training.checkpoints import find_checkpoint
from training.runs import run

SCRIPT = Path(__file__).with_name("two_processes.py")


def started(*words: object, rank: int = 0, world: int = 1, port: int = 0) -> subprocess.Popen[bytes]:
    """Start the script as `accelerate launch` does."""
    together = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(together if world > 1 else {})}
    return subprocess.Popen([sys.executable, SCRIPT, *map(str, words)], env=env, stderr=subprocess.PIPE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_with_batches_of_two_train_what_one_with_a_batch_of_four_does(
    sd: Path, data: Path, tmp_path: Path
) -> None:
    port = free_port()
    both = [started(data, sd, tmp_path / "two", 2, rank=r, world=2, port=port) for r in range(2)]
    run(data, sd, tmp_path / "one", steps=3, batch=4, caption_dropout=0.3)
    for process in both:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-2000:]
    one, two = (find_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.weights.keys() == two.weights.keys()
    for key, tensor in one.weights.items():
        torch.testing.assert_close(two.weights[key], tensor, rtol=1e-3, atol=2e-5)
    assert (tmp_path / "two" / "losses.csv").read_text().count("\n") == 4, "one process alone writes"
