"""A call that is refused says what is wrong and what to do, and leaves every bit, class, hook and setting as it was."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import lorry
from lorry import errors
from pipelines import oracle
from pipelines.conftest import Files
from pipelines.oracle import check_close

Tensors = dict[str, Tensor]


def files_alike(family: str, component: str) -> Tensors:
    """What a file of `family` holds for one of its components."""
    return {key: tensor for key, tensor in file_of(family).items() if key.startswith(f"{component}.")}


def prepared(files: Files, family: str = "sd") -> Any:
    """A pipeline in the middle of things: one adapter fused, one active at a strength by blocks, one idle."""
    pipe = oracle.ours(family)
    for name in ("toy", "pixel"):
        pipe.load_lora_weights(files.get(family, "a" if name == "toy" else "b"), adapter_name=name)
    pipe.load_lora_weights(files.get(family, "a", text=False), adapter_name="sketch")
    denoiser = "unet" if family in ("sd", "sdxl") else "transformer"
    pipe.set_adapters(["toy", "pixel"], [{denoiser: 0.5, "text_encoder": 0.25}, 0.8])
    pipe.fuse_lora(adapter_names=["toy"])
    return pipe


def file_of(family: str = "sd") -> Tensors:
    tensors = oracle.dotted(oracle.lora(family), ".lora_A.weight", ".lora_B.weight")
    return {key: tensor.clone() for key, tensor in tensors.items()}


def without_partner() -> Tensors:
    tensors = file_of()
    del tensors[next(reversed(tensors))]
    return tensors


def of_another_shape() -> Tensors:
    key = next(key for key in reversed(file_of()) if key.endswith("lora_B.weight"))
    tensors = file_of()
    return tensors | {key: torch.cat([tensors[key]] * 2)}


def of_unlike_ranks() -> Tensors:
    key = next(key for key in reversed(file_of()) if key.endswith("lora_B.weight"))
    tensors = file_of()
    return tensors | {key: torch.cat([tensors[key]] * 2, dim=1)}


def with_an_unknown_module() -> Tensors:
    return file_of() | {
        "unet.mid_block.attentions.0.transformer_blocks.7.attn1.to_q.lora_A.weight": torch.ones(4, 16),
        "unet.mid_block.attentions.0.transformer_blocks.7.attn1.to_q.lora_B.weight": torch.ones(16, 4),
    }


LOADS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (dict, errors.UnknownDialectError, "a state dict holds no tensors at all"),
    (lambda: {"foo": torch.ones(1)}, errors.UnknownDialectError, "is in no dialect that lorry knows"),
    (lambda: {"lora_foo": torch.tensor(2.0)}, errors.UnknownDialectError, "Its 1 keys begin with `lora_foo`"),
    (without_partner, errors.LorryError, r"text_encoder\.encoder\.layers\.1\.mlp\.fc2"),
    (of_another_shape, errors.ShapeMismatchError, r"the delta is \(\d+, \d+.*the weight is \(\d+, \d+"),
    (of_unlike_ranks, errors.FormatError, "`down` has rank 4, `up` has rank 8"),
    (with_an_unknown_module, errors.UnknownTargetError, r"2 of \d+ keys with no place.*Did you mean"),
    (
        lambda: file_of("sdxl"),
        errors.LorryError,
        "The adapter was made for another base model: it is for SDXL",
    ),
    (lambda: file_of("flux"), errors.LorryError, "no place in this pipeline"),
    (lambda: "no/such/folder", errors.AdapterNotFoundError, "no/such/folder: there is no such file"),
    (lambda: "", errors.AdapterNotFoundError, "The name of the adapter is empty"),
    (lambda: ["a.safetensors", "b.safetensors"], errors.FormatError, "its state dict; got a list"),
    (lambda: b"bytes", errors.FormatError, "its state dict; got a bytes"),
]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    LOADS,
    ids=[
        *("nothing", "no adapter", "no-op", "no partner", "another shape", "unlike ranks"),
        *("unknown module", "another base", "another family", "no file"),
        *("no name", "a list", "bytes"),
    ],
)
def test_a_load_that_fails_changes_nothing(
    source: Callable[[], Any],
    error: type[Exception],
    message: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = prepared(files)
    before, drawn = oracle.snapshot(pipe), oracle.outputs(pipe)
    for options in ({"adapter_name": "new"}, {"adapter_name": "pixel", "hotswap": True}):
        with pytest.raises(error, match=message) as caught:
            pipe.load_lora_weights(source(), **options, local_files_only=True)
        assert any("LorryStableDiffusionPipeline" in note for note in caught.value.__notes__)
        oracle.check_same(oracle.snapshot(pipe), before)
    oracle.check_close(oracle.outputs(pipe), drawn, 0.0)


CALLS: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "an unknown name": (
        lambda p: p.set_adapters("sketsh"),
        errors.UnknownAdapterError,
        r"'sketsh': not in the list of present adapters \('toy', 'pixel', 'sketch'\).* Did you mean 'sketch'\?",
    ),
    "two unknown names": (
        lambda p: p.set_adapters(["x", "toy", "y"]),
        errors.UnknownAdapterError,
        "'x', 'y': not in the list",
    ),
    "deleting an unknown": (
        lambda p: p.delete_adapters(["toy", "toi"]),
        errors.UnknownAdapterError,
        "Did you mean 'toy'",
    ),
    "moving an unknown": (
        lambda p: p.set_lora_device(["toy", "x"], "cpu"),
        errors.UnknownAdapterError,
        "'x': not in the list",
    ),
    "fusing an unknown": (
        lambda p: p.fuse_lora(adapter_names=["pixel", "x"]),
        errors.UnknownAdapterError,
        "'x': not in the list",
    ),
    "a name twice": (
        lambda p: p.set_adapters(["pixel", "pixel"], [0.1, 0.2]),
        errors.StateError,
        "'pixel': named twice",
    ),
    "fewer weights": (
        lambda p: p.set_adapters(["pixel", "sketch"], [0.1]),
        errors.StateError,
        "Length of adapter names 2 is not equal to the length of the weights 1",
    ),
    "a weight that is no number": (
        lambda p: p.set_adapters("pixel", "much"),
        errors.StateError,
        "expected a number, got 'much'",
    ),
    "a component that is not there": (
        lambda p: p.set_adapters("pixel", {"unte": 0.1}),
        errors.StateError,
        r"'unte' is not a component of this pipeline \(unet, text_encoder\). Did you mean 'unet'\?",
    ),
    "a part that is not there": (
        lambda p: p.set_adapters("pixel", {"unet": {"middle": 0.1}}),
        errors.StateError,
        "'middle' is not a part of a UNet: expected 'down', 'mid' or 'up'",
    ),
    "a block that is not there": (
        lambda p: p.set_adapters("pixel", {"unet": {"up": {"block_2": 0.1}}}),
        errors.StateError,
        "'up' has no block 'block_2': this UNet has block_0, block_1",
    ),
    "a list of another length": (
        lambda p: p.set_adapters("pixel", {"unet": {"up": {"block_0": [0.1, 0.2, 0.3]}}}),
        errors.StateError,
        "has 2 layers: expected as many strengths",
    ),
    "a module that is not there": (
        lambda p: p.set_adapters("pixel", {"text_encoder": {"encoder.layers.9": 0.1}}),
        errors.StateError,
        "'encoder.layers.9' is not a module of this model.*Did you mean 'encoder.layers",
    ),
    "another strength for what is fused": (
        lambda p: p.set_adapters(["toy", "pixel"], [0.9, 0.8]),
        errors.StateError,
        "'toy' is fused at 0.5, which `set_adapters` cannot change to 0.9",
    ),
    "fusing what is fused": (
        lambda p: p.fuse_lora(adapter_names=["toy"]),
        errors.FuseError,
        "fused already",
    ),
    "fusing into no component": (
        lambda p: p.fuse_lora(components=[]),
        errors.StateError,
        "`components` is empty: name at least one of unet, text_encoder",
    ),
    "fusing into a component that is not there": (
        lambda p: p.fuse_lora(components=["unet", "vae"]),
        errors.StateError,
        "'vae' is not found among this pipeline's components",
    ),
    "unfusing from a component that is not there": (
        lambda p: p.unfuse_lora(components=["transformer"]),
        errors.StateError,
        "'transformer' is not found",
    ),
    "fusing no adapter": (
        lambda p: p.fuse_lora(adapter_names=[]),
        errors.FuseError,
        "nothing to fuse: no adapter is named on unet, text_encoder",
    ),
    "fusing where the adapter is not": (
        lambda p: p.fuse_lora(components=["text_encoder"], adapter_names=["sketch"]),
        errors.FuseError,
        "nothing to fuse: no adapter of sketch is loaded on text_encoder",
    ),
    "a scale in the place of the text encoders": (
        lambda p: p.fuse_lora(["unet"], 0.7),
        errors.StateError,
        "expected True or False, got 0.7",
    ),
    "a scale that is no number": (
        lambda p: p.fuse_lora(lora_scale="0.7"),
        errors.StateError,
        "`lora_scale`: expected a number, got '0.7'",
    ),
    "a strength for one call with a fused adapter": (
        lambda p: oracle.drawn(p, cross_attention_kwargs={"scale": 0.5}),
        errors.FuseError,
        "A strength of 0.5 for this call cannot reach 'toy': fused",
    ),
    "swapping what is fused": (
        lambda p: p.load_lora_weights(file_of(), adapter_name="toy", hotswap=True),
        errors.StateError,
        "'toy' is fused: unfuse it",
    ),
    "swapping what is not there": (
        lambda p: p.load_lora_weights(file_of(), adapter_name="toi", hotswap=True),
        errors.UnknownAdapterError,
        "Did you mean 'toy'",
    ),
    "a name that is taken": (
        lambda p: p.load_lora_weights(file_of(), adapter_name="toy"),
        errors.DuplicateAdapterError,
        "'toy' is loaded already",
    ),
    "a name with a dot": (
        lambda p: p.load_lora_weights(file_of(), adapter_name="v1.5"),
        errors.StateError,
        "'v1.5' cannot be an adapter name",
    ),
    "a state dict of other things": (
        lambda p: p.load_lora_weights({"unet.a.lora_A.weight": "tensor"}),
        errors.FormatError,
        "expected only tensors",
    ),
    "a weight that is not finite": (
        lambda p: p.set_adapters("pixel", {"unet": {"mid": float("nan")}}),
        errors.StateError,
        "mid: expected a finite number, got nan",
    ),
    "a scale that is not finite": (
        lambda p: p.fuse_lora(adapter_names=["pixel"], lora_scale=float("inf")),
        errors.StateError,
        "`lora_scale`: expected a finite number, got inf",
    ),
    "a scale of a call that is not finite": (
        lambda p: oracle.drawn(p, cross_attention_kwargs={"scale": float("nan")}),
        errors.StateError,
        "`scale`: expected a finite number, got nan",
    ),
    "a scale of a call that is no number": (
        lambda p: oracle.drawn(p, cross_attention_kwargs={"scale": "0.5"}),
        errors.StateError,
        "`scale`: expected a number, got '0.5'",
    ),
    "a number in place of a dict": (
        lambda p: oracle.drawn(p, cross_attention_kwargs=0.5),
        errors.StateError,
        r'expected a dict, as in \{"scale": 0.5\}, got 0.5',
    ),
    "no name at all": (
        lambda p: p.set_adapters(None),
        errors.StateError,
        "Expected the name of an adapter or a list of names, got None",
    ),
    "names that are no strings": (
        lambda p: p.delete_adapters(["toy", 1]),
        errors.StateError,
        r"a list of names, got \['toy', 1\]",
    ),
    "an empty name": (
        lambda p: p.load_lora_weights(file_of(), adapter_name=""),
        errors.StateError,
        "'' cannot be an adapter name",
    ),
    "an unknown place for originals": (
        lambda p: p.fuse_lora(adapter_names=["pixel"], originals="dsk"),
        errors.StateError,
        "expected one of 'device', 'cpu', 'disk', 'none', got 'dsk'. Did you mean 'disk'",
    ),
    "a device that is not there": (
        lambda p: p.set_lora_device(["pixel"], "cud"),
        errors.StateError,
        "`device`: 'cud' cannot be used on this machine.*such as 'cpu'",
    ),
    "a device that holds nothing": (
        lambda p: p.set_lora_device(["pixel"], "meta"),
        errors.StateError,
        "'meta' holds no numbers",
    ),
    "slots of no size": (
        lambda p: lorry.prepare(p, rank="32"),  # type: ignore[arg-type]
        errors.StateError,
        "`rank`: expected a whole number, got '32'",
    ),
    "a misspelt argument": (
        lambda p: p.load_lora_weights(file_of(), adapter_names="new"),
        TypeError,
        "Unexpected argument 'adapter_names'. Did you mean 'adapter_name'",
    ),
    "an unknown name for the text encoder": (
        lambda p: p.set_adapters_for_text_encoder("sketch"),
        errors.UnknownAdapterError,
        r"'sketch': not in the list of present adapters \('toy', 'pixel'\)",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_refused_changes_nothing(name: str, files: Files) -> None:
    call, error, message = CALLS[name]
    pipe = prepared(files)
    before, active = oracle.snapshot(pipe), pipe.get_active_adapters()
    with pytest.raises(error, match=message):
        call(pipe)
    oracle.check_same(oracle.snapshot(pipe), before)
    assert pipe.get_active_adapters() == active
    assert pipe.fused_loras == {"toy"}
    assert pipe.lora_scale == 1.0


@pytest.mark.parametrize("given", [None, 3, torch.nn.Linear], ids=["None", "a number", "a class"])
def test_what_is_no_pipeline_is_refused_by_name(given: object) -> None:
    with pytest.raises(errors.StateError, match=f"{type(given).__name__} has no unet"):
        lorry.attach(given)
    with pytest.raises(
        errors.StateError, match=f"Expected a pipeline or a model, got a {type(given).__name__}"
    ):
        lorry.prepare(given)


def test_layers_to_save_that_are_no_dict_are_refused(tmp_path: Path) -> None:
    pipe = oracle.ours("sd")
    with pytest.raises(
        errors.StateError, match="expected a dict of tensors or of modules by name, got a list"
    ):
        pipe.save_lora_weights(tmp_path / "out", unet_lora_layers=[*file_of()])
    assert not (tmp_path / "out").exists()


def test_fusing_nothing_or_twice_is_refused(files: Files) -> None:
    pipe = oracle.ours("sd")
    with pytest.raises(errors.FuseError, match="nothing to fuse: no adapter is active on unet, text_encoder"):
        pipe.fuse_lora()
    pipe.load_lora_weights(files.get("sd"))
    pipe.fuse_lora(components=["unet"], lora_scale=0.5)
    pipe.fuse_lora(lora_scale=0.5)  # the rest
    before = oracle.snapshot(pipe)
    with pytest.raises(errors.FuseError, match="all of it is fused already"):
        pipe.fuse_lora(lora_scale=0.7)
    oracle.check_same(oracle.snapshot(pipe), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_safe_fusing_of_values_that_are_not_finite_fuses_nothing(bad: float, files: Files) -> None:
    pipe = prepared(files)
    tensors = file_of()
    tensors[next(reversed(tensors))][0, 0] = bad
    pipe.load_lora_weights(tensors, adapter_name="bad", strict=False)
    before = oracle.snapshot(pipe)
    with pytest.raises(errors.FuseError, match="would not be finite: nothing was fused"):
        pipe.fuse_lora(safe_fusing=True)
    oracle.check_same(oracle.snapshot(pipe), before)


def test_what_diffusers_has_wrapped_with_peft_is_refused_by_name(files: Files) -> None:
    pipe = oracle.reference("sd")
    pipe.load_lora_weights(str(files.get("sd")))
    lorry.attach(pipe)
    before = oracle.snapshot(pipe)
    with pytest.raises(errors.StateError, match=r"adapters that PEFT loaded .*`unload_lora_weights\(\)`"):
        pipe.load_lora_weights(files.get("sd"))
    with pytest.raises(errors.FuseError, match="PEFT has put adapters into the unet and the text_encoder"):
        pipe.fuse_lora()
    with pytest.raises(errors.UnknownAdapterError, match="PEFT has put adapters"):
        pipe.set_adapters("default_0")
    oracle.check_same(oracle.snapshot(pipe), before)
    pipe.unload_lora_weights()  # the way out that the messages name
    plain = oracle.ours("sd")
    for one in (pipe, plain):
        one.load_lora_weights(files.get("sd", "b"))
    check_close(oracle.outputs(pipe), oracle.outputs(plain), 0.0)


def test_pefts_adapters_in_a_pipeline_that_diffusers_has_no_loader_for_are_not_left_in_silence() -> None:
    class Alone(lorry.LoraLoaderMixin):
        def __init__(self, unet: Any) -> None:
            self.unet = unet

    pipe = Alone(oracle.reference("sd").unet)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(errors.StateError, match=r"out of `Alone`, .*`unload_lora\(\)` of each model"):
        pipe.unload_lora_weights()
    pipe.unet.unload_lora()
    pipe.unload_lora_weights()


def test_with_strict_off_the_rest_of_a_file_is_loaded_and_the_report_names_what_is_not(files: Files) -> None:
    pipe, plain = oracle.ours("sd"), oracle.ours("sd")
    report = pipe.load_lora_weights(with_an_unknown_module(), strict=False)
    plain.load_lora_weights(file_of())
    assert len(report.unknown) == 2
    assert report.applied + len(report.unknown) == report.key_count
    oracle.check_close(oracle.outputs(pipe), oracle.outputs(plain), 0.0)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, files: Files) -> None:
    target = tmp_path / "ran"
    with (tmp_path / "evil.bin").open("wb") as file:
        pickle.dump({"unet.a.lora_A.weight": _Evil(target)}, file, protocol=2)
    pipe = prepared(files)
    before = oracle.snapshot(pipe)
    with pytest.raises(errors.FileError, match=r"would run functools\.partial"):
        pipe.load_lora_weights(tmp_path / "evil.bin")
    assert not target.exists()
    oracle.check_same(oracle.snapshot(pipe), before)


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return functools.partial(Path.touch), (self.target,)


# --- on and off again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_everything_taken_off_again_is_bit_for_bit_what_it_was(
    family: str, dtype: torch.dtype, files: Files
) -> None:
    pipe = oracle.ours(family)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype)
    before = oracle.snapshot(pipe)
    pipe.load_lora_weights(files.get(family, "a"), adapter_name="a")
    loaded = oracle.snapshot(pipe)
    for scale in (0.3, 0.7, 1.0):
        pipe.fuse_lora(lora_scale=scale)
        pipe.unfuse_lora()
        oracle.check_same(oracle.snapshot(pipe), loaded, identity=False)
    pipe.load_lora_weights(files.get(family, "b"), adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.4, 0.6])
    pipe.fuse_lora(adapter_names=["b"])
    pipe.disable_lora()
    pipe.enable_lora()
    pipe.fuse_lora()
    pipe.delete_adapters("a")
    pipe.unload_lora_weights()
    oracle.check_same(oracle.snapshot(pipe), before)


def test_a_model_that_a_state_dict_has_nothing_for_is_named_with_what_it_has() -> None:
    pipe = oracle.ours("sd")
    text, unet = files_alike("sd", "text_encoder"), files_alike("sd", "unet")
    with pytest.raises(
        errors.NothingAppliedError, match="nothing for the unet: its 24 keys are for text_encoder"
    ):
        type(pipe).load_lora_into_unet(text, None, pipe.unet)
    with pytest.raises(
        errors.NothingAppliedError, match="nothing for the text_encoder: its 164 keys are for unet"
    ):
        type(pipe).load_lora_into_text_encoder(unet, None, pipe.text_encoder)
    assert pipe.get_list_adapters() == {}


@pytest.mark.parametrize(
    ("tensors", "hint"),
    [
        (lambda: {**file_of(), **renamed("to_q", "to_qq")}, "Did you mean 'down_blocks.1.attentions.0"),
        (lambda: renamed("to_q", "to_qq"), None),
        (lambda: file_of("flux"), None),
    ],
    ids=["a slip of the pen", "nothing fits", "another model's transformer"],
)
def test_a_module_is_proposed_where_the_rest_of_the_component_fits_and_its_path_is_alike(
    tensors: Callable[[], Tensors], hint: str | None
) -> None:
    with pytest.raises(errors.BindingError, match="with no place in this pipeline") as caught:
        oracle.ours("sd").load_lora_weights(tensors())
    assert (hint or "another base model") in str(caught.value)
    assert ("Did you mean" in str(caught.value)) == (hint is not None)


def renamed(layer: str, name: str) -> Tensors:
    return {
        key.replace(layer, name): tensor for key, tensor in files_alike("sd", "unet").items() if layer in key
    }
