"""What neither shape nor name of a tensor tells: alphas that are limits, options of trainers, sides of a vector."""

from __future__ import annotations

import json

import pytest
import torch

import formulas
from dialects.layers import LAYERS, LINEAR, alpha, lokr, lora_parts, oft, rand
from dialects.test_families import file_of, parts_of
from lorry.algebra import BoftDelta, Delta, GloraDelta, Ia3Delta, LokrDelta, OftDelta
from lorry.dialects import read_adapter
from lorry.errors import FormatError
from lorry.files import TensorFile
from lorry.names import DENOISER, Target


def only(tensors: dict[str, torch.Tensor], stem: str = "unet.a", **kwargs: object) -> Delta:
    file = TensorFile({f"{stem}.{s}": t for s, t in tensors.items()}, source="x", **kwargs)  # pyright: ignore[reportArgumentType]
    adapter = read_adapter(file)
    assert not adapter.unknown
    (entry,) = adapter.entries
    return entry.delta


@pytest.mark.parametrize("value", [0.0, 0.01])
def test_kohyas_oft_takes_its_alpha_at_its_word_where_lycoris_takes_zero_for_none(value: float) -> None:
    tensors = {"oft_blocks": rand(2, 4, 4), **alpha(value)}
    kohya, lycoris = only(tensors, "oft_unet_a"), only(tensors, "lora_unet_a")
    assert isinstance(kohya, OftDelta)
    assert isinstance(lycoris, OftDelta)
    assert kohya.constraint == pytest.approx(value)
    assert lycoris.constraint == (pytest.approx(value) if value else None)
    assert bool(kohya.weight(torch.randn(LINEAR)).any()) == (value > 0)


def test_kohyas_oft_is_for_the_denoiser() -> None:
    (entry,) = read_adapter(TensorFile({"oft_unet_a_b.oft_blocks": rand(2, 4, 4)})).entries
    assert entry.target == Target(DENOISER, "a_b", flat=True)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused_by_key(value: float) -> None:
    layer = oft(value, False)
    with pytest.raises(
        FormatError, match=r"unet\.a.*`unet\.a\.alpha`: expected a limit that is finite and not"
    ):
        read_adapter(file_of(layer, "unet.a"))


@pytest.mark.parametrize("value", [0.0, float("inf"), 9999999999.0])
def test_the_alpha_of_a_lokr_without_a_rank_means_nothing(value: float) -> None:
    layer = lokr(LINEAR, w1=(2, 3), w2=(4, 2))
    assert only({**layer.tensors, **alpha(value)}).rank_scale == 1.0


def test_a_lokr_with_a_rank_has_the_scale_of_it() -> None:
    layer = lokr(LINEAR, w1=(2, 3), w2_a=(4, 2), w2_b=(2, 2))
    assert only({**layer.tensors, **alpha(3.0)}).rank_scale == 1.5
    with pytest.raises(FormatError, match="finite and not zero"):
        only({**layer.tensors, **alpha(0.0)})


@pytest.mark.parametrize(("patterns", "scale"), [({}, 0.75), ({"a": 6}, 1.5)])
def test_pefts_config_gives_the_scale_of_a_lokr_without_a_rank(
    patterns: dict[str, int], scale: float
) -> None:
    tensors = {"lokr_w1": rand(2, 3), "lokr_w2": rand(4, 2)}
    config = {"peft_type": "LOKR", "r": 4, "alpha": 3, "alpha_pattern": patterns}
    assert only(tensors, "base_model.model.a", config=config).rank_scale == scale
    doubled = {**config, "rank_pattern": {"a": 8}}
    assert only(tensors, "base_model.model.a", config=doubled).rank_scale == scale / 2


@pytest.mark.parametrize(
    ("config", "opposite", "terms", "limit"),
    [
        ({}, False, 5, None),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 3}, False, 3, None),
        ({"use_cayley_neumann": False, "num_cayley_neumann_terms": 5}, True, None, None),
        ({"coft": True, "eps": 1e-3}, False, 5, 1e-3),
        ({"coft": True}, False, 5, 6e-5),
        ({"coft": False, "eps": 1e-3}, False, 5, None),
    ],
)
def test_pefts_config_tells_how_an_oft_turns(
    config: dict[str, object], opposite: bool, terms: int | None, limit: float | None
) -> None:
    tensors = {"oft_R.weight": rand(2, 3)}
    delta = only(tensors, "base_model.model.a", config={"peft_type": "OFT", **config})
    assert isinstance(delta, OftDelta)
    assert (delta.opposite, delta.neumann_terms, delta.block_norm) == (opposite, terms, limit)


