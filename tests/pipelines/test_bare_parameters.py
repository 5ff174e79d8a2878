"""Adapters for parameters of a block itself, as Wan's distilled LoRAs have them: what they do, and that they go."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lorry
from lorry.errors import FuseError, StateError
from pipelines.test_two_denoisers import WIDTH, Wan22, inputs, tiny_wan
from snapshots import check_same, snapshot

BLOCKS = ("blocks.0.scale_shift_table", "blocks.1.scale_shift_table")
ROOT = "scale_shift_table"
NAMES = (*BLOCKS, ROOT)


def differences(seed: int = 0, *, root: bool = True) -> dict[str, Tensor]:
    """By the names of the model's own parameters, in float32."""
    random = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(1, 6, WIDTH, generator=random) for name in BLOCKS}
    return {**found, **({ROOT: torch.randn(1, 2, WIDTH, generator=random)} if root else {})}


def as_file(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the names that Wan's checkpoints and the files of its distilled models have."""
    original = {
        BLOCKS[0]: "diffusion_model.blocks.0.diff_m",
        BLOCKS[1]: "diffusion_model.blocks.1.modulation.diff",
        ROOT: "diffusion_model.head.modulation.diff_param",
    }
    return {original[name]: tensor for name, tensor in found.items()}


def pipeline(**kwargs: Any) -> Wan22:
    return Wan22(both=False, **kwargs)


@torch.no_grad()
def output(model: Any) -> Tensor:
    dtype = model.proj_out.weight.dtype
    given = {key: t.to(dtype) if t.is_floating_point() else t for key, t in inputs().items()}
    return model(**given).sample


def by_hand(*terms: tuple[dict[str, Tensor], float], model: Any = None) -> Any:
    """A model in float64 whose parameters are what these differences make of them."""
    wide = copy.deepcopy(tiny_wan(0) if model is None else model).double()
    for found, strength in terms:
        for name, tensor in found.items():
            wide.get_parameter(name).data += strength * tensor.double()
    return wide


def check(model: Any, *terms: tuple[dict[str, Tensor], float], base: Any = None) -> None:
    expected, got = output(by_hand(*terms, model=base)), output(model)
    assert float((got - expected).abs().max() / expected.abs().max()) < 2e-6


def test_differences_of_blocks_and_of_the_model_itself_act_at_their_strengths() -> None:
    pipe, one, two = pipeline(), differences(0), differences(1)
    before = snapshot(pipe.transformer)
    report = pipe.load_lora_weights(as_file(one), adapter_name="one")
    assert (report.applied, report.key_count, report.unknown, report.mismatched) == (3, 3, (), ())
    assert float((output(pipe.transformer) - output(tiny_wan(0))).abs().max()) > 0.1
    check(pipe.transformer, (one, 1.0))
    pipe.load_lora_weights(as_file(two), adapter_name="two")
    check(pipe.transformer, (two, 1.0))
    pipe.set_adapters(["one", "two"], [0.7, -0.25])
    check(pipe.transformer, (one, 0.7), (two, -0.25))
    pipe.set_adapters("one", {"transformer": {"blocks.1": 0.5, ROOT: 0.25}})
    parts = [({name: one[name]}, s) for name, s in zip(NAMES, (1.0, 0.5, 0.25), strict=True)]
    check(pipe.transformer, *parts)
    pipe.set_adapters("one", lorry.Strengths(2.0, parts={"modulation": 0.5, "blocks.0": 0.0}))
    check(pipe.transformer, ({n: one[n] for n in NAMES[1:]}, 1.0))
    pipe.disable_lora()
    check(pipe.transformer)
    pipe.enable_lora()
    pipe.delete_adapters("one")
    pipe.set_adapters("two", 0.5)
    check(pipe.transformer, (two, 0.5))
    pipe.unload_lora_weights()
    check_same(snapshot(pipe.transformer), before)


def test_a_strength_for_one_call_holds_for_that_call() -> None:
    pipe, one = pipeline(), differences()
    pipe.load_lora_weights(as_file(one))
    with torch.no_grad():
        got = pipe.transformer(**inputs(), attention_kwargs={"scale": 0.25}).sample
    expected = output(by_hand((one, 0.25)))
    assert float((got - expected).abs().max() / expected.abs().max()) < 2e-6
    check(pipe.transformer, (one, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_fused_and_unfused_are_the_same_bits_rounded_once_and_go_without_a_trace(dtype: torch.dtype) -> None:
    pipe, one, two = pipeline(), differences(0), differences(1)
    model = nn.Module.to(pipe.transformer, dtype)
    before = snapshot(model)
    clean = {name: model.get_parameter(name).detach().clone() for name in NAMES}
    pipe.load_lora_weights(as_file(one), adapter_name="one")
    pipe.load_lora_weights(as_file(two), adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.5, 0.75])
    read = {name: _read(model, name).clone() for name in NAMES}
    out = output(model)
    pipe.fuse_lora()
    for name, base in clean.items():
        wide = base.float() + (one[name].double() * 0.5 + two[name].double() * 0.75).float()
        size = base.float().abs() + one[name].abs() + two[name].abs()
        assert bool(((read[name].float() - wide).abs() <= torch.finfo(dtype).eps * size).all())
        assert torch.equal(_own(model, name), read[name]), name
    assert torch.equal(output(model), out)
    pipe.unfuse_lora()
    assert all(torch.equal(_own(model, name), base) for name, base in clean.items())
    assert torch.equal(output(model), out)
    pipe.unload_lora_weights()
    check_same(snapshot(model), before)


def _read(model: Any, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    return getattr(model.get_submodule(owner), last).detach()


def _own(model: Any, name: str) -> Tensor:
    return dict(model.named_parameters())[name]


def test_fused_ones_act_beside_active_ones_and_stay_when_asked() -> None:
    pipe, one, two = pipeline(), differences(0), differences(1)
    pipe.load_lora_weights(as_file(one), adapter_name="one")
    pipe.fuse_lora(lora_scale=0.5)
    pipe.load_lora_weights(as_file(two), adapter_name="two")
    pipe.set_adapters("two", 0.25)
    check(pipe.transformer, (one, 0.5), (two, 0.25))
    pipe.disable_lora()
    check(pipe.transformer)
    pipe.enable_lora()
    pipe.unload_lora_weights(keep_fused=True)
    check(pipe.transformer, (one, 0.5))
    assert not any("lorry" in name for name, _ in pipe.transformer.named_buffers())


def test_the_parameters_and_what_is_saved_are_the_bases(tmp_path: Path) -> None:
    pipe, clean = pipeline(), tiny_wan(0)
    pipe.load_lora_weights(as_file(differences()))
    state = pipe.transformer.state_dict()
    assert list(state) == list(clean.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in clean.state_dict().items())
    pipe.transformer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in clean.state_dict().items())
    assert type(WanTransformer3DModel.from_pretrained(tmp_path)) is WanTransformer3DModel


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_the_model_act_alike(again: Callable[[Any], Any]) -> None:
    pipe, one = pipeline(), differences()
    pipe.load_lora_weights(as_file(one))
    other = pipeline()
    other.transformer = again(pipe.transformer)
    check(other.transformer, (one, 1.0))
    other.set_adapters("default_0", 0.5)
    check(other.transformer, (one, 0.5))
    check(pipe.transformer, (one, 1.0))
    other.unload_lora_weights()
    assert type(other.transformer.blocks[0]) is type(tiny_wan(0).blocks[0])
    assert torch.equal(output(other.transformer), output(tiny_wan(0)))


@pytest.mark.parametrize("copied", [False, True], ids=["the model", "a copy of it"])
def test_they_follow_casts_from_the_bits_of_their_file(copied: bool) -> None:
    pipe, one = pipeline(), differences()
    pipe.load_lora_weights(as_file(one))
    if copied:
        pipe.transformer = copy.deepcopy(pipe.transformer)
    nn.Module.to(pipe.transformer, torch.bfloat16)
    for name in BLOCKS:
        base = tiny_wan(0).get_parameter(name).to(torch.bfloat16)
        assert torch.equal(_read(pipe.transformer, name), (base.float() + one[name]).to(torch.bfloat16))
    nn.Module.to(pipe.transformer, torch.float64)
    base = nn.Module.to(tiny_wan(0), torch.bfloat16)
    for name in BLOCKS:
        wide = base.get_parameter(name).double() + one[name].double()
        assert torch.equal(_read(pipe.transformer, name), wide), name


@pytest.mark.parametrize("suffix", ["set_weight", "set_param"])
def test_a_whole_value_in_place_of_a_parameter_is_that_value_in_whatever_dtype(suffix: str) -> None:
    pipe, one = pipeline(), differences()
    pipe.load_lora_weights({f"diffusion_model.head.modulation.{suffix}": one[ROOT]})
    for dtype in (torch.float32, torch.bfloat16):
        nn.Module.to(pipe.transformer, dtype)
        error = (_read(pipe.transformer, ROOT).double() - one[ROOT].to(dtype).double()).abs().max()
        assert float(error) <= (1e-6 if dtype is torch.float32 else 0.0)


def test_a_pipeline_made_of_another_takes_the_model_with_its_adapters() -> None:
    pipe, one = pipeline(), differences()
    pipe.load_lora_weights(as_file(one))
    parts: dict[str, Any] = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": None}
    whole = diffusers.WanPipeline(transformer=pipe.transformer, **parts)
    other = diffusers.WanVideoToVideoPipeline.from_pipe(whole)
    assert other.transformer is pipe.transformer
    check(other.transformer, (one, 1.0))


def test_offloaded_models_take_them_before_and_after(tmp_path: Path) -> None:
    for offload_first in (True, False):
        pipe, one = pipeline(), differences()
        if offload_first:
            accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))
        pipe.load_lora_weights(as_file(one))
        if not offload_first:
            accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))
        assert pipe.transformer.scale_shift_table.is_meta
        check(pipe.transformer, (one, 1.0))
        pipe.set_adapters("default_0", 0.5)
        check(pipe.transformer, (one, 0.5))
        with pytest.raises(FuseError, match=r"`blocks.0.scale_shift_table` is offloaded"):
            pipe.fuse_lora()
        check(pipe.transformer, (one, 0.5))
        pipe.unload_lora_weights()
        remove_hook_from_module(pipe.transformer, recurse=True)
        assert torch.equal(output(pipe.transformer), output(tiny_wan(0)))


