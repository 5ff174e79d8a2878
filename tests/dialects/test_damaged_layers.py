"""A layer that lacks a tensor, or has one too many or of another shape, is named and never read as another."""

from __future__ import annotations

import pytest
import torch

from dialects.conftest import assert_total
from dialects.layers import LAYERS, LINEAR, Layer, alpha, lora_parts, rand
from dialects.test_families import file_of
from lorry.dialects import read_adapter
from lorry.errors import FormatError
from lorry.files import TensorFile

OPTIONAL = {
    "alpha",
    "scale",
    "rescale",
    "oft_R.scaled_oft",
    "dora_scale",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "magnitude",
    "diff_b",
    "lora_B.bias",
    "lora_up.bias",
    "w_norm",
    "b_norm",
    "bm.weight",
}
"""What a layer may do without: then it means something else, and no reader can tell."""
CORES = {"lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2", "bias_indices", "bias_values", "bias_size"}
"""What other tensors of the layer cannot be read without, and a layer of another kind would have none."""
NEEDED = [
    (name, suffix) for name, make in LAYERS.items() for suffix in make().tensors if suffix not in OPTIONAL
]


WHOLE = {"unet.b.lora_A.weight": rand(2, 6), "unet.b.lora_B.weight": rand(8, 2)}


@pytest.mark.parametrize(("name", "lost"), NEEDED)
def test_a_layer_that_lacks_a_tensor_is_named_and_left_out_whole(name: str, lost: str) -> None:
    layer = LAYERS[name]()
    left = {f"unet.a.{suffix}": tensor for suffix, tensor in layer.tensors.items() if suffix != lost}
    file = TensorFile({**WHOLE, **left}, source="test.safetensors")
    if lost in CORES:
        with pytest.raises(FormatError, match=r"test\.safetensors: unet\.a \(`unet\.a\."):
            read_adapter(file)
        return
    adapter = read_adapter(file)
    assert_total(adapter, file)
    if set(left) == {"unet.a.diff_b"}:
        return  # a difference of a bias alone is a layer too
    assert [entry.target.path for entry in adapter.entries] == ["b"]
    assert set(adapter.unknown) == set(left)


def test_halves_of_tucker_cores_are_refused_with_the_layer() -> None:
    tensors = dict(LAYERS["loha tucker"]().tensors)
    del tensors["hada_t2"]
    with pytest.raises(FormatError, match=r"unet\.a \(`unet\.a\.hada_w1_a`\): .*one half has a core"):
        read_adapter(file_of(Layer(tensors, LAYERS["loha"]().delta, LINEAR), "unet.a"))


EXTRA = [("lora", "rescale"), ("loha", "lora_mid.weight"), ("ia3 rows", "dora_scale"), ("lora", "lokr_t2")]
EXTRA += [("full", "dora_scale"), ("oft packed", "rescale"), ("norm", "magnitude"), ("glora", "magnitude")]


@pytest.mark.parametrize(("name", "extra"), EXTRA)
def test_a_tensor_that_a_family_has_no_use_for_is_unknown(name: str, extra: str) -> None:
    layer = LAYERS[name]()
    file = file_of(layer._replace(tensors={**layer.tensors, extra: rand(8)}), "unet.a")
    adapter = read_adapter(file)
    assert_total(adapter, file)
    assert adapter.unknown == (f"unet.a.{extra}",)


@pytest.mark.parametrize(
    "name", ["full", "norm", "ia3 rows", "ia3 of peft, rows", "boft of peft", "oft packed"]
)
def test_an_alpha_that_means_nothing_is_ignored_with_its_reason(name: str) -> None:
    layer = LAYERS[name]()
    file = file_of(layer._replace(tensors={**layer.tensors, **alpha(0.5)}), "unet.a")
    adapter = read_adapter(file)
    assert_total(adapter, file)
    assert [ignored.key for ignored in adapter.ignored] == ["unet.a.alpha"]
    assert "an alpha, which means nothing in a layer of" in adapter.ignored[0].reason
    assert not adapter.unknown


