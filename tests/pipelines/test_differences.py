"""Where diffusers with PEFT does something else, on purpose: each test shows their behaviour and lorry's.

docs/differences.md lists them with the reasons. A test that fails here on a new diffusers may mean that it has changed.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import lorry
from lorry import errors
from lorry.files import write_safetensors
from models import tiny_unet
from pipelines import every, oracle
from pipelines.conftest import Files
from pipelines.oracle import Lora, check_close

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def pair(family: str = "sd") -> tuple[Any, Any]:
    return oracle.reference(family), oracle.ours(family)


def with_both(files: Files, family: str = "sd", names: str = "ab") -> tuple[Any, Any]:
    """A pair with the adapters "a" and "b", both active."""
    theirs, mine = pair(family)
    for name in names:
        theirs.load_lora_weights(str(files.get(family, name)), adapter_name=name)
        mine.load_lora_weights(files.get(family, name), adapter_name=name)
    for pipe in (theirs, mine):
        pipe.set_adapters(list(names))
    return theirs, mine


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def added_by_hand(weights: Lora, scales: dict[tuple[str, str], float]) -> Any:
    """A pipeline with `scale * up @ down` added to its weights: what a file means, by the plainest formula."""
    pipe = oracle.reference("sd")
    with torch.no_grad():
        for component, path, down, up, _ in weights.items():
            module = getattr(pipe, component).get_submodule(path)
            delta = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
            module.weight += scales[component, path] * delta
    return pipe


# --- reading a file -----------------------------------------------------------------------------------------------


def mixed_alphas(alpha_less: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], Any]:
    """A kohya file whose alpha is 8 at `to_k` and 4 elsewhere (rank 4), and what it means."""
    made = oracle.lora("sd", alpha=4)
    for key in made.alpha:
        made.alpha[key] = 8.0 if key[1].endswith("to_k") else 4.0
    scales = {key: alpha / 4 for key, alpha in made.alpha.items()}
    tensors = oracle.kohya(made)
    meaning = added_by_hand(made, scales)
    for key in made.alpha:
        made.alpha[key] = 4.0
    return tensors, meaning


def test_an_alpha_of_its_own_reaches_an_attention_layer_of_a_kohya_file() -> None:
    tensors, meaning = mixed_alphas()
    theirs, mine = pair()
    theirs.load_lora_weights(dict(tensors))
    mine.load_lora_weights(tensors)
    expected = oracle.denoised(meaning)
    assert distance(oracle.denoised(theirs), expected) > 1e-3  # the alpha of the most layers is taken for all
    check_close({"denoiser": oracle.denoised(mine)}, {"denoiser": expected})


def test_a_layer_without_an_alpha_has_strength_one_whatever_the_others_have() -> None:
    made = oracle.lora("sd", alpha=12)
    tensors = oracle.kohya(made)
    bare = [key for key in tensors if key.endswith(".alpha") and ("_resnets_" in key or "_mlp_" in key)]
    for key in bare:
        del tensors[key]
    scales = {key: 1.0 if (".resnets." in key[1] or ".mlp." in key[1]) else 3.0 for key in made.down}
    expected = oracle.outputs(added_by_hand(made, scales))
    theirs, mine = pair()
    theirs.load_lora_weights(dict(tensors))
    mine.load_lora_weights(tensors)
    assert distance(oracle.denoised(theirs), expected["denoiser"]) > 1e-3
    check_close(oracle.outputs(mine), expected)


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_order_of_keys_never_matters(order: str) -> None:
    made = oracle.lora("sd", alpha=6)
    tensors = oracle.kohya(made)
    ordered = dict(sorted(tensors.items(), reverse=order == "last"))
    mine, plain = oracle.ours("sd"), oracle.ours("sd")
    mine.load_lora_weights(ordered)
    plain.load_lora_weights(tensors)
    check_close(oracle.outputs(mine), oracle.outputs(plain), 0.0)


def bare_processors() -> dict[str, Tensor]:
    made = oracle.lora("sd", text=False).only(*oracle.ATTENTION)
    return {key.removeprefix("unet."): tensor for key, tensor in oracle.old_processors(made).items()}


def bare_names() -> dict[str, Tensor]:
    made = oracle.lora("sd", text=False)
    tensors = oracle.dotted(made, ".lora_A.weight", ".lora_B.weight")
    return {key.removeprefix("unet."): tensor for key, tensor in tensors.items()}


def of_a_peft_folder() -> dict[str, Tensor]:
    return {f"base_model.model.{key}": tensor for key, tensor in bare_names().items()}


@pytest.mark.parametrize("spelling", [bare_processors, bare_names, of_a_peft_folder])
def test_a_file_that_diffusers_loads_without_effect_has_its_effect(spelling: Any) -> None:
    tensors = spelling()
    theirs, mine = pair()
    before = oracle.denoised(mine)
    theirs.load_lora_weights(dict(tensors))
    assert torch.equal(oracle.denoised(theirs), before)
    report = mine.load_lora_weights(tensors)
    assert report.applied == report.key_count
    assert distance(oracle.denoised(mine), before) > 1e-3


def test_a_file_with_nothing_to_apply_is_an_error() -> None:
    theirs, mine = pair()
    nothing = {"lora_foo": torch.tensor(2.0), "lora_bar": torch.tensor(3.0)}
    theirs.load_lora_weights(dict(nothing))
    with pytest.raises(errors.UnknownDialectError, match="is in no dialect that lorry knows"):
        mine.load_lora_weights(nothing)


def test_half_a_file_is_not_loaded_in_silence() -> None:
    tensors = oracle.dotted(oracle.lora("sd", text=False), ".lora_A.weight", ".lora_B.weight")
    path = "mid_block.attentions.7.proj_in"
    extra = {f"unet.{path}.lora_A.weight": torch.ones(4, 16), f"unet.{path}.lora_B.weight": torch.ones(16, 4)}
    theirs, mine = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.load_lora_weights(tensors | extra)
    with pytest.raises(errors.UnknownTargetError, match=r"2 of \d+ keys with no place in this pipeline"):
        mine.load_lora_weights(tensors | extra)
    report = mine.load_lora_weights(tensors | extra, strict=False)
    assert report.unknown == tuple(extra)


def test_a_difference_of_a_parameter_of_a_block_is_applied() -> None:
    layers = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0", "ffn.2")
    layers += ("cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o")
    tensors: dict[str, Tensor] = {}
    for stem in (f"diffusion_model.blocks.{block}.{layer}" for block in range(2) for layer in layers):
        rows, columns = (20 if stem.endswith(end) else 24 for end in ("ffn.0", "ffn.2"))
        tensors[f"{stem}.lora_down.weight"] = torch.ones(2, columns)
        tensors[f"{stem}.lora_up.weight"] = torch.zeros(rows, 2)
    theirs, mine = pair("wan")
    before = oracle.denoised(mine)
    for block in range(2):
        tensors[f"diffusion_model.blocks.{block}.diff_m"] = torch.ones(1, 6, 24)
    theirs.load_lora_weights(dict(tensors))
    assert torch.equal(oracle.denoised(theirs), before)
    mine.load_lora_weights(tensors)
    by_hand = oracle.ours("wan")
    for block in by_hand.transformer.blocks:
        block.scale_shift_table.data += 1
    assert distance(before, oracle.denoised(by_hand)) > 0.1
    check_close({"denoiser": oracle.denoised(mine)}, {"denoiser": oracle.denoised(by_hand)})


def test_a_load_that_fails_leaves_no_wrappers_behind(files: Files) -> None:
    tensors = oracle.dotted(oracle.lora("sd", text=False), ".lora_A.weight", ".lora_B.weight")
    key = next(key for key in reversed(tensors) if key.endswith("lora_B.weight"))
    broken = tensors | {key: torch.cat([tensors[key]] * 2)}
    theirs, mine = pair()
    keys = list(mine.unet.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        theirs.load_lora_weights(dict(broken))
    assert list(theirs.unet.state_dict()) != keys
    before = oracle.snapshot(mine)
    with pytest.raises(errors.ShapeMismatchError, match="does not fit"):
        mine.load_lora_weights(broken)
    oracle.check_same(oracle.snapshot(mine), before)


def test_lora_state_dict_has_two_parts_for_every_pipeline(files: Files) -> None:
    folder = files.get("sd3")
    theirs = type(oracle.base("sd3")).lora_state_dict(str(folder))
    assert isinstance(theirs, dict)
    state_dict, alphas = oracle.lorry_class(type(oracle.base("sd3"))).lora_state_dict(folder)
    assert state_dict.keys() == theirs.keys()
    assert alphas is not None


# --- the model and its modules ------------------------------------------------------------------------------------


def test_the_module_tree_and_the_keys_stay_as_they_are(files: Files) -> None:
    theirs, mine = pair()
    keys, names = list(mine.unet.state_dict()), [name for name, _ in mine.unet.named_modules()]
    theirs.load_lora_weights(str(files.get("sd")))
    mine.load_lora_weights(files.get("sd"))
    assert any(".base_layer." in key for key in theirs.unet.state_dict())
    assert list(mine.unet.state_dict()) == keys
    assert [name for name, _ in mine.unet.named_modules()] == names


def test_a_saved_pipeline_is_the_base_and_its_adapters_stay_files(files: Files, tmp_path: Path) -> None:
    theirs, mine = with_both(files, names="a")
    theirs.text_encoder.save_pretrained(tmp_path / "theirs")
    mine.text_encoder.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "theirs" / "adapter_config.json").exists()
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"config.json", "model.safetensors"}
    fresh = type(mine.text_encoder).from_pretrained(tmp_path / "mine")
    before = oracle.base("sd").text_encoder.state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in fresh.state_dict().items())
    mine.fuse_lora()
    mine.text_encoder.save_pretrained(tmp_path / "fused")
    fused = type(mine.text_encoder).from_pretrained(tmp_path / "fused").state_dict()
    assert not all(torch.equal(tensor, before[key]) for key, tensor in fused.items())


# --- strengths ----------------------------------------------------------------------------------------------------


def only(end: str) -> dict[str, Tensor]:
    made = oracle.lora("sd", text=False)
    kept = made.where(lambda _, path: end in path)
    return oracle.dotted(kept, ".lora_A.weight", ".lora_B.weight")


@pytest.mark.parametrize(
    ("end", "weights"),
    [
        ("mid_block.resnets.0.conv1", {"mid": 0.0}),
        ("down_blocks.0.resnets.0.conv1", {"down": 0.0}),
        ("down_blocks.0.downsamplers.0.conv", {"down": 0.0}),
        ("down_blocks.0.resnets.0.conv1", {"down": {"block_0": 0.0}}),
        ("up_blocks.1.resnets.0.conv2", {"up": 0.0}),
    ],
)
def test_a_block_weight_reaches_the_whole_block(end: str, weights: dict[str, float]) -> None:
    theirs, mine = pair()
    before = oracle.denoised(mine)
    for pipe in (theirs, mine):
        pipe.load_lora_weights(only(end), adapter_name="a")
    full = oracle.denoised(mine)
    for pipe in (theirs, mine):
        pipe.set_adapters("a", {"unet": weights})
    assert distance(full, before) > 1e-4
    check_close(
        {"denoiser": oracle.denoised(theirs)}, {"denoiser": full}
    )  # a layer beside attention keeps 1.0
    check_close({"denoiser": oracle.denoised(mine)}, {"denoiser": before}, 1e-6)


def test_block_weights_pass_over_layers_outside_the_blocks() -> None:
    theirs, mine = pair()
    for pipe in (theirs, mine):
        pipe.load_lora_weights(only("conv_out"), adapter_name="a")
    full = oracle.denoised(mine)
    with pytest.raises(IndexError, match="list index out of range"):
        theirs.set_adapters("a", {"unet": {"down": 0.5}})
    mine.set_adapters("a", {"unet": {"down": 0.5}})
    check_close({"denoiser": oracle.denoised(mine)}, {"denoiser": full}, 0.0)


def test_weights_of_a_flux_transformers_blocks_work(files: Files) -> None:
    theirs, mine = with_both(files, "flux", "a")
    full = oracle.denoised(mine)
    weights = {"transformer": {"single_transformer_blocks.1": 0.2}}
    with pytest.raises(IndexError, match="list index out of range"):
        theirs.set_adapters("a", weights)
    mine.set_adapters("a", weights)
    assert distance(oracle.denoised(mine), full) > 1e-3


def test_the_name_of_a_block_means_that_block_alone(files: Files) -> None:
    theirs, mine = with_both(files, "flux", "a")
    weights = {"transformer": {"transformer_blocks.0": 0.0, "single_transformer_blocks.1": 1.0}}
    for pipe in (theirs, mine):
        pipe.set_adapters("a", weights)
    single = "single_transformer_blocks.0.attn.to_q"  # its name has the other's in it
    assert theirs.transformer.get_submodule(single).scaling["a"] == 0.0
    assert mine.transformer.lorry.strengths["a"].at(single) == 1.0
    assert mine.transformer.lorry.strengths["a"].at("transformer_blocks.0.attn.to_q") == 0.0


def test_a_weight_for_a_component_that_is_not_there_is_an_error(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, mine = with_both(files, names="a")
    theirs.set_adapters("a", {"foo": 0.0})
    with pytest.raises(errors.StateError, match="'foo' is not a component of this pipeline"):
        mine.set_adapters("a", {"foo": 0.0})


def test_a_call_at_strength_zero_forgets_no_weights(files: Files) -> None:
    theirs, mine = with_both(files)
    for pipe in (theirs, mine):
        pipe.set_adapters(["a", "b"], [0.2, 0.4])
    before = oracle.denoised(mine)
    check_close({"denoiser": oracle.denoised(theirs)}, {"denoiser": before})
    for pipe in (theirs, mine):
        oracle.drawn(pipe, cross_attention_kwargs={"scale": 0.0})
    assert theirs.unet.mid_block.attentions[0].proj_in.scaling["a"] == 6 / 4  # not 0.2 of it
    assert distance(oracle.denoised(theirs), before) > 1e-3
    assert torch.equal(oracle.denoised(mine), before)


def test_a_strength_for_one_call_with_a_fused_adapter_is_an_error(files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    theirs.fuse_lora()
    mine.fuse_lora()
    scale = {"cross_attention_kwargs": {"scale": 0.5}}
    assert torch.equal(oracle.denoised(theirs, **scale), oracle.denoised(theirs))  # without effect
    for call in (oracle.denoised, oracle.drawn):
        with pytest.raises(errors.FuseError, match="cannot reach 'a': fused"):
            call(mine, **scale)


# --- fuse and unfuse ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_unfusing_gives_the_saved_bits_back(dtype: torch.dtype, files: Files) -> None:
    theirs, mine = pair()
    for pipe in (theirs, mine):
        pipe.unet.to(dtype)
    before = {key: tensor.clone() for key, tensor in mine.unet.state_dict().items()}
    theirs.load_lora_weights(str(files.get("sd", text=False)), adapter_name="a")
    mine.load_lora_weights(files.get("sd", text=False), adapter_name="a")
    for pipe in (theirs, mine):
        for _ in range(10):
            pipe.fuse_lora(lora_scale=1.0)
            pipe.unfuse_lora()
    changed = [
        key for key, t in theirs.unet.state_dict().items() if not torch.equal(t, before.get(_bare(key), t))
    ]
    assert len(changed) > 10
    assert all(torch.equal(tensor, before[key]) for key, tensor in mine.unet.state_dict().items())


def _bare(key: str) -> str:
    return key.replace(".base_layer", "")


def test_the_scale_of_a_fuse_is_not_left_behind_by_unfuse(files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    before = oracle.denoised(mine)
    for pipe in (theirs, mine):
        pipe.fuse_lora(lora_scale=0.5)
        pipe.unfuse_lora()
    assert distance(oracle.denoised(theirs), before) > 1e-3
    assert torch.equal(oracle.denoised(mine), before)


def test_fusing_some_leaves_the_other_active_ones_acting(files: Files) -> None:
    theirs, mine = with_both(files)
    expected = oracle.denoised(mine)
    for pipe in (theirs, mine):
        pipe.fuse_lora(adapter_names=["a"])
    assert distance(oracle.denoised(theirs), expected) > 1e-3  # "b" has gone
    check_close({"denoiser": oracle.denoised(mine)}, {"denoiser": expected})


def test_an_adapter_loaded_after_a_fuse_acts_and_the_fused_one_stays(files: Files) -> None:
    expected = oracle.denoised(with_both(files)[1])
    theirs, mine = with_both(files, names="a")
    for pipe in (theirs, mine):
        pipe.fuse_lora()
        pipe.load_lora_weights(str(files.get("sd", "b")), adapter_name="b")
        assert pipe.get_active_adapters() == ["b"]
    check_close({"denoiser": oracle.denoised(mine)}, {"denoiser": expected})
    assert distance(oracle.denoised(theirs), expected) > 1e-3  # unfused without a word


def test_fusing_again_at_another_scale_is_an_error(files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    for pipe in (theirs, mine):
        pipe.fuse_lora(lora_scale=0.5)
    at_half = oracle.denoised(theirs)
    theirs.fuse_lora(lora_scale=0.9)
    assert torch.equal(oracle.denoised(theirs), at_half)  # without effect
    with pytest.raises(errors.FuseError, match="all of it is fused already"):
        mine.fuse_lora(lora_scale=0.9)


def test_fusing_where_nothing_is_active_is_an_error() -> None:
    theirs, mine = pair()
    theirs.fuse_lora()
    with pytest.raises(errors.FuseError, match="There is nothing to fuse"):
        mine.fuse_lora()


def test_unloading_takes_fused_adapters_out(files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    before = oracle.denoised(oracle.ours("sd"))
    for pipe in (theirs, mine):
        pipe.fuse_lora()
        fused = oracle.denoised(pipe)
        pipe.unload_lora_weights()
        unloaded = before if pipe is mine else fused
        check_close({"denoiser": oracle.denoised(pipe)}, {"denoiser": unloaded}, 0.0)
    kept = with_both(files, names="a")[1]
    kept.fuse_lora()
    kept.unload_lora_weights(keep_fused=True)  # what diffusers does, on request
    check_close({"denoiser": oracle.denoised(kept)}, {"denoiser": oracle.denoised(theirs)})
    assert kept.get_list_adapters() == {}


def test_deleting_a_fused_adapter_takes_it_out(files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    for pipe in (theirs, mine):
        pipe.fuse_lora()
    fused = oracle.outputs(theirs)
    for pipe in (theirs, mine):
        pipe.delete_adapters("a")
    check_close(oracle.outputs(theirs), fused, 0.0)
    assert theirs.fused_loras == {"a"}
    check_close(oracle.outputs(mine), oracle.outputs(oracle.ours("sd")), 0.0)
    assert mine.fused_loras == set()


def test_disabling_sets_fused_weights_aside(files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    for pipe in (theirs, mine):
        pipe.fuse_lora()
    fused = oracle.outputs(mine)
    for pipe in (theirs, mine):
        pipe.disable_lora()
    base = oracle.outputs(oracle.ours("sd"))
    check_close(oracle.outputs(mine), base, 0.0)
    check_close(oracle.outputs(theirs), base)
    for pipe in (theirs, mine):
        pipe.enable_lora()
        assert pipe.num_fused_loras == 1
    assert not theirs.unet.mid_block.attentions[0].proj_in.merged  # unfused by subtraction
    check_close(oracle.outputs(mine), fused, 0.0)


# --- switching ----------------------------------------------------------------------------------------------------


def test_text_encoders_can_be_hotswapped_and_without_preparation(files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    with pytest.raises(ValueError, match="hotswapping is not supported for text encoders"):
        theirs.load_lora_weights(str(files.get("sd", "b")), adapter_name="a", hotswap=True)
    mine.load_lora_weights(files.get("sd", "b"), adapter_name="a", hotswap=True)
    plain = oracle.ours("sd")
    plain.load_lora_weights(files.get("sd", "b"), adapter_name="a")
    check_close(oracle.outputs(mine), oracle.outputs(plain), 0.0)


def test_a_swapped_adapter_keeps_the_strength_that_was_set(files: Files) -> None:
    theirs, mine = pair()
    drawn = []
    for pipe in (theirs, mine):
        pipe.load_lora_weights(str(files.get("sd", text=False)), adapter_name="a")
        pipe.set_adapters("a", 0.5)
        pipe.load_lora_weights(str(files.get("sd", text=False, seed=9)), adapter_name="a", hotswap=True)
        drawn.append(oracle.denoised(pipe))
        pipe.set_adapters("a", 0.5)
    check_close({"mine": drawn[1]}, {"mine": oracle.denoised(theirs)})
    check_close({"mine": drawn[1]}, {"mine": oracle.denoised(mine)}, 0.0)
    theirs.set_adapters("a", 1.0)
    check_close({"theirs": drawn[0]}, {"theirs": oracle.denoised(theirs)})
    assert distance(*drawn) > 1e-3


def test_what_is_loaded_last_is_what_acts_in_every_component(files: Files) -> None:
    theirs, mine = pair()
    for pipe in (theirs, mine):
        pipe.load_lora_weights(str(files.get("sd")), adapter_name="a")
        pipe.load_lora_weights(str(files.get("sd", "b", text=False)), adapter_name="b")
    assert (theirs.unet.active_adapters(), theirs.text_encoder.active_adapters()) == (["b"], ["a"])
    assert mine.get_active_adapters() == ["b"]
    check_close(oracle.encoded(mine), oracle.encoded(oracle.ours("sd")), 0.0)
    check_close({"unet": oracle.denoised(mine)}, {"unet": oracle.denoised(theirs)})
    for pipe in (theirs, mine):
        pipe.set_adapters(["a", "b"])
    check_close(oracle.outputs(mine), oracle.outputs(theirs))


@pytest.mark.parametrize("call", ["delete_adapters", "set_lora_device", "fuse_lora"])
def test_a_name_that_is_not_loaded_is_an_error(call: str, files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    arguments: dict[str, Any] = {
        "delete_adapters": {"adapter_names": ["b"]},
        "set_lora_device": {"adapter_names": ["b"], "device": "cpu"},
        "fuse_lora": {"adapter_names": ["b"]},
    }[call]
    before = oracle.outputs(theirs)
    getattr(theirs, call)(**arguments)
    check_close(oracle.outputs(theirs), before, 0.0)
    with pytest.raises(errors.UnknownAdapterError, match="No adapter named 'b'"):
        getattr(mine, call)(**arguments)


def test_numbered_names_are_never_taken_twice(files: Files) -> None:
    theirs, mine = pair()
    for pipe in (theirs, mine):
        for name in ("a", "a"):
            pipe.load_lora_weights(str(files.get("sd", name, text=False)))
        pipe.delete_adapters("default_0")
        pipe.load_lora_weights(str(files.get("sd", "b", text=False)))
    assert theirs.get_list_adapters()["unet"] == ["default_1"]  # the one that was there is overwritten
    assert mine.get_list_adapters()["unet"] == ["default_1", "default_2"]


def test_a_file_for_two_denoisers_reaches_both() -> None:
    tensors = every.adapter(every.build("WanPipeline"))
    mine, theirs = lorry.attach(every.build("WanPipeline")), every.build("WanPipeline")
    before = every.weights(mine)
    for pipe in (mine, theirs):
        pipe.load_lora_weights(tensors)
        pipe.fuse_lora(components=["transformer", "transformer_2"])
    second = before["transformer_2"]
    assert every.largest_difference(every.weights(mine)["transformer_2"], second) > 0.1
    assert every.largest_difference(every.weights(theirs)["transformer_2"], second) == 0


def test_a_file_has_one_name_in_all_components(files: Files) -> None:
    theirs, mine = pair()
    for pipe in (theirs, mine):
        pipe.load_lora_weights(str(files.get("sd", text=False)))
        pipe.load_lora_weights(str(files.get("sd", "b")))
    assert theirs.get_list_adapters()["text_encoder"] == ["default_0"]
    assert mine.get_list_adapters() == {"unet": ["default_0", "default_1"], "text_encoder": ["default_1"]}


def test_an_argument_that_nothing_knows_is_an_error(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    theirs, mine = pair()
    theirs.load_lora_weights(str(files.get("sd")), adaptername="a")
    with pytest.raises(TypeError, match="Unexpected argument 'adaptername'"):
        mine.load_lora_weights(files.get("sd"), adaptername="a")


def test_an_adapter_for_fewer_input_channels_leaves_the_others_alone() -> None:
    parts = {**oracle.copied_parts("sd"), "unet": tiny_unet(in_channels=9)}
    cls = type(oracle.base("sd"))
    theirs, mine = (oracle.made(made, parts) for made in (cls, oracle.lorry_class(cls)))
    report = mine.load_lora_weights(only("conv_in"))
    assert report.applied == report.key_count
    mine.unload_lora_weights()
    with pytest.raises(RuntimeError, match="size mismatch"):
        theirs.load_lora_weights(only("conv_in"))  # diffusers pads for Flux only


# --- what lorry does not do yet ---------------------------------------------------------------------------------


def test_methods_of_a_model_do_not_see_lorrys_adapters(files: Files) -> None:
    theirs, mine = with_both(files, names="a")
    acting, base = oracle.denoised(mine), oracle.denoised(oracle.ours("sd"))
    for pipe, expected in ((theirs, base), (mine, acting)):
        pipe.unet.disable_lora()
        check_close({"unet": oracle.denoised(pipe)}, {"unet": expected})
    assert theirs.unet.active_adapters() == ["a"]
    with pytest.raises(ValueError, match="No adapter loaded"):
        mine.unet.active_adapters()
    assert distance(acting, base) > 1e-3


def test_whole_weights_of_norm_layers_are_refused() -> None:
    theirs, mine = pair("flux")
    path = "transformer_blocks.0.attn.norm_q.weight"
    tensors = {f"transformer.{path}": torch.full((16,), 3.0)}
    with pytest.raises(errors.UnknownDialectError, match="is in no dialect that lorry knows"):
        mine.load_lora_weights(tensors)
    theirs.load_lora_weights(dict(tensors))
    assert torch.equal(theirs.transformer.get_parameter(path), torch.full((16,), 3.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_adapter_that_is_not_finite_is_refused(
    bad: float, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, mine = pair("sd")
    tensors = {key: tensor.to(dtype) for key, tensor in only("conv_in").items()}
    tensors[next(reversed(tensors))].view(-1)[0] = bad
    before = oracle.snapshot(mine)
    with pytest.raises(
        errors.NotFiniteError, match=r"`unet\.conv_in`: the adapter's `\w+` holds a NaN or an infinity"
    ):
        mine.load_lora_weights(tensors)
    oracle.check_same(oracle.snapshot(mine), before)
    mine.load_lora_weights(tensors, strict=False)
    assert "holds a NaN or an infinity" in caplog.text
    theirs.load_lora_weights(dict(tensors))


def control_lora(net: diffusers.ControlNetModel) -> dict[str, Tensor]:
    """A Control-LoRA with pairs for two layers, their biases, and all that no UNet has."""
    blocks = range(len(net.controlnet_down_blocks))
    hints = [f"blocks.{n}" for n in range(len(net.controlnet_cond_embedding.blocks))]
    new = {f"zero_convs.{n}.0": f"controlnet_down_blocks.{n}" for n in blocks} | {
        f"input_hint_block.{2 * n}": f"controlnet_cond_embedding.{name}"
        for n, name in enumerate(["conv_in", *hints, "conv_out"])
    }
    tensors = {"lora_controlnet": torch.zeros(())}
    for original, own in (new | {"middle_block_out.0": "controlnet_mid_block"}).items():
        for end in ("weight", "bias"):
            tensors[f"{original}.{end}"] = torch.randn_like(net.get_parameter(f"{own}.{end}"))
    for original, own in PAIRS.items():
        out, inside, *kernel = net.get_parameter(f"{own}.weight").shape
        tensors[f"{original}.down"] = torch.randn(2, inside, *kernel)
        tensors[f"{original}.up"] = torch.randn(out, 2, *(1 for _ in kernel))
        tensors[f"{original}.bias"] = torch.randn(out)
    return tensors


PAIRS = {"input_blocks.0.0": "conv_in", "time_embed.2": "time_embedding.linear_2"}


def test_the_biases_of_a_control_lora_are_those_of_its_file(tmp_path: Path) -> None:
    unet: Any = tiny_unet()
    theirs: Any = diffusers.ControlNetModel.from_unet(unet)
    tensors = control_lora(theirs)
    mine: Any = lorry.control_net(write_safetensors(tmp_path / "in.safetensors", tensors), unet)
    theirs.load_lora_adapter(dict(tensors), prefix=None)
    for original, own in PAIRS.items():
        layer = theirs.get_submodule(own)
        assert torch.equal(layer.base_layer.bias, unet.get_submodule(own).bias)
        assert torch.equal(layer.lora_B["default_0"].weight, tensors[f"{original}.up"])
        torch.testing.assert_close(mine.get_submodule(own).bias.data, tensors[f"{original}.bias"])


# --- the page -----------------------------------------------------------------------------------------------------


def test_every_difference_of_the_page_has_its_test_and_every_test_its_line() -> None:
    page = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    tree = ast.parse(Path(__file__).read_text())
    here = {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    here.discard("test_every_difference_of_the_page_has_its_test_and_every_test_its_line")
    assert named == here
