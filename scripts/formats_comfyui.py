"""Measure what ComfyUI does with a layer of each family: `docs/formats_comfyui.json`.

    PYTHONPATH=src:tests python scripts/formats_comfyui.py FOLDER_OF_COMFYUI

The tests' layers go through `load_lora` and `calculate_weight` of the `comfy/lora.py` in that folder, a checkout of
Comfy-Org/ComfyUI or of a fork, at strengths 1 and 0.5, and are compared with what lorry computes. It needs what these
two import (einops and psutil, in a fork more); nothing of that program is kept but its version. `docs/formats.md` says
the results in words, and a test holds them against this record.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "formats_comfyui.json"
SAME, OTHER, NOTHING, ERROR = "same", "other", "nothing", "error"
"""Of a layer at a strength: what lorry computes; other numbers; the base as it was; an exception."""
TOLERANCE = 1e-5
"""Of the largest change, in float32."""


def measure(folder: Path) -> dict[str, Any]:
    """Return the record: ComfyUI's version, and for each of the tests' layers what becomes of it."""
    from dialects.layers import LAYERS

    lora, found = _comfyui(folder), dict[str, dict[str, str]]()
    for name, make in LAYERS.items():
        torch.manual_seed(0)
        found[name] = measured(lora, make())
    return {"comfyui": _version(folder), "torch": torch.__version__.partition("+")[0], "layers": found}


def _comfyui(folder: Path) -> Any:
    """Import `comfy.lora` of a checkout, told that there is no GPU, without the models, which it only looks up."""
    sys.path.insert(0, str(folder))
    sys.modules["comfy.model_base"] = types.ModuleType("comfy.model_base")
    importlib.import_module("comfy.cli_args").args.cpu = True
    return importlib.import_module("comfy.lora")


def _version(folder: Path) -> str:
    for path in (folder / "comfyui_version.py", folder / "pyproject.toml"):
        text = path.read_text("utf-8") if path.exists() else ""
        if (found := re.search(r'version_*\s*=\s*"([^"]+)"', text)) is not None:
            return found[1]
    raise SystemExit(f"{folder}: no version of ComfyUI in comfyui_version.py or pyproject.toml")


def measured(lora: Any, layer: Any) -> dict[str, str]:
    """Return what a module `lora` makes of a layer at each strength, and whether it logs anything."""
    bases = {"weight": torch.randn(layer.shape), "bias": torch.randn(layer.shape[0])}
    file = {f"layer.{suffix}": tensor.clone() for suffix, tensor in layer.tensors.items()}
    with _logged() as lines:
        verdicts = {f"at {strength}": _verdict(lora, layer, file, bases, strength) for strength in (1.0, 0.5)}
    return verdicts | ({"logged": "yes"} if lines else {})


def _verdict(
    lora: Any, layer: Any, file: Mapping[str, Tensor], bases: Mapping[str, Tensor], strength: float
) -> str:
    expected = {name: base + _change(layer, name, base, strength) for name, base in bases.items()}
    try:
        patches = lora.load_lora(dict(file), {"layer": "layer.weight"})
        computed = {
            name: _patched(lora, patches, f"layer.{name}", base, strength) for name, base in bases.items()
        }
    except Exception:  # noqa: BLE001  # whatever ComfyUI raises is what a user would see
        return ERROR
    if all(torch.equal(computed[name], base) for name, base in bases.items()):
        return NOTHING
    largest = max(float((expected[name] - base).abs().max()) for name, base in bases.items())
    far = max(
        float((computed[name] - expected[name]).abs().max())
        if computed[name].shape == expected[name].shape
        else float("inf")
        for name in bases
    )
    return SAME if far <= TOLERANCE * largest else OTHER


def _change(layer: Any, name: str, base: Tensor, strength: float) -> Tensor:
    part = layer.delta.part(name)
    return (
        torch.zeros_like(base)
        if part is None
        else part.weight(base, torch.float32, strength).reshape(base.shape)
    )


def _patched(lora: Any, patches: Mapping[str, Any], key: str, base: Tensor, strength: float) -> Tensor:
    if key not in patches:
        return base
    return lora.calculate_weight([(strength, patches[key], 1.0, None, None)], base.clone(), key)


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect the warnings and errors that ComfyUI writes into its log."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield lines
    finally:
        root.removeHandler(handler)


def main() -> None:
    """Measure, and write the record."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
    record = measure(Path(sys.argv[1]))
    lines = [
        f"  {json.dumps(name)}: {json.dumps(verdicts)}" for name, verdicts in record.pop("layers").items()
    ]
    head = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    RECORD.write_text("{" + head + ', "layers": {\n' + ",\n".join(lines) + "\n}}\n", "utf-8")


if __name__ == "__main__":
    main()
