"""Adapter files of every family for the tiny pipelines, written by lorry's own dialects, and the deltas in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from lorry.adapters import Adapter, Embedding, Entry
from lorry.algebra import (
    BoftDelta,
    Delta,
    DoraDelta,
    FullDelta,
    GloraDelta,
    HraDelta,
    Ia3Delta,
    LohaDelta,
    LokrDelta,
    OftDelta,
    PartsDelta,
    ReplaceDelta,
    SparseDelta,
    VeraDelta,
)
from lorry.binding import BareParameter, carriers, weight_shape
from lorry.dialects import get_dialect
from lorry.files import write_safetensors
from lorry.names import Target
from models import random_delta

Shape = tuple[int, ...]
Random = Callable[..., Tensor]
"""Normal numbers of a shape."""

_BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
_UNET = (
    f"{_BLOCK}.attn1.to_q",
    f"{_BLOCK}.attn1.to_out.0",
    f"{_BLOCK}.attn2.to_k",
    f"{_BLOCK}.norm1",
    "down_blocks.1.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1",
    "mid_block.resnets.0.norm1",
    "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
)
_CLIP = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1", "encoder.layers.0.layer_norm1")
_CLIP_2 = tuple(f"text_model.{path}" for path in _CLIP[:2])
TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "sd": {"unet": _UNET, "text_encoder": _CLIP},
    "sdxl": {"unet": _UNET, "text_encoder": _CLIP, "text_encoder_2": _CLIP_2},
    "flux": {
        "transformer": (
            "x_embedder",
            "transformer_blocks.0.attn.to_q",
            "transformer_blocks.0.attn.to_out.0",
            "transformer_blocks.0.norm1.linear",
            "transformer_blocks.0.ff.net.2",
            "single_transformer_blocks.0.proj_mlp",
            "single_transformer_blocks.1.attn.to_k",
        ),
        "text_encoder": _CLIP,
    },
    "wan": {
        "transformer": (
            "condition_embedder.time_proj",
            "blocks.0.attn1.to_q",
            "blocks.0.attn2.to_out.0",
            "blocks.0.scale_shift_table",
            "blocks.1.ffn.net.2",
            "blocks.1.scale_shift_table",
            "scale_shift_table",
        ),
        "text_encoder": (
            "encoder.block.0.layer.0.SelfAttention.q",
            "encoder.block.0.layer.1.DenseReluDense.wo",
        ),
    },
}
"""Layers of each kind, by pipeline and component: attention, convolutions of both sizes, norms, with biases and not;
and parameters of Wan's blocks and of its transformer itself."""


