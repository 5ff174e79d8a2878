"""Measure what each dialect carries of each family on each architecture: whole files, there and back, bit for bit.

    PYTHONPATH=src:. python -m scripts.formats_matrix

writes `docs/formats.json`, `{architecture: {family: {dialect: verdict}}}`. A file has a layer that the original
checkpoint has too, and the layers of one that the original has fused, where there is such a one. The models are at full
width and on the meta device, with few blocks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scripts.names.generate import CHECKPOINTS, build
from torch import Tensor, nn

from lorry.adapters import Adapter
from lorry.binding import ModuleIndex, base_of_models, in_names_of_model, weight_shape
from lorry.dialects import DIALECTS, get_dialect, read_adapter
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile
from lorry.pipelines.architectures import skeleton
from lorry.workflows.convert import convert_adapter

RECORD = Path(__file__).resolve().parents[1] / "docs" / "formats.json"
WRITTEN = [dialect.name for dialect in DIALECTS if dialect.is_written]
UNETS = {"Stable Diffusion 1": "sd15", "Stable Diffusion 2": "sd2", "SDXL": "sdxl"}
EXACT, APART, REFUSED = "exact", "apart", "refused"
"""Of a family: carried; carried but for layers that the original has fused; refused by name."""

Shape = tuple[int, ...]
Parts = Mapping[str, Tensor]


def _alpha(value: float = 1.5) -> Parts:
    return {"alpha": torch.tensor(value)}


def _plain(shape: Shape) -> Parts:
    return {"lora_down.weight": torch.randn(2, shape[1]), "lora_up.weight": torch.randn(shape[0], 2)}


def _loha(shape: Shape) -> Parts:
    sizes = {"w1_a": (shape[0], 2), "w1_b": (2, shape[1]), "w2_a": (shape[0], 2), "w2_b": (2, shape[1])}
    return {f"hada_{name}": torch.randn(size) for name, size in sizes.items()} | _alpha()


def _wide(rows: int, columns: int) -> Tensor:
    """Numbers for a large matrix, no two rows and no two columns of it alike, made fast."""
    return torch.randn(rows, 1).half() + torch.randn(1, columns).half()


def _lokr(shape: Shape) -> Parts:
    return {"lokr_w1": torch.randn(2, 2).half(), "lokr_w2": _wide(shape[0] // 2, shape[1] // 2)}


def _glora(shape: Shape) -> Parts:
    a = {"a1.weight": torch.randn(shape[1], 2), "a2.weight": torch.randn(2, shape[1])}
    return {**a, "b1.weight": torch.randn(shape[0], 2), "b2.weight": torch.randn(2, shape[1]), **_alpha()}


def _oft(shape: Shape) -> Parts:
    return {"oft_blocks": torch.randn(shape[0] // 4, 4, 4) / 8, "alpha": torch.tensor(0.0)}


def _boft(shape: Shape) -> Parts:
    return {"oft_blocks": torch.randn(1, shape[0] // 4, 4, 4) / 8, "alpha": torch.tensor(0.0)}


FAMILIES: Mapping[str, Callable[[Shape], Parts]] = {
    "LoRA": lambda shape: {**_plain(shape), **_alpha()},
    "LoRA without an alpha": _plain,
    "DoRA of rows": lambda shape: {**_plain(shape), **_alpha(), "dora_scale": torch.rand(shape[0], 1) + 1},
    "DoRA of columns": lambda shape: {**_plain(shape), **_alpha(), "dora_scale": torch.rand(1, shape[1]) + 1},
    "LoHa": _loha,
    "LoKr": _lokr,
    "GLoRA": _glora,
    "Diag-OFT": _oft,
    "BOFT": _boft,
    "OFT of PEFT": lambda shape: {"oft_R.weight": torch.randn(shape[1] // 4, 6) / 8},
    "HRA": lambda shape: {"hra_u": torch.randn(shape[1], 2)},
    "(IA)^3": lambda shape: {"weight": torch.randn(shape[0], 1), "on_input": torch.tensor(False)},
    "full difference": lambda shape: {"diff": _wide(*shape)},
}
"""By suffix, for the weight of a linear layer."""


class Model(NamedTuple):
    """A denoiser, and the layers that are tried."""

    component: str
    module: nn.Module
    single: tuple[str, ...]
    fused: tuple[str, ...]


def architectures() -> Iterator[tuple[str, Callable[[], Model]]]:
    """Yield the name of each architecture and what makes its model."""
    for title, name in UNETS.items():
        yield title, lambda name=name: _model("unet", skeleton(name)["unet"])
    for checkpoint in CHECKPOINTS:
        yield checkpoint.model, lambda checkpoint=checkpoint: _model("transformer", build(checkpoint))


def _model(component: str, module: nn.Module) -> Model:
    index = ModuleIndex(module)
    groups: dict[str, tuple[str, ...]] = {
        name: tuple(piece.path for piece in pieces)
        for name, pieces in index.original.items()
        if all(piece.of == 1 for piece in pieces) and all(_is_linear(index, piece.path) for piece in pieces)
    }
    fused = [paths for paths in groups.values() if len(set(paths)) > 1 and "attn" in paths[0]]
    taken = {path for paths in groups.values() if len(paths) > 1 for path in paths}
    named = [path for paths in groups.values() if len(paths) == 1 for path in paths]
    single = [path for path in named or index.modules if _is_linear(index, path) and path not in taken]
    first = min(single, key=lambda path: (_preference(path), path))
    return Model(component, module, (first,), min(fused, default=(), key=lambda paths: (len(paths), paths)))


def _preference(path: str) -> int:
    """Attentions first, which every dialect has names for."""
    endings = ("attn1.to_out.0", "attn.to_out.0", "to_out.0")
    return next((i for i, ending in enumerate(endings) if path.endswith(ending)), len(endings))


def _is_linear(index: ModuleIndex, path: str) -> bool:
    shape = weight_shape(index.modules[path]) or ()
    return len(shape) == 2 and all(size % 4 == 0 for size in shape)


def verdict(model: Model, family: str, dialect: str) -> str:
    """Say what becomes of a file of one family in a dialect and back."""
    if not _is_carried(model, model.single, family, dialect):
        return REFUSED
    fused = model.fused and not _is_carried(model, model.single + model.fused, family, dialect)
    return APART if fused else EXACT


def _is_carried(model: Model, paths: tuple[str, ...], family: str, dialect: str) -> bool:
    """Whether layers go there and back without a difference; false where the dialect refuses them."""
    models = {model.component: model.module}
    tensors = {}
    for path in paths:
        parts = FAMILIES[family](weight_shape(model.module.get_submodule(path)) or ())
        tensors |= {f"{model.component}.{path}.{suffix}": tensor for suffix, tensor in parts.items()}
    first = in_names_of_model(read_adapter(TensorFile(tensors)), models)
    try:
        file, _ = convert_adapter(first, get_dialect(dialect), base_of_models(models), models)
    except UnsupportedAdapterError:
        return False
    shuffled = dict(sorted(file.tensors.items(), key=lambda item: item[0][::-1]))
    back = in_names_of_model(read_adapter(TensorFile(shuffled, file.metadata)), models)
    check_same(first, back)
    return True


def check_same(one: Adapter, other: Adapter) -> None:
    """Raise where two adapters differ in a target, a scale, or a bit of a tensor.

    Raises:
        ValueError: names the target.
    """
    for mine, its in zip(one.entries, other.entries, strict=True):
        pairs = mine.delta.tensors(), its.delta.tensors()
        same = mine.target == its.target and pairs[0].keys() == pairs[1].keys()
        same = same and mine.delta.rank_scale == its.delta.rank_scale
        if not same or not all(torch.equal(t.flatten(), pairs[1][n].flatten()) for n, t in pairs[0].items()):
            raise ValueError(
                f"{mine.target}: {mine.delta.family} came back as {its.target}: {its.delta.family}"
            )


def measure(make: Callable[[], Model]) -> dict[str, dict[str, str]]:
    """Return the verdicts on one architecture, by family and dialect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers, about parts of its own models
        model = make()
    torch.manual_seed(0)
    return {family: {dialect: verdict(model, family, dialect) for dialect in WRITTEN} for family in FAMILIES}


def main() -> None:
    """Measure everything and write the record."""
    found: dict[str, Any] = {}
    for name, make in architectures():
        found[name] = measure(make)
        print(name, flush=True)
    RECORD.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
