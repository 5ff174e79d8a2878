"""The parts of a pipeline that adapters go into."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from lorry.errors import StateError, did_you_mean
from lorry.names import DENOISERS, OTHERS, TEXT_ENCODERS
from lorry.patching import AdapterState, find_state

PLACES = (*DENOISERS, *OTHERS, *TEXT_ENCODERS)


def components_of(pipeline: object) -> dict[str, nn.Module | None]:
    """Return the denoisers, text encoders and what stands between them of a pipeline by name; None for an empty place.

    A model that `torch.compile` has wrapped is looked into.
    """
    parameters, own = _parameters(type(pipeline).__init__), getattr(pipeline, "__dict__", {})
    return {
        name: unwrapped(getattr(pipeline, name, None)) for name in PLACES if name in parameters or name in own
    }


@functools.lru_cache(maxsize=64)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def unwrapped(model: object) -> nn.Module | None:
    """Return a model, or the one inside what `torch.compile(model)` gives; None of what is no model."""
    return model._modules.get("_orig_mod", model) if isinstance(model, nn.Module) else None


def states_of(pipeline: object, only: Iterable[str] | None = None) -> dict[str, AdapterState]:
    """Return the states of the components that carry adapters (of those named in `only`, when given)."""
    wanted = components_of(pipeline)
    names = list(wanted) if only is None else list(only)
    found = {name: find_state(wanted.get(name)) for name in names}
    return {name: state for name, state in found.items() if state is not None}


def check_components(pipeline: object, names: Iterable[str]) -> list[str]:
    """Return `names` as a list when each is a component of the pipeline.

    Raises:
        StateError: there are no names, or one is not a component.
    """
    known = components_of(pipeline)
    listed = list(names)
    if not listed:
        raise StateError(f"`components` is empty: name at least one of {', '.join(known)}.")
    for name in listed:
        if name not in known:
            raise StateError(
                f"{name!r} is not found among this pipeline's components ({', '.join(known)})."
                + did_you_mean(name, known)
            )
    return listed


def told_of_peft(models: Mapping[str, nn.Module | None]) -> str:
    """Return a sentence for errors on adapters that PEFT has put into models; empty where it has put none."""
    wrapped = [
        name
        for name, model in models.items()
        if model is not None
        and "peft_config" in vars(model)  # or every unload would walk the model
        and any("base_layer" in module._modules for module in model.modules())
    ]
    if not wrapped:
        return ""
    return (
        f" PEFT has put adapters into the {' and the '.join(wrapped)}, which lorry's methods do not see: "
        "`unload_lora_weights()` takes them out."
    )
