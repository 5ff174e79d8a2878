"""Pipelines in pairs, the same adapter file for both, and what is compared of them.

One of a pair is diffusers' own with PEFT, the oracle; the other has lorry's loader in front. Both have equal weights.
"""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lorry
from models import (
    tiny_flux_pipeline,
    tiny_sd3_pipeline,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
    tiny_wan_pipeline,
    unet_inputs,
)

FAMILIES = ("sd", "sdxl", "sd3", "flux")
SIZE = 16
"""Pictures are this wide and high, in pixels."""

TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
UNET_TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
    *("conv_in", "conv_out", "time_embedding.linear_1"),
]
TARGETS = {
    "sd": UNET_TARGETS,
    "sdxl": UNET_TARGETS,
    "sd3": [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "ff.net.0.proj",
        "ff.net.2",
    ],
    "flux": [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "proj_mlp",
        "ff.net.0.proj",
        "ff.net.2",
        "norm.linear",
    ],
}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@functools.cache
def base(family: str) -> Any:
    """The pipeline that all others of its family are copies of: diffusers' class, never changed."""
    builders = {
        "sd": tiny_sd_pipeline,
        "sdxl": tiny_sdxl_pipeline,
        "sd3": tiny_sd3_pipeline,
        "flux": tiny_flux_pipeline,
        "wan": tiny_wan_pipeline,
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # the scheduler's configuration, which the pipeline corrects
        pipe = builders[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def lorry_class(cls: type) -> type:
    mixin = lorry.StableDiffusionXLLoraLoaderMixin if "XL" in cls.__name__ else lorry.LoraLoaderMixin
    return type(f"Lorry{cls.__name__}", (mixin, cls), {})


def copied_parts(family: str) -> dict[str, Any]:
    """Copies of the base pipeline's components: models of their own, the rest shared."""
    parts = base(family).components
    return {
        name: copy.deepcopy(part) if isinstance(part, nn.Module) else part for name, part in parts.items()
    }


def made(cls: Any, parts: Mapping[str, Any], **more: Any) -> Any:
    if "safety_checker" in parts and "requires_safety_checker" not in more:
        more["requires_safety_checker"] = False
    pipe = cls(**{**parts, **more})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference(family: str) -> Any:
    """A fresh pipeline of diffusers and PEFT."""
    return made(type(base(family)), copied_parts(family))


def ours(family: str) -> Any:
    """A fresh pipeline of the same weights with lorry's loader."""
    return made(lorry_class(type(base(family))), copied_parts(family))


# --- what is compared ---------------------------------------------------------------------------------------------


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def text_encoders_of(pipe: Any) -> dict[str, nn.Module]:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return {name: model for name in names if isinstance(model := getattr(pipe, name, None), nn.Module)}


def scale_argument(pipe: Any) -> str:
    if hasattr(pipe, "unet"):
        return "cross_attention_kwargs"
    return "attention_kwargs" if isinstance(pipe, diffusers.WanPipeline) else "joint_attention_kwargs"


@torch.no_grad()
def denoised(pipe: Any, **kwargs: Any) -> Tensor:
    """What the denoiser makes of fixed noise."""
    model: Any = denoiser_of(pipe)
    config = model.config
    random = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(model.dtype)

    inputs: dict[str, Any]
    if isinstance(model, diffusers.UNet2DConditionModel):
        inputs = unet_inputs(model)
    elif isinstance(model, diffusers.SD3Transformer2DModel):
        inputs = {"hidden_states": noise(2, config.in_channels, 8, 8), "timestep": torch.tensor([7.0, 7.0])}
        inputs["encoder_hidden_states"] = noise(2, 5, config.joint_attention_dim)
        inputs["pooled_projections"] = noise(2, config.pooled_projection_dim)
    elif isinstance(model, diffusers.WanTransformer3DModel):
        inputs = {"hidden_states": noise(2, config.in_channels, 1, 4, 4), "timestep": torch.tensor([7, 7])}
        inputs["encoder_hidden_states"] = noise(2, 5, config.text_dim)
    else:
        inputs = {"hidden_states": noise(2, 16, config.in_channels), "timestep": torch.tensor([0.7, 0.7])}
        inputs["encoder_hidden_states"] = noise(2, 5, config.joint_attention_dim)
        inputs["pooled_projections"] = noise(2, config.pooled_projection_dim)
        inputs["img_ids"], inputs["txt_ids"] = torch.arange(48).reshape(16, 3).float(), torch.zeros(5, 3)
        inputs["guidance"] = torch.tensor([3.5, 3.5]) if config.guidance_embeds else None
    return model(**inputs, **kwargs, return_dict=False)[0]


@torch.no_grad()
def encoded(pipe: Any) -> dict[str, Tensor]:
    """What each text encoder makes of a fixed text."""
    ids = torch.tensor([[0, 3, 5, 4, 1]])
    return {name: model(ids)[0] for name, model in text_encoders_of(pipe).items()}


@torch.no_grad()
def drawn(pipe: Any, **kwargs: Any) -> Tensor:
    """The latents of a whole call of the pipeline."""
    inputs = {
        "prompt": "a red apple",
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    inputs |= {"height": SIZE, "width": SIZE, "generator": torch.Generator().manual_seed(0)}
    if isinstance(pipe, diffusers.WanPipeline):
        inputs |= {"num_frames": 1, "max_sequence_length": 16}
    return torch.as_tensor(pipe(**inputs | kwargs)[0])


def outputs(pipe: Any) -> dict[str, Tensor]:
    return {"denoiser": denoised(pipe), **encoded(pipe), "latents": drawn(pipe)}


worst: dict[str, float] = {}
"""The largest difference seen, by what was compared."""


def check_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Raise where an output differs by more than `tolerance` (of its largest value, where that is above 1)."""
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].shape == expected[name].shape, name
        size = max(1.0, float(expected[name].abs().max()))
        error = float((got[name] - expected[name]).abs().max()) / size
        worst[name] = max(worst.get(name, 0.0), error)
        assert error <= tolerance, f"{name} differs by {error:.2e} of {size:.1f}"


def check_changed(got: Mapping[str, Tensor], before: Mapping[str, Tensor], least: float = 1e-3) -> None:
    """Raise where an output is as it was: a comparison of two things that did nothing says nothing."""
    for name in before:
        error = float((got[name] - before[name]).abs().max())
        assert error > least, f"{name} changed by {error:.2e} only"


# --- files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lora:
    """Factors as PEFT made them, by component and module path, and the alpha of each component."""

    down: dict[tuple[str, str], Tensor]
    up: dict[tuple[str, str], Tensor]
    alpha: dict[tuple[str, str], float]
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, str, Tensor, Tensor, float]]:
        for key, down in self.down.items():
            yield *key, down, self.up[key], self.alpha[key]

    def where(self, keep: Callable[[str, str], bool]) -> Lora:
        """The part of it whose components and paths `keep` says yes to."""
        kept = [key for key in self.down if keep(*key)]
        down, up = ({key: part[key] for key in kept} for part in (self.down, self.up))
        return Lora(down, up, {key: self.alpha[key] for key in kept}, self.metadata)

    def only(self, *ends: str) -> Lora:
        """The part of it whose modules' paths end so."""
        return self.where(lambda _, path: path.endswith(ends))


@functools.cache
def lora(
    family: str, seed: int = 0, rank: int = 4, alpha: int = 4, text: bool = True, spread: float = 0.7
) -> Lora:
    """Random LoRA weights for a family's pipeline, on every kind of layer, made by PEFT."""
    pipe = reference(family)
    torch.manual_seed(seed)
    denoiser = "unet" if hasattr(pipe, "unet") else "transformer"
    names = [
        denoiser,
        *([name for name in text_encoders_of(pipe) if _is_clip(getattr(pipe, name))] if text else []),
    ]
    found = Lora({}, {}, {})
    for name in names:
        targets = TARGETS[family] if name == denoiser else TEXT_TARGETS
        model = getattr(pipe, name)
        model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), "default")
        found.metadata[name] = model.peft_config["default"].to_dict()
        for key, tensor in get_peft_model_state_dict(model).items():
            path, _, factor = key.removesuffix(".weight").rpartition(".")
            part = found.down if factor == "lora_A" else found.up
            fan_in = tensor[0].numel()
            part[name, path] = torch.randn(tensor.shape) * (spread / fan_in**0.5)
            found.alpha[name, path] = float(alpha)
    return found


def _is_clip(model: nn.Module) -> bool:
    return "CLIP" in type(model).__name__


def peft_layers(weights: Lora) -> dict[str, dict[str, Tensor]]:
    """`{"unet_lora_layers": {…lora_A.weight: …}, …}`, as `save_lora_weights` takes them."""
    layers: dict[str, dict[str, Tensor]] = {}
    for component, path, down, up, _ in weights.items():
        part = layers.setdefault(f"{component}_lora_layers", {})
        part[f"{path}.lora_A.weight"], part[f"{path}.lora_B.weight"] = down, up
    return layers


def saved_by_diffusers(
    family: str, weights: Lora, folder: Path, metadata: bool = True, **kwargs: Any
) -> Path:
    """Write the file with diffusers' own `save_lora_weights`."""
    if metadata:
        kwargs |= {f"{name}_lora_adapter_metadata": config for name, config in weights.metadata.items()}
    type(base(family)).save_lora_weights(folder, **peft_layers(weights), **kwargs)
    return folder


def dotted(
    weights: Lora, down_end: str, up_end: str, text_ends: tuple[str, str] | None = None
) -> dict[str, Tensor]:
    """`{component}.{path}{end}`, with other ends for text encoders where they are given."""
    tensors = {}
    for component, path, down, up, _ in weights.items():
        ends = text_ends if text_ends and component.startswith("text_encoder") else (down_end, up_end)
        tensors[f"{component}.{path}{ends[0]}"], tensors[f"{component}.{path}{ends[1]}"] = down, up
    return tensors


def old_processors(weights: Lora) -> dict[str, Tensor]:
    """The spelling of diffusers 0.11 to 0.19: attention only, the factors kept by the attention processor."""
    projections = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
    text = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    tensors = {}
    for component, path, down, up, _ in weights.items():
        in_text = component.startswith("text_encoder")
        known = text if in_text else projections
        end = next(end for end in known if path.endswith(f".{end}"))
        stem = path.removesuffix(f".{end}") + ("." if in_text else ".processor.") + f"{known[end]}_lora"
        tensors[f"{component}.{stem}.down.weight"], tensors[f"{component}.{stem}.up.weight"] = down, up
    return tensors


def kohya(weights: Lora, rename: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The spelling of kohya's trainers: flattened names, an alpha beside each pair of factors.

    Args:
        rename: other names of a UNet's modules, by path, before they are flattened.
    """
    two = any(component == "text_encoder_2" for component, _ in weights.down)
    prefixes = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if two else "lora_te",
        "text_encoder_2": "lora_te2",
    }
    tensors = {}
    for component, path, down, up, alpha in weights.items():
        if component == "unet":
            path = (rename or {}).get(path, path)
        elif not path.startswith("text_model."):
            path = f"text_model.{path}"  # the level that transformers 5 has dropped; files have it
        module = f"{prefixes[component]}_{path.replace('.', '_')}"
        tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"] = down, up
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def peft_folder(weights: Lora, component: str, folder: Path) -> Path:
    """The folder that `PeftModel.save_pretrained` writes: one component, no name of it, alpha in the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for owner, path, down, up, _ in weights.items():
        if owner == component:
            tensors[f"base_model.model.{path}.lora_A.weight"] = down
            tensors[f"base_model.model.{path}.lora_B.weight"] = up
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in weights.metadata[component].items()}
    (folder / "adapter_config.json").write_text(json.dumps(config, default=str))
    return folder


def written(tensors: Mapping[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return path


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


# --- everything that must be as it was ----------------------------------------------------------------------------


def snapshot(pipe: Any) -> dict[str, Any]:
    """All that a refused call must leave alone: values, classes, attributes and hooks of every module."""
    seen: dict[str, Any] = {}
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module):
            continue
        for path, module in part.named_modules():
            seen[f"{name}.{path}:class"] = type(module)
            seen[f"{name}.{path}:attributes"] = sorted(vars(module))
            hooks = (
                "_forward_hooks",
                "_forward_pre_hooks",
                "_state_dict_hooks",
                "_load_state_dict_pre_hooks",
                "_load_state_dict_post_hooks",
            )
            seen[f"{name}.{path}:hooks"] = [list(getattr(module, hook)) for hook in hooks]
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                seen[f"{name}.{path}.{key}"] = (
                    None if tensor is None else (id(tensor), tensor.detach().clone())
                )
        seen[f"{name}:keys"] = list(part.state_dict())
        # Line by line what each adapter does; the first line counts memory that is kept for the next fuse as well.
        seen[f"{name}:state"] = str(getattr(part, "lorry", None)).splitlines()[1:]
    return seen


def check_same(after: Mapping[str, Any], before: Mapping[str, Any], identity: bool = True) -> None:
    """Raise where two snapshots differ, bit for bit (and, with `identity`, where a tensor is another object)."""
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, tuple):
            assert torch.equal(*(_bits(tensor) for tensor in (after[name][1], value[1]))), (
                f"{name} has other values"
            )
            assert not identity or after[name][0] == value[0], f"{name} is another tensor"
        else:
            assert after[name] == value, name


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)
