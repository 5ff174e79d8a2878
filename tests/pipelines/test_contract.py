"""The loader API is what docs/api.md promises: every name, argument, default and example."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import lorry
from lorry.errors import DuplicateAdapterError, NothingAppliedError, StateError, UnknownAdapterError
from pipelines import oracle
from pipelines.conftest import Files
from pipelines.oracle import check_changed, check_close, outputs

SOURCE = "pretrained_model_name_or_path_or_dict"
SIGNATURES = {
    "load_lora_weights": f"({SOURCE}, adapter_name=None, **kwargs)",
    "lora_state_dict": f"({SOURCE}, **kwargs)",
    "load_lora_into_unet": (
        "(state_dict, network_alphas, unet, low_cpu_mem_usage=None, adapter_name=None, _pipeline=None)"
    ),
    "load_lora_into_text_encoder": (
        "(state_dict, network_alphas, text_encoder, prefix=None, lora_scale=1.0, low_cpu_mem_usage=None, "
        "adapter_name=None, _pipeline=None)"
    ),
    "load_lora_into_transformer": (
        "(state_dict, network_alphas, transformer, low_cpu_mem_usage=None, adapter_name=None, _pipeline=None)"
    ),
    "save_lora_weights": (
        "(save_directory, unet_lora_layers=None, text_encoder_lora_layers=None, transformer_lora_layers=None, "
        "is_main_process=True, weight_name=None, save_function=None, safe_serialization=True)"
    ),
    "unload_lora_weights": "()",
    "fuse_lora": (
        "(fuse_unet=True, fuse_text_encoder=True, lora_scale=1.0, safe_fusing=False, adapter_names=None)"
    ),
    "unfuse_lora": "(unfuse_unet=True, unfuse_text_encoder=True)",
    "set_adapters": "(adapter_names, adapter_weights=None)",
    "set_adapters_for_text_encoder": "(adapter_names, text_encoder=None, text_encoder_weights=None)",
    "disable_lora": "()",
    "enable_lora": "()",
    "disable_lora_for_text_encoder": "(text_encoder=None)",
    "enable_lora_for_text_encoder": "(text_encoder=None)",
    "delete_adapters": "(adapter_names)",
    "get_active_adapters": "()",
    "get_list_adapters": "()",
    "set_lora_device": "(adapter_names, device)",
}
SDXL_SIGNATURES = SIGNATURES | {
    "save_lora_weights": (
        "(save_directory, unet_lora_layers=None, text_encoder_lora_layers=None, text_encoder_2_lora_layers=None, "
        "is_main_process=True, weight_name=None, save_function=None, safe_serialization=True)"
    ),
}
CLASS_METHODS = {name for name in SIGNATURES if name.startswith(("load_lora_into", "lora_state", "save"))}


def signature(owner: type, name: str) -> list[tuple[str, object]]:
    """A method's arguments in order, `self` and `cls` left out, with their defaults."""
    parameters = list(inspect.signature(getattr(owner, name)).parameters.values())
    if name not in CLASS_METHODS:
        parameters = parameters[1:]
    return [
        (("**" if p.kind is p.VAR_KEYWORD else "") + p.name, "" if p.default is p.empty else p.default)
        for p in parameters
    ]


def promised(text: str) -> list[tuple[str, object]]:
    found = []
    for part in filter(None, text.strip("()").split(", ")):
        name, _, default = part.partition("=")
        found.append((name, ast.literal_eval(default) if default else ""))
    return found


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize(
    ("mixin", "table"),
    [(lorry.LoraLoaderMixin, SIGNATURES), (lorry.StableDiffusionXLLoraLoaderMixin, SDXL_SIGNATURES)],
    ids=["LoraLoaderMixin", "StableDiffusionXLLoraLoaderMixin"],
)
def test_every_method_takes_what_the_table_promises_in_its_order(
    mixin: type, table: dict[str, str], name: str
) -> None:
    given, wanted = signature(mixin, name), promised(table[name])
    assert given[: len(wanted)] == wanted
    after = given[len(wanted) :]  # all of it is optional
    assert all(default != "" for argument, default in after if not argument.startswith("**"))
    assert isinstance(inspect.getattr_static(mixin, name), classmethod) == (name in CLASS_METHODS)


