"""Converting: there and back for every family, on every architecture, and what is refused or approximated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorry
from dialects.layers import LAYERS, lora_parts
from lorry.algebra import Delta
from lorry.binding import Base, bind, weight_shape
from lorry.dialects import DIALECTS, get_dialect, read_adapter
from lorry.errors import BindingError, FileError, UnsupportedAdapterError
from lorry.files import TensorFile, read_adapter_file, read_safetensors, write_safetensors
from lorry.workflows.approximating import Approximator
from lorry.workflows.convert import convert_file
from models import (
    tiny_flux_transformer,
    tiny_sd3_transformer,
    tiny_sdxl_unet,
    tiny_t5_encoder,
    tiny_text_encoder,
    tiny_unet,
)

WRITTEN = [dialect.name for dialect in DIALECTS if dialect.is_written]
ARCHITECTURES = ("sd15", "sdxl", "sd3", "flux", "wan")
WITHOUT_ALPHA = ("lora-layers", "attention-processors", "xlabs")
ATTENTIONS = r".*(attn\d|self_attn)\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)"
NARROW: Mapping[str, tuple[tuple[str, ...], str]] = {
    "attention-processors": (("sd15", "sdxl"), ATTENTIONS),
    "xlabs": ((), ""),
    "stable-audio": ((), ""),
    "omi": (ARCHITECTURES[:4], ".*"),
}
"""Dialects that have names for some architectures and layers alone."""
CASES = [
    (name, dialect, alpha)
    for dialect in WRITTEN
    for name in NARROW.get(dialect, (ARCHITECTURES,))[0]
    for alpha in (None, 1.5)
    if alpha is None or dialect not in WITHOUT_ALPHA
]
Models = Mapping[str, nn.Module]


@cache
def tiny(name: str) -> Models:
    """The components of a tiny model of each kind."""
    if name == "wan":
        from diffusers import WanTransformer3DModel

        config: dict[str, Any] = {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "ffn_dim": 20,
            "num_layers": 2,
        }
        return {"transformer": WanTransformer3DModel(**config, text_dim=16, freq_dim=8)}
    clip: nn.Module = tiny_text_encoder()
    return {
        "sd15": lambda: {"unet": tiny_unet(), "text_encoder": clip},
        "sdxl": lambda: {"unet": tiny_sdxl_unet(), "text_encoder": clip, "text_encoder_2": clip},
        "sd3": lambda: {
            "transformer": tiny_sd3_transformer(),
            "text_encoder": clip,
            "text_encoder_3": tiny_t5_encoder(),
        },
        "flux": lambda: {
            "transformer": tiny_flux_transformer(),
            "text_encoder": clip,
            "text_encoder_2": tiny_t5_encoder(),
        },
    }[name]()


def loras(
    models: Models, component: str, alpha: float | None = 1.5, skip: str = "nothing", only: str = ".*"
) -> dict[str, Tensor]:
    """LoRAs in diffusers' names with kohya's suffixes, on every layer with a weight of two axes or four.

    Those of embeddings go into fewer dialects, and a T5 has one embedding in two places.
    """
    tensors: dict[str, Tensor] = {}
    for path, module in models[component].named_modules():
        shape = weight_shape(module) or ()
        if len(shape) not in (2, 4) or skip in path or not re.fullmatch(only, path):
            continue
        if isinstance(module, nn.Embedding):
            continue
        parts, _ = lora_parts(shape, rank=2)
        if alpha is None:
            parts.pop("alpha")
        tensors |= {f"{component}.{path}.{suffix}": tensor for suffix, tensor in parts.items()}
    return tensors


def written(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    return write_safetensors(folder / "in.safetensors", tensors, metadata)


def place(folder: Path, dialect: str) -> Path:
    return folder / (dialect if dialect == "peft" else f"{dialect}.safetensors")


def assert_same_file(one: Path, two: Path) -> None:
    """Both hold the same tensors under the same keys, bit for bit."""
    first, second = read_adapter_file(one), read_adapter_file(two)
    if first.tensors.keys() != second.tensors.keys():
        raise AssertionError(set(first.tensors) ^ set(second.tensors))
    for key, tensor in first.tensors.items():
        other = second.tensors[key]
        if (tensor.dtype, tensor.shape) != (other.dtype, other.shape) or not torch.equal(tensor, other):
            raise AssertionError(key)


def deltas_of(path: Path, models: Models) -> Mapping[str, Mapping[str, Delta]]:
    return bind(read_adapter(read_adapter_file(path)), models).deltas


def assert_same_effect(one: Path, two: Path, models: Models) -> None:
    """Both change the same modules in the same way."""
    first, second = deltas_of(one, models), deltas_of(two, models)
    if {c: set(d) for c, d in first.items()} != {c: set(d) for c, d in second.items()}:
        raise AssertionError("other modules")
    for component, deltas in first.items():
        for path, delta in deltas.items():
            torch.testing.assert_close(delta.weight(), second[component][path].weight(), rtol=1e-6, atol=1e-6)


def through(
    folder: Path, source: Path, dialect: str, models: Models, approximator: Approximator | None = None
) -> Path:
    out = place(folder, dialect)
    convert_file(source, out, dialect, lambda _: models, approximator=approximator)
    return out


@pytest.mark.parametrize(("name", "dialect", "alpha"), CASES)
def test_loras_come_back_bit_for_bit_from_every_dialect_on_every_architecture(
    name: str, dialect: str, alpha: float | None, tmp_path: Path
) -> None:
    models = tiny(name)
    no_text = dialect == "lycoris"
    components = [part for part in models if not no_text or not part.startswith("text_encoder")]
    only = NARROW.get(dialect, ((), ".*"))[1]
    tensors = {key: t for part in components for key, t in loras(models, part, alpha, only=only).items()}
    first = tmp_path / "diffusers.safetensors"
    convert_file(written(tmp_path, tensors), first, "diffusers", lambda _: models)
    (tmp_path / "there").mkdir()
    there = through(tmp_path / "there", first, dialect, models)
    assert_same_effect(first, there, models)
    (tmp_path / "back").mkdir()
    back = through(tmp_path / "back", there, "diffusers", models)
    assert_same_file(first, back)
    again = through(tmp_path / "back", back, dialect, models) if dialect != "diffusers" else there
    assert_same_file(there, again)


ORIGINAL = {
    ("sdxl", "kohya"): "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k.lora_down.weight",
    ("sdxl", "comfyui"): "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.lora_down.weight",
    (
        "sd15",
        "kohya",
    ): "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
    ("sd15", "comfyui"): "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.lora_down.weight",
    (
        "sdxl",
        "lycoris",
    ): "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
    ("flux", "kohya"): "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    ("flux", "comfyui"): "diffusion_model.single_blocks.1.linear1.lora_down.weight",
    ("sd3", "kohya"): "lora_unet_joint_blocks_0_context_block_attn_qkv.lora_down.weight",
    ("wan", "comfyui"): "diffusion_model.blocks.0.self_attn.q.lora_down.weight",
    ("wan", "kohya"): "lora_unet_blocks_1_ffn_0.lora_down.weight",
    ("sd15", "omi"): "unet.input_blocks.3.1.transformer_blocks.0.attn2.to_k.lora_down.weight",
    ("sdxl", "omi"): "unet.output_blocks.1.2.conv.lora_down.weight",
    ("flux", "omi"): "transformer.single_blocks.1.linear1.3.lora_down.weight",
    ("sd3", "omi"): "transformer.joint_blocks.0.context_block.attn.qkv.2.lora_down.weight",
}
ENCODERS = {
    ("sdxl", "kohya"): [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
    ],
    ("sd15", "comfyui"): ["text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"],
    ("sdxl", "comfyui"): ["text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1"],
    ("flux", "comfyui"): ["text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"],
    ("sd3", "kohya"): ["lora_te3_encoder_block_0_layer_0_SelfAttention_q"],
    ("sd15", "diffusers"): ["text_encoder.text_model.encoder.layers.0.mlp.fc1"],
    ("sd15", "onetrainer"): ["lora_te_text_model_encoder_layers_0_mlp_fc1"],
    ("sdxl", "onetrainer"): [f"lora_te{i}_text_model_encoder_layers_0_mlp_fc1" for i in (1, 2)],
    ("flux", "onetrainer"): ["lora_te2_encoder_block_0_layer_0_SelfAttention_q"],
    ("sdxl", "omi"): [f"clip_{i}.text_model.encoder.layers.0.mlp.fc1" for i in "lg"],
    ("flux", "omi"): ["t5.encoder.block.0.layer.0.SelfAttention.q"],
}


def base(name: str) -> Base:
    return Base(name, name, (), None, None, name == "sd15")


@pytest.mark.parametrize(("name", "dialect"), ORIGINAL)
def test_the_names_are_those_that_the_dialects_programs_have(name: str, dialect: str, tmp_path: Path) -> None:
    models = tiny(name)
    denoiser = next(part for part in models if not part.startswith("text_encoder"))
    out = through(tmp_path, written(tmp_path, loras(models, denoiser)), dialect, models)
    keys = read_safetensors(out).tensors
    assert ORIGINAL[name, dialect] in keys
    stems = {key.rsplit(".lora_", 1)[0].removesuffix(".alpha") for key in keys}
    assert all(
        {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= keys.keys()
        for stem in stems
    )
    assert len(keys) == 3 * len(stems)


@pytest.mark.parametrize(("name", "dialect"), ENCODERS)
def test_text_encoders_have_the_names_of_the_dialects_programs(
    name: str, dialect: str, tmp_path: Path
) -> None:
    models = tiny(name)
    tensors = {
        key: t for part in models if part.startswith("text_encoder") for key, t in loras(models, part).items()
    }
    keys = read_safetensors(through(tmp_path, written(tmp_path, tensors), dialect, models)).tensors
    assert all(any(key.startswith(name) for key in keys) for name in ENCODERS[name, dialect])


@pytest.mark.parametrize("skip", ["to_k", "to_v", "proj_mlp", "single_transformer_blocks.0.attn.to_q"])
def test_layers_that_are_missing_of_a_fused_one_stay_missing(skip: str, tmp_path: Path) -> None:
    models = tiny("flux")
    first = tmp_path / "diffusers.safetensors"
    convert_file(
        written(tmp_path, loras(models, "transformer", skip=skip)), first, "diffusers", lambda _: models
    )
    there = through(tmp_path, first, "kohya", models)
    back = tmp_path / "back.safetensors"
    convert_file(there, back, "diffusers", lambda _: models)
    assert_same_file(first, back)


def bfl_file(models: Models, folder: Path, suffixes: Callable[[int, int], Mapping[str, Tensor]]) -> Path:
    """A file in kohya's Flux names, trained fused."""
    width = 32
    layers = {
        "double_blocks_0_img_attn_qkv": 3 * width,
        "single_blocks_0_linear1": 7 * width,
        "double_blocks_0_img_attn_proj": width,
    }
    tensors = {
        f"lora_unet_{name}.{suffix}": tensor
        for name, rows in layers.items()
        for suffix, tensor in suffixes(rows, width).items()
    }
    return written(folder, tensors)


