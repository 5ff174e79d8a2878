"""LyCORIS trains each of its families; what its forward computes is what a file of it does here.

Its own `merge_to` is another matter: it multiplies LoHa and LoKr by alpha / rank twice. Training goes by the forward,
so that is what a file means, and the difference is pinned below.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from oracles.net import Net, Parameters, check_loads_as, computed, layers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    wrapper: Any = pytest.importorskip("lycoris.wrapper", reason="needs lycoris-lora (the extra `test`)")
logging.getLogger("LyCORIS").setLevel(logging.ERROR)

pytestmark = pytest.mark.filterwarnings("ignore")  # LyCORIS', of torch
NORMS = ("LayerNorm", "GroupNorm")
CLASSES = ("Linear", "Conv2d")
OUT, IN = {"weight_decompose": True, "wd_on_out": True}, {"weight_decompose": True, "wd_on_out": False}


class Case(NamedTuple):
    algo: str
    options: Mapping[str, Any] = MappingProxyType({})
    classes: tuple[str, ...] = CLASSES
    rank: int = 4
    without: tuple[str, ...] = ()
    """Layers that LyCORIS cannot adapt in this way."""
    half: bool = True
    """Whether LyCORIS' rule for a strength other than 1 is ours."""
    merges: bool = True
    """Whether its `merge_to` agrees with its forward."""


CASES = {
    "lora": Case("locon"),
    "lora tucker": Case("locon", {"use_tucker": True}),
    "lora scalar": Case("locon", {"use_scalar": True}),
    "rslora": Case("locon", {"rs_lora": True}),
    "dora of rows": Case("locon", OUT, half=False),
    "dora of columns": Case("locon", IN, half=False),
    "dora tucker": Case("locon", {**OUT, "use_tucker": True}, half=False),
    "loha": Case("loha", merges=False),
    "loha tucker": Case("loha", {"use_tucker": True}, merges=False),
    "dora over loha": Case("loha", OUT, half=False, merges=False),
    "lokr": Case("lokr", {"factor": 4}, rank=1, merges=False),
    "lokr whole": Case("lokr", {"full_matrix": True}),
    "lokr both": Case("lokr", {"decompose_both": True, "factor": 4}, rank=1, merges=False),
    "lokr tucker": Case("lokr", {"use_tucker": True, "factor": 2}, rank=1, merges=False),
    "lokr unbalanced": Case("lokr", {"unbalanced_factorization": True, "factor": 4}, rank=1, merges=False),
    "dora over lokr": Case("lokr", {**IN, "factor": 4}, half=False, rank=1, merges=False),
    "ia3 rows": Case("ia3"),
    "ia3 columns": Case("ia3", {"train_on_input": True}, without=("grouped",)),
    "oft": Case("diag-oft"),
    "oft rescaled": Case("diag-oft", {"rescaled": True}, half=False),
    "oft constrained": Case("diag-oft", {"constraint": 1 / 128}),
    "boft": Case("boft"),
    "boft rescaled": Case("boft", {"rescaled": True}, half=False),
    "boft constrained": Case("boft", {"constraint": 1 / 128}),
    "glora": Case("glora", without=("grouped",)),
    "full": Case("full"),
    "norms": Case("full", {"train_norm": True}, NORMS),
    "norms and lora": Case("locon", {"train_norm": True}, (*CLASSES, *NORMS)),
}


class Trained(NamedTuple):
    path: Path
    expected: Parameters
    expected_half: Parameters
    merged: Parameters


@contextmanager
def preset(classes: tuple[str, ...]) -> Iterator[None]:
    """LyCORIS keeps its settings on a class; here they go back to what they were."""
    network = wrapper.LycorisNetwork
    names = ("ENABLE_CONV", "TARGET_REPLACE_MODULE", "LORA_PREFIX")
    before = {name: getattr(network, name) for name in names}
    network.apply_preset({"enable_conv": True, "target_module": [*classes], "lora_prefix": "lora_unet"})
    yield
    for name, value in before.items():
        setattr(network, name, value)


def network(case: Case, model: Net) -> Any:
    """LyCORIS' network on a model, its parameters random: all families begin at a difference of zero."""
    made = wrapper.LycorisNetwork(
        model,
        multiplier=1.0,
        lora_dim=case.rank,
        alpha=3,
        conv_lora_dim=min(case.rank, 2),
        conv_alpha=1.5,
        network_module=case.algo,
        bypass_mode=False,
        **case.options,
    )
    skipped = {f"lora_unet_{name}" for name in case.without}
    made.loras = [layer for layer in made.loras if layer.lora_name not in skipped]
    generator = torch.Generator().manual_seed(7)
    for layer in made.loras:
        assert not getattr(layer, "not_supported", False), layer.lora_name
        for name, parameter in layer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "dora_scale" in name or "rescale" in name or name == "scalar":
                parameter.data = (parameter.data + (name == "scalar")) * (1 + 0.1 * noise)
            else:
                parameter.data = (0.05 if "oft" in name else 0.3 if "lora" in name else 0.2) * noise
    return made


def train(case: Case, folder: Path) -> Trained:
    """Write a file of a case, with what its forward computes at 1 and 0.5 and what its merge makes."""
    with preset(case.classes):
        model = Net()
        made = network(case, model)
        made.apply_to()
        made.eval()
        expected = computed(model)
        made.set_multiplier(0.5)
        half = computed(model)
        path = folder / "adapter.safetensors"
        made.save_weights(str(path), torch.float32, {})
        merged = Net()
        network(case, merged).merge_to(1.0)
    return Trained(path, expected, half, computed(merged))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Trains each case once."""
    return cache(lambda name: train(CASES[name], tmp_path_factory.mktemp("lycoris")))


@pytest.mark.parametrize("name", CASES)
def test_a_file_computes_what_lycoris_trained(name: str, trained: Callable[[str], Trained]) -> None:
    found = trained(name)
    check_loads_as(str(found.path), found.expected, found.expected_half if CASES[name].half else None)


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].options.get("train_norm")])
def test_where_its_merge_agrees_with_its_training(name: str, trained: Callable[[str], Trained]) -> None:
    base, found = computed(Net()), trained(name)
    added = {key: float((tensor - base[key]).norm()) for key, tensor in found.expected.items()}
    errors = [
        float((found.merged[key] - found.expected[key]).norm()) / size
        for key, size in added.items()
        if size > 1e-4
    ]
    assert (max(errors) < 1e-4) is CASES[name].merges, max(errors)


def test_a_dylora_is_read_as_the_lora_that_its_file_is(tmp_path: Path) -> None:
    """Its forward draws a rank at random, and what every reader takes is alpha / rank."""
    case = Case("dylora", {"block_size": 2})
    found = train(case, tmp_path)
    tensors, expected = load_file(found.path), computed(Net())
    for path in layers(Net()):
        name = f"lora_unet_{path.replace('.', '_')}"
        if f"{name}.alpha" in tensors:
            up, down = (tensors[f"{name}.lora_{side}.weight"].double() for side in ("up", "down"))
            weight = expected[f"{path}.weight"]
            added = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            weight += added * float(tensors[f"{name}.alpha"]) / down.shape[0]
    check_loads_as(str(found.path), expected)
