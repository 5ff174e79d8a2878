"""The order of truth: a layer's alpha tensor, then metadata, then alpha = rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dialects.conftest import make_file
from lorry.adapters import Adapter
from lorry.dialects import read_adapter
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.files import TensorFile

Read = Callable[..., Adapter]
LAYER = {"unet.a.to_q.lora_A.weight": (4, 6), "unet.a.to_q.lora_B.weight": (8, 4)}
FLAT = {"lora_unet_a.lora_down.weight": (4, 6), "lora_unet_a.lora_up.weight": (8, 4)}


def scale(adapter: Adapter, path: str | None = None) -> tuple[float, str]:
    entry = next(entry for entry in adapter.entries if path is None or entry.target.path == path)
    return entry.delta.rank_scale, entry.scale_source


def header(**config: Any) -> dict[str, str]:
    return {
        "lora_adapter_metadata": json.dumps({key.replace("__", "."): value for key, value in config.items()})
    }


def test_an_alpha_tensor_beats_metadata_and_metadata_beats_the_rank(read: Read) -> None:
    metadata = header(unet__lora_alpha=2)
    assert scale(read(LAYER)) == (1.0, "rank")
    assert scale(read(LAYER, metadata=metadata)) == (0.5, "metadata")
    assert scale(read(LAYER, {"unet.a.to_q.alpha": 1.0}, metadata=metadata)) == (0.25, "alpha tensor")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_an_alpha_may_have_any_dtype_and_one_axis(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    file = make_file(FLAT)
    alpha = torch.full(shape, 2, dtype=dtype)
    assert scale(read_adapter(TensorFile({**file.tensors, "lora_unet_a.alpha": alpha}))) == (
        0.5,
        "alpha tensor",
    )


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf")])
def test_an_alpha_that_nobody_can_have_meant_is_refused_by_key(value: float, read: Read) -> None:
    with pytest.raises(
        FormatError, match=r"`lora_unet_a\.alpha`: expected an alpha that is finite and not zero"
    ):
        read(FLAT, {"lora_unet_a.alpha": value})


def test_a_negative_alpha_is_taken_at_its_word(read: Read) -> None:
    assert scale(read(FLAT, {"lora_unet_a.alpha": -4.0})) == (-1.0, "alpha tensor")


def test_an_alpha_of_several_numbers_is_refused() -> None:
    with pytest.raises(FormatError, match=r"`lora_unet_a\.alpha`: expected one number"):
        read_adapter(make_file({**FLAT, "lora_unet_a.alpha": (4,)}))


def test_layers_that_lack_an_alpha_among_others_have_scale_1(read: Read) -> None:
    other = {key.replace("_a.", "_b."): shape for key, shape in FLAT.items()}
    metadata = {"ss_network_alpha": "2", "ss_network_dim": "4"}
    adapter = read({**FLAT, **other}, {"lora_unet_a.alpha": 1.0}, metadata=metadata)
    assert scale(adapter, "a") == (0.25, "alpha tensor")
    assert scale(adapter, "b") == (1.0, "rank")


def test_kohyas_header_counts_where_no_layer_has_an_alpha(read: Read) -> None:
    assert scale(read(FLAT, metadata={"ss_network_alpha": "2.0", "ss_network_dim": "4"})) == (0.5, "metadata")


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_network_alpha": "2.0", "ss_network_dim": "8"},
        {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"},
        {"ss_network_alpha": "None", "ss_network_dim": "4"},
        {"ss_network_alpha": "nan", "ss_network_dim": "4"},
        {"ss_network_args": "no json", "ss_network_alpha": "2"},
        {"ss_network_args": "[1]"},
    ],
)
def test_kohyas_header_does_not_count_where_it_describes_another_file(
    metadata: dict[str, str], read: Read
) -> None:
    assert scale(read(FLAT, metadata=metadata)) == (1.0, "rank")


def test_kohyas_header_does_not_count_for_a_file_converted_to_dotted_names(read: Read) -> None:
    assert scale(read(LAYER, metadata={"ss_network_alpha": "2.0", "ss_network_dim": "4"})) == (1.0, "rank")


def test_kohyas_header_has_an_alpha_of_its_own_for_kernels(read: Read) -> None:
    metadata = {
        "ss_network_alpha": "2",
        "ss_network_dim": "4",
        "ss_network_args": json.dumps({"conv_dim": "2", "conv_alpha": "1.5"}),
    }
    kernel = {"lora_unet_c.lora_down.weight": (2, 6, 3, 3), "lora_unet_c.lora_up.weight": (8, 2, 1, 1)}
    adapter = read({**FLAT, **kernel}, metadata=metadata)
    assert scale(adapter, "a") == (0.5, "metadata")
    assert scale(adapter, "c") == (0.75, "metadata")


def test_configs_are_told_apart_by_component(read: Read) -> None:
    other = {key.replace("unet.", "text_encoder."): shape for key, shape in LAYER.items()}
    adapter = read({**LAYER, **other}, metadata=header(unet__lora_alpha=2, text_encoder__lora_alpha=8))
    scales = {entry.target.component: entry.delta.rank_scale for entry in adapter.entries}
    assert scales == {"unet": 0.5, "text_encoder": 2.0}
    assert scale(read(LAYER, metadata=header(transformer__lora_alpha=2))) == (1.0, "rank")


def test_a_bare_file_takes_the_config_of_its_denoiser_or_the_only_one(read: Read) -> None:
    bare = {key.removeprefix("unet."): shape for key, shape in LAYER.items()}
    assert scale(read(bare, metadata=header(unet__lora_alpha=2))) == (0.5, "metadata")
    assert scale(read(bare, metadata=header(lora_alpha=2))) == (0.5, "metadata")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"to_q": 1}, 0.25),
        ({"a.to_q": 1}, 0.25),
        ({"^a.to_q": 1}, 0.25),
        ({"a.to_.": 1}, 0.25),
        ({"to_k": 1}, 0.5),
        ({"to": 1}, 0.5),
        ({"^to_q": 1}, 0.5),
        ({"o_q": 1}, 0.5),
        ({"to_q": 1, "a.to_q": 3}, 0.25),
    ],
)
def test_patterns_match_as_pefts_do(patterns: dict[str, int], expected: float, read: Read) -> None:
    from peft.utils.other import get_pattern_key

    adapter = read(LAYER, metadata=header(unet__lora_alpha=2, unet__alpha_pattern=patterns))
    assert scale(adapter) == (expected, "metadata")
    assert patterns.get(get_pattern_key(list(patterns), "a.to_q"), 2) / 4 == expected


def test_rank_stabilised_scales_divide_by_the_root(read: Read) -> None:
    bare = {f"base_model.model.{key.removeprefix('unet.')}": shape for key, shape in LAYER.items()}
    assert scale(read(bare, config={"lora_alpha": 2, "use_rslora": True, "r": 4})) == (1.0, "metadata")
    assert scale(read(bare, config={"lora_alpha": 2, "r": 64})) == (0.5, "metadata")


@pytest.mark.parametrize("kind", ["ADALORA", "LN_TUNING", "RANDLORA"])
def test_a_config_of_another_type_is_refused_by_name(kind: str, read: Read) -> None:
    with pytest.raises(UnsupportedAdapterError, match=f"of PEFT's type {kind}"):
        read(LAYER, config={"peft_type": kind})


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_a_start_that_changes_the_base_is_refused_by_name(start: str, read: Read) -> None:
    with pytest.raises(UnsupportedAdapterError, match=f"started with '{start}', which changes the base"):
        read(LAYER, metadata=header(unet__init_lora_weights=start))


def test_metadata_that_cannot_be_read_is_refused(read: Read) -> None:
    with pytest.raises(FormatError, match="`lora_adapter_metadata` is no JSON:"):
        read(LAYER, metadata={"lora_adapter_metadata": "{"})
    with pytest.raises(FormatError, match="`lora_adapter_metadata` is no JSON object"):
        read(LAYER, metadata={"lora_adapter_metadata": "[]"})
    with pytest.raises(FormatError, match=r"`lora_alpha` of unet\.a\.to_q: expected an alpha that is finite"):
        read(LAYER, config={"lora_alpha": "much"})