def test_prepared_models_keep_what_stands_there_in_one_form() -> None:
    pipe, one, two = pipeline(), differences(0), differences(1)
    before = snapshot(pipe.transformer)
    lorry.prepare(pipe, 4)
    seen = []
    for found, strength in ((None, 1.0), (one, 1.0), (two, 0.5)):
        if found is not None:
            pipe.load_lora_weights(as_file(found), adapter_name=f"of {strength}".replace(".", "_"))
            pipe.set_adapters(f"of {strength}".replace(".", "_"), strength)
            check(pipe.transformer, (found, strength))
        else:
            assert torch.equal(output(pipe.transformer), output(tiny_wan(0)))
        buffers = pipe.transformer.named_buffers()
        seen.append({name: (t.shape, t.dtype) for name, t in buffers if "scale_shift" in name})
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == len(NAMES)
    pipe.unload_lora_weights()
    check_same(snapshot(pipe.transformer), before)


def test_a_difference_of_another_shape_is_named_and_nothing_changes() -> None:
    pipe = pipeline()
    before = snapshot(pipe.transformer)
    file = as_file(differences())
    file["diffusion_model.blocks.0.diff_m"] = torch.ones(1, 5, WIDTH)
    with pytest.raises(
        lorry.errors.ShapeMismatchError, match=r"`blocks\.0\.scale_shift_table`: the delta is \(1, 5"
    ):
        pipe.load_lora_weights(file)
    check_same(snapshot(pipe.transformer), before)


