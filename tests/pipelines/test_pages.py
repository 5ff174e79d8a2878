"""The examples of README.md and docs/api.md run, on small models in the place of those that they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

import lorry
from lorry.assets import base_folder, lora_files
from lorry.cli.app import app
from lorry.files import read_safetensors, write_safetensors
from pipelines import oracle
from pipelines.conftest import Files

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
pytestmark = [  # of diffusers, about its own arguments
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning"),
]


def blocks(page: str, kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall((ROOT / page).read_text("utf-8")) if found == kind]


def run(code: str, values: dict[str, Any]) -> None:
    """Execute an example on the processor."""
    exec(compile(code.replace('"cuda"', '"cpu"'), "an example", "exec"), values)


@pytest.fixture(autouse=True)
def hub(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders in the place of the Hub's repositories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORRY_CACHE", str(tmp_path / "cache"))
    oracle.base("sdxl").save_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    for path, adapter in (
        ("nerijs/pixel-art-xl/pixel-art-xl", "a"),
        ("CiroN2022/toy-face/toy_face_sdxl", "b"),
    ):
        source = files.get("sdxl", adapter) / "pytorch_lora_weights.safetensors"
        Path(path).parent.mkdir(parents=True)
        Path(f"{path}.safetensors").write_bytes(source.read_bytes())


def test_the_readme_draws_a_picture() -> None:
    values: dict[str, Any] = {}
    (code,) = blocks("README.md", "python")
    run(code.replace('").images', '", num_inference_steps=2).images'), values)
    assert values["image"].size == (oracle.SIZE, oracle.SIZE)
    assert values["pipeline"].get_list_adapters() == {}


def test_each_example_of_the_api_runs() -> None:
    mixin, example, strengths, training = blocks("docs/api.md", "python")
    values: dict[str, Any] = {**vars(diffusers), "torch": torch, "lorry": lorry}
    values |= {
        "StableDiffusionPipeline": StableDiffusionPipeline,
        "DiffusionPipeline": diffusers.DiffusionPipeline,
    }
    run(mixin, values)
    run(example, values)
    pipeline = values["pipeline"]
    assert pipeline.get_list_adapters() == {}
    pipeline.load_lora_weights(
        "CiroN2022/toy-face", weight_name="toy_face_sdxl.safetensors", adapter_name="toy"
    )
    run(strengths, values)
    run(training, values)
    assert read_safetensors("my-adapter/pytorch_lora_weights.safetensors").tensors
    assert values["Pipeline"].__mro__[1] is lorry.LoraLoaderMixin


def test_each_command_of_the_readme_runs() -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {"lora_A.weight": torch.ones(2, 640), "lora_B.weight": torch.ones(640, 2)}
    write_safetensors("sdxl.safetensors", {f"{layer}.{name}": tensor for name, tensor in factors.items()})
    one, two = (str(lora_files()[name]) for name in ("line", "neon"))
    words = {"FILE": one, "A": one, "B": two, "FOLDER": str(Path(one).parent), "BASE": str(base_folder())}
    done("bake", words["BASE"], f"{two}:0.8", "--out", "TUNED")
    commands = [shlex.split(line, comments=True)[1:] for line in blocks("README.md", "sh")[-1].splitlines()]
    for name, *given in commands:
        if name == "demo":  # has tests of its own
            continue
        here = words | ({"FILE": "sdxl.safetensors"} if "sdxl" in given else {})
        found = [
            re.sub(r"^[A-Z]+(?=$|:)", lambda word, here=here: here.get(word[0], word[0]), word)
            for word in given
        ]
        few = ["--steps", "2"] if name == "generate" and "--like" not in found else []
        done(name, *found, *few)
    assert len(commands) == 13
    made = {
        "apple.png",
        "grid.png",
        "OUT.safetensors",
        "mix.safetensors",
        "small.safetensors",
        "lora.safetensors",
    }
    assert {path.name for path in Path().iterdir()} >= {*made, "CHECKPOINT"}


def done(*words: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"{words}: {result.output} {result.exception!r}"
