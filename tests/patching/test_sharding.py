"""Models that are spread over processes draw with adapters what they draw on one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

WORKER = Path(__file__).with_name("sharding.py")


@pytest.mark.skipif(not distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_draw_what_one_does(tmp_path: Path) -> None:
    meeting = str(tmp_path / "meeting")
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), meeting],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=WORKER.parents[1],
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)
    assert said[0].count(": as on one process") == 4
    assert said[0].count(": refusals") == 2
    assert said[0].count(": trained as on one process") == 6
