"""The same file, loaded by diffusers with PEFT and by lorry, does the same to 1e-5, whatever is then asked of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from pipelines import oracle
from pipelines.conftest import Files
from pipelines.oracle import check_changed, check_close, outputs

PARTS = {
    "sd": ["unet", "text_encoder"],
    "sdxl": ["unet", "text_encoder", "text_encoder_2"],
    "sd3": ["transformer", "text_encoder", "text_encoder_2"],
    "flux": ["transformer", "text_encoder"],
}
"""The components that diffusers lets an adapter into."""


def changing(pipe: Any) -> dict[str, torch.Tensor]:
    """The outputs that an adapter of the family has a part in: T5 gets none."""
    return {
        name: value
        for name, value in outputs(pipe).items()
        if "T5" not in type(getattr(pipe, name, None)).__name__
    }


def pair(family: str) -> tuple[Any, Any]:
    return oracle.reference(family), oracle.ours(family)


# --- one way of using adapters after another ----------------------------------------------------------------------

Scenario = Callable[[Any, str, Files], None]


def load(pipe: Any, family: str, files: Files, *names: str) -> None:
    for name in names:
        pipe.load_lora_weights(files.get(family, name), adapter_name=name)


def one(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a")


def one_weakened(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a")
    pipe.set_adapters("a", 0.4)


def one_turned_round(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a")
    pipe.set_adapters(["a"], [-0.5])


def the_second_alone(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a", "b")
    assert pipe.get_active_adapters() == ["b"]


def two(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a", "b")
    pipe.set_adapters(["a", "b"])


def two_weighted(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a", "b")
    pipe.set_adapters(["b", "a"], [0.7, 0.3])


def weighted_by_component(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a", "b")
    denoiser = PARTS[family][0]
    pipe.set_adapters(["a", "b"], [{denoiser: 0.3, "text_encoder": 0.8}, 0.6])


def off_and_on_again(pipe: Any, family: str, files: Files) -> None:
    two_weighted(pipe, family, files)
    pipe.disable_lora()
    pipe.enable_lora()


def one_of_two_deleted(pipe: Any, family: str, files: Files) -> None:
    two_weighted(pipe, family, files)
    pipe.delete_adapters("a")


def fused(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a")
    pipe.fuse_lora(components=PARTS[family])


def fused_weakly(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a")
    pipe.fuse_lora(components=PARTS[family], lora_scale=0.6, safe_fusing=True)


def fused_in_the_denoiser(pipe: Any, family: str, files: Files) -> None:
    load(pipe, family, files, "a")
    pipe.fuse_lora(components=PARTS[family][:1], lora_scale=0.6)


def two_fused(pipe: Any, family: str, files: Files) -> None:
    two_weighted(pipe, family, files)
    pipe.fuse_lora(components=PARTS[family], adapter_names=["a", "b"])
    assert pipe.num_fused_loras == 2
    assert pipe.fused_loras == {"a", "b"}


def fused_and_unfused(pipe: Any, family: str, files: Files) -> None:
    two_weighted(pipe, family, files)
    pipe.fuse_lora(components=PARTS[family])
    pipe.unfuse_lora(components=PARTS[family])
    assert pipe.num_fused_loras == 0


SCENARIOS = [
    *(one, one_weakened, one_turned_round, the_second_alone, two, two_weighted, weighted_by_component),
    *(
        off_and_on_again,
        one_of_two_deleted,
        fused,
        fused_weakly,
        fused_in_the_denoiser,
        two_fused,
        fused_and_unfused,
    ),
]


FEWER = [the_second_alone, weighted_by_component, fused_weakly, two_fused]


@pytest.mark.parametrize(
    ("family", "scenario"),
    [(family, scenario) for family in ("sd", "sd3") for scenario in SCENARIOS]
    + [(family, scenario) for family in ("sdxl", "flux") for scenario in FEWER],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_denoiser_text_encoders_and_latents_agree(scenario: Scenario, family: str, files: Files) -> None:
    theirs, mine = pair(family)
    before = changing(mine)
    scenario(theirs, family, files)
    scenario(mine, family, files)
    check_close(outputs(mine), outputs(theirs))
    check_changed(changing(mine), before)
    assert mine.get_active_adapters() == theirs.get_active_adapters()
    listed = {name: sorted(names) for name, names in theirs.get_list_adapters().items() if names}
    assert {name: sorted(names) for name, names in mine.get_list_adapters().items()} == listed


@pytest.mark.parametrize("family", oracle.FAMILIES)
@pytest.mark.parametrize("end", ["disable_lora", "unload_lora_weights"])
def test_switched_off_or_unloaded_a_pipeline_draws_as_before(end: str, family: str, files: Files) -> None:
    mine = oracle.ours(family)
    before = outputs(mine)
    two_weighted(mine, family, files)
    getattr(mine, end)()
    check_close(outputs(mine), before, tolerance=0.0)


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_a_strength_for_one_call_agrees_on_denoiser_and_text_encoders(family: str, files: Files) -> None:
    theirs, mine = pair(family)
    for pipe in (theirs, mine):
        two_weighted(pipe, family, files)
    before = outputs(mine)
    for scale in (0.35, 1.0, 2.0, 0.0):  # after 0.0, diffusers has forgotten the weights: test_differences.py
        kwargs = {oracle.scale_argument(mine): {"scale": scale}}
        for ask in (oracle.denoised, oracle.drawn):
            check_close({"scaled": ask(mine, **kwargs)}, {"scaled": ask(theirs, **kwargs)})
    check_close(outputs(mine), before, tolerance=0.0)  # the call leaves no strength behind


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_a_strength_for_one_prompt_agrees(family: str, files: Files) -> None:
    theirs, mine = pair(family)
    found = []
    for pipe in (theirs, mine):
        two_weighted(pipe, family, files)
        prompts = {"prompt": "a red apple", "device": "cpu", "num_images_per_prompt": 1, "lora_scale": 0.3}
        if family in ("sd", "sdxl"):
            prompts["do_classifier_free_guidance"] = False
        if family in ("sd3", "flux"):
            prompts["prompt_2"] = None
        if family == "sd3":
            prompts |= {"prompt_3": None, "do_classifier_free_guidance": False}
        found.append({"prompt": pipe.encode_prompt(**prompts)[0].detach()})
    check_close(found[1], found[0])


def test_a_strength_for_one_prompt_is_for_text_encoders_only(files: Files) -> None:
    mine, plain = oracle.ours("sd"), oracle.ours("sd")
    for pipe in (mine, plain):
        one(pipe, "sd", files)
    mine.fuse_lora(components=["unet"])  # no strength for one call could reach it
    plain.set_adapters("a", {"text_encoder": 0.3})
    prompt = ("a red apple", "cpu", 1, False)
    weak, expected = mine.encode_prompt(*prompt, lora_scale=0.3)[0], plain.encode_prompt(*prompt)[0]
    check_close({"prompt": weak.detach()}, {"prompt": expected.detach()}, 1e-6)


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pictures_agree_too(family: str, files: Files) -> None:
    theirs, mine = pair(family)
    for pipe in (theirs, mine):
        two_weighted(pipe, family, files)
    options = {"output_type": "np", "guidance_scale": 5.0}
    check_close({"picture": oracle.drawn(mine, **options)}, {"picture": oracle.drawn(theirs, **options)})


# --- block weights ------------------------------------------------------------------------------------------------

BLOCK_WEIGHTS = [
    {"unet": 0.5},
    {"unet": {"down": 0.5}},
    {"unet": {"mid": 0.2}},
    {"unet": {"mid": [0.2]}},
    {"unet": {"up": 0.0}},
    {"unet": {"up": [0.1, 0.9]}},
    {"unet": {"up": {"block_0": [0.1, 0.9]}}},
    {"unet": {"down": [0.3], "up": {"block_0": 0.4}}},
    {"unet": {"down": {"block_1": 0.3}, "mid": 0.7, "up": 2}, "text_encoder": 0.25},
    {"text_encoder": 0.25},
]


def in_attention_blocks(files: Files, family: str, name: str) -> Path:
    """An adapter of which every module lies where diffusers' block weights reach: see test_differences.py."""
    made = oracle.lora(family, seed=5 if name == "a" else 6)
    folder = files.get(family).parent / f"{family}-{name}-attention"
    blocks = ("down_blocks.1.", "mid_block.attentions.", "up_blocks.0.")
    kept = made.where(lambda component, path: component != "unet" or path.startswith(blocks))
    return folder if folder.exists() else oracle.saved_by_diffusers(family, kept, folder, metadata=False)


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        *(("sd", weights) for weights in BLOCK_WEIGHTS),
        *(("sdxl", weights) for weights in BLOCK_WEIGHTS[-4:-1]),
    ],
    ids=str,
)
def test_block_weights_agree(family: str, weights: dict[str, Any], files: Files) -> None:
    theirs, mine = pair(family)
    for pipe in (theirs, mine):
        pipe.load_lora_weights(in_attention_blocks(files, family, "a"), adapter_name="a")
        pipe.set_adapters("a", weights)
    check_close(outputs(mine), outputs(theirs))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_block_weights_of_two_adapters_agree_also_when_fused(family: str, files: Files) -> None:
    theirs, mine = pair(family)
    weights = [
        {"unet": {"down": 0.5, "up": {"block_0": [0.1, 0.7]}}},
        {"unet": {"mid": 0.3}, "text_encoder": 0.5},
    ]
    for pipe in (theirs, mine):
        for name in ("a", "b"):
            pipe.load_lora_weights(in_attention_blocks(files, family, name), adapter_name=name)
        pipe.set_adapters(["a", "b"], weights)
    check_close(outputs(mine), outputs(theirs))
    for pipe in (theirs, mine):
        pipe.fuse_lora(components=PARTS[family])
    check_close(outputs(mine), outputs(theirs))