def fused_lora(rows: int, width: int) -> dict[str, Tensor]:
    return {
        "lora_down.weight": torch.randn(4, width),
        "lora_up.weight": torch.randn(rows, 4),
        "alpha": torch.tensor(3.0),
    }


def fused_dora(rows: int, width: int) -> dict[str, Tensor]:
    return {**fused_lora(rows, width), "dora_scale": torch.rand(rows, 1) + 1}


def fused_loha(rows: int, width: int) -> dict[str, Tensor]:
    factors = {
        "hada_w1_a": (rows, 2),
        "hada_w1_b": (2, width),
        "hada_w2_a": (rows, 2),
        "hada_w2_b": (2, width),
    }
    return {name: torch.randn(shape) for name, shape in factors.items()} | {"alpha": torch.tensor(1.0)}


def fused_lokr(rows: int, width: int) -> dict[str, Tensor]:
    whole = {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(rows // 2, width // 2)}
    return {**whole, "alpha": torch.tensor(9.0)}


def fused_full(rows: int, width: int) -> dict[str, Tensor]:
    return {"diff": torch.randn(rows, width), "diff_b": torch.randn(rows)}


@pytest.mark.parametrize(
    ("suffixes", "dialect"),
    [
        (fused_lora, "diffusers"),
        (fused_lora, "peft"),
        (fused_lora, "lycoris"),
        (fused_lora, "comfyui"),
        (fused_dora, "diffusers"),
        (fused_dora, "comfyui"),
        (fused_loha, "lycoris"),
        (fused_loha, "peft"),
        (fused_lokr, "comfyui"),
        (fused_full, "lycoris"),
    ],
)
def test_what_was_trained_on_fused_layers_is_fused_again_as_it_was(
    suffixes: Callable[[int, int], Mapping[str, Tensor]], dialect: str, tmp_path: Path
) -> None:
    models = tiny("flux")
    first = bfl_file(models, tmp_path, suffixes)
    there = through(tmp_path, first, dialect, models)
    back = through(tmp_path, there, "kohya", models)
    one, two = read_safetensors(first).tensors, read_safetensors(back).tensors
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor.flatten(), two[key].flatten()), key


def test_a_lokr_on_fused_layers_cannot_be_split_into_lokrs(tmp_path: Path) -> None:
    models = tiny("flux")
    first = bfl_file(models, tmp_path, fused_lokr)
    with pytest.raises(UnsupportedAdapterError, match=r"cannot be written in the dialect 'lycoris'.*LoKr"):
        through(tmp_path, first, "lycoris", models)
    assert not place(tmp_path, "lycoris").exists()
    approximator = Approximator(rank=32)
    out = through(tmp_path, first, "lycoris", models, approximator)
    assert approximator.errors.total().total < 1e-5
    assert_same_effect_within(first, out, models, 1e-4)


def assert_same_effect_within(one: Path, two: Path, models: Models, tolerance: float) -> None:
    first, second = deltas_of(one, models), deltas_of(two, models)
    for component, deltas in first.items():
        for path, delta in deltas.items():
            expected = delta.weight()
            error = (second[component][path].weight() - expected).norm() / expected.norm()
            assert error < tolerance, path


def test_fused_layers_of_unlike_strengths_are_refused_or_joined_with_rounding(tmp_path: Path) -> None:
    models = tiny("flux")
    tensors = loras(models, "transformer")
    tensors = {key: t * 1.7 if key.endswith("to_k.alpha") else t for key, t in tensors.items()}
    first = written(tmp_path, tensors)
    with pytest.raises(UnsupportedAdapterError, match=r"`\w+_blocks.*` is one layer .* no common form"):
        through(tmp_path, first, "kohya", models)
    approximator = Approximator()
    out = through(tmp_path, first, "kohya", models, approximator)
    assert_same_effect_within(first, out, models, 1e-6)
    assert {made.layer for made in approximator.made} >= {
        "double_blocks.0.img_attn.qkv",
        "single_blocks.1.linear1",
    }


def one_layer(name: str, folder: Path) -> tuple[Path, Models]:
    """A file of one layer and a model with a module for it."""
    layer = LAYERS[name]()
    out, width, *kernel = (*layer.shape, 6)[: max(2, len(layer.shape))]
    is_norm = len(layer.shape) == 1
    module = (
        nn.LayerNorm(8)
        if is_norm
        else nn.Conv2d(width, out, 3)
        if len(kernel) == 2
        else nn.Linear(width, out)
    )
    unet = nn.ModuleDict({"mid_block": nn.ModuleDict({"proj_in": module})})
    tensors = {f"unet.mid_block.proj_in.{suffix}": tensor for suffix, tensor in layer.tensors.items()}
    return written(folder, tensors), {"unet": unet}


REDUCED = (
    "locon",
    "loha",
    "loha of a convolution",
    "loha tucker",
    "lokr whole",
    "lokr of a convolution",
    "full",
)


@pytest.mark.parametrize("name", [name for name in REDUCED if name != "locon"])
def test_what_diffusers_cannot_carry_is_a_lora_by_svd_whose_error_is_the_true_one(
    name: str, tmp_path: Path
) -> None:
    first, models = one_layer(name, tmp_path)
    for rank in (2, 8):
        approximator = Approximator(rank)
        out = tmp_path / f"{rank}.safetensors"
        convert_file(first, out, "diffusers", lambda _: models, approximator=approximator)
        expected = deltas_of(first, models)["unet"]["mid_block.proj_in"].weight()
        found = deltas_of(out, models)["unet"]["mid_block.proj_in"].weight()
        best = torch.linalg.svdvals(expected.flatten(1))[rank:].norm() / expected.norm()
        error = (found - expected).norm() / expected.norm()
        assert float(error) == pytest.approx(float(best), abs=1e-4)
        assert approximator.made[0].error == pytest.approx(float(error), abs=1e-5)


@pytest.mark.parametrize(("dialect", "kind"), [("diffusers", "locon"), ("comfyui", "lokr")])
def test_the_header_tells_the_kind_that_the_layers_have_become(
    dialect: str, kind: str, tmp_path: Path
) -> None:
    first, models = one_layer("lokr whole", tmp_path)
    args = {"ss_network_args": json.dumps({"algo": "lokr", "preset": "full"})}
    source = write_safetensors(tmp_path / "said.safetensors", read_safetensors(first).tensors, args)
    out = tmp_path / "out.safetensors"
    convert_file(source, out, dialect, lambda _: models, approximator=Approximator(2))
    said = json.loads(read_safetensors(out).metadata["ss_network_args"])
    assert said == {"algo": kind, "preset": "full"}


def test_a_tucker_core_is_multiplied_into_the_down_factor_at_the_same_rank(tmp_path: Path) -> None:
    parts, _ = lora_parts((8, 6, 1, 1))
    tensors = {f"unet.mid_block.proj_in.{suffix}": tensor for suffix, tensor in parts.items()}
    tensors["unet.mid_block.proj_in.lora_mid.weight"] = torch.randn(2, 2, 3, 3)
    first = written(tmp_path, tensors)
    models = {"unet": nn.ModuleDict({"mid_block": nn.ModuleDict({"proj_in": nn.Conv2d(6, 8, 3)})})}
    with pytest.raises(UnsupportedAdapterError, match="a Tucker core"):
        through(tmp_path, first, "diffusers", models)
    approximator = Approximator()
    out = through(tmp_path, first, "diffusers", models, approximator)
    assert approximator.made[0].became == "the same, rounded"
    assert_same_effect_within(first, out, models, 1e-6)


@pytest.mark.parametrize("name", ["oft", "boft", "ia3 rows", "glora", "dora columns", "dora of loha"])
def test_what_depends_on_the_base_weights_needs_them_to_be_approximated(name: str, tmp_path: Path) -> None:
    first, models = one_layer(name, tmp_path)
    with torch.device("meta"):
        bare = {"unet": nn.ModuleDict({"mid_block": nn.ModuleDict({"proj_in": nn.Linear(6, 8)})})}
    with pytest.raises(UnsupportedAdapterError, match=r"depends on the base weight.*--base FOLDER"):
        convert_file(
            first,
            tmp_path / "out.safetensors",
            "diffusers",
            lambda _: bare,
            approximator=Approximator(8, bare),
        )
    out = tmp_path / "out.safetensors"
    convert_file(first, out, "diffusers", lambda _: models, approximator=Approximator(8, models))
    base_weight = models["unet"].get_parameter("mid_block.proj_in.weight").detach()
    expected = deltas_of(first, models)["unet"]["mid_block.proj_in"].weight(base_weight)
    found = deltas_of(out, models)["unet"]["mid_block.proj_in"].weight()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_a_lora_at_all_is_refused_even_then(tmp_path: Path) -> None:
    first, models = one_layer("norm", tmp_path)
    with pytest.raises(UnsupportedAdapterError, match="cannot be written in the dialect 'diffusers'"):
        convert_file(
            first, tmp_path / "x.safetensors", "diffusers", lambda _: models, approximator=Approximator()
        )


T5_Q = "encoder.block.0.layer.0.SelfAttention.q"


def of_flux_or_of_others(folder: Path) -> Path:
    """A file of a layer that FLUX.1, Chroma and HunyuanVideo all have."""
    key = "transformer.transformer_blocks.0.ff_context.net.2"
    tensors = {f"{key}.lora_A.weight": torch.randn(1, 12288), f"{key}.lora_B.weight": torch.randn(3072, 1)}
    return write_safetensors(folder / "a.safetensors", tensors, {})


@pytest.mark.parametrize(
    ("base", "name", "label"),
    [
        ("flux", "double_blocks_0_txt_mlp_2", "flux1"),
        ("chroma", "double_blocks_0_txt_mlp_2", None),
        ("hunyuan-video", "double_blocks_0_txt_mlp_fc2", None),
    ],
)
def test_the_base_that_a_user_says_goes_before_what_layers_tell(
    base: str, name: str, label: str | None, tmp_path: Path
) -> None:
    report = lorry.convert(of_flux_or_of_others(tmp_path), tmp_path / "x.safetensors", "kohya", base)
    found = read_safetensors(tmp_path / "x.safetensors")
    assert f"lora_unet_{name}.lora_down.weight" in found.tensors
    assert found.metadata.get("ss_base_model_version") == label
    assert report.base == {"flux": "FLUX.1", "chroma": "Chroma", "hunyuan-video": "HunyuanVideo"}[base]


def test_a_file_that_may_be_of_bases_alike_gets_the_names_of_the_likeliest_which_is_said_and_no_label(
    tmp_path: Path,
) -> None:
    report = lorry.convert(of_flux_or_of_others(tmp_path), tmp_path / "x.safetensors", "kohya")
    assert "1 LoRA for FLUX.1 or Chroma or HunyuanVideo, named as those of FLUX.1 (`--base`" in str(report)
    found = read_safetensors(tmp_path / "x.safetensors")
    assert "lora_unet_double_blocks_0_txt_mlp_2.lora_down.weight" in found.tensors
    assert "ss_base_model_version" not in found.metadata


@pytest.mark.parametrize("to", ["kohya", "comfyui"])
def test_layers_for_wans_picture_come_back_bit_for_bit_where_nobody_says_the_base(
    to: str, tmp_path: Path
) -> None:
    keys = ("blocks.0.attn2.add_k_proj", "blocks.0.attn2.to_k", "blocks.1.attn1.to_q")
    tensors = {f"transformer.{key}.lora_A.weight": torch.randn(1, 5120) for key in keys}
    tensors |= {f"transformer.{key}.lora_B.weight": torch.randn(5120, 1) for key in keys}
    source = write_safetensors(tmp_path / "a.safetensors", tensors, {})
    report = lorry.convert(source, tmp_path / "x.safetensors", to)
    assert report.named_as == "Wan 2.1 I2V"
    assert any(
        re.search(r"cross_attn.k_img", key) for key in read_safetensors(tmp_path / "x.safetensors").tensors
    )
    lorry.convert(tmp_path / "x.safetensors", tmp_path / "again.safetensors", "diffusers")
    assert_same_file(source, tmp_path / "again.safetensors")


@pytest.mark.parametrize(
    ("base", "component", "stem", "shape", "name"),
    [
        ("wan", "text_encoder", T5_Q, (4096, 4096), "umt5xxl"),
        ("chroma", "text_encoder", T5_Q, (4096, 4096), "t5xxl"),
        ("auraflow", "text_encoder", T5_Q, (2048, 2048), "pile_t5xl"),
        ("hunyuan-dit", "text_encoder_2", T5_Q, (2048, 2048), "mt5xl"),
        ("hunyuan-dit", "text_encoder", "encoder.layer.0.attention.self.query", (1024, 1024), "hydit_clip"),
        ("stable-audio", "text_encoder", T5_Q, (768, 768), "t5base"),
    ],
)
def test_comfyui_has_a_name_for_each_text_encoder_and_it_comes_back_bit_for_bit(
    base: str, component: str, stem: str, shape: tuple[int, int], name: str, tmp_path: Path
) -> None:
    key = f"{component}.{stem}"
    tensors = {
        f"{key}.lora_A.weight": torch.randn(2, shape[1]),
        f"{key}.lora_B.weight": torch.randn(shape[0], 2),
    }
    source = write_safetensors(tmp_path / "a.safetensors", tensors, {})
    lorry.convert(source, tmp_path / "x.safetensors", "comfyui", base)
    keys = read_safetensors(tmp_path / "x.safetensors").tensors
    assert all(key.startswith(f"text_encoders.{name}.transformer.") for key in keys)
    assert lorry.is_supported(tmp_path / "x.safetensors", base)
    lorry.convert(tmp_path / "x.safetensors", tmp_path / "again.safetensors", "diffusers", base)
    assert_same_file(source, tmp_path / "again.safetensors")


@pytest.mark.parametrize("to", ["kohya", "comfyui"])
def test_where_names_depend_on_a_base_that_layers_do_not_tell_the_user_is_asked(
    to: str, tmp_path: Path
) -> None:
    key = "transformer.single_transformer_blocks.3.attn.to_q"
    tensors = {f"{key}.lora_A.weight": torch.randn(1, 3072), f"{key}.lora_B.weight": torch.randn(3072, 1)}
    source = write_safetensors(tmp_path / "a.safetensors", tensors, {})
    asked = r"cannot be told beyond FLUX\.1 or .* or FLUX\.3\. Say it: `--base NAME`"
    with pytest.raises(UnsupportedAdapterError, match=asked):
        lorry.convert(source, tmp_path / "x.safetensors", to)
    assert not (tmp_path / "x.safetensors").exists()
    report = lorry.convert(source, tmp_path / "x", "peft")
    assert report.base == "FLUX.1 or Chroma or HunyuanVideo or AuraFlow or FLUX.3"


def test_metadata_goes_there_and_back(tmp_path: Path) -> None:
    models = tiny("sd15")
    header = {
        "ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "1.5",
        "ss_network_args": '{"conv_dim": "2"}', "ss_tag_frequency": '{"a": {"zuzu": 3}}',
        "ss_base_model_version": "sd_v1", "modelspec.title": "Zuzu", "modelspec.trigger_phrase": "zuzu, krok",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }  # fmt: skip
    tensors = loras(models, "unet")
    first = tmp_path / "kohya.safetensors"
    convert_file(written(tmp_path, tensors, header), first, "kohya", lambda _: models)
    assert read_safetensors(first).metadata == header
    for dialect in WRITTEN:
        if dialect in ("kohya", "stable-audio", *WITHOUT_ALPHA):
            continue
        there = through(tmp_path, first, dialect, models)
        back = tmp_path / f"{dialect}-back.safetensors"
        convert_file(there, back, "kohya", lambda _: models)
        found = read_safetensors(back).metadata
        assert {key: found[key] for key in header} == header, dialect


def test_a_config_of_peft_becomes_alphas_and_becomes_itself_again(tmp_path: Path) -> None:
    models = tiny("sd15")
    folder = tmp_path / "in"
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {},
        "alpha_pattern": {"attn1.to_q": 5}, "target_modules": ["to_q", "to_k"], "base_model_name_or_path": "x",
    }  # fmt: skip
    tensors = loras(models, "unet", None)
    kept = {k: t for k, t in tensors.items() if "to_q." in k or "to_k." in k}
    folder.mkdir()
    names = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    peft = {
        f"base_model.model.{key.removeprefix('unet.').replace(old, new)}": tensor
        for key, tensor in kept.items()
        for old, new in names.items()
        if old in key
    }
    write_safetensors(folder / "adapter_model.safetensors", peft, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    kohya = tmp_path / "kohya.safetensors"
    convert_file(folder, kohya, "kohya", lambda _: models)
    alphas = {k: float(t) for k, t in read_safetensors(kohya).tensors.items() if k.endswith(".alpha")}
    for key, value in alphas.items():
        assert value == pytest.approx((5 if "attn1_to_q" in key else 8) * 2**0.5, rel=1e-15)
    back = tmp_path / "back"
    convert_file(kohya, back, "peft", lambda _: models)
    assert json.loads((back / "unet" / "adapter_config.json").read_text()) == config
    found = read_safetensors(back / "unet" / "adapter_model.safetensors").tensors
    assert found.keys() == peft.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in peft.items())


