"""MiniMax-H3's files, whose fused q, k and v have two orders of rows: what lands is what diffusers makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import diffusers
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_minimax_h3_lora_to_diffusers
from torch import Tensor, nn

from dialects.conftest import make_file
from lorry.binding import Plan, bind
from lorry.dialects import find_dialect, read_adapter
from lorry.errors import FormatError
from lorry.files import TensorFile

HEADS, RANK = 2, 4
WIDTH = 128 * HEADS
INFIXES = {"diffsynth-h3": ".default", "diffusers": ""}


def model() -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return diffusers.MiniMaxH3Transformer3DModel(
            num_layers=1, num_refiner_layers=1, num_attention_heads=HEADS, hidden_size=WIDTH, ffn_dim=64
        )


def layers() -> dict[str, tuple[int, int]]:
    inside = {"attn.qkv_proj": (3 * WIDTH, WIDTH), "attn.out_proj": (WIDTH, WIDTH), "mlp.fc1": (128, WIDTH)}
    blocks = ("blocks.0", "token_refiner.blocks.0")
    return {f"{block}.{layer}": shape for block in blocks for layer, shape in inside.items()}


def file(infix: str, metadata: Mapping[str, str] | None = None) -> TensorFile:
    shapes = {}
    for path, (rows, columns) in layers().items():
        shapes[f"{path}.lora_A{infix}.weight"] = (RANK, columns)
        shapes[f"{path}.lora_B{infix}.weight"] = (rows, RANK)
    return make_file(shapes, metadata=metadata or {})


def planned(found: TensorFile) -> Plan:
    return bind(read_adapter(found), {"transformer": model()})


@pytest.mark.parametrize("dialect", INFIXES)
def test_rows_land_where_diffusers_puts_them(dialect: str) -> None:
    found = file(INFIXES[dialect])
    claimed = find_dialect(found)
    assert claimed is not None
    assert claimed.name == dialect
    expected: dict[str, Tensor] = _convert_non_diffusers_minimax_h3_lora_to_diffusers(dict(found.tensors))
    deltas = planned(found).deltas["transformer"]
    assert {f"transformer.{path}.lora_A.weight" for path in deltas} == {k for k in expected if "lora_A" in k}
    for path, delta in deltas.items():
        down, up = (expected[f"transformer.{path}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(delta.weight(), up @ down, msg=path)


def test_the_two_orders_differ() -> None:
    one, two = (planned(file(infix)).deltas["transformer"] for infix in INFIXES.values())
    path = "transformer_blocks.0.attn.to_k"
    assert not torch.allclose(one[path].weight(), two[path].weight())


def test_the_headers_alpha_is_every_layers() -> None:
    report = planned(file("", {"alpha": "2"})).report
    assert report.components[0].scales == (2 / RANK,)
    assert report.components[0].scale_sources == ("metadata",)


@pytest.mark.parametrize("alpha", ["many", "nan", "0"])
def test_a_headers_alpha_that_is_no_number_is_refused(alpha: str) -> None:
    with pytest.raises(FormatError, match=r"`alpha` in the header of test\.safetensors"):
        read_adapter(file("", {"alpha": alpha}))


def test_rows_that_are_no_whole_heads_are_refused() -> None:
    path = "blocks.0.attn.qkv_proj"
    shapes = {f"{path}.lora_A.default.weight": (2, 8), f"{path}.lora_B.default.weight": (96, 2)}
    with pytest.raises(FormatError, match=r"expected 384 rows for each head of a MiniMax-H3, got 96 rows"):
        read_adapter(make_file(shapes))