def test_weights_of_a_transformers_blocks_agree(files: Files) -> None:
    theirs, mine = pair("sd3")
    for pipe in (theirs, mine):
        one(pipe, "sd3", files)
        pipe.set_adapters("a", {"transformer": {"transformer_blocks.1": 0.2}})
    check_close(outputs(mine), outputs(theirs))
    mine.set_adapters("a")
    check_changed({"denoiser": oracle.denoised(mine)}, {"denoiser": oracle.denoised(theirs)})


# --- the spellings that both read ---------------------------------------------------------------------------------


def sgm_names(unet: Any) -> dict[str, str]:
    """The original checkpoint's name of each module of the tiny SDXL UNet, typed out from its table of blocks."""
    units = {
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "down_blocks.1.attentions.0": "input_blocks.3.1",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
        "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.attentions.1": "output_blocks.1.1",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
        "up_blocks.1.resnets.0": "output_blocks.2.0",
        "up_blocks.1.resnets.1": "output_blocks.3.0",
    }
    resnet = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    names = {}
    for path, _ in unet.named_modules():
        unit = next((unit for unit in units if path == unit or path.startswith(f"{unit}.")), None)
        if unit is not None:
            rest = path.removeprefix(unit)
            names[path] = units[unit] + "".join(f".{resnet.get(part, part)}" for part in rest.split(".")[1:])
    return names


