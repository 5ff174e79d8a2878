"""A checkpoint is there whole or not at all, wherever the process that writes it ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lorry.cli.app import app
from lorry.errors import CheckpointError
from lorry.files import read_safetensors
from lorry.training import checkpoints
from lorry.training.checkpoints import Checkpoint, check_same_run, find_checkpoint, save_checkpoint
from lorry.training.records import Records
from lorry.training.watching import Progress
from training.runs import run


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step, {"unet.a.up": torch.full((3,), float(step))}, {"optimiser": {"n": step}}, {"rank": [2]}
    )


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("where", ["weights", "state", "facts", "rename"])
def test_an_end_in_the_middle_of_saving_leaves_the_checkpoint_before(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=2)

    def end(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        match where:
            case "weights":
                patch.setattr(checkpoints, "write_safetensors", end)
            case "state":
                patch.setattr(torch, "save", end)
            case "facts":
                patch.setattr(Path, "write_text", end)
            case _:
                patch.setattr(Path, "rename", end)
        with pytest.raises(KilledError):
            save_checkpoint(tmp_path, checkpoint(2), keep=2)
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.state, found.facts) == (1, {"optimiser": {"n": 1}}, {"rank": [2]})
    assert torch.equal(found.weights["unet.a.up"], torch.ones(3))
    save_checkpoint(tmp_path, checkpoint(2), keep=2)
    again = find_checkpoint(tmp_path)
    assert again is not None
    assert again.step == 2


@pytest.mark.parametrize("where", ["weights", "state", "facts"])
def test_a_full_disk_is_named_and_leaves_the_checkpoint_before_and_no_draft(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        match where:
            case "weights":
                patch.setattr(os, "fsync", full)
            case "state":
                patch.setattr(torch, "save", full)
            case _:
                patch.setattr(Path, "write_text", full)
        with pytest.raises(
            CheckpointError, match=r"step 2 cannot be written: .*No space left.*lorry train --resume"
        ):
            save_checkpoint(tmp_path, checkpoint(2), keep=2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4000):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000030",
        "step-00004000",
    ]


def test_a_damaged_checkpoint_and_another_runs_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(1), keep=2)
    with pytest.raises(CheckpointError, match=r"another rank: \[2\] there, \[3\] here"):
        check_same_run(checkpoint(1), {"rank": [3]})
    (folder / "optimiser.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="Remove this folder to go on from the checkpoint before it"):
        find_checkpoint(tmp_path)


def test_losses_after_the_checkpoint_and_half_lines_are_dropped(tmp_path: Path) -> None:
    records = Records(tmp_path, 0)
    for step in (1, 2, 3):
        records.add(step, step / 10, 0.5)
    with (tmp_path / "losses.csv").open("a") as file:
        file.write("4,0.")
    assert [row[0] for row in Records(tmp_path, 2).rows] == [1, 2]
    assert (tmp_path / "losses.csv").read_text().splitlines() == ["step,loss,rate", "1,0.1,0.5", "2,0.2,0.5"]


def test_a_run_that_is_killed_goes_on_and_ends_with_the_bits_of_one_that_was_not(
    sd: Path, data: Path, tmp_path: Path
) -> None:
    words = {"steps": 12, "save_every": 2, "batch": 1, "rank": 2, "resolution": 16, "name": "toy"}
    options = [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "lorry", "train", data, "--base", sd, "--out", tmp_path / "killed"]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*map(str, command), *options, "--no-tensorboard"], env=env)
    while find_checkpoint(tmp_path / "killed") is None and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it has ended before it was killed"
    left = find_checkpoint(tmp_path / "killed")
    assert left is not None
    assert left.step < 12
    changes: dict[str, Any] = {**words, "rate": 1e-4, "targets": "blocks"}
    resumed = run(data, sd, tmp_path / "killed", resume=True, **changes)
    whole = run(data, sd, tmp_path / "whole", **changes)
    for one, other in zip(
        *(read_safetensors(result.adapter).tensors.values() for result in (resumed, whole)), strict=True
    ):
        assert torch.equal(one, other)


def test_a_run_that_is_asked_to_stop_says_so_to_scripts_too(
    sd: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_screen: object, progress: Progress) -> None:
        if progress.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("lorry.cli.training._Screen.step", stop)
    words = ["train", str(data), "--base", str(sd), "--out", str(tmp_path / "out"), "--sample-every", "0"]
    stopped = CliRunner().invoke(app, [*words, "--steps", "5", "--resolution", "16", "--no-tensorboard"])
    assert stopped.exit_code == 130, stopped.output
    assert "Stopped at step" in stopped.stdout
    monkeypatch.undo()
    idle = CliRunner().invoke(app, ["train", "--resume", str(tmp_path / "out"), "--out", str(tmp_path / "x")])
    assert idle.exit_code == 2
    assert "`--out` beside `--resume`" in idle.stderr
    resumed = CliRunner().invoke(app, ["train", "--resume", str(tmp_path / "out")])
    assert resumed.exit_code == 0, resumed.output