def _oft(shape: Shape, rand: Random) -> Delta:
    return OftDelta(0.2 * rand(2, shape[0] // 2, shape[0] // 2), target_shape=shape)


def _boft(shape: Shape, rand: Random) -> Delta:
    return BoftDelta(0.2 * rand(2, 2, shape[0] // 2, shape[0] // 2), target_shape=shape)


def _loha(shape: Shape, rand: Random) -> Delta:
    count = torch.Size(shape[1:]).numel()
    return LohaDelta(rand(shape[0], 2), rand(2, count), rand(shape[0], 2), 0.2 * rand(2, count), alpha=1.5)


def _lokr(shape: Shape, rand: Random) -> Delta:
    rows, columns, *kernel = shape
    return LokrDelta(w1=rand(2, 2), w2=0.2 * rand(rows // 2, columns // 2, *kernel), alpha=1.0)


def _glora(shape: Shape, rand: Random) -> Delta:
    rows, columns, *kernel = shape
    ones = [1 for _ in kernel]
    left, right = rand(columns, 2, *ones), 0.1 * rand(2, columns, *ones)
    return GloraDelta(left, right, rand(rows, 2, *ones), 0.1 * rand(2, columns, *kernel), alpha=1.5)


def _dora(shape: Shape, rand: Random, *, on_input: bool) -> Delta:
    size, ones = shape[on_input], [1 for _ in shape[2:]]
    inner = random_delta(shape, int(rand(1).abs() * 1000), 2, alpha=1.5)
    return DoraDelta(inner, 0.5 + rand(*((1, size) if on_input else (size, 1)), *ones).abs(), on_input)


def _lora(shape: Shape, rand: Random, **kwargs: Any) -> Delta:
    return random_delta(shape, int(rand(1).abs() * 1000), **kwargs)


def _tucker(shape: Shape, rand: Random) -> Delta:
    return _lora(shape, rand, rank=2, alpha=1.0, tucker=len(shape) == 4 and shape[2] > 1)


def _with_bias(shape: Shape, rand: Random) -> Delta:
    return PartsDelta(_lora(shape, rand, rank=2, alpha=2.0), FullDelta(0.3 * rand(shape[0])))


def _sparse(shape: Shape, rand: Random) -> Delta:
    count = torch.Size(shape[1:]).numel()
    cells = torch.arange(0, shape[0] * count, 7)
    return SparseDelta(
        _lora(shape, rand, rank=2, alpha=1.5), rand(len(cells)), torch.stack([cells // count, cells % count])
    )


FAMILIES: dict[str, Callable[[Shape, Random], Delta]] = {
    "lora": lambda shape, rand: _lora(shape, rand, rank=4, alpha=6.0),
    "lora of rank 1": lambda shape, rand: _lora(shape, rand, rank=1, alpha=1.0),
    "tucker": _tucker,
    "lora with bias": _with_bias,
    "dora": lambda shape, rand: _dora(shape, rand, on_input=False),
    "dora of columns": lambda shape, rand: _dora(shape, rand, on_input=True),
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "oft": _oft,
    "boft": _boft,
    "hra": lambda shape, rand: HraDelta(rand(torch.Size(shape[1:]).numel(), 2), target_shape=shape),
    "ia3": lambda shape, rand: Ia3Delta(0.3 * rand(shape[0], *(1 for _ in shape[1:])), target_shape=shape),
    "full": lambda shape, rand: FullDelta(0.2 * rand(*shape)),
    "sparse": _sparse,
    "replacement": lambda shape, rand: ReplaceDelta(0.3 * rand(*shape)),
}
MIXED = "mixed"
"""Another family on each layer."""
VERA = "vera"
"""Two matrices that all layers share. lorry does not write it; its file is spelled here."""
KINDS = (*FAMILIES, MIXED, VERA)
WHOLE = ("full", MIXED)
"""Those whose files have norms and bare parameters too."""
DIALECTS = {"hra": "peft", "replacement": "comfyui", VERA: "peft"}
"""Of families that kohya's names do not carry. The files here are for the denoiser alone."""
WHERE: dict[str, Callable[[str, str], bool]] = {
    "everywhere": lambda component, path: True,
    "the denoiser": lambda component, path: not component.startswith("text"),
    "attention": lambda component, path: "attn" in path,
    "the text encoder": lambda component, path: component == "text_encoder",
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Path2Delta = dict[str, Delta]


@final
@dataclass(frozen=True, slots=True)
class Spec:
    """What is in a file."""

    family: str
    where: str = "everywhere"
    seed: int = 0
    dtype: torch.dtype = torch.float32
    tokens: bool = False
    """It brings a token of two vectors along. Those of the same seed have the same name."""

    @property
    def token(self) -> str:
        return f"toy{self.seed}"


@final
class FilesOfEveryFamily:
    """Adapter files for one kind of pipeline, each written once."""

    def __init__(self, kind: str, pipeline: Any, folder: Path) -> None:
        """Make them for a pipeline of `kind`, in `folder`."""
        self._models: dict[str, nn.Module] = {name: getattr(pipeline, name) for name in TARGETS[kind]}
        self._kind, self._folder = kind, folder
        self._made: dict[Spec, tuple[Path, dict[str, Path2Delta]]] = {}

    def get(self, spec: Spec) -> tuple[Path, dict[str, Path2Delta]]:
        """Return the file of a spec, and its deltas by component and path."""
        if spec not in self._made:
            deltas = self._deltas(spec)
            tensors, metadata = _vera_file(deltas) if spec.family == VERA else self._written(spec, deltas)
            path = self._folder / f"{self._kind}-{len(self._made)}.safetensors"
            write_safetensors(path, tensors, metadata)
            self._made[spec] = (path, deltas)
        return self._made[spec]

    def vectors(self, spec: Spec) -> Tensor:
        """Return the token's vectors, (2, width)."""
        width = self._models["text_encoder"].get_input_embeddings().embedding_dim  # pyright: ignore[reportCallIssue]
        return torch.randn(2, width, generator=torch.Generator().manual_seed(spec.seed)).to(spec.dtype)

    def _written(self, spec: Spec, deltas: dict[str, Path2Delta]) -> tuple[dict[str, Tensor], dict[str, str]]:
        entries = tuple(
            Entry(Target(component, path), delta, ())
            for component, found in deltas.items()
            for path, delta in found.items()
        )
        tokens = (Embedding(spec.token, "text_encoder", self.vectors(spec), ""),) if spec.tokens else ()
        file = get_dialect(DIALECTS.get(spec.family, "kohya")).write(
            Adapter(entries, "test", embeddings=tokens)
        )
        return dict(file.tensors), dict(file.metadata)

    def _deltas(self, spec: Spec) -> dict[str, Path2Delta]:
        random = torch.Generator().manual_seed(spec.seed)

        def rand(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random)

        families = [name for name in FAMILIES if name not in DIALECTS]
        if spec.family == VERA:
            return self._veras(spec, rand)
        deltas: dict[str, Path2Delta] = {}
        for component, paths in TARGETS[self._kind].items():
            for number, path in enumerate(paths):
                layer = carriers(self._models[component])[path]
                shape = weight_shape(layer) or ()
                family = (
                    families[(number + spec.seed) % len(families)] if spec.family == MIXED else spec.family
                )
                is_whole = len(shape) == 1 or isinstance(layer, BareParameter)
                if not self._has(spec, component, path) or (is_whole and spec.family not in WHOLE):
                    continue
                delta = _whole(layer, shape, rand) if is_whole else FAMILIES[family](shape, rand)
                if family == "lora with bias" and not is_whole and layer.bias is None:
                    delta = _lora(shape, rand, rank=2)
                delta = delta.fitted(shape) or delta
                cast = {name: tensor.to(spec.dtype) for name, tensor in delta.tensors().items()}
                deltas.setdefault(component, {})[path] = delta.with_tensors(cast)
        return deltas

    def _veras(self, spec: Spec, rand: Random) -> dict[str, Path2Delta]:
        """VeRAs on the linear layers of the denoiser."""
        component = next(iter(self._models))
        layers = {path: carriers(self._models[component])[path] for path in TARGETS[self._kind][component]}
        shapes = {path: tuple(one.weight.shape) for path, one in layers.items() if isinstance(one, nn.Linear)}
        outs, ins = (max(sizes) for sizes in zip(*shapes.values(), strict=True))
        a, b = (0.2 * rand(*shape).to(spec.dtype) for shape in ((4, ins), (outs, 4)))
        return {
            component: {
                path: VeraDelta(rand(shape[0]).to(spec.dtype), rand(4).to(spec.dtype), a, b, shape)
                for path, shape in shapes.items()
            }
        }

    @staticmethod
    def _has(spec: Spec, component: str, path: str) -> bool:
        if spec.family in DIALECTS:
            return not component.startswith("text")
        return WHERE[spec.where](component, path)


def _whole(layer: nn.Module, shape: Shape, rand: Random) -> Delta:
    full = FullDelta(0.3 * rand(*shape))
    has_bias = layer._parameters.get("bias") is not None
    return PartsDelta(full, FullDelta(0.3 * rand(*shape))) if has_bias else full


def _vera_file(deltas: dict[str, Path2Delta]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file that PEFT writes with `save_projection`."""
    ((_, found),) = deltas.items()
    tensors: dict[str, Tensor] = {}
    for path, delta in found.items():
        own = delta.tensors()
        tensors["base_model.vera_A"], tensors["base_model.vera_B"] = own["shared_a"], own["shared_b"]
        for name in ("lambda_b", "lambda_d"):
            tensors[f"base_model.model.{path}.vera_{name}"] = own[name]
    return tensors, {}
