"""Keys that ComfyUI knows: its names for HunyuanVideo's modules, for norms, and for a layer that is to be widened."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.algebra import FullDelta
from lorry.binding.tables import FOLDER, find_pieces
from lorry.dialects import get_dialect, read_adapter
from lorry.dialects.comfyui import live_name
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile
from lorry.names import CONNECTORS, Target
from models import random_delta

RENAMED = (
    ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
    ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
    ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
    ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
    ("_mod.linear.", "_mod.lin."),
    ("_attn_qkv.", "_attn.qkv."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
    ("_attn_q_norm.", "_attn.norm.query_norm."),
    ("_attn_k_norm.", "_attn.norm.key_norm."),
    (".q_norm.", ".norm.query_norm."),
    (".k_norm.", ".norm.key_norm."),
    ("_attn_proj.", "_attn.proj."),
    (".modulation.linear.", ".modulation.lin."),
    ("_in.mlp.2.", "_in.out_layer."),
    ("_in.mlp.0.", "_in.in_layer."),
)
"""What ComfyUI does to the keys of a HunyuanVideo checkpoint, in this order. Source: Comfy-Org/ComfyUI,
`comfy/supported_models.py`, `HunyuanVideo.process_unet_state_dict`."""
HUNYUAN = ("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel")


def in_comfyui(name: str) -> str:
    key = f"{name}.weight"
    for old, new in RENAMED:
        key = key.replace(old, new)
    return key.removesuffix(".weight")


def names_of(model: str) -> list[str]:
    return [name.replace("*", "7") for name in json.loads((FOLDER / f"{model}.json").read_text())["names"]]


@pytest.mark.parametrize("model", HUNYUAN)
def test_every_module_of_hunyuan_video_is_written_as_comfyui_calls_it(model: str) -> None:
    names = names_of(model)
    assert {name: live_name(name) for name in names} == {name: in_comfyui(name) for name in names}
    assert sum(live_name(name) != name for name in names) > 20


@pytest.mark.parametrize("model", HUNYUAN)
def test_these_names_mean_the_same_modules(model: str) -> None:
    for name in names_of(model):
        pieces = find_pieces(model, name)
        assert pieces == find_pieces(model, live_name(name))
        assert pieces is not None


@pytest.mark.parametrize("model", sorted({path.stem for path in FOLDER.glob("*.json")} - set(HUNYUAN)))
def test_names_of_other_checkpoints_stay_as_they_are(model: str) -> None:
    if model not in ("HunyuanVideo15Transformer3DModel", "HunyuanImageTransformer2DModel"):
        assert [live_name(name) for name in names_of(model)] == names_of(model)


@pytest.mark.parametrize("end", ["scale.diff", "diff", "w_norm"])
def test_the_difference_of_a_norm_is_read_by_each_of_its_names_and_written_by_the_one_of_today(
    end: str,
) -> None:
    norm = "diffusion_model.double_blocks.0.img_attn.norm.key_norm"
    adapter = read_adapter(TensorFile({f"{norm}.{end}": torch.ones(8)}))
    assert [str(entry.target) for entry in adapter.entries] == [
        "denoiser.double_blocks.0.img_attn.norm.key_norm"
    ]
    assert list(get_dialect("comfyui").write(adapter).tensors) == [f"{norm}.diff"]


@pytest.mark.parametrize("kind", ["diff", "set_weight"])
def test_any_norm_may_call_its_weight_scale(kind: str) -> None:
    key = f"diffusion_model.distilled_guidance_layer.norms.0.scale.{kind}"
    entry = read_adapter(TensorFile({key: torch.ones(4)})).entries[0]
    assert (str(entry.target), entry.keys) == ("denoiser.distilled_guidance_layer.norms.0", (key,))


@pytest.mark.parametrize("kernel", [(3,), (1, 2, 2)])
@pytest.mark.parametrize(
    "dialect", ["comfyui", "kohya", "onetrainer", "diffusers", "peft", "lycoris", "dotted-kohya"]
)
def test_a_lora_of_a_convolution_over_one_or_three_axes_comes_back(
    dialect: str, kernel: tuple[int, ...]
) -> None:
    delta = random_delta((6, 4, *kernel), alpha=2.0)
    adapter = Adapter((Entry(Target("transformer", "patch_embedding"), delta, ()),), "test")
    (entry,) = read_adapter(get_dialect(dialect).write(adapter)).entries
    assert (entry.delta.shape, entry.delta.rank_scale) == (delta.shape, delta.rank_scale)
    assert torch.equal(entry.delta.weight(), delta.weight())


def test_a_parameter_of_a_block_has_its_own_name_before_the_suffix() -> None:
    target = Target("transformer", "blocks.0.modulation")
    adapter = Adapter((Entry(target, FullDelta(torch.ones(1, 6, 8)), ()),), "test")
    assert list(get_dialect("comfyui").write(adapter).tensors) == ["diffusion_model.blocks.0.modulation.diff"]


def control_lora() -> dict[str, Tensor]:
    rand = torch.Generator().manual_seed(0)
    return {
        "img_in.lora_A.weight": torch.randn(4, 16, generator=rand),
        "img_in.lora_B.weight": torch.randn(6, 4, generator=rand),
        "img_in.lora_B.bias": torch.randn(6, generator=rand),
        "single_blocks.0.norm.key_norm.scale": torch.randn(3, generator=rand),
        "single_blocks.0.norm.query_norm.scale": torch.randn(3, generator=rand),
    }


def test_a_control_lora_tells_comfyui_how_wide_the_first_layer_is_and_comes_back() -> None:
    tensors = control_lora()
    written = get_dialect("comfyui").write(read_adapter(TensorFile(tensors)))
    assert {key: (tuple(t.shape), t.tolist()) for key, t in written.tensors.items() if "reshape" in key} == {
        "diffusion_model.img_in.reshape_weight": ((2,), [6, 16])
    }
    again = read_adapter(written)
    assert (again.unknown, len(again.entries)) == ((), 3)
    found = {str(e.target): e.delta for e in again.entries}
    for entry in read_adapter(TensorFile(tensors)).entries:
        mine, other = entry.delta.tensors(), found[str(entry.target)].tensors()
        assert mine.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
        assert entry.delta.rank_scale == found[str(entry.target)].rank_scale


def test_other_loras_of_the_first_layer_do_not() -> None:
    plain = {key: tensor for key, tensor in control_lora().items() if "img_in.lora" in key}
    written = get_dialect("comfyui").write(read_adapter(TensorFile(plain)))
    assert not any("reshape" in key for key in written.tensors)


def test_every_module_of_ace_step_is_written_under_its_decoder() -> None:
    names = names_of("AceStepTransformer1DModel")
    assert "decoder.layers.7.mlp.up_proj" in names
    assert all(name.startswith("decoder.") for name in names)


TRANSFORMER = "text_encoders.{}.transformer.{}"
CLIP, T5 = "text_model.encoder.layers.0.mlp.fc1", "encoder.block.0.layer.0.SelfAttention.q"
T5_OUT = "encoder.block.0.layer.1.DenseReluDense.wo"
BERT = "encoder.layer.0.attention.self.query"
UP, DOWN, QUERY = (
    "model.layers.0.mlp.up_proj",
    "model.layers.0.mlp.down_proj",
    "model.layers.0.self_attn.q_proj",
)
TEXT_ENCODERS: list[tuple[str, str, tuple[int, int], str | None]] = [
    ("text_encoder", CLIP, (3072, 768), TRANSFORMER.format("clip_l", CLIP)),
    ("text_encoder", CLIP, (4096, 1024), TRANSFORMER.format("clip_h", CLIP)),
    ("text_encoder_2", CLIP, (5120, 1280), TRANSFORMER.format("clip_g", CLIP)),
    ("text_encoder_2", CLIP.removeprefix("text_model."), (3072, 768), TRANSFORMER.format("clip_l", CLIP)),
    ("text_encoder_2", CLIP, (128, 32), TRANSFORMER.format("clip_g", CLIP)),
    ("text_encoder_3", CLIP, (128, 32), None),
    ("text_encoder_2", T5, (4096, 4096), TRANSFORMER.format("t5xxl", T5)),
    ("text_encoder", T5, (2048, 2048), TRANSFORMER.format("pile_t5xl", T5)),
    ("text_encoder_2", T5, (2048, 2048), TRANSFORMER.format("mt5xl", T5)),
    ("text_encoder", T5_OUT, (2048, 5120), TRANSFORMER.format("pile_t5xl", T5_OUT)),
    ("text_encoder", T5, (768, 768), TRANSFORMER.format("t5base", T5)),
    ("text_encoder_2", T5, (384, 1472), TRANSFORMER.format("byt5_small", T5)),
    ("text_encoder", T5, (16384, 1024), TRANSFORMER.format("t5xxl", T5)),
    ("text_encoder", T5, (1024, 1024), None),
    ("text_encoder", BERT, (1024, 1024), TRANSFORMER.format("hydit_clip", f"bert.{BERT}")),
    ("text_encoder_2", BERT, (1024, 1024), None),
    ("text_encoder", BERT, (768, 768), None),
    ("text_encoder", UP.removeprefix("model."), (14336, 4096), TRANSFORMER.format("llama", UP)),
    ("text_encoder", DOWN, (4096, 14336), TRANSFORMER.format("llama", DOWN)),
    ("text_encoder_4", QUERY, (4096, 4096), TRANSFORMER.format("llama", QUERY)),
    ("text_encoder", QUERY, (4096, 4096), None),
    ("text_encoder", UP, (12288, 4096), None),
    ("text_encoder", UP, (9728, 2560), TRANSFORMER.format("qwen3_4b", UP)),
    ("text_encoder", DOWN, (2304, 9216), TRANSFORMER.format("gemma2_2b", DOWN)),
    ("text_encoder", QUERY, (2048, 1024), TRANSFORMER.format("qwen3_06b", QUERY)),
    ("text_encoder", QUERY, (16, 32), None),
    ("text_encoder", "of.no.text.encoder", (768, 768), None),
]


@pytest.mark.parametrize(("component", "path", "shape", "stem"), TEXT_ENCODERS)
@pytest.mark.parametrize("flat", [False, True])
def test_a_text_encoder_is_named_by_what_it_is(
    component: str, path: str, shape: tuple[int, int], stem: str | None, flat: bool
) -> None:
    own = Target(component, path.replace(".", "_") if flat else path, flat)
    adapter = Adapter((Entry(own, random_delta(shape, 0, 2), ()),), "test")
    if stem is None:
        with pytest.raises(UnsupportedAdapterError, match="no name for this component"):
            get_dialect("comfyui").write(adapter)
        return
    written = get_dialect("comfyui").write(adapter)
    assert {key.rpartition(".lora_")[0] for key in written.tensors if "lora_" in key} == {stem}
    again = read_adapter(written)
    assert get_dialect("comfyui").write(again).tensors.keys() == written.tensors.keys()


ALIKE = [
    ("UMT5EncoderModel", T5, (4096, 4096), "umt5xxl"),
    ("T5EncoderModel", T5, (4096, 4096), "t5xxl"),
    ("UMT5EncoderModel", T5_OUT, (2048, 5120), "pile_t5xl"),
    ("T5EncoderModel", T5, (2048, 2048), "mt5xl"),
    ("UMT5EncoderModel", T5, (768, 768), "umt5base"),
    ("T5EncoderModel", T5, (768, 768), "t5base"),
    ("Qwen3ForCausalLM", QUERY, (4096, 4096), "qwen3_8b"),
    ("Qwen3Model", QUERY, (2048, 2048), "qwen3_2b"),
    ("LlamaModel", QUERY, (4096, 4096), "llama"),
    ("SmolLM3ForCausalLM", QUERY, (2048, 2048), None),
]


@pytest.mark.parametrize(("cls", "path", "shape", "name"), ALIKE)
def test_text_encoders_of_one_size_are_named_by_their_class(
    cls: str, path: str, shape: tuple[int, int], name: str | None
) -> None:
    entry = Entry(Target("text_encoder", path), random_delta(shape, 0, 2), ())
    adapter = Adapter((entry,), "test", text_encoders={"text_encoder": cls})
    if name is None:
        with pytest.raises(UnsupportedAdapterError, match="no name for this component"):
            get_dialect("comfyui").write(adapter)
        return
    written = get_dialect("comfyui").write(adapter)
    assert all(key.startswith(f"text_encoders.{name}.transformer.") for key in written.tensors)
    again = get_dialect("comfyui").write(read_adapter(written))
    assert again.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(tensor, written.tensors[key]) for key, tensor in again.tensors.items())


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("blocks.3.cross_attn.k_img", "umt5xxl"),
        ("blocks.3.ffn.0", "umt5xxl"),
        ("blocks.3.cross_attn.q_linear", "t5xxl"),  # PixArt's
        ("double_blocks.3.img_attn.qkv", "t5xxl"),
    ],
)
def test_wans_text_encoder_is_told_by_what_stands_beside_it(layer: str, name: str) -> None:
    entries = (
        Entry(Target("transformer", layer), random_delta((8, 8), 0, 2), ()),
        Entry(Target("text_encoder", T5), random_delta((4096, 4096), 0, 2), ()),
    )
    keys = get_dialect("comfyui").write(Adapter(entries, "test")).tensors
    assert {key.split(".")[1] for key in keys if key.startswith("text_encoders.")} == {name}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("text_proj_in", "text_embedding_projection.aggregate_embed"),
        ("audio_text_proj_in", "text_embedding_projection.audio_aggregate_embed"),
        (
            "video_connector.transformer_blocks.0.attn1.norm_q",
            "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.q_norm",
        ),
    ],
)
def test_what_ltx_2_has_beside_its_transformer_is_written_as_its_checkpoints_call_it(
    path: str, name: str
) -> None:
    adapter = Adapter((Entry(Target(CONNECTORS, path), random_delta((8, 6), 0, 2), ()),), "test")
    assert {key.rpartition(".lora_")[0] for key in get_dialect("comfyui").write(adapter).tensors} == {name}
    flat = f"lora_unet_{name.removeprefix('diffusion_model.')}".replace(".", "_")
    assert {key.partition(".")[0] for key in get_dialect("kohya").write(adapter).tensors} == {flat}