def test_the_tables_of_the_documentation_say_the_same() -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+)(?:, a classmethod)?(?: \(classmethod\))? \| `(\([^`]*\))", text, re.M
    )
    documented = {name: args for names, args in rows for name in re.findall(r"\w+", names)}
    for name, wanted in SIGNATURES.items():
        written = promised(documented[name].replace(": str \\| list[str]", ""))
        assert written == promised(wanted) or written == promised(SDXL_SIGNATURES[name]), name


def test_the_attributes_and_properties_are_there() -> None:
    pipe = oracle.ours("sd")
    assert (pipe.unet_name, pipe.transformer_name, pipe.text_encoder_name) == (
        "unet",
        "transformer",
        "text_encoder",
    )
    assert pipe.lora_scale == 1.0
    assert pipe.num_fused_loras == 0
    assert pipe.fused_loras == set()


# --- the examples -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_the_examples_work_word_for_word(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of the Hub are folders here, and the device is the processor; all else is as users know it."""
    monkeypatch.chdir(tmp_path)
    oracle.base("sdxl").save_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    for folder, name, adapter in (
        ("nerijs/pixel-art-xl", "pixel-art-xl.safetensors", "a"),
        ("CiroN2022/toy-face", "toy_face_sdxl.safetensors", "b"),
    ):
        Path(folder).mkdir(parents=True)
        source = files.get("sdxl", adapter) / "pytorch_lora_weights.safetensors"
        (Path(folder) / name).write_bytes(source.read_bytes())

    pipeline: Any = DiffusionPipeline.from_pretrained(
        "stabilityai/stable-diffusion-xl-base-1.0", torch_dtype=torch.float16
    ).to("cpu")
    lorry.attach(pipeline)
    before = oracle.snapshot(pipeline)
    pipeline.load_lora_weights(
        "nerijs/pixel-art-xl", weight_name="pixel-art-xl.safetensors", adapter_name="pixel"
    )
    pipeline.fuse_lora(lora_scale=0.7)
    assert pipeline.fused_loras == {"pixel"}
    pipeline.load_lora_weights(
        "CiroN2022/toy-face", weight_name="toy_face_sdxl.safetensors", adapter_name="toy"
    )
    assert pipeline.get_active_adapters() == ["toy"]
    pipeline.unload_lora_weights()
    oracle.check_same(oracle.snapshot(pipeline), before)


