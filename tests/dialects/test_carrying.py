"""Every family in every dialect that is written: it comes back as it was, or the dialect refuses it by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from dialects.layers import LAYERS, Layer
from lorry.adapters import Adapter
from lorry.algebra import Delta
from lorry.dialects import DIALECTS, get_dialect, read_adapter
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile

WRITTEN = [dialect.name for dialect in DIALECTS if dialect.is_written]
PATH = "unet.mid_block.attentions.0.proj_in"
PATHS = {
    "attention-processors": "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "onetrainer": "transformer.transformer_blocks.0.attn.to_q",
    "omi": "transformer.double_blocks.0.img_attn.proj",
    "xlabs": "transformer.double_blocks.0.img_attn.proj",
    "stable-audio": "transformer.layers.0.self_attn.to_out",
}
"""Of dialects that have names for some layers alone, or are told by some."""

SCALE_1 = ("lora at scale 1", "locon at scale 1")
LYCORIS = (
    "lora", "locon", *SCALE_1, "lora a1111 scale", "lora diff_b", "dora rows", "dora columns",
    "dora rows of a convolution",
    "dora columns of a convolution", "dora of peft", "dora of older peft", "dora of peft's convolution",
    "dora of ai-toolkit", "dora of loha", "dora of lokr", "dora with diff_b", "dora of one row", "loha",
    "loha of a convolution", "loha tucker", "loha diff_b", "lokr whole", "lokr whole convolution",
    "lokr w2 of factors", "lokr w1 of factors", "lokr both of factors", "lokr of a convolution", "lokr tucker",
    "lokr diff_b", "glora", "glora old", "glora of a convolution", "glora tucker", "oft", "oft alpha 0",
    "oft constraint", "oft rescale", "boft", "boft alpha 0", "boft constraint and rescale", "full",
    "full of a convolution", "full of a scale", "full diff_b", "a bias alone", "norm", "norm without a bias",
    "norm of a bias alone", "locon tucker", "dora columns of loha", "dora rows of lokr", "dora of loha's convolution",
    "dora of locon tucker", "oft of a convolution", "boft of a convolution",
)  # fmt: skip
IA3 = ("ia3 rows", "ia3 columns", "ia3 rows of a convolution")
SPARSE = ("lora with a sparse difference",)
PACKED = ("oft packed", "oft packed and shared", "oft packed and scaled", "oft packed of a convolution")
PEFT_LORA = (
    "lora", "locon", *SCALE_1, "lora a1111 scale", "lora bias", "lora bias, up", "dora rows",
    "dora rows of a convolution",
    "dora of peft", "dora of older peft", "dora of peft's convolution", "dora of ai-toolkit", "dora of one row",
)  # fmt: skip
PEFT = (
    *PEFT_LORA, "loha", "loha of a convolution", "loha tucker", "lokr whole", "lokr whole convolution", "oft packed",
    "oft packed and shared", "oft packed of a convolution", "boft of peft", "ia3 of peft, rows",
    "ia3 of peft, columns", "hra",
)  # fmt: skip
DOTTED = (
    "lora", "locon", *SCALE_1, "lora a1111 scale", "dora rows", "dora columns", "dora rows of a convolution",
    "dora columns of a convolution", "dora of peft", "dora of older peft", "dora of peft's convolution",
    "dora of ai-toolkit", "dora of one row", "locon tucker", "dora of locon tucker",
)  # fmt: skip
ONETRAINER = (
    *(name for name in DOTTED if not name.endswith("locon tucker")), *PACKED, "dora of loha", "dora columns of loha",
    "dora of loha's convolution", "dora of lokr", "dora rows of lokr", "loha", "loha of a convolution", "lokr whole",
    "lokr whole convolution", "lokr w2 of factors", "lokr w1 of factors", "lokr both of factors",
    "lokr of a convolution", "lokr tucker",
)  # fmt: skip
CARRIED: Mapping[str, tuple[str, ...]] = {
    "kohya": (*LYCORIS, *IA3, *SPARSE, *PACKED),
    "lycoris": (*LYCORIS, *IA3, *SPARSE),
    "comfyui": (*LYCORIS, "replacement"),
    "diffusers": PEFT_LORA,
    "peft": PEFT,
    "onetrainer": ONETRAINER,
    "omi": ONETRAINER,
    "dotted-kohya": DOTTED,
    "lora-layers": SCALE_1,
    "attention-processors": SCALE_1[:1],
    "xlabs": (),
    "stable-audio": (
        "lora",
        *SCALE_1[:1],
        "lora a1111 scale",
        "dora rows",
        "dora columns",
        "dora of peft",
        "dora of older peft",
        "dora of ai-toolkit",
        "dora of one row",
    ),
}
CASES = [(layer, dialect) for dialect in WRITTEN for layer in LAYERS]


def processors(rank: int, width: int = 3072) -> dict[str, torch.Tensor]:
    """The processors of a block of each kind, of FLUX.1's width."""
    layers = {
        "double_blocks.0.processor.qkv_lora1": (3, 1),
        "double_blocks.0.processor.proj_lora1": (1, 1),
        "double_blocks.0.processor.qkv_lora2": (3, 1),
        "double_blocks.0.processor.proj_lora2": (1, 1),
        "single_blocks.7.processor.qkv_lora": (3, 1),
        "single_blocks.7.processor.proj_lora": (1, 5),
    }
    down = {
        f"{stem}.down.weight": torch.randn(rank, width * columns) for stem, (_, columns) in layers.items()
    }
    return down | {f"{stem}.up.weight": torch.randn(width * rows, rank) for stem, (rows, _) in layers.items()}


