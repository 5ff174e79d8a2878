"""Several processes train what one does."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorry.errors import SettingsError
from lorry.files import read_safetensors
from lorry.training import sharding
from lorry.training.checkpoints import find_checkpoint
from lorry.training.processes import Process
from lorry.training.processes import started as started_as_process
from lorry.training.settings import Settings
from lorry.training.watching import Silent
from training.runs import run

SCRIPT = Path(__file__).with_name("two_processes.py")


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock,ResnetBlock2D",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "ACCELERATE_USE_CPU": "false",
}
"""What `accelerate launch` makes of a configuration file; it does not say that there is no GPU."""


def started(
    *words: object, rank: int = 0, world: int = 1, port: int = 0, **more: str
) -> subprocess.Popen[bytes]:
    """Start the script as `accelerate launch` does."""
    together = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(together if world > 1 else {}), **more}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, SCRIPT, *map(str, words)], env=env, stdout=pipe, stderr=pipe)


def said_by(processes: list[subprocess.Popen[bytes]]) -> list[tuple[str, str]]:
    """Wait for processes that are to end well; return the standard output and error of each."""
    said = []
    for process in processes:
        out, error = (text.decode() for text in process.communicate(timeout=240))
        assert process.returncode == 0, error[-2000:]
        said.append((out, error))
    return said


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
    (told, shown), (told_by_other, shown_by_other) = said_by(both)
    assert re.search(r"toy\.safetensors  \(step 3, average loss \d\.\d+\)", told)
    assert "steps/s" in shown
    assert told_by_other == "", "one process alone tells"
    assert "steps/s" not in shown_by_other
    one, two = (find_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.weights.keys() == two.weights.keys()
    for key, tensor in one.weights.items():
        torch.testing.assert_close(two.weights[key], tensor, rtol=1e-3, atol=2e-5)
    assert (tmp_path / "two" / "losses.csv").read_text().count("\n") == 4, "one process alone writes"


@pytest.mark.parametrize("changes", [{"init": "pissa"}, {"family": "dora"}], ids=str)
def test_two_processes_that_share_out_the_base_train_what_one_does(
    changes: dict[str, Any], sd: Path, data: Path, tmp_path: Path
) -> None:
    port = free_port()
    changes = {**changes, "sample_every": 3, "sample_steps": 1, "sample_prompts": ["a thing"]}
    words = (data, sd, tmp_path / "two", 2, json.dumps(changes))
    both = [started(*words, rank=r, world=2, port=port, **FSDP) for r in range(2)]
    one = run(data, sd, tmp_path / "one", steps=3, batch=4, caption_dropout=0.3, **changes)
    (_, told), _ = said_by(both)
    assert re.search(r"FSDP: each process has its part of [1-9]\d+ of the base's weights", told)
    expected, found = (
        read_safetensors(path).tensors for path in (one.adapter, tmp_path / "two" / one.adapter.name)
    )
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-3, atol=5e-5)
    assert (tmp_path / "two" / "samples.png").is_file()


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "Set `fsdp_version: 2`"),
        ({}, {"quantize": "4bit"}, "`quantize` and FSDP do not go together"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    asked: dict[str, str], changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**FSDP, **asked}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        sharding.check(Settings().changed(changes), SimpleNamespace(state=SimpleNamespace()))


def test_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(value="DEEPSPEED"))
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: accelerator)
    settings = Settings().changed({"out": str(tmp_path), "tensorboard": False})
    with (
        pytest.raises(SettingsError, match="DEEPSPEED takes the model and its optimiser"),
        started_as_process(settings, Silent()),
    ):
        pass


def test_all_processes_begin_with_the_main_ones_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.broadcast", lambda tensor: tensor + 1)  # the main one has others
    parameter = torch.nn.Parameter(torch.zeros(3))
    Process(Settings(), SimpleNamespace(), Silent()).begin_alike([parameter])
    assert torch.equal(parameter, torch.ones(3))


def test_one_process_of_several_that_know_nothing_of_each_other_is_refused(tmp_path: Path) -> None:
    words = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *words, "--dynamo_backend", "no"]
    done = subprocess.run(
        [*launch, "-m", "lorry", "train", tmp_path, "--out", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "was told of several processes and has started one alone" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", ["1", "2"])
def test_several_processes_without_a_gpu_know_that_they_are_several(
    count: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, Any] = {}

    class Told(Exception):  # noqa: N818
        pass

    def accelerator(**given: Any) -> None:
        told.update(given)
        raise Told

    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", count)
    settings = Settings().changed({"out": str(tmp_path), "tensorboard": False})
    with pytest.raises(Told), started_as_process(settings, Silent()):
        pass
    assert told["cpu"] == (count == "2")
