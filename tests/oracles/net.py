"""A model with a layer of every kind that trainers adapt, and what its layers compute, worked out from outside.

Every layer that a trainer adapts is affine in its input (a norm layer: in its normalised input). So its weight and bias
follow from its outputs alone, whatever stands behind its `forward`: another program's adapter, or ours.
"""

from __future__ import annotations

from itertools import product
from typing import cast

import torch
from torch import Tensor, nn

import lorry

Parameters = dict[str, Tensor]
"""Weights and biases by their names in the model, float64."""


class Net(nn.Module):
    """Square, wide and tall linear layers, with a bias and without; convolutions of 3x3, 1x1, strided, in groups."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.attn = nn.ModuleDict(
                {"to_q": nn.Linear(16, 16, bias=False), "to_k": nn.Linear(24, 16), "to_v": nn.Linear(8, 16)}
            )
            self.conv = nn.Conv2d(4, 8, 3, padding=1)
            self.point = nn.Conv2d(8, 16, 1, bias=False)
            self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
            self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.norm = nn.LayerNorm(8)
            self.group_norm = nn.GroupNorm(2, 8)
            for module in self.modules():
                if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                    nn.init.normal_(module.weight, 1.0, 0.2)
                    nn.init.normal_(module.bias, 0.0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Pipe(lorry.LoraLoaderMixin):
    """As little as a pipeline can be."""

    def __init__(self) -> None:
        self.unet = Net()


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers by their paths in the model."""
    return {path: module for path, module in model.named_modules() if list(module.parameters(recurse=False))}


@torch.no_grad()
def computed(model: nn.Module) -> Parameters:
    """The parameters that a model's layers compute with, found from what they answer.

    Args:
        model: a `Net`, or one whose layers another program has put its own in place of.
    """
    found: Parameters = {}
    for path, kind in layers(Net()).items():
        layer = model.get_submodule(path)
        if isinstance(kind, nn.LayerNorm | nn.GroupNorm):
            weight, bias = _of_norm(layer, kind)
        else:
            inputs, place = _impulses(kind)
            nothing = layer(torch.zeros_like(inputs[:1])).double()
            bias = nothing[(0, slice(None), *place)]
            answers = (layer(inputs).double() - nothing)[(slice(None), slice(None), *place)]
            weight = _of_answers(answers, kind)
        found[f"{path}.weight"], found[f"{path}.bias"] = weight, bias
    return found


def _impulses(kind: nn.Module) -> tuple[Tensor, tuple[int, ...]]:
    """Inputs with a single 1 each, and the place of the output whose window is just where that can be."""
    if not isinstance(kind, nn.Conv2d):
        return torch.eye(cast(int, kind.in_features)), ()
    (kernel, _), (pad, _), (stride, _) = kind.kernel_size, cast(tuple[int, int], kind.padding), kind.stride
    output = -(-pad // stride)
    start = output * stride - pad
    ones = torch.eye(kind.in_channels * kernel**2).reshape(-1, kind.in_channels, kernel, kernel)
    return nn.functional.pad(ones, [start, 0, start, 0]), (output, output)


def _of_answers(answers: Tensor, kind: nn.Module) -> Tensor:
    if not isinstance(kind, nn.Conv2d):
        return answers.mT
    kernel, groups = kind.kernel_size, kind.groups
    whole = answers.mT.reshape(kind.out_channels, kind.in_channels, *kernel)
    rows, columns = kind.out_channels // groups, kind.in_channels // groups
    blocks = whole.reshape(groups, rows, groups, columns, *kernel)
    for one, other in product(range(groups), repeat=2):
        if one != other and blocks[one, :, other].any():
            raise AssertionError("a group answers to the inputs of another")
    return torch.cat([blocks[group, :, group] for group in range(groups)])


def _of_norm(layer: nn.Module, kind: nn.LayerNorm | nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Regress each channel of the output on the same channel normalised."""
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    if isinstance(kind, nn.GroupNorm):
        x = x[..., None]
        plain = nn.functional.group_norm(x, kind.num_groups, eps=kind.eps)
    else:
        plain = nn.functional.layer_norm(x, (8,), eps=kind.eps)
    x, y = plain.double().reshape(-1, 8), layer(x).double().reshape(-1, 8)
    sides = [torch.stack([x[:, c], torch.ones(len(x))], 1) for c in range(8)]
    fits = torch.stack(
        [torch.linalg.lstsq(side, y[:, c, None]).solution[:, 0] for c, side in enumerate(sides)]
    )
    return fits[:, 0], fits[:, 1]


def check_same(got: Parameters, expected: Parameters, base: Parameters, tolerance: float = 5e-6) -> None:
    """Raise where a parameter is further from `expected` than `tolerance` times what was added to all of it."""
    changed = 0
    for name, tensor in expected.items():
        added = float((tensor - base[name]).norm())
        changed += added > 1e-4
        error = float((got[name] - tensor).norm())
        if error > tolerance * max(added, float(base[name].norm())):
            raise AssertionError(f"{name}: off by {error:.1e}, where {added:.1e} was added")
    if not changed:
        raise AssertionError("nothing was changed at all")


def check_loads_as(path: str, expected: Parameters, expected_half: Parameters | None = None) -> None:
    """Raise unless the file acts unfused and fused as `expected`, and leaves no bit when it is taken off.

    Args:
        path: of a file or a folder.
        expected: what the layers shall compute with at strength 1.
        expected_half: the same at 0.5, where that is known.
    """
    pipe = Pipe()
    base, bits = computed(pipe.unet), {name: p.clone() for name, p in pipe.unet.state_dict().items()}
    report = pipe.load_lora_weights(path, adapter_name="a")
    assert report.applied + len(report.ignored) == report.key_count
    check_same(computed(pipe.unet), expected, base)
    pipe.fuse_lora()
    check_same(computed(pipe.unet), expected, base)
    pipe.unfuse_lora()
    if expected_half is not None:
        pipe.set_adapters(["a"], [0.5])
        check_same(computed(pipe.unet), expected_half, base)
    pipe.unload_lora_weights()
    after = pipe.unet.state_dict()
    assert after.keys() == bits.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in bits.items())
