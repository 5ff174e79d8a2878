"""Files that are more than LoRAs under other names: parts of layers, other families, tokens, wrappers, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import formulas
import lorry
from lorry.errors import FuseError, UnsupportedAdapterError
from lorry.files import read_adapter_file, write_safetensors
from lorry.workflows.convert import convert_file
from models import tiny_flux_pipeline, tiny_sd_pipeline, tiny_unet
from pipelines import every
from row_files import ROWS
from row_layers import DOWN
from walks import CARRY, check_same, check_there_and_back, models_of, walk, weights

TO_Q = f"{DOWN}.attn1.to_q"


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) / 2


def test_kohyas_oft_turns_the_rows_within_its_constraint(tmp_path: Path) -> None:
    pipe = lorry.attach(tiny_sd_pipeline())
    weight = pipe.unet.get_submodule(TO_Q).weight.detach()
    blocks = noise(2, 8, 8)
    stem = f"oft_unet_{TO_Q.replace('.', '_')}"
    tensors = {f"{stem}.oft_blocks": blocks, f"{stem}.alpha": torch.tensor(0.01)}
    source = write_safetensors(tmp_path / "in.safetensors", tensors, {"ss_network_module": "networks.oft"})
    change = formulas.changes({"oft_blocks": blocks, "alpha": torch.tensor(0.01)}, weight)["weight"]
    walk(pipe, source, {"unet": {f"{TO_Q}.weight": change}})
    assert check_there_and_back(source, "kohya", tmp_path, models_of(pipe)) == {"kohya", "lycoris", "comfyui"}
    assert read_adapter_file(tmp_path / "there" / "kohya.safetensors").tensors.keys() == tensors.keys()


def test_kohyas_oft_of_flux_turns_the_parts_of_a_fused_layer_each_within_its_own_constraint(
    tmp_path: Path,
) -> None:
    pipe = lorry.attach(tiny_flux_pipeline())
    layers = {
        "double_blocks_0_img_attn_qkv": [f"transformer_blocks.0.attn.to_{p}" for p in "qkv"],
        "double_blocks_0_img_attn_proj": ["transformer_blocks.0.attn.to_out.0"],
        "single_blocks_1_linear1": [
            f"single_transformer_blocks.1.{end}"
            for end in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        ],
    }
    limit, tensors, changes = torch.tensor(0.01), dict[str, Tensor](), dict[str, Tensor]()
    for layer, paths in layers.items():
        tensors[f"oft_unet_{layer}.alpha"] = limit
        for number, path in enumerate(paths):
            weight = pipe.transformer.get_submodule(path).weight.detach()
            blocks = torch.randn(4, len(weight) // 4, len(weight) // 4)
            tensors[f"oft_unet_{layer}.oft_blocks.{number}"] = blocks
            changes[f"{path}.weight"] = formulas.changes({"oft_blocks": blocks, "alpha": limit}, weight)[
                "weight"
            ]
    source = write_safetensors(
        tmp_path / "in.safetensors", tensors, {"ss_network_module": "networks.oft_flux"}
    )
    report = walk(pipe, source, {"transformer": changes})
    assert (report.dialect, report.applied, report.key_count, report.targets) == ("kohya", 11, 11, 8)
    assert check_there_and_back(source, "kohya", tmp_path, models_of(pipe)) == {"lycoris"}


def test_a_lokr_of_a_fused_layer_acts_on_its_parts_and_stays_in_original_names(tmp_path: Path) -> None:
    pipe = lorry.attach(tiny_flux_pipeline())
    one, two = noise(4, 4), noise(24, 8)
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{stem}.lokr_w1": one, f"{stem}.lokr_w2": two, f"{stem}.alpha": torch.tensor(1.0)}
    whole = torch.kron(one.double(), two.double())
    attention = "transformer_blocks.0.attn"
    names = [f"{attention}.{name}.weight" for name in ("to_q", "to_k", "to_v")]
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    walk(pipe, source, {"transformer": dict(zip(names, whole.chunk(3), strict=True))})
    assert check_there_and_back(source, "comfyui", tmp_path, models_of(pipe)) == {"comfyui", "kohya"}


def minimax_h3() -> Any:
    """A pipeline of MiniMax-H3 with heads of 128, as all its published models have."""
    pipe = every.build("MiniMaxH3ModularPipeline")
    small: dict[str, Any] = {
        "num_attention_heads": 2,
        "hidden_size": 32,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "ffn_dim": 32,
    }
    pipe.update_components(
        transformer=diffusers.MiniMaxH3Transformer3DModel(
            **small, text_dim=16, freq_dim=16, time_embed_hidden_dim=16
        )
    )
    return lorry.attach(pipe)


def test_diffsynths_rows_of_minimax_h3_go_head_by_head(tmp_path: Path) -> None:
    pipe = minimax_h3()
    down, up = noise(2, 32), noise(768, 2)
    stem = "blocks.0.attn.qkv_proj"
    tensors = {f"{stem}.lora_A.default.weight": down, f"{stem}.lora_B.default.weight": up}
    rows = (up.double() @ down.double()).unflatten(0, (2, 3, 128))
    attention = "transformer_blocks.0.attn"
    changes = {
        f"{attention}.{name}.weight": rows[:, i].flatten(0, 1)
        for i, name in enumerate(("to_q", "to_k", "to_v"))
    }
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    assert walk(pipe, source, {"transformer": changes}).dialect == "diffsynth-h3"
    found = check_there_and_back(source, "diffsynth-h3", tmp_path, models_of(pipe))
    assert found == CARRY | {"lora-layers"}


SAT = "model.diffusion_model.transformer.layers.0.attention"


def sat_layers() -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """A pipeline of CogVideoX, a file of SAT's for it, and what that changes."""
    pipe = lorry.attach(every.build("CogVideoXPipeline"))
    attention = "transformer_blocks.0.attn1"
    rows, width = pipe.transformer.get_submodule(f"{attention}.to_q").weight.shape
    layers = {f"query_key_value.matrix_{{}}.{i}": f"{attention}.to_{name}" for i, name in enumerate("qkv")}
    layers["dense.matrix_{}.0"] = f"{attention}.to_out.0"
    tensors, changes = {f"{SAT}.dense.original.weight": noise(rows, width)}, dict[str, Tensor]()
    for key, module in layers.items():
        rank = 3 if "dense" in key else 2
        down, up = noise(rank, width), noise(rows, rank) * len(tensors)
        tensors |= {f"{SAT}.{key.format('A')}": down, f"{SAT}.{key.format('B')}": up}
        changes[f"{module}.weight"] = up.double() @ down.double() / rank
    return pipe, tensors, changes


