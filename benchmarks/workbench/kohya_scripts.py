"""kohya's scripts as functions, from a checkout that the caller has: nothing of them is part of this repository.

The modules that they import and these functions do not need (training utilities, model loaders) are stood in for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from torch import Tensor, nn

from lorry.files import read_safetensors

PREFIX = "model.diffusion_model."
STAND_INS = (
    "library",
    "library.train_util",
    "library.model_util",
    "library.sai_model_spec",
    "library.sdxl_model_util",
    "library.sdxl_original_unet",
    "library.utils",
)


class Checkout:
    """A checkout of sd-scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, tensors: Mapping[str, Tensor], rank: int, dtype: Any) -> Mapping[str, Tensor]:
        """Run `networks/resize_lora.py` on an adapter's tensors."""
        with self._module("resize_lora") as module:
            return module.resize_lora_model(tensors, rank, rank, dtype, "cpu", None, None, False)[0]

    def merge(self, sources: list[tuple[Path, float]], rank: int, dtype: Any) -> Mapping[str, Tensor]:
        """Run `networks/svd_merge_lora.py` on adapter files."""
        files, ratios = [str(path) for path, _ in sources], [factor for _, factor in sources]
        with self._module("svd_merge_lora") as module:
            return module.merge_lora_models(files, ratios, [], rank, rank, None, dtype)[0]

    def extract(self, base: Path, tuned: Path, out: Path, rank: int) -> None:
        """Run `networks/extract_lora_from_models.py` on two checkpoints of SDXL's names."""
        with self._module("extract_lora_from_models") as module:
            module.args = SimpleNamespace(device=None)  # which the script reads as a global
            module.svd(
                str(base),
                str(tuned),
                str(out),
                dim=rank,
                sdxl=True,
                conv_dim=rank,
                save_precision="fp16",
                no_metadata=True,
            )

    @contextmanager
    def _module(self, name: str) -> Iterator[ModuleType]:
        folder, before = str(self.folder / "networks"), {key: sys.modules.get(key) for key in STAND_INS}
        sys.modules.update(_stand_ins())
        sys.path.insert(0, folder)
        try:
            yield importlib.import_module(name)
        finally:
            sys.path.remove(folder)
            for key, module in before.items():
                del sys.modules[key]
                if module is not None:
                    sys.modules[key] = module


class SdxlUNet2DConditionModel(nn.Module):
    """Stands in for kohya's class of that name: modules of a file's names, under the classes that it looks for."""


class Transformer2DModel(nn.Module):
    """What kohya's trainer looks for linear layers in."""


class ResnetBlock2D(nn.Module):
    """What it looks for convolutions in."""


def _stand_ins() -> dict[str, Any]:
    found: dict[str, Any] = {name: MagicMock(name=name) for name in STAND_INS}
    for name, module in found.items():  # `from library import x` takes it from the package
        setattr(found["library"], name.rpartition(".")[2], module)
    utilities, models = found["library.train_util"], found["library.sdxl_model_util"]
    utilities.precalculate_safetensors_hashes.return_value = ("", "")
    models.MODEL_VERSION_SDXL_BASE_V1_0 = "sdxl_base_v1-0"
    models.load_models_from_sdxl_checkpoint = _load
    found["library.sdxl_original_unet"].SdxlUNet2DConditionModel = SdxlUNet2DConditionModel
    for name in ("model_util", "sai_model_spec"):
        found[f"library.{name}"].load_metadata_from_safetensors.return_value = {}
        found[f"library.{name}"].build_minimum_network_metadata.return_value = {}
    utilities.load_metadata_from_safetensors.return_value = {}
    utilities.build_minimum_network_metadata.return_value = {}
    return found


def _load(_version: object, path: str, _device: str) -> tuple[Any, ...]:
    """Load a checkpoint as kohya's loader does: the text encoders, the VAE, the UNet and two facts."""
    unet = SdxlUNet2DConditionModel()
    for key, weight in read_safetensors(path).tensors.items():
        _put(unet, key.removeprefix(PREFIX).removesuffix(".weight").split("."), weight)
    return nn.Module(), nn.Module(), None, unet, None, None


def _put(root: nn.Module, path: list[str], weight: Tensor) -> None:
    *parents, last = path
    module = root
    for depth, part in enumerate(parents):
        if part not in module._modules:
            is_unit = depth == 2  # input_blocks.7.1
            kind = (Transformer2DModel if path[2] == "1" else ResnetBlock2D) if is_unit else nn.Module
            module.add_module(part, kind())
        module = module.get_submodule(part)
    out, into, *kernel = weight.shape
    layer = nn.Conv2d(into, out, kernel, bias=False) if kernel else nn.Linear(into, out, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    module.add_module(last, layer)