def adapter_of(layer: Layer, path: str = PATH, **kwargs: Any) -> Adapter:
    tensors = {f"{path}.{suffix}": tensor for suffix, tensor in layer.tensors.items()}
    return fitted(read_adapter(TensorFile(tensors, source="x.safetensors", **kwargs)), layer.shape)


def fitted(adapter: Adapter, *shapes: tuple[int, ...]) -> Adapter:
    """The adapter with each delta fitted to the weight that it is for, as binding does."""
    deltas = [entry.delta.fitted(shape) for entry, shape in zip(adapter.entries, shapes, strict=True)]
    return replace(
        adapter, entries=tuple(replace(e, delta=d) for e, d in zip(adapter.entries, deltas, strict=True) if d)
    )


def assert_same_delta(one: Delta, two: Delta, shape: tuple[int, ...]) -> None:
    """Both have the same tensors, bit for bit but for axes of 1, and the same effect at two strengths."""
    mine, others = one.tensors(), two.tensors()
    if mine.keys() != others.keys():
        raise AssertionError((mine.keys(), others.keys()))
    for name, tensor in mine.items():
        if tensor.dtype != others[name].dtype or not torch.equal(tensor.flatten(), others[name].flatten()):
            raise AssertionError(name)
    base = torch.randn(shape)
    for parameter in ("weight", "bias"):
        part, other = one.part(parameter), two.part(parameter)
        if (part is None) != (other is None):
            raise AssertionError(parameter)
        if part is not None and other is not None:
            on = base if parameter == "weight" else base.flatten(1)[:, 0] if base.ndim > 1 else base
            for strength in (1.0, 0.5):
                if not torch.equal(weight(part, on, strength), weight(other, on, strength)):
                    raise AssertionError((parameter, strength))


def weight(delta: Delta, base: torch.Tensor, strength: float) -> torch.Tensor:
    fitted = delta.fitted(tuple(base.shape))
    assert fitted is not None
    return fitted.weight(base, strength=strength)


@pytest.mark.parametrize(("name", "dialect"), CASES)
def test_a_layer_comes_back_from_each_dialect_that_carries_it_and_is_refused_by_name_elsewhere(
    name: str, dialect: str
) -> None:
    layer = LAYERS[name]()
    path = PATHS.get(dialect, PATH)
    adapter = adapter_of(layer, path)
    if name not in CARRIED[dialect]:
        with pytest.raises(
            UnsupportedAdapterError, match=rf"1 of 1 layers.*'{dialect}'.*{re.escape(path)} \("
        ):
            get_dialect(dialect).write(adapter)
        return
    file = get_dialect(dialect).write(adapter)
    found = fitted(read_adapter(file), layer.shape)
    assert found.dialect == dialect
    assert not found.unknown
    assert not found.ignored
    assert_same_delta(adapter.entries[0].delta, found.entries[0].delta, layer.shape)
    again = get_dialect(dialect).write(found)
    assert again.tensors.keys() == file.tensors.keys()
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in file.tensors.items())
    assert again.metadata == file.metadata


