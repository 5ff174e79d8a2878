"""A damaged file is found out, its damage named, and the pipeline left as it was; the order of keys means nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lorry import attach
from lorry.errors import FormatError, LorryError, ShapeMismatchError, UnknownTargetError
from models import tiny_sd_pipeline
from rows import AB, DOTS, KOHYA
from snapshots import check_same, snapshot

Tensors = dict[str, Tensor]
PATHS = [f"mid_block.attentions.0.transformer_blocks.0.attn{n}.to_{name}" for n in (1, 2) for name in "qkv"]
TO_K = PATHS[4]
"""The one whose layer is not square: cross attention takes another width in."""


def spelled(prefix: str, pair: tuple[str, str]) -> Callable[[str], tuple[str, str, str]]:
    """The names of a layer's three tensors by its path, which is flattened after a prefix that ends so."""

    def keys(path: str) -> tuple[str, str, str]:
        stem = prefix + (path.replace(".", "_") if prefix.endswith("_") else path)
        return f"{stem}.{pair[0]}", f"{stem}.{pair[1]}", f"{stem}.alpha"

    return keys


SPELLINGS: dict[str, Callable[[str], tuple[str, str, str]]] = {
    "kohya": spelled("lora_unet_", KOHYA),
    "lycoris": spelled("lycoris_", KOHYA),
    "comfyui": spelled("diffusion_model.", AB),
    "dotted-kohya": spelled("unet.", KOHYA),
    "diffusers": spelled("unet.", AB),
    "peft": spelled("base_model.model.", AB),
    "lora-layers": spelled("unet.", DOTS),
}


def whole_file(spelling: str, pipe: Any) -> Tensors:
    tensors: Tensors = {}
    for path in PATHS:
        layer = pipe.unet.get_submodule(path)
        down, up, alpha = SPELLINGS[spelling](path)
        tensors[down], tensors[up] = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
        tensors[alpha] = torch.tensor(2.0)
    return tensors


def with_unlike_alphas(tensors: Tensors) -> Tensors:
    """The file with another alpha for each layer that has one."""
    alphas = sorted(key for key in tensors if key.endswith(".alpha"))
    return tensors | {key: torch.tensor(1.0 + number) for number, key in enumerate(alphas)}


def renamed(tensors: Tensors, down: str, up: str, alpha: str) -> None:
    tensors[down.replace("mid_block", "mid_blok")] = tensors.pop(down)


def halved(tensors: Tensors, down: str, up: str, alpha: str) -> None:
    del tensors[up]


def transposed(tensors: Tensors, down: str, up: str, alpha: str) -> None:
    tensors[down] = tensors[down].mT.contiguous()


def other_base(tensors: Tensors, down: str, up: str, alpha: str) -> None:
    tensors[down] = torch.randn(4, tensors[down].shape[1] * 2)


def other_rank(tensors: Tensors, down: str, up: str, alpha: str) -> None:
    tensors[down] = torch.randn(3, tensors[down].shape[1])


def with_alpha(value: float) -> Callable[..., None]:
    def damage(tensors: Tensors, down: str, up: str, alpha: str) -> None:
        tensors[alpha] = torch.tensor(value)

    return damage


DAMAGES: dict[str, tuple[Callable[..., None], type[LorryError], int]] = {
    "a key renamed": (renamed, UnknownTargetError, 1),
    "half a layer missing": (halved, UnknownTargetError, 0),
    "a factor transposed": (transposed, FormatError, 0),
    "made for another base": (other_base, ShapeMismatchError, -1),
    "ranks that differ": (other_rank, FormatError, 0),
    "an alpha of zero": (with_alpha(0.0), FormatError, 2),
    "an infinite alpha": (with_alpha(float("inf")), FormatError, 2),
    "an alpha that is no number": (with_alpha(float("nan")), FormatError, 2),
}
"""{what: (how, error, which of the layer's keys the message names; -1 for the layer in the model)}"""


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damage_is_named_and_nothing_is_changed(what: str, spelling: str) -> None:
    pipe = attach(tiny_sd_pipeline())
    tensors, keys = whole_file(spelling, pipe), SPELLINGS[spelling](TO_K)
    damage, error, named = DAMAGES[what]
    damage(tensors, *keys)
    before = snapshot(pipe.unet), snapshot(pipe.text_encoder)
    with pytest.raises(error) as caught:
        pipe.load_lora_weights(tensors)
    assert (TO_K if named < 0 else keys[named]) in str(caught.value)
    check_same(snapshot(pipe.unet), before[0])
    check_same(snapshot(pipe.text_encoder), before[1])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_without_its_alpha_has_the_scale_of_none_and_is_named(
    spelling: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = attach(tiny_sd_pipeline())
    tensors, keys = whole_file(spelling, pipe), SPELLINGS[spelling](TO_K)
    (whole,) = pipe.load_lora_weights(tensors).components
    assert whole.without_alpha == ()
    assert not caplog.messages
    del tensors[keys[2]]
    (report,) = pipe.load_lora_weights(tensors).components
    assert report.scales == (0.5, 1.0)
    assert set(report.without_alpha) <= set(keys)
    assert len(report.without_alpha) == 1
    assert f"1 without the alpha that others have, at scale 1: {report.without_alpha[0]}" in caplog.text


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_is_left_of_a_damaged_file_is_applied_on_demand_and_counted(spelling: str) -> None:
    pipe = attach(tiny_sd_pipeline())
    tensors, keys = whole_file(spelling, pipe), SPELLINGS[spelling](TO_K)
    halved(tensors, *keys)
    report = pipe.load_lora_weights(tensors, strict=False)
    assert (report.applied, report.key_count) == (3 * (len(PATHS) - 1), len(tensors))
    assert set(report.unknown) == {keys[0], keys[2]}
    assert report.applied + len(report.unknown) == report.key_count


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_order_of_keys_changes_no_bit(spelling: str) -> None:
    pipe = attach(tiny_sd_pipeline())
    tensors, found = with_unlike_alphas(whole_file(spelling, pipe)), []
    for seed in (None, 1, 2):
        keys = sorted(tensors)
        if seed is not None:
            random.Random(seed).shuffle(keys)
        pipe.load_lora_weights({key: tensors[key] for key in keys})
        pipe.fuse_lora()
        found.append([pipe.unet.get_submodule(path).weight.detach().clone() for path in PATHS])
        pipe.unload_lora_weights()
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
