"""Training on a base that holds its weights in fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from torch import Tensor, nn
from torch.nn import functional

import lorry
from lorry.errors import CheckpointError, StateError
from lorry.files import read_safetensors
from lorry.patching.layer_kinds import plain_parameter
from lorry.patching.memory import held_bytes
from lorry.training import AdapterConfig, add_adapter
from lorry.training.checkpoints import find_checkpoint
from lorry.training.loading import load_base
from lorry.training.quantizing import quantize
from models import tiny_sd_pipeline
from patching.quantized import IN, LAYERS, OUT, OWN_ARITHMETIC
from small import Small, check_near
from snapshots import check_same, snapshot
from training.runs import Listening, run, settings

WITHOUT_GRADIENT = "torchao int8 activations"
PLACES = ("0", "2")
KINDS = ("4bit", "8bit", "torchao-int8", "quanto-int8")


def two_layers(kind: str) -> nn.Sequential:
    """Two quantized layers, and a plain one between them: the first learns through the second."""
    torch.manual_seed(0)
    between = nn.Linear(OUT, IN)
    return nn.Sequential(LAYERS[kind](torch.float32), between, LAYERS[kind](torch.float32)).eval()


def inputs() -> Tensor:
    return torch.randn(3, IN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != WITHOUT_GRADIENT])
def test_gradients_are_those_beside_the_dequantized_weight(kind: str) -> None:
    model = two_layers(kind)
    model(inputs())  # some pack their weight anew at the first call
    parameters = add_adapter(model, AdapterConfig(rank=4, target_modules=PLACES))
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    factors = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    out = model(inputs())
    coming = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    for _ in range(2):  # gradients add up, and no hook that casts the base touches them
        model(inputs()).backward(coming)
    assert all(torch.equal(parameter, before) for parameter, before in zip(parameters, factors, strict=True))

    weights = [plain_parameter(path, model.get_submodule(path), "weight").float() for path in PLACES]
    biases = [model.get_parameter(f"{path}.bias").float() for path in PLACES]
    hidden = functional.linear(inputs(), weights[0] + factors[1] @ factors[0], biases[0])
    hidden = model[1](hidden)
    exact = functional.linear(hidden, weights[1] + factors[3] @ factors[2], biases[1])
    exact.backward(2 * coming)
    tolerance = 2e-2 if kind in OWN_ARITHMETIC else 1e-5
    check_near(out, exact, tolerance)
    for parameter, expected in zip(parameters, factors, strict=True):
        assert parameter.grad is not None
        assert expected.grad is not None
        check_near(parameter.grad, expected.grad, tolerance)


def test_a_base_that_lets_no_gradient_through_is_refused_and_nothing_is_changed() -> None:
    model = two_layers(WITHOUT_GRADIENT)
    before = snapshot(model)
    with pytest.raises(StateError, match=r"`0` quantizes what it is given .*quantize the weights alone"):
        add_adapter(model, AdapterConfig(target_modules=("1",)))
    check_same(snapshot(model), before)


def test_convolutions_that_are_cast_at_each_call_are_refused_and_nothing_is_changed() -> None:
    model = Small()
    apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32)
    before = snapshot(model)
    with pytest.raises(StateError, match=r"`conv`: layerwise casting takes .*cast linear layers only"):
        add_adapter(model, AdapterConfig(target_modules=("to_q",)))
    check_same(snapshot(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_a_quantized_base_learns_and_its_file_is_for_the_whole_base(
    kind: str, sd: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same: dict[str, Any] = {"batch": 5, "targets": "full", "buckets": False}
    before = run(data, sd, tmp_path / "before", steps=1, rate=0.0, **same)
    drawn = {"sample_every": 20, "sample_steps": 1, "sample_prompts": ["a thing"], "schedule": "constant"}
    result = run(data, sd, tmp_path / kind, steps=40, rate=2e-2, quantize=kind, **same, **drawn)
    assert result.loss < 0.97 * before.loss, (before.loss, result.loss)
    assert "inputs will be cast" not in caplog.text, "bitsandbytes says so at each call of each layer"
    assert (tmp_path / kind / "samples.png").is_file()
    found, plain = (read_safetensors(one.adapter) for one in (result, before))
    assert found.tensors.keys() == plain.tensors.keys()
    assert found.metadata["lorry.base_sha256"] == plain.metadata["lorry.base_sha256"]
    pipeline = lorry.attach(tiny_sd_pipeline())
    assert pipeline.load_lora_weights(result.adapter).applied == len(plain.tensors)


@pytest.mark.parametrize(
    ("kind", "share"), [("4bit", 0.16), ("8bit", 0.27), ("torchao-int8", 0.32), ("quanto-int8", 0.32)]
)
def test_what_a_base_holds_shrinks_to_its_bits(kind: Any, share: float, sd: Path, data: Path) -> None:
    base = load_base(settings(data, sd, Path("out")), torch.device("cpu"))
    model = base.denoiser
    paths = [path for path, layer in model.named_modules() if type(layer) is nn.Linear and "attn" in path]
    before = held_bytes(model.get_parameter(f"{path}.weight") for path in paths)
    quantize(model, kind, torch.float32)
    model.to("cpu")
    after = held_bytes(model.get_parameter(f"{path}.weight") for path in paths)
    assert 0 < after < share * before


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_a_quantized_base_goes_on_with_the_same_bits(
    kind: str, sd: Path, data: Path, tmp_path: Path
) -> None:
    run(data, sd, tmp_path / "whole", steps=4, quantize=kind)
    run(data, sd, tmp_path / "parts", Listening(stop_at=2), steps=4, quantize=kind)
    with pytest.raises(CheckpointError, match=f"another quantize: {kind} there, none here"):
        run(data, sd, tmp_path / "parts", steps=4, resume=True)
    run(data, sd, tmp_path / "parts", steps=4, quantize=kind, resume=True)
    whole, parts = (find_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    assert whole.step == parts.step == 4
    assert all(torch.equal(parts.weights[key], tensor) for key, tensor in whole.weights.items())
