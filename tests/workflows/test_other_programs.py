"""Files that converting writes, loaded by PEFT, LyCORIS and diffusers themselves: the same effect, measured."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dialects.layers import lora_parts
from lorry.binding import bind, weight_shape
from lorry.dialects import read_adapter
from lorry.files import read_adapter_file, read_safetensors, write_safetensors
from lorry.workflows.convert import convert_file
from models import tiny_sdxl_unet, tiny_unet

pytestmark = pytest.mark.filterwarnings("ignore")


class Layers(nn.Module):
    """A wide, a tall and a square linear layer, and two convolutions, called as a UNet's are."""

    def __init__(self) -> None:
        super().__init__()
        self.mid_block = nn.ModuleDict(
            {
                "to_q": nn.Linear(12, 16),
                "to_k": nn.Linear(16, 12, bias=False),
                "to_v": nn.Linear(12, 12),
                "conv1": nn.Conv2d(4, 8, 3, padding=1),
                "conv_shortcut": nn.Conv2d(8, 4, 1),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        inside = self.mid_block
        flat = inside["to_v"](inside["to_k"](inside["to_q"](x)))
        return inside["conv_shortcut"](inside["conv1"](flat.reshape(-1, 4, 3, 1)))


def layers() -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Layers().double().eval()


def weights_by_lorry(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights and biases that a file makes of a model's, by lorry's own reading."""
    changed = {}
    for module, delta in bind(read_adapter(read_adapter_file(path)), {"unet": model}).deltas["unet"].items():
        for name, parameter in model.get_submodule(module).named_parameters(recurse=False):
            part = delta.part(name)
            if part is not None:
                base = parameter.detach()
                changed[f"{module}.{name}"] = base + part.weight(base, torch.float64)
    return changed


def assert_same_weights(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6
) -> None:
    """All that is expected is there and is within a tolerance of it, and differs from the base."""
    if not expected:
        raise AssertionError("nothing is changed")
    base = dict(layers().named_parameters())
    for name, weight in expected.items():
        change = (weight - base[name].detach()).norm()
        error = (found[name] - weight).norm() / change
        if not change > 0 or not error < tolerance:
            raise AssertionError((name, float(error)))


def file_of(suffixes: Callable[[tuple[int, ...]], dict[str, Tensor]], folder: Path, only: str = "") -> Path:
    """A kohya file with a layer of one family on each module."""
    tensors = {}
    for path, module in layers().named_modules():
        shape = weight_shape(module)
        if shape and path.endswith(only):
            parts = suffixes(shape)
            tensors |= {
                f"lora_unet_{path.replace('.', '_')}.{name}": tensor for name, tensor in parts.items()
            }
    return write_safetensors(folder / "in.safetensors", tensors)


def flat(shape: tuple[int, ...]) -> int:
    return torch.Size(shape[1:]).numel()


def lora(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return lora_parts(shape, rank=2 + shape[0] % 3)[0]


def dora(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {**lora(shape), "dora_scale": torch.rand(shape[0], *(1 for _ in shape[1:])) + 0.5}


def loha(shape: tuple[int, ...]) -> dict[str, Tensor]:
    sizes = {"w1_a": (shape[0], 3), "w1_b": (3, flat(shape)), "w2_a": (shape[0], 3), "w2_b": (3, flat(shape))}
    return {f"hada_{name}": torch.randn(size) / 2 for name, size in sizes.items()} | {
        "alpha": torch.tensor(1.5)
    }


def lokr(shape: tuple[int, ...]) -> dict[str, Tensor]:
    out, inside, *kernel = shape
    rows, columns = (
        max(n for n in range(1, size + 1) if size % n == 0 and n * n <= size) for size in (out, inside)
    )
    w2 = torch.randn(out // rows, inside // columns, *kernel)
    return {"lokr_w1": torch.randn(rows, columns) / 2, "lokr_w2": w2}


def factored_lokr(shape: tuple[int, ...]) -> dict[str, Tensor]:
    factors = {"lokr_w2_a": torch.randn(shape[0] // 2, 2), "lokr_w2_b": torch.randn(2, shape[1] // 2)}
    return {"lokr_w1": torch.randn(2, 2), **factors, "alpha": torch.tensor(1.5)}


def glora(shape: tuple[int, ...]) -> dict[str, Tensor]:
    a = {"a1.weight": torch.randn(shape[1], 2), "a2.weight": torch.randn(2, shape[1])}
    b = {"b1.weight": torch.randn(shape[0], 2), "b2.weight": torch.randn(2, shape[1])}
    return {**a, **b, "alpha": torch.tensor(1.5)}


def oft(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"oft_blocks": torch.randn(shape[0] // 4, 4, 4) / 4, "alpha": torch.tensor(0.0)}


def full(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"diff": torch.randn(shape)}


def weights_by_peft(folder: Path) -> dict[str, Tensor]:
    """What PEFT makes of the weights with an adapter that it loads itself."""
    from peft import PeftModel

    merged: Any = PeftModel.from_pretrained(layers(), str(folder / "unet")).double().merge_and_unload()
    return {name: parameter.detach() for name, parameter in merged.named_parameters()}


@pytest.mark.parametrize(
    ("family", "only"), [(lora, ""), (dora, ""), (loha, ""), (lokr, ""), (factored_lokr, "to_q")],
    ids=["LoRA", "DoRA", "LoHa", "LoKr", "LoKr of factors"],
)  # fmt: skip
def test_pefts_own_loader_makes_the_same_weights(family: Any, only: str, tmp_path: Path) -> None:
    source = file_of(family, tmp_path, only)
    convert_file(source, tmp_path / "peft", "peft", lambda _: {"unet": layers()})
    assert_same_weights(weights_by_peft(tmp_path / "peft"), weights_by_lorry(source, layers()), 1e-5)


@pytest.mark.parametrize(
    "kind", ["LoraConfig", "LoHaConfig", "LoKrConfig", "OFTConfig", "BOFTConfig", "IA3Config"]
)
def test_what_peft_saved_comes_back_to_peft_as_it_was(kind: str, tmp_path: Path) -> None:
    import peft

    linear = ["to_q", "to_k", "to_v"]
    options: dict[str, dict[str, Any]] = {
        "LoraConfig": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": [*linear, "conv1"]},
        "LoHaConfig": {"r": 2, "alpha": 3, "target_modules": linear, "use_effective_conv2d": True},
        "LoKrConfig": {"r": 1, "alpha": 3, "target_modules": linear, "decompose_both": True},
        "OFTConfig": {"oft_block_size": 4, "target_modules": linear},
        "BOFTConfig": {"boft_block_size": 4, "target_modules": linear},
        "IA3Config": {"target_modules": linear, "feedforward_modules": ["to_v"]},
    }
    model: Any = peft.get_peft_model(layers(), getattr(peft, kind)(**options[kind]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(str(tmp_path / "in" / "unet"))
    convert_file(tmp_path / "in", tmp_path / "out", "peft", lambda _: {"unet": layers()})
    for name in ("adapter_config.json",):
        assert (tmp_path / "out" / "unet" / name).is_file()
    found, expected = weights_by_peft(tmp_path / "out"), weights_by_peft(tmp_path / "in")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def weights_by_lycoris(path: Path) -> dict[str, Tensor]:
    """What LyCORIS's forward makes of the weights: each layer is affine, so that its weight follows from outputs."""
    lycoris = pytest.importorskip("lycoris", reason="lycoris-lora is not installed")
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    model = layers().float()
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), model)
    network.apply_to()
    network.eval()
    found = {}
    with torch.no_grad():
        for name, module in model.mid_block.named_children():
            if isinstance(module, nn.Linear):
                inputs = torch.cat([torch.zeros(1, module.in_features), torch.eye(module.in_features)])
                outputs = module(inputs)
                found[f"mid_block.{name}.weight"] = (outputs[1:] - outputs[:1]).T.double()
    return found


@pytest.mark.parametrize("family", [lora, dora, loha, lokr, factored_lokr, glora, oft, full])
def test_lycoris_own_loader_makes_the_same_weights(family: Any, tmp_path: Path) -> None:
    source = file_of(family, tmp_path, "to_q")
    out = tmp_path / "out.safetensors"
    convert_file(source, out, "lycoris", lambda _: {"unet": layers()})
    assert_same_weights(weights_by_lycoris(out), weights_by_lorry(source, layers()), 1e-4)


def on_every_layer(model: nn.Module, component: str) -> dict[str, Tensor]:
    tensors = {}
    for path, module in model.named_modules():
        shape = weight_shape(module) or ()
        if len(shape) == 2 and ".attn" in path:
            parts, _ = lora_parts(shape, rank=2)
            tensors |= {f"{component}.{path}.{suffix}": tensor for suffix, tensor in parts.items()}
    return tensors


def test_diffusers_reads_our_kohya_names_for_sdxl_as_what_they_were_made_of(tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    unet = tiny_sdxl_unet()
    source = write_safetensors(tmp_path / "in.safetensors", on_every_layer(unet, "unet"))
    kohya = tmp_path / "kohya.safetensors"
    convert_file(source, kohya, "kohya", lambda _: {"unet": unet})
    assert all(key.startswith("lora_unet_") for key in read_safetensors(kohya).tensors)
    read: Any = StableDiffusionXLPipeline.lora_state_dict(str(kohya), unet_config=unet.config)
    theirs, alphas = read
    loaded: Any = copy.deepcopy(unet)
    StableDiffusionXLPipeline.load_lora_into_unet(theirs, alphas, loaded)
    loaded.fuse_lora()
    deltas = bind(read_adapter(read_adapter_file(source)), {"unet": unet}).deltas["unet"]
    for path, delta in deltas.items():
        change = loaded.get_submodule(path).base_layer.weight - unet.get_submodule(path).weight
        torch.testing.assert_close(change, delta.weight(), rtol=1e-4, atol=1e-4)


def test_diffusers_reads_our_kohya_names_for_flux_as_what_they_were_made_of(tmp_path: Path) -> None:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    with torch.device("meta"):  # at full width, which diffusers' conversion counts on
        transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    tensors = on_every_layer(transformer, "transformer")
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    kohya = tmp_path / "kohya.safetensors"
    convert_file(source, kohya, "kohya", lambda _: {"transformer": transformer})
    theirs: Any = FluxPipeline.lora_state_dict(str(kohya))
    found = bind(read_adapter(read_adapter_file(source)), {"transformer": transformer}).deltas["transformer"]
    changed = 0
    for path, delta in found.items():
        down, up = (theirs.get(f"transformer.{path}.lora_{side}.weight") for side in "AB")
        if down is not None:
            changed += 1
            torch.testing.assert_close(up @ down, delta.weight(), rtol=1e-5, atol=1e-5)
    assert changed == len(found)


@pytest.mark.parametrize("dialect", ["lora-layers", "attention-processors"])
def test_diffusers_reads_the_spellings_it_had_before_peft(dialect: str, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    unet = tiny_unet()
    only = [path for path, _ in unet.named_modules() if path.endswith(("to_q", "to_out.0"))]
    tensors = {}
    for path in only:
        parts, _ = lora_parts(weight_shape(unet.get_submodule(path)) or (), rank=2)
        tensors |= {f"unet.{path}.{suffix}": tensor for suffix, tensor in parts.items() if suffix != "alpha"}
    source = write_safetensors(tmp_path / "in.safetensors", tensors)
    old = tmp_path / "old.safetensors"
    convert_file(source, old, dialect, lambda _: {"unet": unet})
    read: Any = StableDiffusionPipeline.lora_state_dict(str(old))
    theirs, alphas = read
    loaded: Any = copy.deepcopy(unet)
    StableDiffusionPipeline.load_lora_into_unet(theirs, alphas, loaded)
    loaded.fuse_lora()
    deltas = bind(read_adapter(read_adapter_file(source)), {"unet": unet}).deltas["unet"]
    assert set(deltas) == set(only)
    for path, delta in deltas.items():
        change = loaded.get_submodule(path).base_layer.weight - unet.get_submodule(path).weight
        torch.testing.assert_close(change, delta.weight(), rtol=1e-4, atol=1e-4)