@pytest.mark.parametrize("dialect", WRITTEN)
def test_every_layer_that_a_dialect_carries_is_a_layer_of_ours(dialect: str) -> None:
    assert set(CARRIED[dialect]) <= LAYERS.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_carried_by_some_dialect(name: str) -> None:
    carried = {layer for layers in CARRIED.values() for layer in layers}
    assert name in carried


def test_a_dtype_is_kept_and_an_alpha_has_that_of_its_factors() -> None:
    down, up = torch.randn(2, 6).half(), torch.randn(8, 2).half()
    layer = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.5).half()}
    adapter = adapter_of(Layer(layer, adapter_of(LAYERS["lora"]()).entries[0].delta, (8, 6)))
    tensors = get_dialect("kohya").write(adapter).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    odd = Layer({**layer, "alpha": torch.tensor(1 / 3)}, adapter.entries[0].delta, (8, 6))
    alpha = next(
        t for k, t in get_dialect("kohya").write(adapter_of(odd)).tensors.items() if k.endswith("alpha")
    )
    assert alpha.dtype == torch.float32
    assert float(alpha) == float(torch.tensor(1 / 3))


def peft_config(adapter: Adapter) -> dict[str, Any]:
    header = json.loads(get_dialect("peft").write(adapter).metadata["lora_adapter_metadata"])
    return {name.removeprefix("unet."): value for name, value in header.items()}