def test_sats_checkpoints_of_cogvideox_have_a_lora_of_each_part_with_an_alpha_of_one(tmp_path: Path) -> None:
    pipe, tensors, changes = sat_layers()
    source = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": tensors, "global_steps": 1000}, source)
    report = walk(pipe, source, {"transformer": changes})
    assert (report.dialect, report.applied, report.key_count) == ("sat", 8, 9)
    assert [item.key for item in report.ignored] == [f"{SAT}.dense.original.weight"]
    assert report.components[0].scale_sources == ("dialect",)
    assert check_there_and_back(source, "sat", tmp_path, models_of(pipe)) == CARRY


CLONEOFSIMO = {
    "unet": [f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    + ["ff.net.0.proj", *(f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))],
    "text_encoder": ["k_proj", "v_proj", "q_proj", "out_proj"],
}
"""The first layers of his walks: of a transformer block of a UNet, and of CLIP's first layer."""


def by_position(component: str) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """A pipeline whose first layers have Stable Diffusion 1's widths, a file's tensors, and what they change."""
    pipe = tiny_sd_pipeline()
    pipe.register_modules(
        unet=tiny_unet(
            block_out_channels=(320, 32),
            cross_attention_dim=768,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    )
    root = {"unet": DOWN.replace(".1.", ".0.", 1), "text_encoder": "encoder.layers.0.self_attn"}[component]
    tensors, changes = dict[str, Tensor](), dict[str, Tensor]()
    for number, name in enumerate(CLONEOFSIMO[component]):
        path = f"{root}.{name}"
        model = getattr(pipe, component)
        path = path if path in dict(model.named_modules()) else f"text_model.{path}"
        rows, columns = model.get_submodule(path).weight.shape
        up, down = noise(rows, 2) * (number + 1), noise(2, columns)
        tensors |= {f"{component}:{number}:up": up, f"{component}:{number}:down": down}
        changes[f"{path}.weight"] = up.double() @ down.double()
    return lorry.attach(pipe), tensors, changes


@pytest.mark.parametrize("component", CLONEOFSIMO)
def test_cloneofsimos_layers_go_by_their_position(component: str, tmp_path: Path) -> None:
    pipe, tensors, changes = by_position(component)
    classes = {"unet": ["CrossAttention", "Attention", "GEGLU"], "text_encoder": ["CLIPAttention"]}
    metadata = {component: json.dumps(classes[component]), f"{component}:0:rank": "2"}
    source = write_safetensors(tmp_path / "in.safetensors", tensors, metadata)
    report = walk(pipe, source, {component: changes})
    assert (report.dialect, report.applied) == ("cloneofsimo", len(tensors))
    check_carriers(component, source, "cloneofsimo", tmp_path, pipe)


@pytest.mark.parametrize("component", CLONEOFSIMO)
def test_cloneofsimos_lists_go_by_their_position(component: str, tmp_path: Path) -> None:
    pipe, tensors, changes = by_position(component)
    source = tmp_path / "in.pt"
    torch.save(list(tensors.values()), source)
    report = walk(pipe, source, {component: changes})
    assert (report.dialect, report.applied) == ("cloneofsimo-pt", len(tensors))
    check_carriers(component, source, "cloneofsimo-pt", tmp_path, pipe)


def check_carriers(component: str, source: Path, dialect: str, folder: Path, pipe: Any) -> None:
    found = check_there_and_back(source, dialect, folder, models_of(pipe))
    of_one = {"lycoris"} if component == "unet" else {"attention-processors"}
    """LyCORIS names no text encoder; the UNet's file has a layer that is in no attention."""
    assert found == CARRY - {"lycoris"} | {"lora-layers", "omi"} | of_one


def test_veras_shared_matrices_act_on_layers_of_any_size_and_stand_once_in_a_file(tmp_path: Path) -> None:
    pipe = lorry.attach(tiny_sd_pipeline())
    layers = [f"{DOWN}.{name}" for name in ("attn1.to_q", "attn2.to_k", "ff.net.0.proj")]
    shapes = [tuple(pipe.unet.get_submodule(name).weight.shape) for name in layers]
    a, b = noise(2, max(shape[1] for shape in shapes)), noise(max(shape[0] for shape in shapes), 2)
    tensors, changes = {"base_model.vera_A": a, "base_model.vera_B": b}, dict[str, Tensor]()
    for name, (rows, columns) in zip(layers, shapes, strict=True):
        on_rows, on_rank = noise(rows), noise(2)
        stem = f"base_model.model.{name}"
        tensors |= {f"{stem}.vera_lambda_b": on_rows, f"{stem}.vera_lambda_d": on_rank}
        up = on_rows.double()[:, None] * b.double()[:rows] * on_rank.double()
        changes[f"{name}.weight"] = up @ a.double()[:, :columns]
    folder = tmp_path / "in"
    folder.mkdir()
    config = {"peft_type": "VERA", "r": 2, "save_projection": True, "target_modules": ["to_q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    report = walk(pipe, folder, {"unet": changes})
    assert (report.dialect, report.applied, report.key_count) == ("peft", 8, 8)
    assert check_there_and_back(folder, "peft", tmp_path, models_of(pipe)) == {"peft"}


def test_q_of_stable_cascades_attentions_is_a_part_of_torchs_weight_in_the_open_model_initiatives_names(
    tmp_path: Path,
) -> None:
    row = ROWS["12 Stable Cascade"]
    pipe = lorry.attach(row.build())
    source = row.write(row.make(pipe)[0], tmp_path)
    names = {"omi": "unet.{}in_proj.0", "comfyui": "diffusion_model.{}to_q"}
    for dialect, name in names.items():
        out = tmp_path / f"{dialect}.safetensors"
        convert_file(source, out, dialect, lambda _: models_of(pipe))
        stem = name.format("down_blocks.0.2.attention.attn.")
        assert f"{stem}.lora_down.weight" in read_adapter_file(out).tensors


def test_a_file_in_several_parts_is_one_adapter(tmp_path: Path) -> None:
    row = ROWS["5 diffusers"]
    pipe = lorry.attach(row.build())
    tensors, changes = row.make(pipe)
    parts = {"one": list(tensors)[::2], "two": list(tensors)[1::2]}
    name = "adapter-0000{}-of-00002.safetensors"
    found = {}
    for number, keys in enumerate(parts.values(), 1):
        write_safetensors(tmp_path / name.format(number), {key: tensors[key] for key in keys})
        found |= dict.fromkeys(keys, name.format(number))
    index = tmp_path / "adapter.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": found}), "utf-8")
    assert walk(pipe, tmp_path, changes).applied == len(tensors)


