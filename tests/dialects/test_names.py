"""A key is container prefix + module path + parameter suffix: each of them alone, and all combinations."""

from __future__ import annotations

from itertools import product

import pytest

from dialects.conftest import make_file
from lorry.dialects import find_dialect, read_adapter
from lorry.dialects._containers import dotted_target, find_flat_target
from lorry.dialects._paths import plain_key
from lorry.dialects._suffixes import REFUSED, ROLES, split_suffix
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.names import DENOISER, Target

PATH = "transformer_blocks.0.attn1.to_q"
CONTAINERS = {
    "": DENOISER,
    "unet.": "unet",
    "transformer.": "transformer",
    "transformer_2.": "transformer_2",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "diffusion_model.": DENOISER,
    "model.diffusion_model.": DENOISER,
    "base_model.model.": DENOISER,
    "base_model.model.base_model.model.": DENOISER,
    "base_model.model.unet.": "unet",
    "transformer.base_model.model.": "transformer",
    "base_model.model.transformer.base_model.model.": "transformer",
    "module.unet.": "unet",
    "_orig_mod.": DENOISER,
    "unet._orig_mod.": "unet",
    "module._orig_mod.transformer.": "transformer",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
PAIRS = [
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_A", "lora_B"),
    ("lora_A.default", "lora_B.default"),
    ("lora_down.weight", "lora_up.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
]


@pytest.mark.parametrize(("container", "pair"), list(product(CONTAINERS, PAIRS)))
def test_every_container_goes_with_every_suffix(container: str, pair: tuple[str, str]) -> None:
    down, up = pair
    file = make_file(
        {f"{container}{PATH}.{down}": (2, 6), f"{container}{PATH}.{up}": (8, 2)},
        {f"{container}{PATH}.alpha": 1.0},
    )
    adapter = read_adapter(file)
    assert [entry.target for entry in adapter.entries] == [Target(CONTAINERS[container], PATH)]
    assert adapter.entries[0].delta.shape == (8, 6)
    assert adapter.entries[0].delta.rank_scale == 0.5
    assert set(adapter.entries[0].keys) == set(file.tensors)


FLAT = {
    "lora_unet_": DENOISER,
    "lora_unet__": DENOISER,
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te1__": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_prior_unet_": "prior",
    "lycoris_": DENOISER,
    "oft_unet_": DENOISER,
    "Hunyuan_video_I2V_lora_": DENOISER,
}


@pytest.mark.parametrize("prefix", FLAT)
def test_every_flat_prefix_stands_for_its_component(prefix: str) -> None:
    assert find_flat_target(f"{prefix}blocks_0_attn_to_q") == Target(
        FLAT[prefix], "blocks_0_attn_to_q", flat=True
    )


@pytest.mark.parametrize("stem", ["unet.lora_unet_x", "lora_unet_", "x_lora_unet_a"])
def test_what_only_looks_flat_is_not(stem: str) -> None:
    assert find_flat_target(stem) is None


@pytest.mark.parametrize(
    ("stem", "target"),
    [
        ("unet.down_blocks.0._orig_mod.attn1.to_q", Target("unet", "down_blocks.0.attn1.to_q")),
        ("blocks.0._checkpoint_wrapped_module.attn", Target(DENOISER, "blocks.0.attn")),
        (
            "text_model.encoder.layers.0.mlp.fc1",
            Target("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
        ),
        ("text_encoder.model.layers.0.mlp", Target("text_encoder", "model.layers.0.mlp")),
        ("unet.transformer.x", Target("unet", "transformer.x")),
        ("pipe.dit.blocks.0.self_attn.q", Target(DENOISER, "blocks.0.self_attn.q")),
        ("net.blocks.0.self_attn.q_proj", Target(DENOISER, "blocks.0.self_attn.q_proj")),
        ("blocks.0.net.0", Target(DENOISER, "blocks.0.net.0")),
    ],
)
def test_containers_are_taken_off_and_paths_left_alone(stem: str, target: Target) -> None:
    assert dotted_target(stem) == target


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        ("a.attn1.processor.to_q_lora.down.weight", "a.attn1.to_q.lora.down.weight"),
        ("a.attn1.processor.to_out_lora.up.weight", "a.attn1.to_out.0.lora.up.weight"),
        ("a.attn1.processor.add_k_proj_lora.up.weight", "a.attn1.add_k_proj.lora.up.weight"),
        ("a.attn1.processor.to_v_lora.alpha", "a.attn1.to_v.alpha"),
        ("a.self_attn.to_q_lora.down.weight", "a.self_attn.q_proj.lora.down.weight"),
        ("a.self_attn.to_out_lora.up.weight", "a.self_attn.out_proj.lora.up.weight"),
        ("single_blocks.0.processor.qkv_lora.down.weight", "single_blocks.0.linear1.0-2.lora.down.weight"),
    ],
)
def test_attention_processors_are_named_after_their_layers(key: str, plain: str) -> None:
    assert plain_key(key) == plain


@pytest.mark.parametrize("suffix", [*ROLES, *REFUSED])
def test_every_suffix_is_cut_off_whole(suffix: str) -> None:
    ending = split_suffix(f"a.b_c.0.{suffix}")
    assert ending is not None
    assert (ending.stem, ending.suffix, ending.adapter) == ("a.b_c.0", suffix, None)


@pytest.mark.parametrize("suffix", REFUSED)
def test_a_file_of_another_family_is_refused_by_name_and_never_read_in_part(suffix: str) -> None:
    shapes = {f"unet.{PATH}.{side}.weight": (2, 2) for side in ("lora_A", "lora_B")}
    with pytest.raises(UnsupportedAdapterError, match=r"test\.safetensors holds .*'unet\.") as caught:
        read_adapter(make_file({**shapes, f"unet.{PATH}.{suffix}": (2,)}))
    assert REFUSED[suffix] in str(caught.value)
    assert suffix in str(caught.value)


@pytest.mark.parametrize("suffix", sorted(set(REFUSED) - {"lora_A.bias"}))
@pytest.mark.parametrize(
    "prefix", ["lora_unet_a_b", "unet.a.b", "a.b", "base_model.model.a.b", "lycoris_a_b"]
)
def test_a_file_of_nothing_but_another_family_is_refused_by_name(prefix: str, suffix: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match="loads no part of a file") as caught:
        read_adapter(make_file({f"{prefix}.{suffix}": (2, 2)}))
    assert REFUSED[suffix] in str(caught.value)


def test_several_adapters_in_one_dump_are_refused() -> None:
    shapes = {f"{PATH}.lora_{side}.{name}.weight": (2, 2) for side in "AB" for name in ("default", "other")}
    with pytest.raises(FormatError, match="holds 2 adapters at once: 'default', 'other'"):
        read_adapter(make_file(shapes))


DIALECTS = {
    "kohya": "lora_unet_mid_block_attentions_0_proj_in.lora_{0}.weight",
    "onetrainer": "lora_transformer_transformer_blocks_0_attn_to_q.lora_{0}.weight",
    "diffusers": "unet.mid_block.attentions.0.proj_in.lora_{1}.weight",
    "peft": "base_model.model.mid_block.attentions.0.proj_in.lora_{1}.weight",
    "lora-layers": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{0}.weight",
    "attention-processors": "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{0}.weight",
    "omi": "transformer.double_blocks.0.img_attn.qkv.1.lora_{0}.weight",
    "dotted-kohya": "transformer_blocks.0.attn.to_k.lora_{0}.weight",
}


@pytest.mark.parametrize("name", DIALECTS)
def test_each_dialect_claims_its_own(name: str) -> None:
    file = make_file(
        {
            DIALECTS[name].format(*pair): shape
            for pair, shape in ((("down", "A"), (2, 6)), (("up", "B"), (8, 2)))
        }
    )
    dialect = find_dialect(file)
    assert dialect is not None
    assert dialect.name == name
    assert read_adapter(file).dialect == name
    assert len(read_adapter(file).entries) == 1


@pytest.mark.parametrize(("one", "two"), [(one, two) for one in DIALECTS for two in DIALECTS if one < two])
def test_files_that_mix_two_dialects_are_read_in_full(one: str, two: str) -> None:
    shapes = {
        DIALECTS[name].format(*pair): shape
        for name in (one, two)
        for pair, shape in ((("down", "A"), (2, 6)), (("up", "B"), (8, 2)))
    }
    file = make_file(shapes)
    if {one, two} <= {"kohya", "diffusers", "peft"}:  # these three name the same layer
        with pytest.raises(FormatError, match="the same layer in two spellings"):
            read_adapter(file)
        return
    adapter = read_adapter(file)
    assert len(adapter.entries) == 2
    assert not adapter.unknown