def test_pefts_config_is_kept_as_it_is_while_it_tells_the_truth() -> None:
    tensors = {s: t for s, t in LAYERS["lora"]().tensors.items() if s != "alpha"}
    layer = Layer(tensors, LAYERS["lora"]().delta, (8, 6))
    kept = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": True, "target_modules": ["proj_in"]}
    adapter = adapter_of(
        layer, metadata={"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in kept.items()})}
    )
    assert peft_config(adapter) == kept
    kohya = read_adapter(get_dialect("kohya").write(adapter))
    assert peft_config(kohya) == kept
    stale = adapter_of(
        LAYERS["lora"](),
        metadata={"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in kept.items()})},
    )
    made = peft_config(stale)
    assert (made["lora_alpha"], made["use_rslora"], made["target_modules"]) == (
        1.5,
        False,
        [PATH.removeprefix("unet.")],
    )


def two_layers(one: str, two: str) -> Adapter:
    first, second = LAYERS[one](), LAYERS[two]()
    tensors = {f"unet.conv_in.{suffix}": tensor for suffix, tensor in first.tensors.items()}
    tensors |= {f"{PATH}.{suffix}": tensor for suffix, tensor in second.tensors.items()}
    return fitted(read_adapter(TensorFile(tensors)), first.shape, second.shape)


@pytest.mark.parametrize(
    ("one", "two", "reason"),
    [
        ("lora", "loha", r"LoHa: PEFT has one type for all layers of a model, here LORA"),
        ("loha", "oft packed", r"LoHa: PEFT has one type .*OFT: PEFT has one type"),
        ("lora", "dora rows", r"DoRA: a magnitude, which PEFT has on all layers or none"),
        ("loha tucker", "loha of a convolution", "a Tucker core"),
        ("oft packed", "oft packed and shared", "OFT with blocks of another size or other options"),
    ],
)
def test_what_one_config_of_peft_cannot_say_of_all_layers_is_refused(one: str, two: str, reason: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=reason):
        get_dialect("peft").write(two_layers(one, two))


def test_layers_of_unlike_ranks_and_alphas_are_told_by_patterns() -> None:
    config = peft_config(two_layers("lora", "lora bias"))
    assert (config["r"], config["lora_alpha"], config["lora_bias"], config["rank_pattern"]) == (
        2,
        1.5,
        True,
        {},
    )


def test_kohyas_oft_keeps_its_prefix_and_its_constraint_of_0() -> None:
    blocks, alpha = torch.randn(2, 4, 4), torch.tensor(0.0)
    file = TensorFile(
        {"oft_unet_a.oft_blocks": blocks, "oft_unet_a.alpha": alpha}, {"ss_network_module": "networks.oft"}
    )
    written = get_dialect("kohya").write(read_adapter(file))
    assert written.tensors.keys() == file.tensors.keys()
    assert written.metadata["ss_network_module"] == "networks.oft"
    with pytest.raises(UnsupportedAdapterError, match="an OFT with a constraint of 0"):
        get_dialect("comfyui").write(read_adapter(file))


def test_a_header_that_names_an_alpha_is_not_left_beside_layers_without_one() -> None:
    tensors = {f"{PATH}.{s}": t for s, t in LAYERS["lora"]().tensors.items() if s != "alpha"}
    header = {
        "ss_network_dim": "2",
        "ss_network_alpha": "1",
        "ss_network_args": '{"conv_alpha": 4}',
        "ss_title": "x",
    }
    adapter = read_adapter(TensorFile(tensors, header))
    written = get_dialect("kohya").write(adapter)
    assert written.metadata["ss_title"] == "x"
    assert read_adapter(written).entries[0].delta.rank_scale == adapter.entries[0].delta.rank_scale == 1.0


def test_hashes_of_another_file_and_positions_are_not_kept() -> None:
    header = {
        "sshs_model_hash": "a",
        "sshs_legacy_hash": "b",
        "modelspec.hash_sha256": "c",
        "unet:0:rank": "4",
        "unet": "[]",
    }
    kept = {**header, "modelspec.trigger_phrase": "zuzu"}
    for dialect in WRITTEN:
        adapter = adapter_of(LAYERS["lora at scale 1"](), PATHS.get(dialect, PATH), metadata=kept)
        if dialect == "xlabs":
            adapter = read_adapter(TensorFile(processors(1), kept))
        metadata = get_dialect(dialect).write(adapter).metadata
        assert not metadata.keys() & header.keys()
        assert metadata["modelspec.trigger_phrase"] == "zuzu"


def test_the_scale_of_a_norm_has_the_name_that_comfyui_knows_it_by() -> None:
    norm = "double_blocks.0.img_attn.norm.key_norm"
    key = f"{norm}.scale"
    file = TensorFile({key: torch.ones(8), "double_blocks.0.img_attn.proj.lora_A.weight": torch.ones(2, 6),
                       "double_blocks.0.img_attn.proj.lora_B.weight": torch.ones(8, 2)})  # fmt: skip
    written = get_dialect("comfyui").write(read_adapter(file))
    assert f"diffusion_model.{norm}.set_weight" in written.tensors
    again = read_adapter(written)
    assert not again.unknown
    assert {str(e.target): e.delta.family for e in again.entries} == {
        str(e.target): e.delta.family for e in read_adapter(file).entries
    }


def test_transformers_have_no_attention_processors() -> None:
    path = "transformer.blocks.0.attn1.to_out.0"
    adapter = adapter_of(LAYERS["lora at scale 1"](), path)
    with pytest.raises(UnsupportedAdapterError, match=rf"{re.escape(path)} \(no name for this layer\)"):
        get_dialect("attention-processors").write(adapter)


def test_processors_of_xlabs_come_back_bit_for_bit() -> None:
    file = TensorFile(processors(2))
    written = get_dialect("xlabs").write(read_adapter(file))
    assert written.tensors.keys() == file.tensors.keys()
    assert all(torch.equal(written.tensors[key], tensor) for key, tensor in file.tensors.items())


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("double_blocks.0.processor.proj_lora2", r"3 of 5 .*the block's proj_lora2 is not there"),
        ("single_blocks.7.processor.qkv_lora", r"1 of 5 .*linear2 \(the block's qkv_lora is not there"),
    ],
)
def test_part_of_a_processor_of_xlabs_is_refused(stem: str, message: str) -> None:
    tensors = {key: tensor for key, tensor in processors(2).items() if not key.startswith(f"{stem}.")}
    with pytest.raises(UnsupportedAdapterError, match=message):
        get_dialect("xlabs").write(read_adapter(TensorFile(tensors)))


def test_a_second_rank_and_another_width_are_refused_in_processors_of_xlabs() -> None:
    stem = "single_blocks.7.processor.qkv_lora."
    other = {key: tensor for key, tensor in processors(3).items() if key.startswith(stem)}
    with pytest.raises(UnsupportedAdapterError, match=r"1 of 6 .*rank 3 beside rank 2, and XLabs has one"):
        get_dialect("xlabs").write(read_adapter(TensorFile({**processors(2), **other})))
    with pytest.raises(UnsupportedAdapterError, match=r"6 of 6 .*\(96, 32\), and FLUX.1's is \(9216, 3072\)"):
        get_dialect("xlabs").write(read_adapter(TensorFile(processors(2, width=32))))


