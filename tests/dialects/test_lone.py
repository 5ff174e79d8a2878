"""Single numbers beside a file's layers: an alpha for all of them acts, bookkeeping is ignored with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorry.adapters import Adapter
from lorry.dialects import read_adapter
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.files import TensorFile, read_safetensors

PATH, RANK = "transformer.transformer_blocks.0.attn", 4


def layer(name: str) -> dict[str, Tensor]:
    return {
        f"{PATH}.{name}.lora_A.weight": torch.randn(RANK, 6),
        f"{PATH}.{name}.lora_B.weight": torch.randn(8, RANK),
    }


def read(tensors: dict[str, Tensor], **metadata: str) -> Adapter:
    return read_adapter(TensorFile(tensors, metadata, "x"))


def scales(adapter: Adapter) -> dict[str, float]:
    return {entry.target.path.rpartition(".")[2]: entry.delta.rank_scale for entry in adapter.entries}


def test_fastvideo_has_the_alpha_and_the_rank_of_each_layer_under_names_of_its_own() -> None:
    own = {f"{PATH}.to_q.lora_alpha": torch.tensor(8.0), f"{PATH}.to_q.lora_rank": torch.tensor(4)}
    adapter = read({**layer("to_q"), **own, **layer("to_k")})
    assert scales(adapter) == {"to_q": 2.0, "to_k": 1.0}
    assert [(one.key, one.reason) for one in adapter.ignored] == [
        (f"{PATH}.to_q.lora_rank", "the rank, which the factors tell as well")
    ]
    assert (adapter.unknown, adapter.key_count) == ((), 6)


def test_it_counts_with_an_alpha_for_all_layers() -> None:
    own = {f"{PATH}.to_q.lora_alpha": torch.tensor(8.0), "lora_alpha": torch.tensor(4.0)}
    adapter = read({**layer("to_q"), **own, **layer("to_k")})
    assert scales(adapter) == {"to_q": 2.0, "to_k": 1.0}
    assert [entry.keys[-1] for entry in adapter.entries if entry.target.path.endswith("to_k")] == [
        "lora_alpha"
    ]


@pytest.mark.parametrize("name", ["lora_alpha", "network_alpha", "alpha"])
def test_one_alpha_for_all_layers_acts_on_those_without_their_own(name: str) -> None:
    own = {f"{PATH}.to_k.alpha": torch.tensor(2.0)}
    adapter = read({**layer("to_q"), **layer("to_k"), **own, name: torch.tensor(8.0)})
    assert scales(adapter) == {"to_q": 2.0, "to_k": 0.5}
    assert (adapter.ignored, adapter.unknown, adapter.key_count) == ((), (), 6)
    assert {entry.scale_source for entry in adapter.entries} == {"alpha tensor"}


def test_it_is_divided_by_the_root_of_the_rank_where_the_file_says_so() -> None:
    numbers = {"lora_alpha": torch.tensor(8.0), "use_rslora": torch.tensor(True)}
    adapter = read({**layer("to_q"), **numbers})
    assert scales(adapter) == {"to_q": 4.0}
    assert (adapter.unknown, adapter.key_count) == ((), 4)


def test_it_goes_before_what_the_header_says() -> None:
    config = '{"transformer.lora_alpha": 1, "transformer.r": 4}'
    adapter = read({**layer("to_q"), "lora_alpha": torch.tensor(8.0)}, lora_adapter_metadata=config)
    assert scales(adapter) == {"to_q": 2.0}


def test_it_says_nothing_where_each_layer_has_its_own() -> None:
    own = {f"{PATH}.to_q.alpha": torch.tensor(2.0)}
    adapter = read({**layer("to_q"), **own, "lora_alpha": torch.tensor(8.0)})
    assert scales(adapter) == {"to_q": 0.5}
    assert [(one.key, "of which there are none" in one.reason) for one in adapter.ignored] == [
        ("lora_alpha", True)
    ]


@pytest.mark.parametrize("value", [0.0, float("nan"), [1.0, 2.0]])
def test_one_that_no_trainer_can_have_meant_is_refused(value: object) -> None:
    with pytest.raises(FormatError, match="lora_alpha"):
        read({**layer("to_q"), "lora_alpha": torch.tensor(value)})


def test_two_are_refused() -> None:
    with pytest.raises(FormatError, match="both an alpha for all layers"):
        read({**layer("to_q"), "lora_alpha": torch.tensor(8.0), "alpha": torch.tensor(8.0)})


@pytest.mark.parametrize("name", ["step", "global_step", "epoch", "lora_rank", "rank", "transformer.step"])
def test_bookkeeping_is_ignored_with_its_reason(name: str) -> None:
    adapter = read({**layer("to_q"), name: torch.tensor(500)})
    assert [one.key for one in adapter.ignored] == [name]
    assert not adapter.unknown


@pytest.mark.parametrize("name", ["scaled_fp8", "diffusion_model.scaled_fp8"])
@pytest.mark.parametrize("count", [0, 2])
def test_comfyuis_mark_of_float8_is_ignored(name: str, count: int, tmp_path: Path) -> None:
    tensors = {**layer("to_q"), name: torch.empty(count, dtype=torch.float8_e4m3fn)}
    adapter = read(tensors)
    assert "mark of a file in float8" in adapter.ignored[0].reason
    save_file(tensors, tmp_path / "a.safetensors")
    again = read_adapter(read_safetensors(tmp_path / "a.safetensors"))
    assert [one.key for one in again.ignored] == [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [("step", torch.ones(3)), ("scaled_fp8", torch.ones(3)), ("scaling", torch.tensor(2.0))],
)
def test_what_may_carry_weights_or_strength_stays_unknown(name: str, value: Tensor) -> None:
    adapter = read({**layer("to_q"), name: value})
    assert (adapter.ignored, adapter.unknown) == ((), (name,))


def test_the_parts_of_a_fused_layer_by_number_are_no_adapters() -> None:
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    parts = {f"{stem}.lora_{side}.{i}.weight": torch.randn(4, 4) for side in ("down", "up") for i in range(3)}
    with pytest.raises(FormatError, match="has the parts of layers by number"):
        read(parts)


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_factors_in_float8_with_scales_of_their_own_are_refused_by_name(name: str) -> None:
    scale = {f"{PATH}.to_q.lora_A.{name}": torch.tensor(0.5)}
    with pytest.raises(UnsupportedAdapterError, match="LoRA in fp8 with scales of its own"):
        read({**layer("to_q"), **scale})
