"""FSDP: the base's weights shared out over the processes, by accelerate's own configuration.

The adapter stays whole in every process, as it is small; its gradients are averaged as ever. A layer has its whole
weight while it computes, so that adapters act there as on any other.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from torch import nn

from lorry.errors import SettingsError
from lorry.training.settings import Settings


def is_asked_for() -> bool:
    """Whether accelerate was configured for FSDP. On a CPU it passes over that; lorry does not."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")


def check(settings: Settings, accelerator: Any) -> None:
    """Refuse what cannot be trained on a base that is shared out.

    Raises:
        SettingsError: it is the first FSDP, or a base in 4 or 8 bits.
    """
    if settings.quantize != "none":
        raise SettingsError("`quantize` and FSDP do not go together: choose one of them.")
    if _plugin(accelerator).fsdp_version != 2:
        raise SettingsError(
            "FSDP 1 puts wrappers around modules, and adapters need the modules themselves. Set `fsdp_version: 2` in "
            "accelerate's configuration."
        )


def share_out(model: nn.Module, kept: Collection[nn.Parameter], accelerator: Any) -> int:
    """Share out a model's weights over the processes, block by block, and move it to their device.

    Args:
        model: frozen, whole in each process.
        kept: parameters that stay whole: the adapter's.
        accelerator: of accelerate, whose configuration says which modules are gathered at a time.

    Returns:
        How many parameters each process has a part of.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    plugin = _plugin(accelerator)
    plugin.set_auto_wrap_policy(model)
    options = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
        "ignored_params": set(kept),
    }
    is_a_unit = fsdp2_prepare_auto_wrap_policy(plugin, model)
    units = [module for module in model.modules() if module is not model and is_a_unit and is_a_unit(module)]
    for module in (*reversed(units), model):  # the inner ones first
        fully_shard(module, **options)
    for parameter in kept:
        parameter.data = parameter.data.to(accelerator.device)
    return sum(isinstance(parameter, DTensor) for parameter in model.parameters())


def _plugin(accelerator: Any) -> Any:
    from accelerate.utils import FullyShardedDataParallelPlugin

    return getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