def test_a_report_says_what_was_done_and_what_was_left_out(tmp_path: Path) -> None:
    models = tiny("sd15")
    tensors = {**loras(models, "unet"), "_aux.slider": torch.zeros(1)}
    report = convert_file(written(tmp_path, tensors), tmp_path / "out.safetensors", "kohya", lambda _: models)
    assert (report.from_dialect, report.to_dialect, report.error) == ("dotted-kohya", "kohya", None)
    assert report.tensors == len(tensors) - 1
    assert [item.key for item in report.left_out] == ["_aux.slider"]
    assert "exact" in str(report)
    assert "left out, bookkeeping of a slider tool: _aux.slider" in str(report)
    json.dumps(report.as_dict())


def test_a_file_that_brings_tokens_along_is_refused_where_they_have_no_place(tmp_path: Path) -> None:
    models = tiny("sd15")
    tensors = {**loras(models, "unet"), "bundle_emb.zuzu.clip_l": torch.zeros(1, 32)}
    with pytest.raises(UnsupportedAdapterError, match=r"tokens along .'zuzu'.*would be lost"):
        convert_file(written(tmp_path, tensors), tmp_path / "out.safetensors", "comfyui", lambda _: models)


def test_nothing_is_written_where_it_fails(tmp_path: Path) -> None:
    models = tiny("sd15")
    first = written(tmp_path, loras(models, "unet"))
    before = set(tmp_path.iterdir())
    with pytest.raises(BindingError):
        convert_file(first, tmp_path / "out.safetensors", "kohya", lambda _: tiny("flux"))
    with pytest.raises(FileError, match=r"in\.safetensors is there already.*--overwrite"):
        convert_file(first, first, "kohya", lambda _: models)
    with pytest.raises(FileError, match=r"expected a file that ends in \.safetensors"):
        convert_file(first, tmp_path / "out.bin", "kohya", lambda _: models)
    with pytest.raises(FileError, match="Give a folder's name, without a suffix"):
        convert_file(first, tmp_path / "out.safetensors", "peft", lambda _: models)
    with pytest.raises(
        UnsupportedAdapterError,
        match=r"reads the dialect 'cloneofsimo' and does not write it\. Written are: ",
    ):
        convert_file(first, tmp_path / "out.safetensors", "cloneofsimo", lambda _: models)
    with pytest.raises(
        UnsupportedAdapterError, match=r"which base model .* cannot be told\. Say it: `--base NAME`"
    ):
        convert_file(first, tmp_path / "out.safetensors", "comfyui")
    assert set(tmp_path.iterdir()) == before
    convert_file(first, first, "kohya", lambda _: models, overwrite=True)
    assert read_adapter(read_adapter_file(first)).dialect == "kohya"