def in_diffusers_names(family: str, folder: Path) -> Path:
    return oracle.saved_by_diffusers(family, oracle.lora(family, alpha=4), folder, metadata=False)


def in_a_pickle(family: str, folder: Path) -> Path:
    made = oracle.lora(family)
    oracle.saved_by_diffusers(family, made, folder, metadata=False, safe_serialization=False)
    return folder / "pytorch_lora_weights.bin"


def in_lora_layers(family: str, folder: Path) -> Path:
    ends = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    tensors = oracle.dotted(oracle.lora(family), ".lora.down.weight", ".lora.up.weight", ends)
    return oracle.written(tensors, folder / "lora_layers.safetensors")


def in_old_processors(family: str, folder: Path) -> Path:
    made = oracle.lora(family).only(*oracle.ATTENTION, "q_proj", "k_proj", "v_proj", "out_proj")
    return oracle.written(oracle.old_processors(made), folder / "old.safetensors")


def in_kohya_names(family: str, folder: Path) -> Path:
    return oracle.written(oracle.kohya(oracle.lora(family, alpha=6)), folder / "kohya.safetensors")


def in_kohya_sgm_names(family: str, folder: Path) -> Path:
    names = sgm_names(oracle.base(family).unet)
    return oracle.written(oracle.kohya(oracle.lora(family, alpha=6), names), folder / "sgm.safetensors")


