"""Models that are spread over processes: by tensor parallelism, layer by layer, or by FSDP2."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from lorry.errors import FuseError
from lorry.patching.layer_kinds import defined_in, made_by


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor: this process has a part of it."""
    return type(tensor) is not Tensor and made_by(tensor, "torch.distributed")


def check_not_fully_sharded(model: nn.Module) -> None:
    """Refuse to fuse into a model that FSDP2 manages.

    Between calls some of its weights may be plain tensors; they are copies, and what is written to them is lost.

    Raises:
        FuseError: it is such a model.
    """
    for cls in {type(module) for module in model.modules()}:
        if defined_in(cls, "torch.distributed.fsdp"):
            raise FuseError(
                f"This {type(model).__name__} has its weights spread over processes. Fuse before sharding (FSDP2), or "
                "stay unfused."
            )


def add_sharded(x: Tensor, out: Any, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """Return `out + up @ (scale * (down @ x))` where `x` and `out` are spread over processes.

    Each process has the whole factors. Where the output's features are shared out, it multiplies with its rows of `up`;
    where the input's are, with its columns of `down`, and the small product in between is summed over the processes.
    """
    from torch.distributed.tensor import Shard

    last = out.ndim - 1
    rows = [Shard(0) if isinstance(one, Shard) and one.dim == last else None for one in out.placements]
    mesh = out.device_mesh
    hidden = functional.linear(x.to(down.dtype), _spread(down, mesh)) * _spread(scale, mesh)
    side = functional.linear(hidden, _spread(up, mesh, rows))
    return out + side.to(out.dtype)


def _spread(tensor: Any, mesh: Any, wanted: Any = None) -> Any:
    """Return a tensor that every process has whole as a DTensor; of it this process keeps what `wanted` says."""
    from torch.distributed.tensor import DTensor, Replicate

    whole = [Replicate() for _ in range(mesh.ndim)]
    if not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(tensor, mesh, whole, run_check=False)
    placements = [one or Replicate() for one in wanted or whole]
    return tensor.redistribute(placements=placements)