def test_nothing_but_an_adapter_is_overwritten(tmp_path: Path) -> None:
    models = tiny("sd15")
    first = written(tmp_path, loras(models, "unet"))
    checkpoint = tmp_path / "pipeline" / "unet" / "model.safetensors"
    checkpoint.parent.mkdir(parents=True)
    write_safetensors(checkpoint, models["unet"].state_dict())
    before = checkpoint.read_bytes()
    with pytest.raises(FileError, match=r"model\.safetensors is there already and is no adapter"):
        convert_file(first, checkpoint, "kohya", lambda _: models, overwrite=True)
    with pytest.raises(FileError, match=r"pipeline is there already and holds .*model\.safetensors"):
        convert_file(first, tmp_path / "pipeline", "peft", lambda _: models, overwrite=True)
    assert checkpoint.read_bytes() == before


def test_names_alone_are_enough_between_diffusers_names_and_kohyas(tmp_path: Path) -> None:
    models = tiny("sd15")
    first = tmp_path / "diffusers.safetensors"
    convert_file(written(tmp_path, loras(models, "unet")), first, "diffusers")
    kohya = tmp_path / "kohya.safetensors"
    convert_file(first, kohya, "kohya")
    back = tmp_path / "back.safetensors"
    convert_file(kohya, back, "diffusers")
    assert_same_file(first, back)


