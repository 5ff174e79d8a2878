"""Write adapters as diffusers does, and as it reads them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorry.dialects import check_replaceable
from lorry.errors import StateError, did_you_mean
from lorry.files import check_inside, write_pickle, write_safetensors
from lorry.names import DENOISERS, OTHERS, TEXT_ENCODERS

log = logging.getLogger(__name__)

SAFE_NAME = "pytorch_lora_weights.safetensors"
PICKLE_NAME = "pytorch_lora_weights.bin"
METADATA_KEY = "lora_adapter_metadata"

Layers = Mapping[str, nn.Module | Tensor] | nn.Module | None
SaveFunction = Callable[[dict[str, Tensor], str], object]


def write_layers(
    save_directory: str | os.PathLike[str],
    layers: Mapping[str, Layers],
    metadata: Mapping[str, Mapping[str, Any] | None],
    is_main_process: bool = True,
    weight_name: str | None = None,
    save_function: SaveFunction | None = None,
    safe_serialization: bool = True,
) -> Path | None:
    """Write the layers of several components to one file.

    Args:
        save_directory: made when it is not there.
        layers: {component: module, or dict of tensors or of modules}; None for a component without any.
        metadata: {component: its adapter's configuration}, written under `lora_adapter_metadata`.
        is_main_process: when false, nothing is written.
        weight_name: the file's name; diffusers' default for the format when None.
        save_function: called with (tensors, path) in place of lorry's own writer.
        safe_serialization: safetensors; when false, a pickle.

    Returns:
        The file written, or None on other than the main process.

    Raises:
        StateError: there are no layers, or they are none; the directory is a file; or metadata is asked for in a
            pickle.
        FileError: `weight_name` leads out of the directory, or a file is there that is no adapter.
    """
    given = {component: found for component, found in layers.items() if found}
    if not given:
        raise StateError(
            f"There is nothing to save: pass at least one of {', '.join(f'{c}_lora_layers' for c in layers)}."
        )
    header = {f"{c}.{key}": value for c, config in metadata.items() for key, value in (config or {}).items()}
    if header and not safe_serialization:
        raise StateError("A pickle has no place for adapter metadata: save with `safe_serialization=True`.")
    check_inside(weight_name or "", "weight_name")
    directory = Path(save_directory)
    if directory.is_file():
        raise StateError(f"{directory} is a file: expected a directory to save into.")
    if not is_main_process:
        return None
    tensors = {
        f"{component}.{key}": t for component, found in given.items() for key, t in _flat(found).items()
    }
    path = directory / (weight_name or (SAFE_NAME if safe_serialization else PICKLE_NAME))
    check_replaceable(path)
    directory.mkdir(parents=True, exist_ok=True)
    if save_function is not None:
        save_function(tensors, str(path))
    elif safe_serialization:
        write_safetensors(path, tensors, _header(header))
    else:
        write_pickle(path, tensors)
    log.info("Model weights saved in %s", path)
    return path


def saved_by(argument: str) -> tuple[str, str]:
    """Return the component, and "layers" or "adapter_metadata", that an argument such as `prior_lora_layers` is for.

    Raises:
        TypeError: it is no such argument.
    """
    component, lora, kind = argument.rpartition("_lora_")
    known = (*DENOISERS, *OTHERS, *TEXT_ENCODERS)
    if not lora or component not in known or kind not in ("layers", "adapter_metadata"):
        near = did_you_mean(
            argument, [f"{one}_lora_{end}" for one in known for end in ("layers", "adapter_metadata")]
        )
        raise TypeError(f"save_lora_weights() got an unexpected argument {argument!r}.{near}")
    return component, kind


def _flat(layers: nn.Module | Mapping[str, nn.Module | Tensor]) -> dict[str, Tensor]:
    if isinstance(layers, nn.Module):
        return dict(layers.state_dict())
    if not isinstance(layers, Mapping):
        raise StateError(
            f"Layers to save: expected a dict of tensors or of modules by name, got a {type(layers).__name__}."
        )
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if isinstance(layer, nn.Module):
            tensors.update({f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()})
        else:
            tensors[name] = layer.detach()
    return tensors


def _header(metadata: Mapping[str, Any]) -> dict[str, str]:
    header = {"format": "pt"}
    if metadata:
        plain = {
            key: sorted(value) if isinstance(value, (set, frozenset)) else value
            for key, value in metadata.items()
        }
        header[METADATA_KEY] = json.dumps(plain, indent=2, sort_keys=True)
    return header