def test_one_that_changed_or_is_gone_is_named_where_the_file_was_loaded_before(tmp_path: Path) -> None:
    pipe = pipeline()
    save_file(as_file(differences()), tmp_path / "x.safetensors")
    for _ in range(2):
        pipe.load_lora_weights(tmp_path / "x.safetensors")
        pipe.unload_lora_weights()
    pipe.transformer.blocks[0].scale_shift_table = nn.Parameter(torch.zeros(1, 5, WIDTH))
    with pytest.raises(
        lorry.errors.ShapeMismatchError, match=r"`blocks\.0\.scale_shift_table`: the delta is"
    ):
        pipe.load_lora_weights(tmp_path / "x.safetensors")
    del pipe.transformer.blocks[0].scale_shift_table
    with pytest.raises(
        lorry.errors.UnknownTargetError, match=r"no place in this pipeline.*blocks\.0\.diff_m"
    ):
        pipe.load_lora_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("before", ["", "fused", "disabled", "prepared"])
def test_a_block_that_was_taken_out_of_the_model_is_passed_over(before: str) -> None:
    pipe = pipeline()
    if before == "prepared":
        lorry.prepare(pipe, 2)
    pipe.load_lora_weights(as_file(differences()), adapter_name="a")
    if before in ("fused", "disabled"):
        pipe.fuse_lora()
    if before == "disabled":
        pipe.disable_lora()
    own = {name: tensor.clone() for name, tensor in tiny_wan(0).state_dict().items()}
    del pipe.transformer.blocks[1]
    assert "1 adapters" in str(pipe.transformer.lorry)
    pipe.disable_lora()
    pipe.enable_lora()
    if before not in ("fused", "disabled"):
        pipe.set_adapters("a", 0.5)
        pipe.fuse_lora()
    kept = {name: tensor for name, tensor in differences(1).items() if name != BLOCKS[1]}
    file = as_file({**kept, BLOCKS[1]: kept[BLOCKS[0]]})
    pipe.load_lora_weights({key: t for key, t in file.items() if "blocks.1" not in key}, adapter_name="b")
    pipe.unfuse_lora()
    base = tiny_wan(0)
    del base.blocks[1]
    check(pipe.transformer, (kept, 1.0), base=base)
    pipe.unload_lora_weights()
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    assert not hasattr(pipe.transformer, "lorry")


