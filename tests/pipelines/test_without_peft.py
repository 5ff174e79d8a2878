"""PEFT need not be installed: strengths for one call reach denoiser and text encoders all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipelines import oracle
from pipelines.conftest import Files

TESTS = Path(__file__).parents[1]

SCRIPT = '''
import importlib.metadata, importlib.util, sys, warnings

class NoPeft:
    """Makes `import peft` fail, and diffusers and transformers believe that it is not installed."""
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")

sys.meta_path.insert(0, NoPeft())
found, version = importlib.util.find_spec, importlib.metadata.version
importlib.util.find_spec = lambda name, package=None: None if name == "peft" else found(name, package)

def version_of(name):
    if name == "peft":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

importlib.metadata.version = version_of
warnings.simplefilter("ignore")

import diffusers, torch, lorry
from diffusers.utils import USE_PEFT_BACKEND
from models import tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline
from safetensors.torch import save_file
from transformers.utils import is_peft_available

assert not USE_PEFT_BACKEND and not diffusers.utils.is_peft_available() and not is_peft_available()
torch.set_num_threads(1)
make = {"sd": tiny_sd_pipeline, "sdxl": tiny_sdxl_pipeline, "sd3": tiny_sd3_pipeline, "flux": tiny_flux_pipeline}

def drawn(pipe, **kwargs):
    inputs = dict(prompt="a red apple", num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    return pipe(**inputs, height=16, width=16, generator=torch.Generator().manual_seed(0), **kwargs)[0]

def at(scale, pipe):
    return {"cross_attention_kwargs" if hasattr(pipe, "unet") else "joint_attention_kwargs": {"scale": scale}}

def tried(family, file):
    pipe = lorry.attach(make[family]())
    pipe.set_progress_bar_config(disable=True)
    found = {"without": drawn(pipe)}
    pipe.load_lora_weights(file, adapter_name="a")
    found |= {"one": drawn(pipe), "half": drawn(pipe, **at(0.5, pipe)), "none": drawn(pipe, **at(0.0, pipe))}
    pipe.set_adapters("a", 0.5)
    found["set to half"] = drawn(pipe)
    pipe.set_adapters("a", {"unet" if hasattr(pipe, "unet") else "transformer": 0.5})
    found["half in the denoiser only"] = drawn(pipe)
    pipe.set_adapters("a")
    pipe.fuse_lora(lora_scale=0.5)
    found["fused at half"] = drawn(pipe)
    pipe.unload_lora_weights()
    found["unloaded"] = drawn(pipe)
    return {f"{family} {key}": tensor.contiguous() for key, tensor in found.items()}

*given, out = sys.argv[1:]
found = {}
for family, file in zip(given[::2], given[1::2]):
    found |= tried(family, file)
assert "peft" not in sys.modules
save_file(found, out)
'''


def test_strengths_for_one_call_work_on_denoiser_and_text_encoders(files: Files, tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out.safetensors"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    given = [part for family in oracle.FAMILIES for part in (family, str(files.get(family)))]
    command = [sys.executable, str(script), *given, str(out)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    tensors = load_file(out)
    for family in oracle.FAMILIES:
        found = {
            key.removeprefix(f"{family} "): t for key, t in tensors.items() if key.startswith(f"{family} ")
        }
        theirs = oracle.reference(family)
        theirs.load_lora_weights(str(files.get(family)))
        latents = oracle.drawn(theirs, **{oracle.scale_argument(theirs): {"scale": 0.5}})
        assert torch.equal(found["unloaded"], found["without"])
        for one, other, tolerance in (
            ("none", found["without"], 1e-6),
            ("half", found["set to half"], 1e-6),
            ("half", found["fused at half"], 1e-5),
            ("half", latents, 1e-5),
        ):
            oracle.check_close({"latents": found[one]}, {"latents": other}, tolerance)
        for other in ("one", "without", "half in the denoiser only"):
            oracle.check_changed({"latents": found["half"]}, {"latents": found[other]})