@pytest.mark.parametrize(
    "path",
    ["transformer.transformer_blocks.0.attn.to_q", "unet.mid_block.attentions.0.proj_in", "prior.blocks.0.a"],
)
def test_names_of_diffusers_are_none_of_the_open_model_initiatives(path: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=rf"{re.escape(path)} \(no name for this layer\)"):
        get_dialect("omi").write(adapter_of(LAYERS["lora"](), path))


@pytest.mark.parametrize(
    ("component", "path", "columns", "stem"),
    [
        ("text_encoder", "encoder.layers.0.mlp.fc1", 768, "clip_l.text_model.encoder.layers.0.mlp.fc1"),
        (
            "text_encoder_2",
            "text_model.encoder.layers.0.mlp.fc1",
            1280,
            "clip_g.text_model.encoder.layers.0.mlp.fc1",
        ),
        ("text_encoder_2", "text_projection", 1280, "clip_g.text_projection"),
        ("text_encoder", "text_projection", 1280, "clip_g.text_projection"),
        ("prior", "down_blocks.0.1.mapper", 64, "unet.down_blocks.0.1.mapper"),
        (
            "prior",
            "down_blocks.0.2.attention.attn.in_proj.1",
            64,
            "unet.down_blocks.0.2.attention.attn.in_proj.1",
        ),
        ("text_encoder_2", "encoder.layers.0.mlp.fc1", 768, "clip_l.text_model.encoder.layers.0.mlp.fc1"),
        (
            "text_encoder_2",
            "encoder.block.0.layer.0.SelfAttention.q",
            4096,
            "t5.encoder.block.0.layer.0.SelfAttention.q",
        ),
        ("text_encoder_4", "model.layers.0.mlp.up_proj", 4096, "llama.model.layers.0.mlp.up_proj"),
        ("text_encoder", "layers.0.mlp.up_proj", 4096, "llama.language_model.model.layers.0.mlp.up_proj"),
        ("text_encoder_2", "layers.0.mlp.up_proj", 4096, None),
    ],
)
def test_components_are_named_by_what_they_are(
    component: str, path: str, columns: int, stem: str | None
) -> None:
    pair = {"lora_A.weight": torch.zeros(1, columns), "lora_B.weight": torch.zeros(8, 1)}
    adapter = read_adapter(TensorFile({f"{component}.{path}.{suffix}": t for suffix, t in pair.items()}))
    if stem is None:
        with pytest.raises(UnsupportedAdapterError, match=r"\(no name for this layer\)"):
            get_dialect("omi").write(adapter)
        return
    assert get_dialect("omi").write(adapter).tensors.keys() == {
        f"{stem}.lora_down.weight",
        f"{stem}.lora_up.weight",
    }


@pytest.mark.parametrize(
    ("original", "written"),
    [
        ("img_in", "img_in.proj"),
        ("double_blocks.3.txt_mlp.fc1", "double_blocks.3.txt_mlp.fc0"),
        ("double_blocks.3.txt_mlp.fc2", "double_blocks.3.txt_mlp.fc2"),
        (
            "txt_in.individual_token_refiner.blocks.1.mlp.fc1",
            "txt_in.individual_token_refiner.blocks.1.mlp.fc0",
        ),
        ("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.linear_1"),
        ("txt_in.t_embedder.mlp.2", "txt_in.t_embedder.linear_2"),
        ("blocks.0.mlp.fc1", "blocks.0.mlp.fc1"),
        ("joint_blocks.0.x_block.mlp.fc1", "joint_blocks.0.x_block.mlp.fc1"),
    ],
)
def test_some_layers_have_other_names_there_than_in_the_checkpoint(original: str, written: str) -> None:
    file = get_dialect("omi").write(adapter_of(LAYERS["lora"](), f"transformer.{original}"))
    assert {key.removesuffix(".alpha") for key in file.tensors if key.endswith(".alpha")} == {
        f"transformer.{written}"
    }
