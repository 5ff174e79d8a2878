"""Deltas of several layers together, and fusing, in pipelines whose models lie elsewhere than where they compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorry.errors import FuseError, StateError
from pipelines import oracle
from pipelines.conftest import Files
from pipelines.test_placement import NOT_HERE, PLACEMENTS, a_machine_with_streams, fresh
from pipelines.test_shared_rows import FAMILIES, file
from small import check_near

__all__ = ["a_machine_with_streams"]

HERE = [name for name in PLACEMENTS if name not in NOT_HERE]
LOSS = {"layerwise casting": 1e-2}
"""Fused weights are kept in bfloat16 there."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("placement", HERE)
def test_parts_of_a_layer_are_drawn_as_in_a_pipeline_that_stays_where_it_is(
    placement: str, family: str, tmp_path: Path
) -> None:
    pipe, plain = fresh("flux"), fresh("flux")
    tensors, bare = file(plain, FAMILIES[family]), oracle.drawn(plain)
    PLACEMENTS[placement](pipe, tmp_path)
    for one in (pipe, plain):
        one.load_lora_weights(tensors, adapter_name="a")
        one.set_adapters("a", 0.5)
    acting = oracle.drawn(plain)
    assert not torch.equal(acting, bare)
    assert torch.equal(oracle.drawn(pipe), acting)
    for one in (pipe, plain):
        one.fuse_lora()
    check_near(oracle.drawn(pipe), oracle.drawn(plain), LOSS.get(placement, 0.0))
    pipe.unload_lora_weights()
    assert torch.equal(oracle.drawn(pipe), bare)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("placement", NOT_HERE)
def test_they_are_refused_by_name_where_the_weights_are_not_here(
    placement: str, family: str, tmp_path: Path
) -> None:
    pipe = fresh("flux")
    tensors, bare = file(pipe, FAMILIES[family]), oracle.drawn(pipe)
    PLACEMENTS[placement](pipe, tmp_path)
    with pytest.raises(
        StateError, match=r"`single_transformer_blocks\.0\.\S+` is offloaded.*before offloading"
    ):
        pipe.load_lora_weights(tensors, adapter_name="a")
    assert not pipe.get_list_adapters()
    assert torch.equal(oracle.drawn(pipe), bare)


@pytest.mark.parametrize("originals", ["device", "cpu", "disk"])
@pytest.mark.parametrize("placement", HERE)
def test_what_is_fused_in_its_place_is_drawn_fused_and_what_is_unfused_is_not(
    placement: str, originals: str, files: Files, tmp_path: Path
) -> None:
    pipe, plain = fresh("sd"), fresh("sd")
    PLACEMENTS[placement](pipe, tmp_path)
    bare = oracle.drawn(pipe)

    def check_drawn() -> None:
        for _ in range(2):  # by stream, a call gives the layers back what the next one computes with
            check_near(oracle.drawn(pipe), oracle.drawn(plain), LOSS.get(placement, 0.0))

    for one in (pipe, plain):
        one.load_lora_weights(files.get("sd"), adapter_name="a")
        one.fuse_lora(originals=originals)
    check_drawn()
    assert not torch.equal(oracle.drawn(pipe), bare)
    for one in (pipe, plain):
        one.disable_lora()
    assert torch.equal(oracle.drawn(pipe), bare)
    for one in (pipe, plain):
        one.enable_lora()
    check_drawn()
    for one in (pipe, plain):
        one.unfuse_lora()
    check_drawn()
    pipe.unload_lora_weights()
    assert torch.equal(oracle.drawn(pipe), bare)


@pytest.mark.parametrize("placement", NOT_HERE)
def test_fusing_weights_that_are_not_here_is_refused(placement: str, files: Files, tmp_path: Path) -> None:
    pipe = fresh("sd")
    pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    PLACEMENTS[placement](pipe, tmp_path)
    acting = oracle.drawn(pipe)
    with pytest.raises(StateError, match="offloaded"):
        pipe.fuse_lora()
    assert torch.equal(oracle.drawn(pipe), acting)


TAKEN_OUT = {
    "unfuse": lambda pipe: pipe.unfuse_lora(),
    "unload": lambda pipe: pipe.unload_lora_weights(),
    "delete": lambda pipe: pipe.delete_adapters("a"),
    "disable": lambda pipe: pipe.disable_lora(),
}


@pytest.mark.parametrize("how", TAKEN_OUT)
@pytest.mark.parametrize("placement", NOT_HERE)
def test_what_is_fused_is_taken_out_when_its_weights_are_here_again_and_not_before(
    placement: str, how: str, files: Files, tmp_path: Path
) -> None:
    pipe = fresh("sd")
    bare = oracle.drawn(pipe)
    pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    acting = oracle.drawn(pipe)
    pipe.fuse_lora()
    fused = oracle.drawn(pipe)
    PLACEMENTS[placement](pipe, tmp_path)
    for _ in range(2):  # before the first call accelerate has the weights elsewhere too
        with pytest.raises(FuseError, match=r"offloaded: its .* is not here.*remove_all_hooks"):
            TAKEN_OUT[how](pipe)
        assert torch.equal(oracle.drawn(pipe), fused)
    pipe.remove_all_hooks()
    TAKEN_OUT[how](pipe)
    assert torch.equal(oracle.drawn(pipe), acting if how == "unfuse" else bare)
