"""The processes of a run, as accelerate was launched: how many, on which device, in which precision."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from lorry.errors import SettingsError
from lorry.training import sharding
from lorry.training.extras import needed
from lorry.training.settings import Settings
from lorry.training.watching import Silent, Watcher

LOGS: Final = "logs"
_WORLD_SIZES: Final = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun and kinds of mpirun say how many processes there are."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Process:
    """One process of a run: what it is told, which of them it is, and who watches it."""

    settings: Settings
    accelerator: Any
    """Of accelerate."""
    watcher: Watcher
    """Silent in all processes but the main one."""

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return Path(self.settings.out)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.accelerator.is_main_process

    @property
    def is_sharded(self) -> bool:
        """Whether the denoiser's weights are shared out over the processes, so that only all of them can run it."""
        return self.accelerator.num_processes > 1 and sharding.is_asked_for()

    @property
    def share(self) -> slice:
        """Which of many things are this process's."""
        return slice(self.accelerator.process_index, None, self.accelerator.num_processes)

    @property
    def total_batch(self) -> int:
        """Pictures a step, in all processes together."""
        return self.settings.batch * self.settings.accumulate * self.accelerator.num_processes

    def wait(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def begin_alike(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the main one's numbers: what is computed of a base may differ by machine."""
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.data.copy_(broadcast(tensor.data.clone()))

    def of_main(self, value: float) -> float:
        """Return the main process's value; all processes must ask."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


@contextmanager
def started(settings: Settings, watcher: Watcher) -> Iterator[Process]:
    """Take the place among the processes that accelerate gives this one.

    Raises:
        SettingsError: the run's folder cannot be made, the processes are to share out a model in a way that lorry does
            not know, or this is one of several that do not know of each other.
        MissingPackageError: accelerate or tensorboard is not installed.
    """
    _check_launched()
    needed("accelerate", "Training")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    trackers: Any = None
    if settings.tensorboard:
        needed("tensorboard", "TensorBoard logs (`tensorboard = false` does without)")
        trackers = ["tensorboard"]
    out = Path(settings.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"`out`: expected a folder, or a place for one, and {out} cannot be made: {error.strerror}. "
            "Choose another by `--out`."
        ) from error
    try:
        accelerator = Accelerator(
            mixed_precision=_mixed_precision(settings),
            cpu=_several_on_cpus(),
            log_with=trackers,
            project_dir=out / LOGS,
        )
        _check_kind(settings, accelerator)
        # Whatever `accelerate launch` was told: it would divide losses by that once more than `accumulate` does.
        accelerator.gradient_accumulation_steps = 1
        if accelerator.is_main_process:
            accelerator.init_trackers("lorry")
        yield Process(settings, accelerator, watcher if accelerator.is_main_process else Silent())
    finally:
        AcceleratorState._reset_state(reset_partial_state=False)  # another run may have another precision


def _several_on_cpus() -> bool:
    """Whether this is one of several processes without a GPU, which `accelerate launch` does not tell them for FSDP.

    Each would take itself for the only one.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def _check_launched() -> None:
    """Refuse to train alone where `accelerate launch` was told of several processes.

    Where it sees no GPU it starts one, with the address of the others and without their number.
    """
    told = {"ACCELERATE_DYNAMO_BACKEND", "MASTER_ADDR"} <= os.environ.keys()
    if told and not any(name in os.environ for name in _WORLD_SIZES):
        raise SettingsError(
            "`accelerate launch` was told of several processes and has started one alone, as it does without a GPU. "
            "With `--multi_gpu` it starts them on CPUs too."
        )


def _mixed_precision(settings: Settings) -> str:
    mixed = {"auto": None, "float32": "no", "bf16": "bf16", "fp16": "fp16"}[settings.precision]
    if mixed is not None:
        return mixed
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _check_kind(settings: Settings, accelerator: Any) -> None:
    kind = accelerator.distributed_type.value
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        raise SettingsError(
            f"{kind} takes the model and its optimiser into its own hands, and an adapter is put on a model as it is. "
            "Choose multi-GPU or FSDP 2 in `accelerate config`; `quantize` and `checkpointing` save memory."
        )
    if sharding.is_asked_for():
        sharding.check(settings, accelerator)