def test_bookkeeping_of_sliders_is_ignored_and_counted(tmp_path: Path) -> None:
    row = ROWS["1 kohya, SD 1"]
    pipe = lorry.attach(row.build())
    tensors, changes = row.make(pipe)
    source = row.write({**tensors, "_aux.steps": torch.ones(2)}, tmp_path)
    report = walk(pipe, source, changes)
    assert (report.applied, report.key_count) == (len(tensors), len(tensors) + 1)
    assert [item.key for item in report.ignored] == ["_aux.steps"]


def test_a_layer_in_two_spellings_is_applied_once(tmp_path: Path) -> None:
    row = ROWS["21 Civitai"]
    pipe = lorry.attach(row.build())
    tensors, changes = row.make(pipe)
    twice = {f"lora_transformer_{_flat(key)}": tensor.clone() for key, tensor in tensors.items()}
    report = walk(pipe, row.write({**tensors, **twice}, tmp_path), changes)
    assert (report.applied, report.key_count) == (len(tensors), 2 * len(tensors))


def _flat(key: str) -> str:
    path, _, suffix = key.removeprefix("transformer.").partition(".lora_" if "lora_" in key else ".alpha")
    return path.replace(".", "_") + (f".lora_{suffix}" if suffix else ".alpha")


def test_tokens_go_with_a_file_where_there_is_a_place_for_them(tmp_path: Path) -> None:
    row = ROWS["11 OneTrainer"]
    pipe = lorry.attach(row.build())
    tensors, changes = row.make(pipe)
    vectors = {f"bundle_emb.zuzu.{kind}": noise(2, 32) for kind in ("clip_l", "clip_g")}
    source = row.write({**tensors, **vectors}, tmp_path)
    pipe.load_lora_weights(source)
    assert "zuzu" in pipe.tokenizer.get_vocab()
    pipe.unload_lora_weights()
    assert "zuzu" not in pipe.tokenizer.get_vocab()
    assert check_there_and_back(source, "kohya", tmp_path, models_of(pipe)) == {"kohya", "onetrainer", "omi"}
    for dialect in ("kohya", "onetrainer", "omi"):
        kept = read_adapter_file(tmp_path / "there" / f"{dialect}.safetensors").tensors
        assert all(torch.equal(kept[key], tensor) for key, tensor in vectors.items())
    assert changes