def test_a_bias_beside_a_lone_alpha_is_what_is_left_of_a_layer() -> None:
    adapter = read_adapter(TensorFile({"unet.a.diff_b": rand(8), "unet.a.alpha": torch.tensor(1.0)}))
    assert not adapter.entries
    assert len(adapter.unknown) == 2


@pytest.mark.parametrize(
    ("one", "two"), [("lora", "loha"), ("loha", "lokr whole"), ("full", "norm"), ("oft", "boft of peft")]
)
def test_two_families_in_one_layer_are_refused_by_name(one: str, two: str) -> None:
    layer = LAYERS[one]()
    tensors = {**LAYERS[two]().tensors, **layer.tensors}
    with pytest.raises(
        FormatError, match=r"test\.safetensors: unet\.a \(`unet\.a\..*tensors are of .* and of .* at once"
    ):
        read_adapter(file_of(layer._replace(tensors=tensors), "unet.a"))


def test_two_magnitudes_and_two_biases_are_refused() -> None:
    tensors, delta = lora_parts(LINEAR)
    for extra, message in (
        ({"dora_scale": rand(8, 1), "magnitude": rand(8)}, "two magnitudes"),
        ({"diff_b": rand(8), "lora_B.bias": rand(8)}, "two biases"),
    ):
        with pytest.raises(FormatError, match=rf"unet\.a \(`unet\.a\.lora_down\.weight`\): it has {message}"):
            read_adapter(file_of(Layer({**tensors, **extra}, delta, LINEAR), "unet.a"))


TRANSPOSED = [(name, suffix) for name, suffix in NEEDED if LAYERS[name]().tensors[suffix].ndim == 2]
SYMMETRIC = {
    "ia3_l",
    "diff",
    "set_weight",
    "lokr_w1",
    "lokr_w2",
    "a1.weight",
    "a2.weight",
    "oft_R.weight",
    "boft_s",
    "hra_u",
}
"""Those of which the transpose alone is a layer too, for a weight of another shape."""


@pytest.mark.parametrize(("name", "turned"), [one for one in TRANSPOSED if one[1] not in SYMMETRIC])
def test_a_transposed_factor_is_refused_with_its_layer(name: str, turned: str) -> None:
    layer = LAYERS[name]()
    factor = layer.tensors[turned]
    if factor.shape[0] == factor.shape[1]:
        pytest.skip("a square factor looks the same")
    file = file_of(layer._replace(tensors={**layer.tensors, turned: factor.mT.contiguous()}), "unet.a")
    with pytest.raises(FormatError, match=r"test\.safetensors: unet\.a \(`unet\.a\..*`\): .* has no meaning"):
        read_adapter(file)


def test_a_magnitude_of_another_length_is_refused_with_its_layer() -> None:
    layer = LAYERS["dora rows"]()
    file = file_of(layer._replace(tensors={**layer.tensors, "dora_scale": rand(5, 1)}), "unet.a")
    with pytest.raises(
        FormatError, match=r"unet\.a \(`unet\.a\.lora_down\.weight`\): a DoRA .*expected 8 numbers"
    ):
        read_adapter(file)


@pytest.mark.parametrize("name", ["loha", "full", "oft", "ia3 rows", "norm"])
def test_whole_numbers_are_refused_in_every_family(name: str) -> None:
    layer = LAYERS[name]()
    numbers = {s: t.to(torch.int8) if t.ndim else t for s, t in layer.tensors.items()}
    with pytest.raises(
        FormatError, match=r"unet\.a .*expected factors of floating-point numbers, got torch\.int8"
    ):
        read_adapter(file_of(layer._replace(tensors=numbers), "unet.a"))


def test_a_full_weight_without_on_input_stays_unknown() -> None:
    tensors, _ = lora_parts(LINEAR)
    file = TensorFile({**{f"unet.a.{s}": t for s, t in tensors.items()}, "unet.b.weight": rand(8, 6)})
    assert read_adapter(file).unknown == ("unet.b.weight",)