def test_the_mixin_form_draws_what_the_attached_one_draws(files: Files) -> None:
    class MyPipeline(lorry.LoraLoaderMixin, diffusers.StableDiffusionPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    mine = oracle.made(MyPipeline, oracle.copied_parts("sd"))
    attached = lorry.attach(oracle.reference("sd"))
    for pipe in (mine, attached):
        pipe.load_lora_weights(files.get("sd"), adapter_name="a")
        pipe.set_adapters("a", {"unet": {"down": 0.5, "up": {"block_0": [0.1, 0.2]}}})
    check_close(outputs(mine), outputs(attached), tolerance=0.0)
    scale = {"cross_attention_kwargs": {"scale": 0.5}}
    assert torch.equal(oracle.drawn(mine, **scale), oracle.drawn(attached, **scale))


def test_a_pipeline_that_calls_its_parents_call_scales_once_and_leaves_no_strength(files: Files) -> None:
    seen = []

    class Inner(lorry.LoraLoaderMixin, diffusers.StableDiffusionPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    class Outer(Inner):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.lora_scale)
            return super().__call__(*args, **kwargs)

    def look(pipe: Any, *_: Any) -> dict[str, Any]:
        seen.append(pipe.lora_scale)
        return {}

    scale = {"cross_attention_kwargs": {"scale": 0.5}, "callback_on_step_end": look}
    drawn = []
    for cls in (Inner, Outer):
        pipe = oracle.made(cls, oracle.copied_parts("sd"))
        pipe.load_lora_weights(files.get("sd"))
        drawn.append(oracle.drawn(pipe, **scale))
        assert pipe.lora_scale == 1.0
    assert torch.equal(*drawn)
    assert set(seen) == {0.5}


def test_the_strength_of_a_call_ends_with_it_also_when_it_fails(files: Files) -> None:
    pipe = oracle.ours("sd")
    pipe.load_lora_weights(files.get("sd"))
    before, state = outputs(pipe), oracle.snapshot(pipe)

    def stop(*_: Any) -> None:
        assert pipe.lora_scale == 0.5
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oracle.drawn(pipe, cross_attention_kwargs={"scale": 0.5}, callback_on_step_end=stop)
    assert pipe.lora_scale == 1.0
    oracle.check_same(oracle.snapshot(pipe), state, identity=False)
    check_close(outputs(pipe), before, tolerance=0.0)


# --- names and activity -------------------------------------------------------------------------------------------


def test_adapters_without_a_name_are_numbered_and_never_take_one_that_is_there(files: Files) -> None:
    pipe = oracle.ours("sd")
    for expected in ("default_0", "default_1"):
        pipe.load_lora_weights(files.get("sd"))
        assert pipe.get_active_adapters() == [expected]
    pipe.delete_adapters("default_0")
    pipe.load_lora_weights(files.get("sd"))
    assert pipe.get_list_adapters()["unet"] == ["default_1", "default_2"]


def zeroed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A file in which what begins with `prefix` is as it was before the first step of its training."""
    idle = [key for key in tensors if key.startswith(prefix) and key.endswith("lora_B.weight")]
    assert idle
    return {**tensors, **{key: torch.zeros_like(tensors[key]) for key in idle}}


def test_an_adapter_that_adds_nothing_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tensors = oracle.dotted(oracle.lora("sd"), ".lora_A.weight", ".lora_B.weight")
    report = oracle.ours("sd").load_lora_weights(zeroed(tensors, ""), adapter_name="toy")
    assert report.adds_nothing
    assert "'toy' adds nothing: what a state dict holds for text_encoder and unet is all zeros" in caplog.text
    assert str(report).count("which adds nothing: it is all zeros") == 2
    assert report.applied == report.key_count


def test_a_component_that_gets_nothing_is_named_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    tensors = oracle.dotted(oracle.lora("sd"), ".lora_A.weight", ".lora_B.weight")
    report = oracle.ours("sd").load_lora_weights(zeroed(tensors, "text_encoder."), adapter_name="toy")
    assert {part.component: part.adds_nothing for part in report.components} == {
        "unet": False,
        "text_encoder": True,
    }
    assert not report.adds_nothing
    assert not caplog.text


def test_loading_returns_a_report_and_logs_it(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lorry")
    report = oracle.ours("sd").load_lora_weights(files.get("sd"), adapter_name="a")
    assert isinstance(report, lorry.LoadReport)
    assert report.applied == report.key_count == 2 * report.targets
    assert str(report) in caplog.text


def test_what_is_loaded_while_adapters_are_off_stays_off_until_they_are_on(files: Files) -> None:
    mine, plain = oracle.ours("sd"), oracle.ours("sd")
    before = outputs(mine)
    mine.load_lora_weights(files.get("sd", "b", text=False), adapter_name="b")
    mine.disable_lora()
    mine.load_lora_weights(files.get("sd", "a"), adapter_name="a")
    check_close(outputs(mine), before, tolerance=0.0)
    mine.enable_lora()
    plain.load_lora_weights(files.get("sd", "a"))
    check_close(outputs(mine), outputs(plain), tolerance=5e-6)


def test_one_text_encoder_can_be_set_and_switched_alone(files: Files) -> None:
    pipe = oracle.ours("sdxl")
    without = oracle.encoded(pipe)
    pipe.load_lora_weights(files.get("sdxl"), adapter_name="a")
    with_a, denoised = oracle.encoded(pipe), oracle.denoised(pipe)
    pipe.disable_lora_for_text_encoder(pipe.text_encoder_2)
    check_close(oracle.encoded(pipe), {**with_a, "text_encoder_2": without["text_encoder_2"]}, 0.0)
    pipe.enable_lora_for_text_encoder(pipe.text_encoder_2)
    check_close(oracle.encoded(pipe), with_a, 0.0)
    pipe.disable_lora_for_text_encoder()
    check_close(oracle.encoded(pipe), {**with_a, "text_encoder": without["text_encoder"]}, 0.0)
    pipe.enable_lora_for_text_encoder()
    pipe.set_adapters_for_text_encoder("a", text_encoder_weights=0.0)
    check_close(oracle.encoded(pipe), {**with_a, "text_encoder": without["text_encoder"]}, 1e-6)
    pipe.set_adapters_for_text_encoder(["a"], pipe.text_encoder_2, [0.0])
    check_close(oracle.encoded(pipe), without, 1e-6)
    pipe.set_adapters_for_text_encoder("a", pipe.text_encoder)
    assert torch.equal(oracle.encoded(pipe)["text_encoder"], with_a["text_encoder"])
    assert torch.equal(oracle.denoised(pipe), denoised)


def test_a_text_encoder_must_be_named_where_the_pipeline_has_none() -> None:
    pipe = oracle.made(
        oracle.lorry_class(diffusers.StableDiffusionPipeline), oracle.copied_parts("sd"), text_encoder=None
    )
    for ask in (pipe.disable_lora_for_text_encoder, pipe.enable_lora_for_text_encoder):
        with pytest.raises(ValueError, match="no text encoder of its own: pass `text_encoder`"):
            ask()


def test_set_lora_device_parks_and_fetches_and_changes_no_number(files: Files) -> None:
    pipe = oracle.ours("sd")
    for name in ("a", "b"):
        pipe.load_lora_weights(files.get("sd", name), adapter_name=name)
    pipe.set_adapters(["a", "b"])
    before = outputs(pipe)
    for device in ("cpu", torch.device("cpu"), "meta"):
        if device != "meta":
            pipe.set_lora_device(["a"], device)
            check_close(outputs(pipe), before, tolerance=0.0)
    pipe.set_adapters("b")
    pipe.set_lora_device(["a", "b"], "cpu")
    assert {resident.parked for resident in pipe.unet.lorry.adapters.values()} == {torch.device("cpu")}


def test_deleting_frees_the_memory_of_the_adapter(files: Files) -> None:
    pipe = oracle.ours("sd")
    for name in ("a", "b"):
        pipe.load_lora_weights(files.get("sd", name), adapter_name=name)
    two = pipe.unet.lorry.nbytes
    pipe.delete_adapters("a")
    assert pipe.get_list_adapters() == {"unet": ["b"], "text_encoder": ["b"]}
    alone = oracle.ours("sd")
    alone.load_lora_weights(files.get("sd", "b"), adapter_name="b")
    assert pipe.unet.lorry.nbytes == alone.unet.lorry.nbytes < two
    pipe.load_lora_weights(files.get("sd", "a"), adapter_name="a")
    pipe.delete_adapters(["a", "b"])
    assert pipe.get_list_adapters() == {}
    assert not hasattr(pipe.unet, "lorry")


def test_a_copy_of_a_loaded_pipeline_has_adapters_of_its_own(files: Files) -> None:
    pipe = oracle.ours("sd")
    pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    with_a = outputs(pipe)
    other = oracle.made(type(pipe), {k: copy.deepcopy(part) for k, part in pipe.components.items()})
    check_close(outputs(other), with_a, 0.0)
    other.set_adapters("a", 0.1)
    other.fuse_lora()
    check_close(outputs(pipe), with_a, 0.0)
    other.unload_lora_weights()
    check_close(outputs(other), outputs(oracle.ours("sd")), 0.0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_pickled_pipeline_comes_back_with_its_adapters_and_its_loader(fused: bool, files: Files) -> None:
    pipe = lorry.attach(oracle.reference("sd"))  # a class that can be found by its name
    pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    if fused:
        pipe.fuse_lora()
    for other in (pickle.loads(pickle.dumps(pipe)), copy.deepcopy(pipe)):
        assert type(other) is type(pipe)
        check_close(outputs(other), outputs(pipe), 0.0)
        assert other.get_list_adapters() == pipe.get_list_adapters()
        other.unload_lora_weights()
        check_close(outputs(other), outputs(oracle.ours("sd")), 0.0)


def test_diffusers_own_loader_and_lorrys_work_beside_each_other_on_shared_models(files: Files) -> None:
    """As in a pipeline made by `from_pipe`, which is not attached."""
    pipe, both = oracle.ours("sd"), oracle.ours("sd")
    bare = outputs(pipe)
    pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    mine = outputs(pipe)
    other = oracle.made(type(oracle.reference("sd")), pipe.components)
    other.load_lora_weights(str(files.get("sd", "b")), adapter_name="b")
    for name in ("a", "b"):
        both.load_lora_weights(files.get("sd", name), adapter_name=name)
    both.set_adapters(["a", "b"])
    check_close(outputs(pipe), outputs(both), 1e-5)
    other.unload_lora_weights()
    check_close(outputs(pipe), mine, 0.0)
    other.load_lora_weights(str(files.get("sd", "b")), adapter_name="b")
    pipe.unload_lora_weights()
    check_close(outputs(pipe), bare, 0.0)


# --- hotswap ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_hotswap_puts_another_file_in_the_place_of_one_with_its_strength(family: str, files: Files) -> None:
    mine, plain = oracle.ours(family), oracle.ours(family)
    mine.enable_lora_hotswap(target_rank=8)
    mine.load_lora_weights(files.get(family, "a"), adapter_name="x")
    mine.set_adapters("x", 0.3)
    mine.load_lora_weights(files.get(family, "b"), adapter_name="x", hotswap=True)
    plain.load_lora_weights(files.get(family, "b"), adapter_name="x")
    plain.set_adapters("x", 0.3)
    check_close(outputs(mine), outputs(plain))


def test_hotswap_gives_new_components_the_strength_and_takes_those_off_that_the_file_lacks(
    files: Files,
) -> None:
    mine, plain = oracle.ours("sd"), oracle.ours("sd")
    text_less = files.get("sd", "a", text=False)
    mine.load_lora_weights(text_less, adapter_name="x")
    mine.set_adapters("x", 0.3)
    mine.load_lora_weights(files.get("sd", "b"), adapter_name="x", hotswap=True)
    plain.load_lora_weights(files.get("sd", "b"), adapter_name="x")
    plain.set_adapters("x", 0.3)
    check_close(outputs(mine), outputs(plain), 0.0)
    mine.load_lora_weights(text_less, adapter_name="x", hotswap=True)
    assert mine.get_list_adapters() == {"unet": ["x"]}
    assert not hasattr(mine.text_encoder, "lorry")


def test_hotswap_of_an_inactive_adapter_leaves_it_inactive(files: Files) -> None:
    pipe = oracle.ours("sd")
    pipe.load_lora_weights(files.get("sd", "a", text=False), adapter_name="x")
    pipe.load_lora_weights(files.get("sd", "b"), adapter_name="y")
    before = outputs(pipe)
    pipe.load_lora_weights(files.get("sd", "a"), adapter_name="x", hotswap=True)
    assert pipe.get_list_adapters() == {"unet": ["x", "y"], "text_encoder": ["y", "x"]}
    check_close(outputs(pipe), before, 0.0)


def test_hotswap_arguments_are_checked() -> None:
    pipe = oracle.ours("sd")
    for wrong in ({"target_rank": 0}, {"check_compiled": "perhaps"}):
        with pytest.raises(ValueError, match="Expected a rank of at least 1"):
            pipe.enable_lora_hotswap(**wrong)


def test_a_hotswap_that_does_not_say_of_what_is_refused(files: Files) -> None:
    pipe = oracle.ours("sd")
    pipe.load_lora_weights(files.get("sd"), adapter_name="toy")
    with pytest.raises(UnknownAdapterError, match=r"say which by `adapter_name` \(loaded: 'toy'\)"):
        pipe.load_lora_weights(files.get("sd", "b"), hotswap=True)


# --- state dicts into models --------------------------------------------------------------------------------------


def denoiser_part(family: str) -> tuple[str, dict[str, Tensor], dict[str, float]]:
    """A denoiser's adapter under bare names, and its alphas."""
    made = oracle.lora(family, alpha=6, text=False)
    tensors, alphas = {}, {}
    for _, path, down, up, alpha in made.items():
        tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        alphas[f"{path}.alpha"] = alpha
    return ("unet" if family in ("sd", "sdxl") else "transformer"), tensors, alphas


@pytest.mark.parametrize("family", oracle.FAMILIES)
@pytest.mark.parametrize("prefixed", [False, True])
def test_a_state_dict_goes_into_a_denoiser_bare_or_prefixed_with_its_alphas(
    family: str, prefixed: bool
) -> None:
    component, tensors, alphas = denoiser_part(family)
    into, whole = oracle.ours(family), oracle.ours(family)
    prefix = f"{component}." if prefixed else ""
    getattr(into, f"load_lora_into_{component}")(
        {prefix + key: tensor for key, tensor in tensors.items()},
        {prefix + key: alpha for key, alpha in alphas.items()},
        getattr(into, component),
        adapter_name="x",
    )
    assert into.get_list_adapters() == {component: ["x"]}
    scaled = {key: t * 1.5 if "lora_B" in key else t for key, t in tensors.items()}  # alpha 6, rank 4
    whole.load_lora_weights({f"{component}.{key}": tensor for key, tensor in scaled.items()})
    check_close(outputs(into), outputs(whole), 5e-6)


@pytest.mark.parametrize(
    ("prefix", "given"), [(None, "text_encoder"), ("text_encoder_2",) * 2, ("my.te",) * 2]
)
def test_a_state_dict_goes_into_a_text_encoder_under_its_prefix_at_a_strength(
    prefix: str | None, given: str
) -> None:
    made = oracle.lora("sdxl", alpha=6)
    tensors = {f"{given}.{p}.lora_A.weight": d for c, p, d, _, _ in made.items() if c == "text_encoder"}
    tensors |= {f"{given}.{p}.lora_B.weight": u for c, p, _, u, _ in made.items() if c == "text_encoder"}
    alphas = {f"{key.rpartition('.lora_')[0]}.alpha": 6.0 for key in tensors}
    others = {"unet.mid_block.resnets.0.conv1.lora_A.weight": torch.ones(1)}
    into, whole = oracle.ours("sdxl"), oracle.ours("sdxl")
    encoder = into.text_encoder_2 if prefix == "text_encoder_2" else into.text_encoder
    if prefix == "my.te":
        tensors |= others  # what stands under other prefixes is not looked at
    into.load_lora_into_text_encoder(tensors, alphas, encoder, prefix=prefix, lora_scale=0.5)
    component = "text_encoder_2" if prefix == "text_encoder_2" else "text_encoder"
    assert into.get_list_adapters() == {component: ["default_0"]}
    scaled = {
        f"{component}.{k.removeprefix(given + '.')}": t for k, t in tensors.items() if k.startswith(given)
    }
    whole.load_lora_weights({k: t * 0.75 if "lora_B" in k else t for k, t in scaled.items()})
    check_close(outputs(into), outputs(whole), 5e-6)


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_lora_state_dict_gives_diffusers_names_and_alphas_that_load_again(family: str, files: Files) -> None:
    cls = type(oracle.ours(family))
    state_dict, alphas, metadata = cls.lora_state_dict(files.get(family), return_lora_metadata=True)
    made = oracle.lora(family, rank=4, alpha=6, seed=1)
    expected = oracle.dotted(made, ".lora_A.weight", ".lora_B.weight")
    assert state_dict.keys() == expected.keys()
    assert all(torch.equal(state_dict[key].reshape(expected[key].shape), expected[key]) for key in expected)
    assert set(alphas.values()) == {6.0}
    denoiser = next(iter(made.metadata))
    assert metadata[f"{denoiser}.r"] == 4
    assert metadata[f"{denoiser}.lora_alpha"] == 6
    mine, whole = oracle.ours(family), oracle.ours(family)
    for component in made.metadata:
        if component.startswith("text"):
            mine.load_lora_into_text_encoder(
                state_dict, alphas, getattr(mine, component), prefix=component, adapter_name="a"
            )
        else:
            getattr(mine, f"load_lora_into_{component}")(
                state_dict, alphas, getattr(mine, component), adapter_name="a"
            )
    whole.load_lora_weights(files.get(family))
    check_close(outputs(mine), outputs(whole), 5e-6)


def test_lora_state_dict_has_two_parts_and_no_alphas_where_every_strength_is_one(tmp_path: Path) -> None:
    oracle.saved_by_diffusers("sd", oracle.lora("sd"), tmp_path, metadata=False)
    state_dict, alphas = lorry.LoraLoaderMixin.lora_state_dict(tmp_path)
    assert alphas is None
    with_metadata: tuple[Any, ...] = lorry.LoraLoaderMixin.lora_state_dict(
        state_dict, return_lora_metadata=True
    )
    assert with_metadata[2] is None


def test_lora_state_dict_settles_kohya_and_sgm_names_by_the_unets_config(tmp_path: Path) -> None:
    from pipelines.test_same_numbers import in_kohya_sgm_names

    path = in_kohya_sgm_names("sdxl", tmp_path)
    mixin = lorry.StableDiffusionXLLoraLoaderMixin
    state_dict, alphas = mixin.lora_state_dict(path, unet_config=oracle.base("sdxl").unet.config)
    expected = oracle.dotted(oracle.lora("sdxl", alpha=6), ".lora_A.weight", ".lora_B.weight")
    bare, wanted = ({k.replace(".text_model.", "."): t for k, t in d.items()} for d in (state_dict, expected))
    assert bare.keys() == wanted.keys()
    assert all(torch.equal(bare[key], wanted[key]) for key in wanted)
    assert alphas is not None
    assert set(alphas.values()) == {6.0}
    with pytest.raises(lorry.errors.FormatError, match=r"pass `unet_config=pipeline\.unet\.config`"):
        mixin.lora_state_dict(path)


def test_every_documented_argument_of_the_file_search_is_taken(files: Files, tmp_path: Path) -> None:
    folder = files.get("sd")
    whole = lorry.LoraLoaderMixin.lora_state_dict(
        folder.parent,
        weight_name="pytorch_lora_weights.safetensors",
        use_safetensors=True,
        cache_dir=str(tmp_path),
        force_download=False,
        resume_download=False,
        proxies=None,
        local_files_only=False,
        token=None,
        revision="main",
        subfolder=folder.name,
        low_cpu_mem_usage=True,
        mirror=None,
        unet_config=None,
        return_alphas=True,
    )[0]
    assert whole.keys() == load_file(folder / "pytorch_lora_weights.safetensors").keys()


def test_a_misspelt_argument_is_an_error_that_knows_the_right_one(files: Files) -> None:
    with pytest.raises(TypeError, match=r"Unexpected argument 'weight_nam'\. Did you mean 'weight_name'"):
        oracle.ours("sd").load_lora_weights(files.get("sd"), weight_nam="x")


# --- saving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_what_lorry_saves_diffusers_and_lorry_load(family: str, safe: bool, tmp_path: Path) -> None:
    made = oracle.lora(family, alpha=6 if safe else 4)
    metadata = (
        {f"{name}_lora_adapter_metadata": config for name, config in made.metadata.items()} if safe else {}
    )
    cls = oracle.lorry_class(type(oracle.base(family)))
    cls.save_lora_weights(tmp_path / "new", **oracle.peft_layers(made), **metadata, safe_serialization=safe)
    name = "pytorch_lora_weights" + (".safetensors" if safe else ".bin")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    theirs, mine = oracle.reference(family), oracle.ours(family)
    before = outputs(mine)
    theirs.load_lora_weights(str(tmp_path / "new"), weight_name=name)
    assert mine.load_lora_weights(tmp_path / "new").applied == 2 * len(made.down)
    check_close(outputs(mine), outputs(theirs))
    check_changed({"denoiser": oracle.denoised(mine)}, {"denoiser": before["denoiser"]})


def plain(header: dict[str, str]) -> dict[str, Any]:
    """A header with its configuration parsed, sets in order."""
    found = json.loads(header["lora_adapter_metadata"])
    ordered = {key: sorted(value) if isinstance(value, list) else value for key, value in found.items()}
    return {**header, "lora_adapter_metadata": ordered}


def test_the_files_of_both_are_the_same_tensors_and_metadata(tmp_path: Path) -> None:
    made = oracle.lora("sdxl", alpha=6)
    theirs = oracle.saved_by_diffusers("sdxl", made, tmp_path / "theirs")
    metadata: dict[str, Any] = {
        f"{name}_lora_adapter_metadata": config for name, config in made.metadata.items()
    }
    layers: dict[str, Any] = {**oracle.peft_layers(made)}
    lorry.StableDiffusionXLLoraLoaderMixin.save_lora_weights(tmp_path / "mine", **layers, **metadata)
    with (
        safe_open(theirs / "pytorch_lora_weights.safetensors", "pt") as one,
        safe_open(tmp_path / "mine" / "pytorch_lora_weights.safetensors", "pt") as other,
    ):
        assert plain(one.metadata()) == plain(other.metadata())
        assert set(one.keys()) == set(other.keys())
        assert all(torch.equal(one.get_tensor(key), other.get_tensor(key)) for key in one.keys())  # noqa: SIM118


def test_modules_are_saved_as_their_tensors_and_views_are_made_whole(tmp_path: Path) -> None:
    layer = nn.Linear(4, 3)
    shared = torch.arange(12.0).reshape(3, 4)
    lorry.LoraLoaderMixin.save_lora_weights(
        tmp_path,
        unet_lora_layers={"up": layer, "view": shared.t(), "part": shared[:2]},
        weight_name="x.safetensors",
    )
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"unet.up.weight", "unet.up.bias", "unet.view", "unet.part"}
    assert torch.equal(found["unet.up.weight"], layer.weight)
    assert torch.equal(found["unet.view"], shared.t())
    lorry.LoraLoaderMixin.save_lora_weights(
        tmp_path / "whole", text_encoder_lora_layers=nn.ModuleDict({"a": layer})
    )
    whole = load_file(tmp_path / "whole" / "pytorch_lora_weights.safetensors")
    assert whole.keys() == {"text_encoder.a.weight", "text_encoder.a.bias"}