SPELLINGS = [
    *((family, in_diffusers_names) for family in oracle.FAMILIES),
    *((family, in_a_pickle) for family in oracle.FAMILIES),
    *(
        (family, spelling)
        for family in ("sd", "sdxl")
        for spelling in (in_lora_layers, in_old_processors, in_kohya_names)
    ),
    ("sdxl", in_kohya_sgm_names),
]


@pytest.mark.parametrize(
    ("family", "spelling"), SPELLINGS, ids=lambda value: getattr(value, "__name__", value)
)
def test_every_spelling_that_both_read_agrees(
    family: str, spelling: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    path = spelling(family, tmp_path)
    theirs, mine = pair(family)
    before = changing(mine)
    theirs.load_lora_weights(str(path))
    report = mine.load_lora_weights(path)
    assert report.applied == report.key_count
    check_close(outputs(mine), outputs(theirs))
    check_changed(changing(mine), before)
    for pipe in (theirs, mine):
        pipe.fuse_lora(components=PARTS[family], lora_scale=0.5)
    check_close(outputs(mine), outputs(theirs))


@pytest.mark.parametrize(
    ("family", "component"),
    [("sd", "unet"), ("sdxl", "unet"), ("sd3", "transformer")],
)
def test_a_peft_folder_does_what_peft_itself_does_with_it(
    family: str, component: str, tmp_path: Path
) -> None:
    made = oracle.lora(family, alpha=6)
    folder = oracle.peft_folder(made, component, tmp_path)
    theirs, mine = pair(family)
    model = getattr(theirs, component)
    config = made.metadata[component]
    model.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=config["target_modules"]), "default")
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
    for owner, path, down, up, _ in made.items():
        if owner == component:
            layers[path].lora_A.default.weight.data.copy_(down)
            layers[path].lora_B.default.weight.data.copy_(up)
    mine.load_lora_weights(folder)
    check_close(outputs(mine), outputs(theirs))


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_ranks_and_alphas_of_single_modules_come_out_of_the_metadata(family: str, tmp_path: Path) -> None:
    pipe = oracle.reference(family)
    denoiser = oracle.denoiser_of(pipe)
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=3,
        target_modules=oracle.TARGETS[family],
        rank_pattern={"to_k": 2, "ff.net.2": 7},
        alpha_pattern={"to_v": 8, "to_k": 5},
        init_lora_weights=False,
        use_rslora=family == "sdxl",
    )
    denoiser.add_adapter(config, "default")
    name = PARTS[family][0]
    layers = oracle.get_peft_model_state_dict(denoiser)
    keywords = {
        f"{name}_lora_layers": layers,
        f"{name}_lora_adapter_metadata": denoiser.peft_config["default"].to_dict(),
    }
    type(pipe).save_lora_weights(tmp_path, **keywords)
    mine = oracle.ours(family)
    mine.load_lora_weights(tmp_path)
    check_close(outputs(mine), outputs(pipe))
