"""Pipelines that start from a picture, a mask or an edge map, and those that share their models with another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline
from PIL import Image

import lorry
from pipelines import oracle
from pipelines.conftest import Files
from pipelines.oracle import check_close

PIPELINES = [
    ("sd", "StableDiffusionImg2ImgPipeline"),
    ("sd", "StableDiffusionInpaintPipeline"),
    ("sd", "StableDiffusionControlNetPipeline"),
    ("sd", "StableDiffusionControlNetImg2ImgPipeline"),
    ("sd", "StableDiffusionControlNetInpaintPipeline"),
    ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
    ("sdxl", "StableDiffusionXLInpaintPipeline"),
    ("sdxl", "StableDiffusionXLControlNetPipeline"),
    ("sdxl", "StableDiffusionXLControlNetImg2ImgPipeline"),
    ("sdxl", "StableDiffusionXLControlNetInpaintPipeline"),
    ("sd3", "StableDiffusion3Img2ImgPipeline"),
    ("flux", "FluxImg2ImgPipeline"),
    ("flux", "FluxInpaintPipeline"),
]


def picture(seed: int) -> Image.Image:
    size = (oracle.SIZE, oracle.SIZE, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8))


def inputs(name: str) -> dict[str, Any]:
    """What a pipeline of this class is called with, besides a prompt."""
    found: dict[str, Any] = {"image": picture(0), "num_inference_steps": 3}
    if "Img2Img" in name or "Inpaint" in name:
        found["strength"] = 0.8
    if "Inpaint" in name:
        found["mask_image"] = picture(1).convert("L")
    if "ControlNet" in name and ("Img2Img" in name or "Inpaint" in name):
        found["control_image"] = picture(2)
    if "Inpaint" in name and "Flux" not in name:
        found["output_type"] = "np"  # the latents that it returns are not the picture's
    if "XL" in name and "Inpaint" in name:
        found["padding_mask_crop"] = None
    return found


def parts(family: str, name: str) -> dict[str, Any]:
    found = oracle.copied_parts(family)
    if isinstance(found["vae"], AutoencoderKL):
        found["vae"].register_to_config(force_upcast=False)
    if "ControlNet" in name:
        torch.manual_seed(0)
        controlnet = ControlNetModel.from_unet(found["unet"], conditioning_embedding_out_channels=(8, 16))
        for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            torch.nn.init.normal_(block.get_parameter("weight"), std=0.1)  # zero does nothing
        found["controlnet"] = controlnet.eval()
    return found


def options(name: str) -> dict[str, Any]:
    return {"requires_aesthetics_score": False} if name == "StableDiffusionXLImg2ImgPipeline" else {}


@pytest.mark.parametrize(("family", "name"), PIPELINES, ids=lambda value: value)
def test_they_draw_as_with_diffusers_and_peft_at_a_strength_too(family: str, name: str, files: Files) -> None:
    cls = getattr(diffusers, name)
    kwargs = inputs(name)
    pair = [
        oracle.made(made, parts(family, name), **options(name)) for made in (oracle.lorry_class(cls), cls)
    ]
    before = oracle.drawn(pair[0], **kwargs)
    for pipe in pair:
        pipe.load_lora_weights(files.get(family), adapter_name="a")
    mine, theirs = (oracle.drawn(pipe, **kwargs) for pipe in pair)
    check_close({"latents": mine}, {"latents": theirs})
    assert not torch.allclose(mine, before, atol=1e-3)
    scale = {oracle.scale_argument(pair[0]): {"scale": 0.4}}
    mine, theirs = (oracle.drawn(pipe, **kwargs, **scale) for pipe in pair)
    check_close({"scaled": mine}, {"scaled": theirs})
    pair[0].unload_lora_weights()
    assert torch.equal(oracle.drawn(pair[0], **kwargs), before)


@pytest.mark.parametrize(
    "make",
    [
        lambda text: lorry.attach(diffusers.AutoPipelineForImage2Image.from_pipe(text)),
        lambda text: lorry.attach(diffusers.StableDiffusionImg2ImgPipeline(**text.components)),
        lambda text: oracle.lorry_class(diffusers.StableDiffusionImg2ImgPipeline).from_pipe(text),
        lambda text: lorry.attach(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(text)),
    ],
    ids=["AutoPipeline", "components", "from_pipe of the mixin", "from_pipe"],
)
def test_a_pipeline_made_from_another_has_its_adapters(make: Callable[[Any], Any], files: Files) -> None:
    text = lorry.attach(oracle.reference("sd"))
    text.load_lora_weights(files.get("sd"), adapter_name="a")
    image = make(text)
    assert image.get_list_adapters() == {"unet": ["a"], "text_encoder": ["a"]}
    image.set_adapters("a", 0.5)
    image.unload_lora_weights()
    assert text.get_list_adapters() == {}


def test_attach_gives_the_api_to_every_kind_of_pipeline_and_keeps_its_class(files: Files) -> None:
    for family, name in PIPELINES:
        cls = getattr(diffusers, name)
        pipe = oracle.made(cls, parts(family, name), **options(name))
        attached = lorry.attach(pipe)
        assert attached is pipe
        assert isinstance(pipe, (cls, lorry.LoraLoaderMixin))
        assert isinstance(pipe, lorry.StableDiffusionXLLoraLoaderMixin) == (family == "sdxl")
        assert type(pipe).__name__ == name
        assert lorry.attach(pipe) is pipe
        assert pipe.load_lora_weights(files.get(family)).applied


def test_attach_refuses_a_pipeline_that_adapters_cannot_go_into() -> None:
    pipe = diffusers.DDPMPipeline(unet=None, scheduler=diffusers.DDPMScheduler())  # pyright: ignore[reportArgumentType]
    with pytest.raises(lorry.errors.StateError, match="no unet, transformer or text encoder"):
        lorry.attach(pipe)
    assert type(pipe) is diffusers.DDPMPipeline


def test_a_model_wrapped_by_torch_compile_gets_adapters_too(files: Files) -> None:
    pipe, plain = oracle.ours("sd"), oracle.ours("sd")
    unet = pipe.unet
    pipe.unet = torch.compile(unet, backend="eager")
    for each in (pipe, plain):
        each.load_lora_weights(files.get("sd"), adapter_name="a")
        each.set_adapters("a", 0.5)
    assert pipe.get_list_adapters() == {"unet": ["a"], "text_encoder": ["a"]}
    assert torch.equal(oracle.denoised(plain), unet(**oracle.unet_inputs(plain.unet))[0])


def test_a_prepared_pipeline_compiles_its_denoiser_once(files: Files) -> None:
    torch._dynamo.reset()
    pipe, plain = oracle.ours("sd"), oracle.ours("sd")
    lorry.prepare(pipe, rank=4)
    pipe.unet = torch.compile(pipe.unet, backend="eager")

    def hidden(pipe: Any) -> torch.Tensor:
        return pipe.text_encoder(torch.arange(7)[None])[0]

    def same_as_plain() -> None:
        out = pipe.unet(**oracle.unet_inputs(plain.unet))[0]
        check_close({"denoised": out}, {"denoised": oracle.denoised(plain)})
        check_close({"hidden": hidden(pipe)}, {"hidden": hidden(plain)})

    with torch.no_grad():
        same_as_plain()
        with torch._dynamo.config.patch(error_on_recompile=True):
            for change in (
                lambda p: p.load_lora_weights(files.get("sd"), adapter_name="a"),
                lambda p: p.set_adapters("a", 0.5),
                lambda p: p.load_lora_weights(files.get("sd", "b"), adapter_name="a", hotswap=True),
                lambda p: p.load_lora_weights(files.get("sd"), adapter_name="b"),
                lambda p: p.set_adapters(["a", "b"], [0.5, 0.7]),  # ranks 3 and 4: one of them finds no room
                lambda p: p.fuse_lora(),
                lambda p: p.unfuse_lora(),
                lambda p: p.disable_lora(),
                lambda p: p.enable_lora(),
                lambda p: p.delete_adapters(["a", "b"]),
            ):
                for each in (pipe, plain):
                    change(each)
                same_as_plain()
    torch._dynamo.reset()


def test_a_pipeline_with_a_text_encoder_left_out_takes_the_rest_and_says_so(files: Files) -> None:
    pipe = oracle.made(
        oracle.lorry_class(diffusers.StableDiffusionXLPipeline),
        oracle.copied_parts("sdxl"),
        text_encoder=None,
        tokenizer=None,
    )
    report = pipe.load_lora_weights(files.get("sdxl"), adapter_name="a")
    assert pipe.get_list_adapters() == {"unet": ["a"], "text_encoder_2": ["a"]}
    assert {item.reason for item in report.ignored} == {"the pipeline has no text_encoder loaded"}
    assert report.applied + len(report.ignored) == report.key_count


def test_from_pretrained_of_a_local_folder_then_attach(files: Files, tmp_path: Any) -> None:
    oracle.base("sd").save_pretrained(tmp_path)
    pipe = lorry.attach(DiffusionPipeline.from_pretrained(tmp_path, safety_checker=None))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(files.get("sd"))
    mine = oracle.ours("sd")
    mine.load_lora_weights(files.get("sd"))
    check_close(oracle.outputs(pipe), oracle.outputs(mine))