def test_only_the_main_process_writes_and_a_save_function_takes_the_writers_place(tmp_path: Path) -> None:
    layers = {"a.lora_A.weight": torch.ones(1, 2)}
    save = lorry.LoraLoaderMixin.save_lora_weights
    save(tmp_path / "none", layers, is_main_process=False)
    assert not (tmp_path / "none").exists()
    calls = []
    save(tmp_path / "own", layers, save_function=lambda tensors, path: calls.append((tensors, path)))
    [(tensors, path)] = calls
    assert tensors.keys() == {"unet.a.lora_A.weight"}
    assert path == str(tmp_path / "own" / "pytorch_lora_weights.safetensors")
    assert list((tmp_path / "own").iterdir()) == []


def test_saving_nothing_or_metadata_in_a_pickle_or_onto_a_file_is_refused(tmp_path: Path) -> None:
    save = lorry.LoraLoaderMixin.save_lora_weights
    layers = {"a.lora_A.weight": torch.ones(1, 2)}
    with pytest.raises(StateError, match="nothing to save: pass at least one of unet_lora_layers"):
        save(tmp_path / "x")
    with pytest.raises(StateError, match="A pickle has no place for adapter metadata"):
        save(tmp_path / "x", layers, unet_lora_adapter_metadata={"r": 1}, safe_serialization=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="is a file: expected a directory"):
        save(tmp_path / "file", layers)
    assert not (tmp_path / "x").exists()


