"""Flux's control LoRAs, in the names of their publisher, on the pipeline that takes the picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline
from PIL import Image
from torch import Tensor, nn

import lorry
from lorry.files import write_safetensors
from models import tiny_flux_pipeline, tiny_flux_transformer
from pipelines import oracle
from row_layers import ADDED, qkv
from rows import AB, Part, Row
from walks import (
    check_outputs,
    check_same,
    check_there_and_back,
    check_weights,
    expected_layers,
    models_of,
    weights,
)

PAIRS = {
    "img_in": (32, 32),
    "double_blocks.0.img_attn.qkv": (96, 32),
    "double_blocks.0.img_mlp.0": (128, 32),
    "single_blocks.0.linear1": (224, 32),
    "final_layer.adaLN_modulation.1": (64, 32),
}


def control_file() -> dict[str, Tensor]:
    """A file as the published ones: pairs with a bias, scales of norms, and `img_in` for twice the channels."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    tensors = {}
    for name, (out, width) in PAIRS.items():
        pair = {"lora_A.weight": noise(4, width), "lora_B.weight": noise(out, 4), "lora_B.bias": noise(out)}
        tensors |= {f"{name}.{end}": tensor for end, tensor in pair.items()}
    return tensors | {f"double_blocks.0.img_attn.norm.{q}_norm.scale": noise(16) for q in ("query", "key")}


def picture(pipe: Any) -> Any:
    seen = Image.new("RGB", (16, 16), (200, 30, 40))
    options = {
        "height": 16,
        "width": 16,
        "num_inference_steps": 2,
        "output_type": "np",
        "max_sequence_length": 8,
    }
    return pipe(
        prompt="cat", control_image=seen, generator=torch.Generator().manual_seed(0), **options
    ).images


def test_a_control_lora_draws_fused_and_unfused_and_leaves_no_trace() -> None:
    pipe = tiny_flux_pipeline(cls=oracle.lorry_class(FluxControlPipeline))
    pipe.set_progress_bar_config(disable=True)
    config = pipe.transformer.config
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    file = control_file()
    report = pipe.load_lora_weights(file, adapter_name="control")
    assert (report.applied, report.targets) == (len(file), 12)
    drawn = picture(pipe)
    pipe.fuse_lora()
    np.testing.assert_allclose(picture(pipe), drawn, atol=1e-5)
    pipe.unfuse_lora()
    assert np.array_equal(picture(pipe), drawn)
    pipe.unload_lora_weights()
    assert pipe.transformer.config is config
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.transformer.state_dict().items())


@pytest.mark.parametrize("features", [8, 32], ids=["regular file in a wider model", "control file"])
def test_a_first_layer_with_other_inputs_computes_what_diffusers_makes_of_it(features: int) -> None:
    tensors = {
        "transformer.x_embedder.lora_A.weight": torch.randn(4, features),
        "transformer.x_embedder.lora_B.weight": torch.randn(32, 4),
    }
    parts, cls = oracle.copied_parts("flux"), type(oracle.base("flux"))
    x = torch.randn(2, max(features, 16))
    mine = oracle.made(oracle.lorry_class(cls), parts)
    mine.load_lora_weights(dict(tensors))
    got = mine.transformer.x_embedder(x).detach()
    assert mine.transformer.config.in_channels == x.shape[1]
    mine.unload_lora_weights()
    assert mine.transformer.config.in_channels == 16
    theirs = oracle.made(cls, parts)
    theirs.load_lora_weights(dict(tensors))
    assert theirs.transformer.config.in_channels == x.shape[1]
    torch.testing.assert_close(got, theirs.transformer.x_embedder(x).detach())


# --- a file with every key that the published ones have ---------------------------------------------------------------

PUBLISHED = Path(__file__).parents[3] / "shared/headers/flux_control_lora_format.json"
OUT, LATENT, RANK = 32, 16, 2


def every_layer() -> dict[str, str]:
    """The modules of a small FLUX.1 dev that the published files change by a pair, but for `img_in`."""
    layers = {"txt_in": "context_embedder", "final_layer.linear": "proj_out"}
    for original, own in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
        for name, number in (("in", 1), ("out", 2)):
            layers[f"{original}_in.{name}_layer"] = f"time_text_embed.{own}_embedder.linear_{number}"
    double = "transformer_blocks.0"
    for kind, suffix, out in (("img", "", "to_out.0"), ("txt", "_context", "to_add_out")):
        layers |= {
            f"double_blocks.0.{kind}_attn.proj": f"{double}.attn.{out}",
            f"double_blocks.0.{kind}_mlp.0": f"{double}.ff{suffix}.net.0.proj",
            f"double_blocks.0.{kind}_mlp.2": f"{double}.ff{suffix}.net.2",
            f"double_blocks.0.{kind}_mod.lin": f"{double}.norm1{suffix}.linear",
        }
    layers = {stem: f"transformer/{path}" for stem, path in layers.items()}
    layers["final_layer.adaLN_modulation.1"] = "~transformer/norm_out.linear"
    layers["double_blocks.0.img_attn.qkv"] = qkv(f"{double}.attn")
    layers["double_blocks.0.txt_attn.qkv"] = qkv(f"{double}.attn", ADDED)
    for number in (0, 1):
        single = f"single_transformer_blocks.{number}"
        layers |= {
            f"single_blocks.{number}.linear1": qkv(
                single, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            ),
            f"single_blocks.{number}.linear2": f"transformer/{single}.proj_out",
            f"single_blocks.{number}.modulation.lin": f"transformer/{single}.norm.linear",
        }
    return layers


