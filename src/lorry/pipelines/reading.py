"""From what a user names (a Hub id, a folder, a file, a dict) to an adapter; and to the dicts of diffusers' loader."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lorry.adapters import Adapter
from lorry.binding import ModuleIndex
from lorry.dialects import read_adapter, unflatten
from lorry.errors import FormatError, did_you_mean
from lorry.files import TensorFile, read_adapter_file
from lorry.names import DENOISER, TEXT_ENCODERS, Target
from lorry.pipelines.saving import METADATA_KEY

FILE_ARGUMENTS = (
    "weight_name",
    "use_safetensors",
    "cache_dir",
    "force_download",
    "resume_download",
    "proxies",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
    "mirror",
)
"""Arguments of `lora_state_dict` that say where the file is."""
OTHER_ARGUMENTS = ("low_cpu_mem_usage", "unet_config", "return_lora_metadata", "return_alphas", "user_agent")
"""Arguments of `lora_state_dict` that are not about the file. Lorry never initialises weights that a file is about to
replace, so `low_cpu_mem_usage` is accepted and changes nothing."""

LOADING_ARGUMENTS = (
    "adapter_name",
    "strict",
    "hotswap",
    "denoisers",
    "load_into_transformer_2",
    "load_into_transformer_ref",
)
"""Arguments of `load_lora_weights` alone, which a misspelt one may mean as well."""

Source = str | os.PathLike[str] | Mapping[str, Any]


def read_source(
    source: Source,
    network_alphas: Mapping[str, Any] | None = None,
    configuration: Mapping[str, Any] | None = None,
    *,
    early: bool = False,
    **kwargs: Any,
) -> Adapter:
    """Read the adapter that `source` names. Its tensors are its own, but for those of a state dict.

    Args:
        source: a Hub model id, a local folder, a local file, or a state dict.
        network_alphas: alphas beside a state dict, by module (`….alpha`) or by tensor.
        configuration: adapter metadata beside a state dict, as diffusers keeps it in a file's header (`unet.r`, …).
        early: return while a file is still read. The numbers are there when `arrived` of the adapter has returned.
        kwargs: those of `FILE_ARGUMENTS`; others of `lora_state_dict` are let through.

    Raises:
        TypeError: an argument that nothing is known of.
        FileError, FormatError: the file cannot be had, read or understood, or `source` is none of these.
    """
    check_arguments(kwargs)
    if not isinstance(source, (str, os.PathLike, Mapping)):
        raise FormatError(
            f"Expected the path of an adapter, its id on the Hub, or its state dict; got a {type(source).__name__}. "
            "Each call loads one adapter."
        )
    if isinstance(source, Mapping):
        header = {METADATA_KEY: json.dumps(dict(configuration))} if configuration else {}
        return read_adapter(
            TensorFile(_with_alphas(source, network_alphas or {}), header, "a state dict", None)
        )
    where = {k: v for k, v in kwargs.items() if k in FILE_ARGUMENTS}
    return read_adapter(read_adapter_file(source, into_memory=True, early=early, **where))


def check_arguments(given: Iterable[str]) -> None:
    """Raise a TypeError at an argument of `lora_state_dict` that nothing is known of."""
    known = (*FILE_ARGUMENTS, *OTHER_ARGUMENTS)
    for name in given:
        if name not in known:
            near = did_you_mean(name, (*known, *LOADING_ARGUMENTS))
            raise TypeError(f"Unexpected argument {name!r}.{near} Known: {', '.join(known)}.")


def configuration_of(adapter: Adapter) -> dict[str, Any] | None:
    """Return the adapter configuration that diffusers keeps in a file's header (`{"unet.r": 4, …}`), or None."""
    written = adapter.metadata.get(METADATA_KEY)
    return None if written is None else json.loads(written)


def with_prefix(given: Mapping[str, Any], prefix: str, name: str) -> dict[str, Any]:
    """Return what `given` has under `prefix`, under `name` instead."""
    return {
        f"{name}{key.removeprefix(prefix)}": value
        for key, value in given.items()
        if key.startswith(f"{prefix}.")
    }


def _with_alphas(state_dict: Mapping[str, Any], alphas: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise FormatError(
                f"The state dict holds {type(value).__name__} under {key!r}: expected only tensors."
            )
        tensors[key] = value
    for key, alpha in alphas.items():
        if alpha is not None:
            tensors[f"{_module_of(key)}.alpha"] = torch.as_tensor(float(alpha), device="cpu")
    return tensors


def _module_of(key: str) -> str:
    key = key.removesuffix(".alpha")
    for suffix in (
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora.down.weight",
        ".lora.up.weight",
        ".lora_down.weight",
        ".lora_up.weight",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
        ".down.weight",
        ".up.weight",
    ):
        key = key.removesuffix(suffix)
    return key


def as_state_dict(
    adapter: Adapter, denoiser: str, unet_config: Any = None
) -> tuple[dict[str, Tensor], dict[str, float] | None]:
    """Return an adapter as diffusers' `lora_state_dict` does: tensors under `unet.….lora_A.weight`, and alphas.

    Args:
        adapter: of LoRA deltas.
        denoiser: the component that a file means which does not say.
        unet_config: the UNet's config, which tells what flattened and original (SGM) block names mean.

    Returns:
        `(state_dict, network_alphas)`. The alphas stand under `unet.….alpha`, whatever they were read from; None where
        there are none. A Tucker core is multiplied into `lora_A`.

    Raises:
        FormatError: the adapter holds tensors that are not understood, or original names and no `unet_config`.
    """
    if adapter.unknown:
        raise FormatError(
            f"{adapter.source} holds keys that are not understood: {', '.join(adapter.unknown[:3])}."
        )
    index = _index(unet_config)
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for entry in adapter.entries:
        name = _dotted(entry.target, denoiser, index)
        pair = entry.delta.low_rank()
        if pair is None:
            raise FormatError(f"`{name}`: {entry.delta.family} cannot be given as a LoRA state dict.")
        tensors[f"{name}.lora_A.weight"] = pair.down
        tensors[f"{name}.lora_B.weight"] = pair.up.reshape(*pair.up.shape, *(1 for _ in pair.down.shape[2:]))
        if entry.scale_source != "rank":
            alphas[f"{name}.alpha"] = pair.scale * pair.rank
    return tensors, alphas or None


def _index(unet_config: Any) -> ModuleIndex | None:
    if unet_config is None:
        return None
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return ModuleIndex(UNet2DConditionModel(**_arguments(UNet2DConditionModel, dict(unet_config))))


def _arguments(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(cls.__init__).parameters
    return {name: value for name, value in config.items() if name in known}


def _dotted(target: Target, denoiser: str, index: ModuleIndex | None) -> str:
    component = denoiser if target.component == DENOISER else target.component
    if not target.flat:
        return f"{component}.{target.path}"
    if component not in TEXT_ENCODERS and index is not None:
        path = index.find_path(target)
        if path is None:
            raise FormatError(f"`{target.path}` is no module of the UNet that `unet_config` describes.")
        return f"{component}.{path}"
    if target.path.startswith(("input_blocks_", "middle_block_", "output_blocks_")):
        raise FormatError(
            f"`{target.path}` is an original (SGM) block name, whose number only the UNet's config can translate: pass "
            "`unet_config=pipeline.unet.config`."
        )
    return f"{component}.{unflatten(target.path)}"
