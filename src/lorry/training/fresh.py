"""Fresh trainable adapters: made on a live model, trained through the code that runs at inference."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lorry.algebra import START, Delta
from lorry.binding import weight_shape
from lorry.errors import StateError
from lorry.names import check_adapter_name
from lorry.patching import Strength, Undo, check_passes_gradients, get_state
from lorry.training.adapter_config import OF_THE_WEIGHT, AdapterConfig
from lorry.training.families import Site, fresh_delta
from lorry.training.targets import FEED_FORWARD_OUT, ends_in, matching, pattern_value


def add_adapter(
    model: nn.Module,
    config: object,
    adapter_name: str = "default",
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> list[nn.Parameter]:
    """Put a fresh trainable adapter on a model, active at strength 1; the model's own weights are frozen.

    LoRA runs through the side path. The other families run through their own formula on the weight, which autograd
    follows; they need a weight that is not packed.

    Args:
        model: a denoiser or text encoder.
        config: an `AdapterConfig`, or a PEFT `LoraConfig`.
        adapter_name: what to call it.
        dtype: of its parameters.
        generator: for the random factors, on the CPU.

    Returns:
        Its parameters, which are also in `model.parameters()` while it is active. For LoRA (rank, in[, kh, kw]) and
        (out, rank) for each target.

    Raises:
        StateError: no module matches, the name is taken, or the family needs a weight that the base does not show.
        UnsupportedAdapterError: the configuration asks for something that lorry cannot train.
    """
    plain = AdapterConfig.of(config)
    name = check_adapter_name(adapter_name)
    deltas = {
        path: _fresh(plain, path, m, dtype, generator) for path, m in matching(model, plain.target_modules)
    }
    if not deltas:
        raise StateError(f"No layer of {type(model).__name__} matches the targets {plain.target_modules!r}.")
    put_trainable(model, name, deltas)
    tensors = (tensor for delta in deltas.values() for tensor in delta.tensors().values())
    return [one for one in tensors if isinstance(one, nn.Parameter) and one.requires_grad]


def put_trainable(model: nn.Module, name: str, deltas: dict[str, Delta]) -> None:
    """Make an adapter whose tensors are parameters the one active adapter of a model, and freeze the model's own.

    Raises:
        StateError: the name is taken, no gradient comes through a layer, or a family cannot be trained on one.
    """
    for path, module in model.named_modules():
        check_passes_gradients(path, module)
    with Undo() as undo:
        state = get_state(model, undo)
        state.add_trainable(name, deltas, undo)
        state.set_active({name: Strength()}, undo)
        for parameter in [p for key, p in model.named_parameters() if ".lorry_" not in f".{key}"]:
            undo.set_attribute(parameter, "requires_grad", False)


def _fresh(
    config: AdapterConfig, path: str, module: nn.Module, dtype: torch.dtype, generator: torch.Generator | None
) -> Delta:
    shape = weight_shape(module) or (0,)
    rank, alpha = config.of_kernel(wide=any(size > 1 for size in shape[2:]))
    rank = pattern_value(config.rank_pattern, path, rank)
    alpha = pattern_value(config.alpha_pattern, path, alpha)
    if config.rank_stabilised and alpha is None:
        alpha = float(rank)  # without an alpha a delta has the strength 1
    weight = cast(Tensor, module._parameters["weight"])  # not what a patched class would compute in its place
    site = Site(
        weight=weight,
        shape=shape,
        rank=rank,
        alpha=alpha,
        rank_stabilised=config.rank_stabilised,
        initialisation=config.initialisation,
        iterations=config.iterations,
        scales_input=ends_in(path, FEED_FORWARD_OUT),
        generator=generator,
    )
    from_weight = config.family == "dora" or config.initialisation in OF_THE_WEIGHT
    if from_weight and tuple(weight.shape) != shape:
        what = "DoRA" if config.family == "dora" else config.initialisation
        raise StateError(f"`{path}`: {what} starts from the weight, which is packed here.")
    delta = fresh_delta(config.family, site)
    return trainable(delta, weight.device, dtype)


def trainable(delta: Delta, device: torch.device, dtype: torch.dtype) -> Delta:
    """Return the same delta over parameters of its own, on `device` and in `dtype`; where it began stays."""
    own = {
        field: nn.Parameter(
            tensor.detach().to(device, dtype, copy=True).contiguous(), not field.startswith(START)
        )
        for field, tensor in delta.tensors().items()
    }
    return delta.with_tensors(own)
