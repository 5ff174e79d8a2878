"""What each of two processes does for `test_sharding.py`: run as `python sharding.py RANK FILE`.

It imports little, as it is imported twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lorry.algebra import Delta, DoraDelta, LoraDelta
from lorry.errors import FuseError, StateError
from lorry.patching import Strength, Undo, get_state
from lorry.training import AdapterConfig, add_adapter
from lorry.training.settings import Family

WORLD = 2


class Block(nn.Module):
    """Two layers, the first of which tensor parallelism shares out by rows, and the second by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(12, 32)
        self.narrow = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.tanh(self.widen(x)))


def block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


def tensor_parallel(model: nn.Module) -> None:
    plan = {"widen": ColwiseParallel(), "narrow": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (WORLD,)), plan)


def fully_sharded(model: nn.Module) -> None:
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))


SHARDINGS: dict[str, Callable[[nn.Module], None]] = {
    "tensor parallel": tensor_parallel,
    "fully sharded": fully_sharded,
}


def lora(shape: tuple[int, int], seed: int, rank: int = 3) -> LoraDelta:
    random = torch.Generator().manual_seed(seed)
    return LoraDelta(
        0.3 * torch.randn(rank, shape[1], generator=random), torch.randn(shape[0], rank, generator=random)
    )


def put(model: nn.Module, name: str, deltas: Mapping[str, Delta], strength: float = 1.0) -> None:
    with Undo() as undo:
        state = get_state(model, undo)
        state.add(name, deltas, undo)
        state.set_active({**{n: state.strengths[n] for n in state.active}, name: Strength(strength)}, undo)


def choose(model: nn.Module, name: str, strength: float) -> None:
    with Undo() as undo:
        get_state(model, undo).set_active({name: Strength(strength)}, undo)


def fuse(model: nn.Module) -> None:
    with Undo() as undo:
        get_state(model, undo).fuse(undo)


def clear(model: nn.Module) -> None:
    with Undo() as undo:
        get_state(model, undo).clear(undo)


def check_near(got: Tensor, expected: Tensor) -> None:
    error = float((got - expected).abs().max() / expected.abs().max())
    assert error < 1e-6, f"relative error {error:.1e}"


def called(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out = model(torch.randn(5, 12, generator=torch.Generator().manual_seed(1)))
    return out.full_tensor() if isinstance(out, DTensor) else out


def two(model: nn.Module) -> None:
    put(model, "a", {"widen": lora((32, 12), 0), "narrow": lora((10, 32), 1)}, 0.5)
    put(model, "b", {"narrow": lora((10, 32), 2, rank=2)}, -0.75)


def check_life(shard: Callable[[nn.Module], None], adapters_first: bool) -> None:
    """Raise where a sharded model with adapters, at any time of their life, does not draw what a whole one does."""
    whole, model = block(), block()
    bare = called(whole)
    two(whole)
    both = called(whole)
    if adapters_first:
        two(model)
    shard(model)
    if not adapters_first:
        check_near(called(model), bare)
        two(model)
    check_near(called(model), both)
    choose(whole, "b", 0.3)
    choose(model, "b", 0.3)
    check_near(called(model), called(whole))
    clear(model)
    check_near(called(model), bare)


def check_refusals(shard: Callable[[nn.Module], None]) -> None:
    """Raise where something is not refused that needs the whole weight."""
    model = block()
    shard(model)
    bare = called(model)
    two(model)
    out = called(model)
    with pytest.raises(FuseError, match=r"spread over processes\. Fuse before sharding"):
        fuse(model)
    assert torch.equal(called(model), out)
    clear(model)
    if shard is fully_sharded:
        return
    dora = DoraDelta(lora((32, 12), 0), torch.ones(32))
    with pytest.raises(
        StateError, match=r"`widen` is spread over several processes.*A LoRA without that works here"
    ):
        put(model, "dora", {"widen": dora})
    assert torch.equal(called(model), bare)


def in_training(family: Family) -> tuple[Block, list[nn.Parameter]]:
    """A block with a trainable adapter that has moved."""
    model, random = block(), torch.Generator().manual_seed(5)
    config = AdapterConfig(rank=2, target_modules=["widen", "narrow"], family=family)
    parameters = add_adapter(model, config, generator=random)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.2)
    return model, parameters


def check_training(family: Family) -> None:
    """Raise where what a process of FSDP trains has other gradients than on a whole model."""
    whole, expected = in_training(family)
    model, parameters = in_training(family)
    for unit in (model.narrow, model.widen, model):
        fully_shard(unit, mesh=init_device_mesh("cpu", (WORLD,)), ignored_params=set(parameters))
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    for trained in (whole, model):
        for _ in range(2):
            trained(x).square().sum().backward()
    for parameter, other in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        check_near(parameter.grad, other.grad)
    assert sum(isinstance(parameter, DTensor) for parameter in model.parameters()) == 4


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    for name, shard in SHARDINGS.items():
        for first in (False, True):
            check_life(shard, first)
            sys.stdout.write(f"{name}, adapters {'before' if first else 'after'}: as on one process\n")
        check_refusals(shard)
        sys.stdout.write(f"{name}: refusals\n")
    for family in get_args(Family):
        check_training(family)
        sys.stdout.write(f"{family}, fully sharded: trained as on one process\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
