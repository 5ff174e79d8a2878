"""Which base an adapter is for, told from its layers; and what an error says of it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch

from lorry.adapters import Adapter, Entry
from lorry.algebra import LoraDelta
from lorry.binding import BASES, base_of_adapter, base_of_models, bind, find_base_called
from lorry.binding.bases import Layer, find_base, find_bases, titles_of_adapter
from lorry.binding.original_names import unet_names
from lorry.binding.tables import original_names
from lorry.binding.targets import weight_shape
from lorry.dialects import read_adapter
from lorry.errors import BindingError
from lorry.files import TensorFile
from lorry.names import DENOISER, Target
from lorry.pipelines.architectures import ARCHITECTURES, skeleton
from models import tiny_unet

HEADERS = {
    "flux_control_lora_format": "flux",
    "flux_dora_onetrainer_format": "flux",
    "flux_lora_aitoolkit_format": "flux",
    "flux_lora_kohya_format": "flux",
    "flux_lora_xlabs_format": "flux",
    "qwen_image_lora_diffusers_format": None,  # an excerpt, which may be of Flux as well
    "anima_lora_kohya_with_te_format": "cosmos-2b",
    "krea2_lora_kohya_format": "krea2",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_known_architecture_is_told_by_its_own_layers(name: str) -> None:
    models = skeleton(name)
    denoiser = {part: model for part, model in models.items() if not part.startswith("text_encoder")}
    found = base_of_models(denoiser)
    assert found is find_base_called(name)
    assert found is not None
    assert base_of_models(models) is found
    assert all(parameter.is_meta for model in models.values() for parameter in model.parameters())


@cache
def spellings(name: str) -> dict[str, list[Layer]]:
    """Every layer of a base under each of its names: of diffusers, of the original checkpoint, and others."""
    found: dict[str, list[Layer]] = {}
    for part, model in skeleton(name).items():
        shapes = {path: shape for path, m in model.named_modules() if (shape := weight_shape(m)) is not None}
        tables = {section: original_names(model, shapes, section) for section in ("names", "also")}
        tables["sgm"] = unet_names(shapes) if part == "unet" else {}
        for spelling, names in tables.items():
            for path, pieces in names.items():
                rows = sum(shapes[piece.path][0] // piece.of for piece in pieces)
                layer = path.replace(".", "_"), (rows, *shapes[pieces[0].path][1:])
                found.setdefault(spelling, []).append(layer)
        own = "diffusers, text" if part.startswith("text_encoder") else "diffusers"
        found.setdefault(own, []).extend((path.replace(".", "_"), shape) for path, shape in shapes.items())
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_layer_of_a_base_is_said_to_be_of_others_alone(name: str) -> None:
    this = find_base_called(name)
    assert this is not None
    its = {name, *this.variant_of}
    wrong = {
        path: titles
        for layers in spellings(name).values()
        for path, shape in layers
        if (titles := [base.name for base in find_bases([(path, shape)])]) and its.isdisjoint(titles)
    }
    assert not wrong


SAME_LAYERS = {"wan-i2v": ["wan-i2v", "wan-animate", "chronoedit", "skyreels"]}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_layers_of_a_base_are_told_from_every_other_in_each_spelling(name: str) -> None:
    this = find_base_called(name)
    assert this is not None
    for spelling, layers in spellings(name).items():
        if spelling != "diffusers, text" and any(find_bases([layer]) for layer in layers):
            names = [base.name for base in find_bases(layers)]
            shared = spelling != "diffusers" and names in [[base] for base in this.variant_of]
            assert names == SAME_LAYERS.get(name, [name]) or shared, spelling


FLUX_SIZED = (3072, 3072)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            {f"single_transformer_blocks.{i}.attn.to_{p}": FLUX_SIZED for i in (3, 7) for p in "qkv"},
            "FLUX.1 or Chroma or HunyuanVideo or AuraFlow or FLUX.3",
        ),
        ({f"single_transformer_blocks.{i}.attn.to_q": FLUX_SIZED for i in range(32)}, "AuraFlow"),
        ({f"single_transformer_blocks.{i}.attn.to_q": FLUX_SIZED for i in range(38)}, "FLUX.1 or Chroma"),
        ({f"single_transformer_blocks.{i}.attn.to_q": FLUX_SIZED for i in range(40)}, "HunyuanVideo"),
        (
            {f"transformer_blocks.{i}.ff.net.2": (3072, 12288) for i in range(4)},
            "FLUX.1 or Chroma or HunyuanVideo or CogVideoX 5B",
        ),
        ({"double_blocks.3.img_mod.lin": (18432, 3072)}, "FLUX.1 or HunyuanVideo"),
        ({"down_blocks.0.attentions.0.proj_in": (320, 320)}, None),
        ({"transformer_blocks.0.attn1.to_q": (2240, 2240)}, "Sana 1.6B or SANA-Video"),
        (
            {"transformer_blocks.0.attn.to_q": (2048, 2048)},
            "HunyuanVideo 1.5 or NucleusMoE-Image or MiniMax Music 3",
        ),
        ({"transformer_blocks.0.attn1.to_q": (1152, 1152)}, "PixArt or Sana 0.6B"),
        ({"transformer_blocks.0.attn1.to_q": (4096, 4096)}, "LTX-2 or Cosmos 7B or CogView4"),
        ({"transformer_blocks.0.attn1.to_q": (2048, 2048)}, "LTX-Video or Cosmos Predict2 2B or Anima"),
        ({"blocks.0.self_attn.q": (5120, 5120), "vace_blocks.0.self_attn.q": (5120, 5120)}, "Wan VACE 14B"),
        ({"blocks.0.self_attn.q": (1536, 1536), "vace_blocks.0.self_attn.q": (5120, 5120)}, None),
        ({"vace_blocks.0.self_attn.q": (5120, 5120), "clean_x_embedder.proj": (3072, 16)}, None),
        ({"blocks.0.self_attn.q": (5120, 5120), "patch_short": (5120, 64)}, "Helios"),
        ({"blocks.0.self_attn.q": (1536, 1536), "patch_short": (5120, 64)}, None),
        ({"blocks.0.attn1.to_q": (1536, 1536), "fps_projection.net.2": (9216, 1536)}, "SkyReels V2"),
        ({"transformer_blocks.0.attn1.to_q": (1152, 1152), "proj_out_1": (2304, 1152)}, "DiT"),
        ({"transformer_blocks.0.ff.net.2": (3072, 12288), "context_embedder": (3072, 3584)}, "LongCat-Image"),
        (
            {"double_blocks.0.img_attn.qkv": (9216, 3072), "txt_in": (3072, 3584)},
            "FLUX.1 or Chroma or HunyuanVideo",
        ),
        ({"blocks.0.attn.wq": (6144, 6144), "double_blocks.0.img_attn.qkv": (9216, 3072)}, None),
    ],
)
def test_what_layers_do_not_tell_is_said_with_all_that_it_may_be(
    layers: dict[str, tuple[int, int]], said: str | None
) -> None:
    entries = [
        Entry(Target(DENOISER, path), LoraDelta(torch.ones(1, shape[1]), torch.ones(shape[0], 1)), (path,))
        for path, shape in layers.items()
    ]
    for order in (entries, entries[::-1]):
        assert titles_of_adapter(Adapter(tuple(order), "diffusers", source="x.safetensors")) == said


def test_what_cannot_be_told_is_not_written_as_one_of_two_bases_with_other_names() -> None:
    assert find_base([("single_transformer_blocks_3_attn_to_q", FLUX_SIZED)]) is None
    shared = find_base([("single_transformer_blocks_3_proj_out", (3072, 15360))])
    assert shared is not None
    assert shared.name == "flux"


@pytest.mark.parametrize(
    ("name", "stem", "shape"),
    [
        ("lumina2", "lora_te_layers_0_self_attn_q_proj", (2048, 2304)),
        ("z-image", "lora_te_layers_35_mlp_gate_proj", (9728, 2560)),
        ("wan", "lora_te_encoder_block_23_layer_0_SelfAttention_q", (4096, 4096)),
        ("ltx-video", "text_encoder.encoder.block.0.layer.1.DenseReluDense.wi_0", (10240, 4096)),
        ("hunyuan-video", "lora_te1_layers_31_self_attn_k_proj", (1024, 4096)),
        ("hunyuan-video", "lora_te2_text_model_encoder_layers_0_mlp_fc1", (3072, 768)),
    ],
)
def test_text_encoders_that_are_trained_along_are_known_with_their_base(
    name: str, stem: str, shape: tuple[int, int]
) -> None:
    one = torch.ones(())
    tensors = {
        f"{stem}.lora_down.weight": one.expand(1, shape[1]),
        f"{stem}.lora_up.weight": one.expand(shape[0], 1),
    }
    report = bind(read_adapter(TensorFile(tensors)), skeleton(name)).report
    assert (report.applied, report.unknown, report.mismatched) == (2, (), ())


@pytest.mark.parametrize("header", HEADERS)
def test_files_of_the_world_are_told_by_their_headers(header: str, shared_dir: Path) -> None:
    shapes = json.loads((shared_dir / "headers" / f"{header}.json").read_text())["keys"]
    tensors = {
        key: torch.empty(shape, device="meta") if shape else torch.ones(()) for key, shape in shapes.items()
    }
    found = base_of_adapter(read_adapter(TensorFile(tensors)))
    assert (None if found is None else found.name) == HEADERS[header]


@pytest.mark.parametrize(
    ("path", "shape", "name"),
    [
        ("down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", (640, 2048), "sdxl"),
        ("input_blocks_4_1_transformer_blocks_1_attn1_to_q", (640, 640), "sdxl"),
        ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v", (320, 768), "sd15"),
        ("input_blocks_1_1_transformer_blocks_0_attn2_to_v", (320, 1024), "sd2"),
        ("joint_blocks_0_x_block_attn_qkv", (4608, 1536), "sd3"),
        ("double_blocks_0_img_attn_qkv", (9216, 3072), "flux"),
        ("double_blocks_19_img_attn_qkv", (9216, 3072), "hunyuan-video"),
        ("transformer_blocks_30_attn_to_q", (3072, 3072), "qwen-image"),
        ("transformer_blocks_3_attn_to_q", (3072, 3072), None),
        ("transformer_blocks_3_ff_context_net_2", (3072, 12288), "flux"),
        ("blocks_0_self_attn_q", (5120, 5120), "wan"),
        ("blocks_0_attn1_to_q", (1536, 1536), "wan-1.3b"),
        ("transformer_blocks_0_attn2_to_k", (2048, 2048), "ltx-video"),
        ("transformer_blocks_0_audio_attn1_to_q", (2048, 2048), "ltx2"),
        ("transformer_blocks_0_attn_to_k", (6144, 6144), "flux2"),
        ("transformer_blocks_0_attn_to_k", (1536, 6144), "krea2"),
        ("blocks_0_attn_wq", (6144, 6144), "krea2"),
        ("double_stream_blocks_0_block_attn1_to_q", (2560, 2560), "hidream"),
        ("double_layers_0_attn_w2q", (3072, 3072), "auraflow"),
        ("single_transformer_blocks_0_ff_linear_1", (8192, 3072), "auraflow"),
        ("single_transformer_blocks_0_ff_linear_in", (18432, 3072), "flux3"),
        ("content_mode_blocks_image_0_q_proj", (3072, 3072), "flux3"),
        ("single_blocks_0_q_proj", (3072, 3072), "flux3"),
        ("transformer_blocks_0_ff_in", (16384, 2048), "minimax-music"),
        ("transformer_blocks_0_attn_add_q_proj", (2048, 2048), None),
        ("transformer_blocks_0_attn1_to_q", (2240, 2240), "sana"),
        ("transformer_blocks_0_attn1_to_q", (1920, 1920), "cogvideox-2b"),
        ("transformer_blocks_0_attn1_to_q", (3072, 3072), None),
        ("layers_0_attention_query_key_value", (9216, 3072), "cogvideox-5b"),
        ("vace_blocks_0_self_attn_q", (5120, 5120), "wan-vace"),
        ("vace_blocks_0_attn1_to_q", (1536, 1536), "wan-vace-1.3b"),
        ("face_adapter_fuser_blocks_0_linear1_q", (5120, 5120), "wan-animate"),
        ("blocks_0_self_attn_q", (3072, 3072), "wan-5b"),
        ("transformer_blocks_0_ff_conv_temp", (2240, 2240, 3, 1), "sana-video"),
        ("blocks_0_attn_q_proj_cam", (2240, 2240), "sana-wm"),
        ("down_blocks_0_attentions_0_temporal_transformer_blocks_0_attn1_to_q", (320, 320), "svd"),
        ("input_blocks_1_1_time_stack_0_attn2_to_k", (320, 1024), "svd"),
        ("down_blocks_0_temp_attentions_0_transformer_blocks_0_attn1_to_q", (512, 512), "modelscope-video"),
        ("down_blocks_0_motion_modules_0_transformer_blocks_0_attn1_to_q", (320, 320), "animatediff"),
        ("transformer_blocks_0_attn_to_q", (2048, 2048), None),
        ("transformer_blocks_0_ff_context_net_2", (2048, 8192), "hunyuan-video-1.5"),
        ("transformer_blocks_0_img_mlp_gate", (64, 4096), "nucleus-image"),
        ("temporal_transformer_blocks_0_attn1_to_q", (1152, 1152), "latte"),
        ("transformer_blocks_0_attn1_add_q_proj", (3072, 3072), "easyanimate"),
        ("transformer_blocks_0_attn2_to_out_0", (3072, 3072), "easyanimate"),
        ("double_blocks_0_img_attn_qkv", (10752, 3584), "hunyuan-image"),
        ("clean_x_embedder_proj", (3072, 16, 1, 2, 2), "framepack"),
        ("blocks_0_attn1_Wqkv", (4224, 1408), "hunyuan-dit"),
        ("transformer_blocks_0_ff_net_2", (1152, 4608), "pixart"),
        ("blocks_0_self_attn_q_proj", (2048, 2048), "cosmos-2b"),
        ("blocks_0_self_attn_q_proj", (5120, 5120), "cosmos-14b"),
        ("blocks_block0_blocks_0_block_attn_to_q_0", (4096, 4096), "cosmos-7b"),
        ("transformer_blocks_0_norm1_linear", (49152, 512), "cogview4"),
        ("layers_0_attention_query_key_value", (7680, 2560), "cogview3"),
        ("transformer_blocks_3_attn1_add_q_proj", (3072, 1536), "mochi"),
        ("layers_0_self_attn_to_qkv", (4608, 1536), "stable-audio"),
        ("layers_0_self_attn_to_qkv", (7680, 1536), "stable-audio-3"),
        ("transformer_blocks_0_cross_attn_to_q", (1024, 1024), "stable-audio-3-small"),
        ("layers_0_self_attn_to_out", (1536, 1536), None),
        ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", (16, 32), None),
        ("down_blocks_0_attentions_0_proj_in", (320, 320), None),
    ],
)
def test_one_layer_may_tell(path: str, shape: tuple[int, ...], name: str | None) -> None:
    found = find_base([("some_other_layer", (7, 7)), (path, shape)])
    assert (None if found is None else found.name) == name


DERIVED = {
    "HeliosTransformer3DModel": "helios",
    "AnyFlowTransformer3DModel": "anyflow",
    "AnyFlowFARTransformer3DModel": "anyflow",
    "GlmImageTransformer2DModel": "glm-image",
    "OvisImageTransformer2DModel": "ovis-image",
    "LongCatImageTransformer2DModel": "longcat-image",
    "BriaFiboTransformer2DModel": "bria-fibo",
    "JoyImageEditTransformer3DModel": "joyimage",
    "JoyImageEditPlusTransformer3DModel": "joyimage",
    "DiTTransformer2DModel": "dit",
    "SD3Transformer2DModel": "sd3-1152",
    "ChronoEditTransformer3DModel": "chronoedit",  # whose layers are Wan's
    "SkyReelsV2Transformer3DModel": None,  # of a width that no checkpoint has
    "BriaTransformer2DModel": "bria",  # an embedder differs, which Mochi has as well
}


@pytest.mark.parametrize("cls", DERIVED)
def test_a_model_is_told_from_what_it_is_made_of(cls: str) -> None:
    with torch.device("meta"):
        found = base_of_models({"transformer": getattr(diffusers, cls)()})
    assert (None if found is None else found.name) == DERIVED[cls]


WITH_PICTURE = {"num_layers": 1, "image_dim": 1280, "added_kv_proj_dim": 5120}


@pytest.mark.parametrize(
    ("cls", "config", "name"),
    [
        ("WanTransformer3DModel", {"num_layers": 1}, "wan"),
        ("WanTransformer3DModel", WITH_PICTURE, "wan-i2v"),
        (
            "WanTransformer3DModel",
            {**WITH_PICTURE, "num_attention_heads": 12, "ffn_dim": 8960, "added_kv_proj_dim": 1536},
            "wan-fun-1.3b",
        ),
        ("ChronoEditTransformer3DModel", WITH_PICTURE, "chronoedit"),
        ("SkyReelsV2Transformer3DModel", {**WITH_PICTURE, "num_attention_heads": 40}, "skyreels"),
        ("WanAnimateTransformer3DModel", {"num_layers": 1, "added_kv_proj_dim": 5120}, "wan-animate"),
    ],
)
def test_a_live_wan_is_told_by_its_layers_for_a_picture_and_by_its_class(
    cls: str, config: dict[str, int], name: str
) -> None:
    with torch.device("meta"):
        found = base_of_models({"transformer": getattr(diffusers, cls)(**config)})
    assert found is not None
    assert found.name == name


def for_a_picture(width: int, *layers: str) -> Adapter:
    delta = LoraDelta(torch.ones(2, width), torch.ones(width, 2))
    entries = [Entry(Target(DENOISER, path), delta, (path,)) for path in ("blocks.0.self_attn.q", *layers)]
    return Adapter(tuple(entries), "diffusers", source="x.safetensors")


PICTURES = "Wan 2.1 I2V or Wan 2.2 Animate or ChronoEdit or SkyReels V2"


@pytest.mark.parametrize("layer", ["blocks.0.cross_attn.k_img", "blocks.0.attn2.add_v_proj"])
def test_a_file_for_a_wan_with_a_picture_says_so_on_a_wan_without(layer: str) -> None:
    said = rf"made for another base model: it is for {PICTURES}, and this is Wan 14B\."
    with pytest.raises(BindingError, match=said):
        bind(for_a_picture(5120, layer), {"transformer": skeleton("wan")["transformer"]})
    small = r"it is for Wan 2\.1 Fun 1\.3B InP or SkyReels V2, and this is Wan 2\.1 1\.3B\."
    with pytest.raises(BindingError, match=small):
        bind(for_a_picture(1536, layer), {"transformer": skeleton("wan-1.3b")["transformer"]})


def test_what_a_picture_s_layers_do_not_tell_is_not_claimed() -> None:
    face = for_a_picture(5120, "blocks.0.cross_attn.k_img", "face_adapter.fuser_blocks.0.linear1_q")
    assert titles_of_adapter(face) == "Wan 2.2 Animate"
    assert titles_of_adapter(for_a_picture(5120)) == "Wan 14B"
    picture = {"transformer": skeleton("wan-i2v")["transformer"]}
    with pytest.raises(BindingError, match=r"Was the adapter made for another base model\?"):
        bind(for_a_picture(5120, "blocks.0.cross_attn.k_img", "blocks.99.self_attn.q"), picture)


def adapter_for(width: int) -> Adapter:
    path = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    delta = LoraDelta(torch.ones(2, width), torch.ones(640, 2))
    return Adapter(
        (Entry(Target(DENOISER, path, flat=True), delta, ("key",)),), "kohya", source="x.safetensors"
    )


def test_an_error_names_the_base_that_a_file_was_made_for_and_the_one_that_this_is() -> None:
    models = {"unet": skeleton("sd15")["unet"]}
    with pytest.raises(
        BindingError, match="made for another base model: it is for SDXL, and this is Stable Diffusion 1"
    ):
        bind(adapter_for(2048), models)


def test_a_file_for_a_base_may_be_for_what_is_made_of_it() -> None:
    delta = LoraDelta(torch.ones(2, 5120), torch.ones(5120, 2))
    entry = Entry(Target(DENOISER, "blocks_99_self_attn_q", flat=True), delta, ("key",))
    adapter = Adapter((entry,), "kohya", source="x.safetensors")
    with pytest.raises(BindingError, match=r"Was the adapter made for another base model\?"):
        bind(adapter, skeleton("wan-vace"))
    with pytest.raises(BindingError, match=r"it is for Wan 14B, and this is Wan 2\.1 VACE 1\.3B"):
        bind(adapter, skeleton("wan-vace-1.3b"))


@pytest.mark.parametrize("cls", ["MotifVideoTransformer3DModel", "ConsisIDTransformer3DModel"])
def test_a_live_model_is_not_said_to_be_one_of_another_class_that_has_the_same_layers(cls: str) -> None:
    with torch.device("meta"):
        model = getattr(diffusers, cls)(num_layers=1)
    assert base_of_models({"transformer": model}) is None


def test_a_file_for_minimax_music_is_not_said_to_be_for_pictures_or_films_alone() -> None:
    layers = [(f"transformer_blocks_0_attn_to_{end}", (2048, 2048)) for end in ("q", "k", "v", "out_0")]
    assert "MiniMax Music 3" in [base.title for base in find_bases(layers)]
    both = [*layers, ("transformer_blocks_0_ff_out", (2048, 8192))]
    assert [base.title for base in find_bases(both)] == ["MiniMax Music 3"]


def test_a_live_model_of_a_class_made_of_a_known_one_is_that() -> None:
    class Ours(diffusers.FluxTransformer2DModel):
        pass

    with torch.device("meta"):
        assert base_of_models({"transformer": Ours()}) is find_base_called("flux")


def test_of_a_model_that_is_not_known_the_error_names_the_file_s_base_alone() -> None:
    with pytest.raises(BindingError, match=r"it is for SDXL\.\n"):
        bind(adapter_for(2048), {"unet": tiny_unet()})
    with pytest.raises(BindingError, match=r"Was the adapter made for another base model\?"):
        bind(adapter_for(33), {"unet": tiny_unet()})


def test_names_of_bases_are_unique() -> None:
    assert len({base.name for base in BASES}) == len(BASES)