def test_a_bias_for_a_layer_without_one_acts_unfused_and_is_not_fused(tmp_path: Path) -> None:
    pipe = lorry.attach(tiny_sd_pipeline())
    layer = pipe.unet.get_submodule(TO_Q)
    models = models_of(pipe)
    before, x = weights(models), noise(3, 16)
    bias, plain = noise(16), layer(x)
    pipe.load_lora_weights({f"diffusion_model.{TO_Q}.diff_b": bias})
    torch.testing.assert_close(layer(x), plain + bias)
    with pytest.raises(FuseError, match=r"to_q` has no bias to fuse into. Leave the adapter unfused"):
        pipe.fuse_lora()
    torch.testing.assert_close(layer(x), plain + bias)
    pipe.unload_lora_weights()
    check_same(models, before)
    assert layer.bias is None
    assert torch.equal(layer(x), plain)


REFUSED = {
    "14 Control-LoRA": (
        {"lora_controlnet": (1,), "input_blocks.1.1.proj_in.up": (8, 2)},
        "a Control-LoRA of Stability AI",
    ),
    "30 Nunchaku": (
        {"transformer_blocks.0.mlp_fc1.lora_down": (32, 16), "transformer_blocks.0.mlp_fc1.lora_up": (16, 32)},
        "a LoRA packed for Nunchaku's kernels",
    ),
    "ControlNet-LLLite": ({"lllite_unet_input_blocks_4_1.down.0.weight": (8, 8)}, "a ControlNet-LLLite"),
    "IP-Adapter": ({"image_proj.proj.weight": (8, 8), "ip_adapter.1.to_k_ip.weight": (8, 8)}, "an IP-Adapter"),
    "T2I-Adapter": ({"adapter.body.0.in_conv.weight": (8, 8)}, "a T2I-Adapter"),
    "checkpoint": ({"model.diffusion_model.out.2.weight": (8, 8)}, "a whole checkpoint"),
    "VAE": ({"encoder.conv_in.weight": (8, 8)}, "a VAE"),
    "textual inversion": ({"clip_l": (2, 8), "clip_g": (2, 8)}, "a textual inversion embedding"),
    "T-LoRA": (
        {f"lora_unet_a.{end}": (2, 2) for end in ("q_layer.weight", "p_layer.weight", "lambda_layer")},
        "T-LoRA",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_adapter_or_cannot_be_applied_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    shapes, what = REFUSED[name]
    pipe = lorry.attach(tiny_sd_pipeline())
    models = models_of(pipe)
    before = weights(models)
    source = write_safetensors(
        tmp_path / "in.safetensors", {key: noise(*shape) for key, shape in shapes.items()}
    )
    with pytest.raises(UnsupportedAdapterError, match=what):
        pipe.load_lora_weights(source)
    check_same(models, before)
    with pytest.raises(UnsupportedAdapterError, match=what):
        convert_file(source, tmp_path / "out.safetensors", "kohya", lambda _: models)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_control_lora_is_converted_to_where_its_norms_have_names(tmp_path: Path) -> None:
    from pipelines.test_control_lora import control_file

    source = write_safetensors(tmp_path / "in.safetensors", control_file())
    models = models_of(tiny_flux_pipeline())
    out = tmp_path / "comfyui.safetensors"
    convert_file(source, out, "comfyui", lambda _: models)
    again = tmp_path / "again.safetensors"
    convert_file(out, again, "comfyui", lambda _: models)
    one, two = read_adapter_file(out).tensors, read_adapter_file(again).tensors
    assert one["diffusion_model.img_in.reshape_weight"].tolist() == [32, 32]
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    with pytest.raises(UnsupportedAdapterError, match="a whole weight"):
        convert_file(source, tmp_path / "kohya.safetensors", "kohya", lambda _: models)