def test_the_axes_of_the_blocks_tell_oft_from_boft() -> None:
    assert isinstance(only({"oft_blocks": rand(2, 4, 4)}), OftDelta)
    assert isinstance(only({"oft_blocks": rand(1, 2, 4, 4)}), BoftDelta)


@pytest.mark.parametrize(
    ("listed", "on_input"),
    [
        (["proj"], True),
        (["attn", "roj"], True),
        ([], False),
        (None, False),
        (r".*\.proj", True),
        ("proj", False),
    ],
)
def test_pefts_config_tells_the_side_of_a_convolutions_vector(listed: object, on_input: bool) -> None:
    config = {"peft_type": "IA3", "feedforward_modules": listed}
    delta = only({"ia3_l": rand(1, 8, 1, 1)}, "base_model.model.a.proj", config=config)
    found = delta.part("weight")
    assert isinstance(found, Ia3Delta)
    assert found.on_input is on_input
    assert (delta.part("bias") is None) is on_input


def test_without_a_config_the_side_of_a_convolutions_vector_is_not_guessed() -> None:
    with pytest.raises(
        FormatError, match=r"unet\.a \(`unet\.a\.ia3_l`\): .* Put `adapter_config\.json` beside"
    ):
        only({"ia3_l": rand(1, 8, 1, 1)})


@pytest.mark.parametrize("kernel", [(5,), (3, 3), (2, 1, 3)], ids=str)
def test_the_core_of_a_glora_may_be_of_any_kernel(kernel: tuple[int, ...]) -> None:
    ones = [1 for _ in kernel]
    sizes = {"a1": (6, 2, *ones), "a2": (2, 6, *ones), "b1": (8, 2, *ones), "b2": (2, 6, *ones)}
    tensors = {f"{name}.weight": rand(*shape) for name, shape in {**sizes, "bm": (2, 2, *kernel)}.items()}
    weight = torch.randn(8, 6, *kernel)
    expected = formulas.on_weight({suffix: t.double() for suffix, t in tensors.items()}, weight.double())
    assert expected is not None
    torch.testing.assert_close(only(tensors).weight(weight), expected.float())


@pytest.mark.parametrize("args", [{"rs_lora": "True"}, {"rs_lora": True}, {"rs_lora": "False"}, {}])
def test_lycoris_header_says_whether_a_glora_is_rank_stabilised(args: dict[str, object]) -> None:
    tensors = dict(LAYERS["glora"]().tensors)
    delta = only(tensors, metadata={"ss_network_args": json.dumps(args)})
    assert isinstance(delta, GloraDelta)
    assert delta.rank_stabilised is (args.get("rs_lora") in ("True", True))


def test_kohyas_header_gives_the_alpha_of_other_families_too() -> None:
    tensors = {s: t for s, t in LAYERS["loha"]().tensors.items() if s != "alpha"}
    metadata = {"ss_network_dim": "3", "ss_network_alpha": "1.5"}
    assert only(tensors, "lora_unet_a", metadata=metadata).rank_scale == 0.5


def test_a_layers_own_alpha_beats_the_config() -> None:
    layer = lokr(LINEAR, w1=(2, 3), w2_a=(4, 2), w2_b=(2, 2))
    delta = only(dict(layer.tensors), config={"peft_type": "LOKR", "alpha": 8, "r": 2})
    assert isinstance(delta, LokrDelta)
    assert delta.alpha == 1.5
    whole = lokr(LINEAR, w1=(2, 3), w2=(4, 2))
    assert only(dict(whole.tensors), config={"peft_type": "LOKR", "alpha": 8, "r": 2}).rank_scale == 1.0


def test_the_bias_of_a_lora_has_the_loras_scale_and_diff_b_has_none() -> None:
    tensors, lora = lora_parts(LINEAR)
    bias = rand(8)
    scaled = parts_of(only({**tensors, "lora_B.bias": bias}), LINEAR)["bias"]
    plain = parts_of(only({**tensors, "diff_b": bias}), LINEAR)["bias"]
    assert torch.equal(scaled, bias * (0.75 * lora.rank_scale))
    assert torch.equal(plain, bias * 0.75)
    config = {"lora_alpha": 8, "lora_bias": True}
    peft = {s: t for s, t in tensors.items() if s != "alpha"} | {"lora_B.bias": bias}
    assert torch.equal(parts_of(only(peft, config=config), LINEAR)["bias"], bias * (0.75 * 4))
