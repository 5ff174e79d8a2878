"""Every denoiser that the installed diffusers has, on the meta device: an adapter for all of its layers finds them all.

Those with a table of original names are tried with those in `test_tables.py`; here each is tried with diffusers' names,
in every container that files have around them.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lorry.binding import bind, weight_shape
from lorry.dialects import read_adapter
from lorry.files import TensorFile

DEPTHS = (
    *("num_layers", "num_single_layers", "num_refiner_layers", "n_layers", "n_refiner_layers", "depth"),
    *(
        "num_mmdit_layers",
        "num_single_dit_layers",
        "num_hidden_layers",
        "num_visual_blocks",
        "num_text_blocks",
    ),
)
SMALL: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "DreamLiteTransformer2DModel": {**SMALL, "in_channels": 32},
    "EasyAnimateTransformer3DModel": {**SMALL, "in_channels": 4, "out_channels": 4, "patch_size": 2}
    | {"mmdit_layers": 2, "text_embed_dim": 8, "text_embed_dim_t5": 8},
    "HiDreamImageTransformer2DModel": {
        **SMALL,
        "patch_size": 2,
        "in_channels": 16,
        "caption_channels": [8, 8],
    }
    | {"text_emb_dim": 8, "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (8, 4, 4)}
    | {"max_resolution": (16, 16), "llama_layers": [0, 1]},
    "LatteTransformer3DModel": {**SMALL, "in_channels": 4, "sample_size": 8, "patch_size": 2}
    | {"caption_channels": 8, "norm_type": "ada_norm_single", "cross_attention_dim": 32},
    "OmniGenTransformer2DModel": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    | {"intermediate_size": 32, "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8}},
    "Transformer2DModel": {**SMALL, "in_channels": 32},
    "TransformerTemporalModel": {**SMALL, "in_channels": 32},
    "WanVACETransformer3DModel": {"vace_layers": [0]},
}
"""What those need that have no defaults for all of their sizes."""


def denoisers() -> Iterator[str]:
    for name in dir(diffusers):
        if re.search(r"Transformer|UNet|UVit", name):
            found = getattr(diffusers, name)
            if inspect.isclass(found) and issubclass(found, nn.Module):
                yield name


def build(name: str) -> nn.Module:
    made = getattr(diffusers, name)
    shallow = {depth: 2 for depth in DEPTHS if depth in inspect.signature(made.__init__).parameters}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' of its own classes
        return made(**{**shallow, **CONFIGS.get(name, {})})


def file(prefix: str, shapes: dict[str, tuple[int, ...]], *, flat: bool) -> TensorFile:
    """A LoRA of rank 1 for each layer, of tensors that take the memory of one number."""
    one, tensors = torch.ones(()), dict[str, Tensor]()
    ends = ("lora_down.weight", "lora_up.weight") if flat else ("lora_A.weight", "lora_B.weight")
    for path, shape in shapes.items():
        stem = prefix + (path.replace(".", "_") if flat else path)
        for end, axes in zip(ends, ((1, *shape[1:]), (shape[0], 1, *(1 for _ in shape[2:]))), strict=True):
            tensors[f"{stem}.{end}"] = one.expand(axes)
    return TensorFile(tensors)


@pytest.mark.parametrize("name", tuple(denoisers()))
def test_every_layer_is_found_by_diffusers_names_in_every_container(name: str) -> None:
    model = build(name)
    kinds = (nn.Linear, nn.Conv2d)
    found = {path: weight_shape(m) for path, m in model.named_modules() if isinstance(m, kinds)}
    shapes = {path: shape for path, shape in found.items() if shape is not None}
    component = "unet" if "UNet" in name else "transformer"
    files = [file(prefix, shapes, flat=True) for prefix in ("lora_unet_", "lycoris_")]
    files += [
        file(prefix, shapes, flat=False)
        for prefix in (f"{component}.", "diffusion_model.", "base_model.model.", "")
    ]
    assert len(shapes) > 9
    for one in files:
        report = bind(read_adapter(one), {component: model}).report
        assert (report.applied, report.targets) == (len(one.tensors), len(shapes)), next(iter(one.tensors))
