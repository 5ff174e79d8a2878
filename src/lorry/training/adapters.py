"""The fresh adapter of a run: put on every component, known by name, and written to its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from lorry.adapters import Adapter
from lorry.dialects import DIALECTS, Dialect, get_dialect
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile
from lorry.training.adapter_config import AdapterConfig
from lorry.training.bases import Base
from lorry.training.fresh import add_adapter
from lorry.training.headers import write_with_hash
from lorry.training.order import generator_of
from lorry.training.saving import get_adapter, get_deltas
from lorry.training.settings import Settings
from lorry.training.targets import check_preset

NAME: Final = "training"
"""What the adapter is called on the models."""
SAVED_AS: Final = torch.float16
USUAL: Final = ("diffusers", "kohya")
"""The dialects to write in where none is named: the first that has names for all of an adapter."""


def check_form(settings: Settings) -> None:
    """Raise now, and not after all pictures are encoded, when there is no adapter such as the settings say.

    Raises:
        StateError: no such preset, or settings that the family has no use for.
    """
    check_preset(settings.targets)
    for in_text in {False, settings.text_encoder}:
        _config(settings, in_text)


def put_on(base: Base, settings: Settings) -> dict[str, nn.Module]:
    """Put a fresh adapter on the components that are to be trained.

    Returns:
        {component: model}.

    Raises:
        StateError: a family that this base cannot be trained by.
    """
    components = {base.denoiser_name: base.denoiser}
    if settings.text_encoder:
        components |= base.trainable_text_encoders
    for component, model in components.items():
        random = generator_of(settings.seed, "adapter", component)
        add_adapter(model, _config(settings, component != base.denoiser_name), NAME, generator=random)
    return components


def _config(s: Settings, in_text: bool) -> AdapterConfig:
    rank = s.text_rank if in_text and s.text_rank is not None else s.rank
    inherited = s.alpha if s.text_rank is None else None
    alpha = (inherited if s.text_alpha is None else s.text_alpha) if in_text else s.alpha
    return AdapterConfig(
        rank=rank,
        alpha=alpha,
        target_modules="blocks" if in_text else s.targets,
        family=s.family,
        conv_rank=None if in_text else s.conv_rank,
        conv_alpha=None if in_text else s.conv_alpha,
        rank_stabilised=s.rank_stabilised,
        initialisation=s.init,
        iterations=s.init_iterations,
    )


def named_parameters(components: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters by component, path and field."""
    return {
        f"{component}.{path}.{field}": tensor
        for component, model in components.items()
        for path, delta in get_deltas(model, NAME).items()
        for field, tensor in delta.tensors().items()
        if isinstance(tensor, nn.Parameter)
    }


def described(components: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return what makes an adapter the same one: its families, ranks, strengths, and how many layers it is on."""
    deltas = [delta for model in components.values() for delta in get_deltas(model, NAME).values()]
    return {
        "family": sorted({delta.family for delta in deltas}),
        "rank": sorted({delta.rank or 0 for delta in deltas}),
        "alpha / rank": sorted({delta.rank_scale for delta in deltas}),
        "components": list(components),
        "number of layers": len(deltas),
    }


def write_adapter(
    components: Mapping[str, nn.Module], path: Path, dialect: str, header: Mapping[str, str]
) -> Path:
    """Write the adapter in a dialect, in float16, or where that does not hold its numbers in float32.

    Raises:
        UnsupportedAdapterError: the dialect has no names for its family.
    """
    whole = get_adapter(components, NAME)
    adapter = whole.map_tensors(lambda t: t.to("cpu", SAVED_AS))
    if not all(bool(t.isfinite().all()) for e in adapter.entries for t in e.delta.tensors().values()):
        adapter = whole.map_tensors(lambda t: t.to("cpu", torch.float32))
    return write_with_hash(path, _written(replace(adapter, metadata=dict(header)), dialect))


def check_can_be_written(components: Mapping[str, nn.Module], dialect: str) -> Adapter:
    """Raise now, and not after hours, when a dialect cannot hold the adapter.

    Raises:
        UnknownDialectError: there is no such dialect.
        UnsupportedAdapterError: it has no names for the adapter's family; says which have.
    """
    adapter = get_adapter(components, NAME)
    try:
        _written(adapter, dialect)
    except UnsupportedAdapterError as error:
        able = [other.name for other in DIALECTS if _find_written(adapter, other) is not None]
        error.add_note(f"choose another `dialect`: {', '.join(able)}")
        raise
    return adapter


def _written(adapter: Adapter, dialect: str) -> TensorFile:
    """Return the file in the dialect of that name; where it is empty, in the first of the usual ones that can hold it.

    Raises:
        UnsupportedAdapterError: there is none.
    """
    for usual in () if dialect else USUAL:
        if (file := _find_written(adapter, get_dialect(usual))) is not None:
            return file
    return get_dialect(dialect or USUAL[0]).write(adapter)


def _find_written(adapter: Adapter, dialect: Dialect) -> TensorFile | None:
    try:
        return dialect.write(adapter)
    except UnsupportedAdapterError:
        return None