def test_a_fresh_adapter_is_saved_by_lorry_and_drawn_the_same_by_diffusers(tmp_path: Path) -> None:
    mine, theirs = oracle.ours("sd"), oracle.reference("sd")
    config = lorry.AdapterConfig(
        rank=3, alpha=5, target_modules=oracle.UNET_TARGETS, rank_pattern={"to_k": 2}
    )
    parameters = lorry.add_adapter(mine.unet, config)
    for number, parameter in enumerate(parameters):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    mine.save_lora_weights(
        tmp_path,
        unet_lora_layers=lorry.get_adapter_state_dict(mine.unet),
        unet_lora_adapter_metadata=lorry.get_adapter_metadata(mine.unet),
    )
    theirs.load_lora_weights(str(tmp_path))
    before = outputs(oracle.ours("sd"))["denoiser"]
    check_close({"denoiser": oracle.denoised(mine)}, {"denoiser": oracle.denoised(theirs)})
    check_changed({"denoiser": oracle.denoised(mine)}, {"denoiser": before})


# --- names that are taken or hold nothing -------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused_and_the_way_out_is_told(files: Files) -> None:
    pipe = oracle.ours("sd")
    pipe.load_lora_weights(files.get("sd"), adapter_name="a")
    with pytest.raises(
        DuplicateAdapterError, match=r"'a' is loaded already.*hotswap=True.*delete_adapters\('a'\)"
    ):
        pipe.load_lora_weights(files.get("sd"), adapter_name="a")


@pytest.mark.parametrize("component", ["unet", "transformer"])
def test_a_state_dict_without_anything_for_the_denoiser_is_refused(component: str) -> None:
    family = "sd" if component == "unet" else "flux"
    pipe = oracle.ours(family)
    tensors = {
        "text_encoder.a.lora_A.weight": torch.ones(1, 2),
        "text_encoder.a.lora_B.weight": torch.ones(2, 1),
    }
    with pytest.raises(
        NothingAppliedError, match=f"nothing for the {component}: its 2 keys are for text_encoder"
    ):
        getattr(pipe, f"load_lora_into_{component}")(tensors, None, getattr(pipe, component))