def test_another_block_in_the_place_of_one_is_told() -> None:
    pipe = pipeline()
    pipe.load_lora_weights(as_file(differences()), adapter_name="a")
    pipe.transformer.blocks[1] = copy.deepcopy(tiny_wan(1).blocks[1])
    with pytest.raises(StateError, match=r"`blocks\.1\.scale_shift_table`: another one stands here"):
        pipe.fuse_lora()
    pipe.set_adapters("a", 0.5)  # the new one is read with what is added to it from now on
    base = tiny_wan(0)
    base.blocks[1] = copy.deepcopy(tiny_wan(1).blocks[1])
    check(pipe.transformer, (differences(), 0.5), base=base)


@pytest.mark.parametrize("first", ["loaded", "offloaded"])
def test_a_prepared_model_with_parameters_of_its_own_is_offloaded_layer_by_layer(first: str) -> None:
    pipe, one = pipeline(), differences()
    lorry.prepare(pipe, 2)
    if first == "loaded":
        pipe.load_lora_weights(as_file(one), adapter_name="one")
    # as `enable_sequential_cpu_offload` does where a model has parameters of its own
    accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"), offload_buffers=True)
    if first == "offloaded":
        check(pipe.transformer)
        pipe.load_lora_weights(as_file(one), adapter_name="one")
    check(pipe.transformer, (one, 1.0))
    pipe.set_adapters("one", -0.5)
    check(pipe.transformer, (one, -0.5))
    pipe.unload_lora_weights()
    check(pipe.transformer)
    remove_hook_from_module(pipe.transformer, recurse=True)
    check(pipe.transformer)
