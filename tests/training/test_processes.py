"""Several processes train what one does, and a process that is killed loses no more than the steps since its save."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from lorry.files import read_safetensors
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


def test_a_killed_run_leaves_whole_checkpoints_and_goes_on_from_the_last(
    sd: Path, data: Path, tmp_path: Path
) -> None:
    whole = run(data, sd, tmp_path / "whole", steps=40, save_every=1)
    code = (
        f"import sys; sys.path[:0] = [{str(SCRIPT.parents[1])!r}]\n"
        "from pathlib import Path\n"
        "from training.runs import run\n"
        "a, b, c = map(Path, sys.argv[1:])\n"
        "run(a, b, c, steps=40, save_every=1, resume=True)\n"
    )
    out, done = tmp_path / "killed", 0
    for wait in (0.3, 0.9):
        process = subprocess.Popen([sys.executable, "-c", code, data, sd, out], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list(out.glob("checkpoints/step-*")) or _newest(out) <= done:
            assert time.monotonic() < deadline, "no checkpoint was written"
            assert process.poll() is None, "the run ended by itself"
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = find_checkpoint(out)
        assert found is not None
        done = found.step
        lines = (out / "losses.csv").read_text().splitlines()
        assert len(lines) - 1 - done in (0, 1), "more than the step since the last save was lost"
    run(data, sd, out, steps=40, save_every=1, resume=True)
    expected, found = find_checkpoint(tmp_path / "whole"), find_checkpoint(out)
    assert expected is not None
    assert found is not None
    for key, tensor in expected.weights.items():
        assert torch.equal(found.weights[key], tensor), key
    assert (
        read_safetensors(out / "toy.safetensors").tensors.keys()
        == read_safetensors(whole.adapter).tensors.keys()
    )


def _newest(out: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*"))
