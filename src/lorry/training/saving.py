"""What of an adapter in training is saved: as diffusers' loader takes it, or as a value that any dialect writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lorry.adapters import Adapter, Entry
from lorry.algebra import Delta, DoraDelta, LoraDelta, MovedDelta
from lorry.errors import UnsupportedAdapterError
from lorry.names import Target
from lorry.patching import AdapterState, find_state, unknown_adapter


def get_adapter_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """Return an adapter's tensors as `save_lora_weights` takes them, and diffusers and PEFT name them.

    Returns:
        `{path}.lora_A.weight` (rank, in[, kh, kw]) and `{path}.lora_B.weight` (out, rank[, 1, 1]), for DoRA
        `{path}.lora_magnitude_vector` too; detached views of the adapter's own memory, or for pissa and olora computed.

    Raises:
        UnknownAdapterError: no adapter of that name is loaded on the model.
        UnsupportedAdapterError: it is of another family than LoRA and DoRA; save it through a dialect.
    """
    tensors = {}
    for path, delta in get_deltas(model, adapter_name).items():
        factors = delta.inner if isinstance(delta, DoraDelta) else delta
        pair = factors.low_rank()
        if pair is None:
            raise UnsupportedAdapterError(f"`{path}`: {delta.family} cannot be saved as a LoRA.")
        tensors[f"{path}.lora_A.weight"] = pair.down.detach()
        tensors[f"{path}.lora_B.weight"] = pair.up.detach().reshape(
            *pair.up.shape, *(1 for _ in pair.down.shape[2:])
        )
        if isinstance(delta, DoraDelta):
            axes = (1, -1, *(1 for _ in pair.down.shape[2:])) if pair.down.ndim > 2 else (-1,)
            tensors[f"{path}.lora_magnitude_vector"] = delta.magnitude.detach().reshape(axes)
    return tensors


def get_adapter_metadata(model: nn.Module, adapter_name: str = "default") -> dict[str, Any]:
    """Return an adapter's configuration in PEFT's words, for `save_lora_weights(…, unet_lora_adapter_metadata=…)`.

    Raises:
        UnknownAdapterError: no adapter of that name is loaded on the model.
    """
    deltas = get_deltas(model, adapter_name)
    ranks = {path: delta.rank or 0 for path, delta in deltas.items()}
    alphas = {path: delta.rank_scale * ranks[path] for path, delta in deltas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(deltas),
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "use_rslora": False,
        "use_dora": any(isinstance(delta, DoraDelta) for delta in deltas.values()),
        "bias": "none",
    }


def get_adapter(models: Mapping[str, nn.Module], adapter_name: str = "default") -> Adapter:
    """Return an adapter that is on several components as a value, which any dialect that has its family can write.

    Args:
        models: {component: model}.
        adapter_name: loaded on each of them.

    Returns:
        Detached copies of its tensors, in its dtype and on its device.

    Raises:
        UnknownAdapterError: no adapter of that name is loaded on one of the models.
    """
    entries = [
        Entry(Target(component, path), _detached(delta), (f"{component}.{path}",), "alpha tensor")
        for component, model in models.items()
        for path, delta in get_deltas(model, adapter_name).items()
    ]
    return Adapter(tuple(entries), dialect="training", source=f"the adapter {adapter_name!r}")


def get_deltas(model: nn.Module, name: str) -> Mapping[str, Delta]:
    """Return an adapter's deltas by module path.

    Raises:
        UnknownAdapterError: no adapter of that name is loaded on the model.
    """
    state: AdapterState | None = find_state(model)
    if state is None or name not in state.adapters:
        raise unknown_adapter(name, [] if state is None else state.adapters)
    return state.adapters[name].deltas


def _detached(delta: Delta) -> Delta:
    if isinstance(delta, MovedDelta) and (pair := delta.low_rank()) is not None:
        return LoraDelta(pair.down.detach(), pair.up.detach(), alpha=pair.scale * pair.rank)
    return delta.with_tensors({field: t.detach().clone() for field, t in delta.tensors().items()})
