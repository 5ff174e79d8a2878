"""ComfyUI's names of every architecture that diffusers has too, in each container: found, and of the right shape.

The names are those of ComfyUI's own models: `scripts/names/comfyui.py` records them.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import diffusers
import pytest
import torch
from scripts.names.comfyui import KNOWN, RECORD
from torch import Tensor, nn

from lorry.binding import ModuleIndex, bind, weight_shape
from lorry.dialects import DIALECTS, find_dialect, read_adapter
from lorry.files import TensorFile

pytestmark = pytest.mark.filterwarnings("ignore:.*FluxPosEmbed.* is deprecated:FutureWarning:diffusers")
ENTRIES: list[dict[str, Any]] = json.loads(RECORD.read_text("utf-8"))
CASES = {
    entry["comfyui"] + f" ({entry['model']})": (known, entry)
    for known, entry in zip(KNOWN, ENTRIES, strict=True)
}
CONTAINERS = (
    "diffusion_model.",
    "lora_unet_",
    "lycoris_",
    "transformer.",
    "lora_transformer_",
    "base_model.model.",
    "",
)
"""Those of `model_lora_keys_unet`; ComfyUI takes the last five for some architectures alone."""
UNFLATTENED = (".scale", ".gamma")
"""Parameters that ComfyUI has by their dotted names alone."""


@functools.cache
def model_of(name: str) -> nn.Module:
    known = CASES[name][0]
    with torch.device("meta"):
        return getattr(diffusers, known.model)(**known.config)


def shapes_of(entry: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The parameters of ComfyUI's model, in every block."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in entry["names"].items():
        if "*" in name:
            found |= {name.replace("*", str(block)): tuple(shape[1:]) for block in range(shape[0])}
        else:
            found[name] = tuple(shape)
    return found


def file(shapes: dict[str, tuple[int, ...]], container: str) -> TensorFile:
    """A LoRA for each layer and a difference for each other parameter, of tensors that take one number's memory."""
    one, tensors = torch.ones(()), dict[str, Tensor]()
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        flat = container.endswith("_")
        if flat and name.endswith(UNFLATTENED):
            continue
        stem = container + (module.replace(".", "_") if flat else module)
        if module != name and len(shape) > 1:
            tensors[f"{stem}.lora_down.weight"] = one.expand(1, *shape[1:])
            tensors[f"{stem}.lora_up.weight"] = one.expand(shape[0], 1, *(1 for _ in shape[2:]))
        else:
            tensors[f"{stem}.diff"] = one.expand(shape)
    return TensorFile(tensors)


def test_what_is_recorded_is_what_the_script_knows() -> None:
    assert [(known.model, f"{known.module}.{known.name}") for known in KNOWN] == [
        (entry["model"], entry["comfyui"]) for entry in ENTRIES
    ]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", CASES)
def test_every_name_of_comfyuis_lands_on_a_module_of_its_shape(name: str, container: str) -> None:
    made = file(shapes_of(CASES[name][1]), container)
    dialect = find_dialect(made)  # two claims of which none comes first are an error there
    assert dialect is not None
    assert {d.name for d in DIALECTS if d.claims(made)} <= {dialect.name, *dialect.before}
    report = bind(read_adapter(made), {"transformer": model_of(name)}).report
    assert (report.applied, report.unknown, report.mismatched) == (len(made.tensors), (), ())


@pytest.mark.parametrize("name", CASES)
def test_every_layer_of_the_model_has_a_name_in_comfyui(name: str) -> None:
    model, (known, entry) = model_of(name), CASES[name]
    plan = bind(read_adapter(file(shapes_of(entry), "diffusion_model.")), {"transformer": model})
    index = ModuleIndex(model)
    there = {
        path
        for path, module in index.modules.items()
        if weight_shape(module) is not None and not isinstance(module, nn.Embedding)
    }
    assert there - plan.deltas["transformer"].keys() == set(known.missing)