NORMS = {
    f"{block}norm.{q}_norm.scale": f"{path}norm_{added}{q[0]}"
    for block, path, added in (
        ("double_blocks.0.img_attn.", "transformer_blocks.0.attn.", ""),
        ("double_blocks.0.txt_attn.", "transformer_blocks.0.attn.", "added_"),
        ("single_blocks.0.", "single_transformer_blocks.0.attn.", ""),
        ("single_blocks.1.", "single_transformer_blocks.1.attn.", ""),
    )
    for q in ("query", "key")
}


class Whole:
    """A pipeline, a file for all of it, and what the file makes of it."""

    def __init__(self) -> None:
        self.pipe = lorry.attach(tiny_flux_pipeline())
        self.pipe.register_modules(transformer=tiny_flux_transformer(guidance=True))
        self.models = models_of(self.pipe)
        row = Row("flux", [Part(every_layer(), AB, bias="lora_B.bias", rank=RANK)], "diffusers")
        pairs, changes = row.make(self.pipe)
        self.changes = changes["transformer"]
        random = torch.Generator().manual_seed(9)
        self.norms = {key: 1 + torch.randn(16, generator=random) / 4 for key in NORMS}
        self.down = torch.randn(1, 2 * LATENT, generator=random)
        self.up, self.bias = torch.randn(OUT, 1, generator=random), torch.randn(OUT, generator=random)
        first = {"lora_A.weight": self.down, "lora_B.weight": self.up, "lora_B.bias": self.bias}
        self.tensors = pairs | self.norms | {f"img_in.{end}": tensor for end, tensor in first.items()}

    def expected(self, strength: float, other: Tensor | None = None) -> dict[tuple[str, str], nn.Module]:
        """The layers in float64; `other` is what another adapter adds to the first columns of the first layer."""
        layer = self.pipe.transformer.x_embedder
        changes = {name: strength * change for name, change in self.changes.items()}
        for key, path in NORMS.items():
            base = self.pipe.transformer.get_submodule(path).weight.detach().double()
            changes[f"{path}.weight"] = self.norms[key].double() - base
        layers = expected_layers(self.models, {"transformer": changes})
        wide = nn.Linear(2 * LATENT, OUT).double()
        with torch.no_grad():
            wide.weight.copy_(strength * self.up.double() @ self.down.double())
            wide.weight[:, :LATENT] += layer.weight[:, :LATENT].double()
            wide.weight[:, :LATENT] += 0 if other is None else other
            wide.bias.copy_(layer.bias.double() + strength * self.bias.double())
        return {**layers, ("transformer", "x_embedder"): wide}


def test_a_file_with_every_key_of_the_published_ones_acts_by_its_formula_at_every_strength() -> None:
    whole = Whole()
    pipe, models = whole.pipe, whole.models
    narrow, config = weights(models), pipe.transformer.config
    expected = {strength: whole.expected(strength) for strength in (1.0, 0.5, -1.0)}
    report = pipe.load_lora_weights(whole.tensors, adapter_name="control")
    assert (report.applied, report.key_count, report.unknown) == (len(whole.tensors), len(whole.tensors), ())
    assert pipe.transformer.config.in_channels == 2 * LATENT
    before = weights(models)
    for strength, layers in expected.items():
        pipe.set_adapters("control", strength)
        check_outputs(models, layers)
        pipe.fuse_lora()
        check_weights(models, layers, before)
        pipe.unfuse_lora()
        check_same(models, before)
    pipe.unload_lora_weights()
    check_same(models, narrow)
    assert pipe.transformer.config is config


def test_beside_a_regular_adapter_of_the_first_layer_both_act_by_their_formulas() -> None:
    whole = Whole()
    pipe, models = whole.pipe, whole.models
    narrow = weights(models)
    down, up = torch.randn(3, LATENT), torch.randn(OUT, 3)
    layers = whole.expected(0.8, 0.7 * up.double() @ down.double())
    pipe.load_lora_weights({"img_in.lora_A.weight": down, "img_in.lora_B.weight": up}, adapter_name="plain")
    pipe.load_lora_weights(whole.tensors, adapter_name="control")
    pipe.set_adapters(["plain", "control"], [0.7, 0.8])
    check_outputs(models, layers)
    before = weights(models)
    pipe.fuse_lora()
    check_weights(models, layers, before)
    pipe.unload_lora_weights()
    check_same(models, narrow)


def test_the_whole_file_is_told_to_fit_and_is_converted_there_and_back(tmp_path: Path) -> None:
    whole = Whole()
    source = write_safetensors(tmp_path / "in.safetensors", whole.tensors)
    support = lorry.is_supported(source, whole.pipe)
    assert support
    assert support.report is not None
    assert support.report.applied == len(whole.tensors)
    assert check_there_and_back(source, "comfyui", tmp_path, whole.models) == {"comfyui", "peft"}


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="published headers lie outside of the repository")
def test_the_whole_file_has_the_keys_of_a_published_one() -> None:
    def kinds(keys: Any) -> set[str]:
        return {re.sub(r"_blocks\.\d+", "_blocks", key) for key in keys}

    assert kinds(Whole().tensors) == kinds(json.loads(PUBLISHED.read_text("utf-8"))["keys"])