def test_shuffled_keys_change_no_bit(tmp_path: Path) -> None:
    models = tiny("sdxl")
    tensors = loras(models, "unet")
    order = torch.randperm(len(tensors)).tolist()
    shuffled = TensorFile({list(tensors)[i]: tensors[list(tensors)[i]] for i in order})
    one, two = (get_dialect("kohya").write(read_adapter(file)) for file in (TensorFile(tensors), shuffled))
    assert list(one.tensors) == list(two.tensors)
    assert one.metadata == two.metadata


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
def test_processors_on_part_of_a_fused_layer_are_written_under_its_own_name(
    dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tiny("flux")
    stem = "single_blocks.0.processor"
    width = models["transformer"].get_parameter("x_embedder.weight").shape[0]
    tensors = {
        f"{stem}.qkv_lora.down.weight": torch.randn(2, width),
        f"{stem}.qkv_lora.up.weight": torch.randn(3 * width, 2),
        f"{stem}.proj_lora.down.weight": torch.randn(2, 5 * width),
        f"{stem}.proj_lora.up.weight": torch.randn(width, 2),
    }
    xlabs = written(tmp_path, tensors)
    (tmp_path / "there").mkdir()
    there = through(tmp_path / "there", xlabs, dialect, models)
    assert any("linear1" in key for key in read_safetensors(there).tensors)
    assert not any("transformer_blocks" in key for key in read_safetensors(there).tensors)
    monkeypatch.setattr("lorry.dialects.xlabs.WIDTH", width)
    (tmp_path / "back").mkdir()
    assert_same_file(xlabs, through(tmp_path / "back", there, "xlabs", models))


def test_xlabs_names_have_no_place_for_the_mlp_beside_the_attention(tmp_path: Path) -> None:
    models = tiny("flux")
    tensors = loras(models, "transformer", None, only=r"single_transformer_blocks.*\.(attn\.to_q|proj_mlp)")
    with pytest.raises(
        UnsupportedAdapterError, match=r"single_blocks\.0\.linear1 \(no name for this layer\)"
    ):
        through(tmp_path, written(tmp_path, tensors), "xlabs", models)


def test_xlabs_processors_are_written_for_flux_alone(tmp_path: Path) -> None:
    models = {"transformer": tiny("sd3")["transformer"]}
    tensors = loras(models, "transformer", None, only=r"transformer_blocks\.0\.attn.*")
    message = (
        r"files of the dialect 'xlabs' are for a FluxTransformer2DModel.*SD3Transformer2DModel.*--to comfyui"
    )
    with pytest.raises(UnsupportedAdapterError, match=message):
        through(tmp_path, written(tmp_path, tensors), "xlabs", models)


def test_the_open_model_initiatives_names_are_written_for_its_models_alone(tmp_path: Path) -> None:
    models = tiny("wan")
    source = written(tmp_path, loras(models, "transformer"))
    message = r"dialect 'omi' are for a UNet2DConditionModel or .*PixArt.*WanTransformer3DModel.*--to comfyui"
    with pytest.raises(UnsupportedAdapterError, match=message):
        through(tmp_path, source, "omi", models)


def oft_of_a_convolution(folder: Path, prefix: str, dots: str) -> tuple[Path, str]:
    """A file of an OFT on a convolution of a UNet, whose name and blocks tell no base, and its key."""
    key = prefix + dots.join(("down_blocks", "0", "resnets", "0", "conv1")) + ".oft_R.weight"
    return write_safetensors(folder / "in.safetensors", {key: 0.01 * torch.randn(9, 28)}, {}), key


@pytest.mark.parametrize(
    ("prefix", "dots", "to"),
    [
        ("base_model.model.", ".", "kohya"),
        ("base_model.model.", ".", "onetrainer"),
        ("lora_unet_", "_", "peft"),
    ],
)
def test_an_oft_that_may_be_a_convolutions_is_not_converted_without_its_layer(
    prefix: str, dots: str, to: str, tmp_path: Path
) -> None:
    source, _ = oft_of_a_convolution(tmp_path, prefix, dots)
    with pytest.raises(UnsupportedAdapterError, match=r"the other way on convolutions.*`--base`"):
        lorry.convert(source, place(tmp_path, to), to)
    assert not place(tmp_path, to).exists()


def test_an_oft_of_a_convolution_is_turned_the_other_way_where_its_layer_is_known(tmp_path: Path) -> None:
    source, key = oft_of_a_convolution(tmp_path, "base_model.model.", ".")
    models = {"unet": tiny_unet()}
    there = through(tmp_path, source, "onetrainer", models)
    (blocks,) = (tensor for tensor in read_safetensors(there).tensors.values() if tensor.ndim == 2)
    assert torch.equal(blocks, -read_safetensors(source).tensors[key])


def test_a_fused_layer_goes_into_numbered_parts_and_comes_together_again(tmp_path: Path) -> None:
    models = tiny("flux")
    first = bfl_file(models, tmp_path, fused_lora)
    there = through(tmp_path, first, "omi", models)
    stems = {key.partition(".lora_")[0].removesuffix(".alpha") for key in read_safetensors(there).tensors}
    parts = {("double_blocks.0.img_attn.qkv", 3), ("single_blocks.0.linear1", 4)}
    numbered = {f"transformer.{stem}.{i}" for stem, count in parts for i in range(count)}
    assert stems == numbered | {"transformer.double_blocks.0.img_attn.proj"}
    assert_same_file(first, through(tmp_path, there, "kohya", models))


@pytest.mark.parametrize("dialect", ["lora-layers", "attention-processors"])
def test_a_scale_that_has_no_place_is_refused_or_multiplied_in_without_error_where_it_is_a_power_of_two(
    dialect: str, tmp_path: Path
) -> None:
    models = tiny("sd15")
    odd = loras(models, "unet", alpha=1.5, only=ATTENTIONS)
    halved = {key: t / 3 if key.endswith("alpha") else t for key, t in odd.items()}
    for tensors, most in ((odd, 1e-6), (halved, 0.0)):
        first = written(tmp_path, tensors)
        with pytest.raises(UnsupportedAdapterError, match="LoRA: an alpha that is not its rank"):
            through(tmp_path, first, dialect, models)
        approximator = Approximator()
        out = through(tmp_path, first, dialect, models, approximator)
        assert len(approximator.made) == len(tensors) / 3
        assert approximator.errors.total().total <= most
        assert_same_effect(first, out, models)
        out.unlink()


@pytest.mark.parametrize("dialect", [*WITHOUT_ALPHA[:2], "comfyui", "omi", "dotted-kohya", "onetrainer"])
@pytest.mark.parametrize("alpha", [2.0, None])
def test_a_header_gives_layers_without_an_alpha_no_other_strength(
    dialect: str, alpha: float | None, tmp_path: Path
) -> None:
    models = tiny("sd15")
    header = {"ss_network_dim": "2", "ss_network_alpha": "1", "ss_network_args": '{"conv_alpha": "1"}'}
    tensors = loras(models, "unet", only=ATTENTIONS)
    known = {key: torch.tensor(2.0) if key.endswith("alpha") else t for key, t in tensors.items()}
    first = written(tmp_path, known, header if alpha else None)
    if alpha is None:
        plain = {key: t for key, t in tensors.items() if not key.endswith("alpha")}
        first = written(tmp_path, plain, {**header, "ss_network_alpha": "2", "ss_network_args": "{}"})
    out = through(tmp_path, first, dialect, models)
    assert {entry.delta.rank_scale for entry in read_adapter(read_adapter_file(out)).entries} == {1.0}


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
def test_doras_of_rows_go_onto_a_fused_layer_and_come_apart_again(dialect: str, tmp_path: Path) -> None:
    models = tiny("flux")
    tensors = loras(models, "transformer")
    scales = {
        key.replace("lora_up.weight", "dora_scale"): torch.rand(t.shape[0], 1) + 1
        for key, t in tensors.items()
        if key.endswith("lora_up.weight")
    }
    first = tmp_path / "diffusers.safetensors"
    convert_file(written(tmp_path, tensors | scales), first, "diffusers", lambda _: models)
    (tmp_path / "there").mkdir()
    there = through(tmp_path / "there", first, dialect, models)
    (tmp_path / "back").mkdir()
    assert_same_file(first, through(tmp_path / "back", there, "diffusers", models))


def mixture(models: Models, component: str) -> dict[str, Tensor]:
    """Another family on each linear layer in turn; LoRAs on those that an original checkpoint may have fused."""
    tensors: dict[str, Tensor] = {}
    kinds = (fused_lora, fused_dora, fused_loha, fused_full, fused_lokr)
    paths = [path for path, m in models[component].named_modules() if len(weight_shape(m) or ()) == 2]
    for number, path in enumerate(paths):
        rows, width = weight_shape(models[component].get_submodule(path)) or (0, 0)
        is_plain = re.search(r"(_[qkv]|_[qkv]_proj|proj_mlp)$", path) or rows % 2 or width % 2
        parts = (fused_lora if is_plain else kinds[number % len(kinds)])(rows, width)
        has_bias = models[component].get_submodule(path).bias is not None
        parts = {suffix: t for suffix, t in parts.items() if suffix != "diff_b" or has_bias}
        tensors |= {f"{component}.{path}.{suffix}": tensor for suffix, tensor in parts.items()}
    return tensors


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "wan"])
def test_whole_files_of_mixed_families_come_back_bit_for_bit(name: str, dialect: str, tmp_path: Path) -> None:
    models = tiny(name)
    tensors = mixture(models, next(iter(models)))
    first = through(tmp_path, written(tmp_path, tensors), "lycoris", models)
    there = through(tmp_path, first, dialect, models)
    families = {entry.delta.family.split()[0] for entry in read_adapter(read_adapter_file(there)).entries}
    assert families == {"LoRA", "DoRA", "LoHa", "LoKr", "full"}
    (tmp_path / "back").mkdir()
    assert_same_file(first, through(tmp_path / "back", there, "lycoris", models))
