"""Writers: what is written is read back the same, and other programs read it as we do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dialects.conftest import assert_same_adapter, make_file
from lorry.adapters import Adapter, Entry
from lorry.algebra import LoraDelta
from lorry.dialects import get_dialect, read_adapter
from lorry.errors import UnsupportedAdapterError
from lorry.files import TensorFile, read_safetensors, write_safetensors
from lorry.names import DENOISER, Target

UNET_PATHS = [
    "conv_in",
    "mid_block.attentions.0.proj_in",
    "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0",
]
CLIP_PATHS = ["text_model.encoder.layers.3.self_attn.q_proj", "text_model.encoder.layers.11.mlp.fc1"]
PLACES = [
    *[Target("unet", path) for path in UNET_PATHS],
    *[Target(component, path) for component in ("text_encoder", "text_encoder_2") for path in CLIP_PATHS],
]
ALPHAS = st.one_of(st.none(), st.floats(0.01, 100), st.integers(1, 64).map(float), st.floats(-8, -0.5))


DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
KERNELS = st.sampled_from([(), (1, 1), (3, 3)])
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
LAYERS = st.tuples(SIZES, DTYPES, KERNELS, ALPHAS, st.booleans())
SPECS = st.dictionaries(st.sampled_from(PLACES), LAYERS, min_size=1)
"""Adapters before they are made: strategies may not touch `random`, which the checks of annotations do."""


def delta_of(layer: tuple[Any, ...], tucker: bool) -> LoraDelta:
    (rank, out, inside), dtype, kernel, alpha, has_core = layer
    up = torch.randn(out, rank, *(1 for _ in kernel)).to(dtype)
    if tucker and has_core and kernel == (3, 3):
        mid = torch.randn(rank, rank, 3, 3).to(dtype)
        return LoraDelta(torch.randn(rank, inside, 1, 1).to(dtype), up, mid, alpha)
    return LoraDelta(torch.randn(rank, inside, *kernel).to(dtype), up, None, alpha)


def adapter_from(spec: dict[Target, tuple[Any, ...]], tucker: bool = False) -> Adapter:
    deltas = {target: delta_of(spec[target], tucker) for target in sorted(spec)}
    entries = [Entry(t, d, (), "rank" if d.alpha is None else "alpha tensor") for t, d in deltas.items()]
    return Adapter(tuple(entries), "test", metadata={"ss_output_name": "toy"})


def through_a_file(file: TensorFile, folder: Path) -> TensorFile:
    return read_safetensors(write_safetensors(folder / "x.safetensors", file.tensors, file.metadata))


def flat(adapter: Adapter) -> Adapter:
    """The adapter as kohya's names tell it: flattened, and with any denoiser."""

    def renamed(target: Target) -> Target:
        component = DENOISER if target.component == "unet" else target.component
        return Target(component, target.path.replace(".", "_"), flat=True)

    entries = [replace(entry, target=renamed(entry.target)) for entry in adapter.entries]
    return replace(adapter, entries=tuple(sorted(entries, key=lambda entry: entry.target)))


@given(spec=SPECS)
def test_kohyas_dialect_comes_back_bit_for_bit(spec: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    adapter = adapter_from(spec, tucker=True)
    file = through_a_file(get_dialect("kohya").write(adapter), tmp_path_factory.mktemp("kohya"))
    found = read_adapter(file)
    assert found.dialect == "kohya"
    assert_same_adapter(found, flat(adapter))
    assert file.metadata["ss_output_name"] == "toy"


@given(spec=SPECS)
def test_diffusers_dialect_comes_back_bit_for_bit(
    spec: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    adapter = adapter_from(spec)
    file = through_a_file(get_dialect("diffusers").write(adapter), tmp_path_factory.mktemp("diffusers"))
    found = read_adapter(file)
    assert found.dialect == "diffusers"
    assert not found.unknown
    for one, two in zip(adapter.entries, found.entries, strict=True):
        assert one.target == two.target
        assert one.delta.rank_scale == two.delta.rank_scale
        assert all(torch.equal(t, two.delta.tensors()[name]) for name, t in one.delta.tensors().items())


@given(spec=SPECS)
def test_kohyas_names_become_diffusers_again(spec: Any) -> None:
    adapter = adapter_from(spec)
    kohya = read_adapter(get_dialect("kohya").write(adapter))
    back = read_adapter(get_dialect("diffusers").write(kohya))
    assert [entry.target for entry in back.entries] == [entry.target for entry in adapter.entries]
    assert [entry.delta.rank_scale for entry in back.entries] == [
        entry.delta.rank_scale for entry in adapter.entries
    ]


def adapter_of(*targets: Target, shape: tuple[int, int] = (8, 6), **kwargs: Any) -> Adapter:
    delta = LoraDelta(torch.ones(2, shape[1]), torch.ones(shape[0], 2), **kwargs)
    return Adapter(tuple(Entry(target, delta, ()) for target in targets), "test")


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_rank_stabilised_scales_are_kept(dialect: str) -> None:
    adapter = adapter_of(Target("unet", "conv_in"), alpha=3.0, rank_stabilised=True)
    found = read_adapter(get_dialect(dialect).write(adapter)).entries[0].delta
    assert found.rank_scale == pytest.approx(3 / 2**0.5, rel=1e-15)


@pytest.mark.parametrize(
    ("targets", "shape", "keys"),
    [
        ([Target("text_encoder", CLIP_PATHS[0])], (8, 6), ["lora_te_text_model_"]),
        (
            [Target("text_encoder", "encoder.layers.3.self_attn.q_proj")],
            (8, 6),
            ["lora_te_text_model_encoder_layers_3"],
        ),
        (
            [Target("text_encoder", CLIP_PATHS[0]), Target("text_encoder_2", CLIP_PATHS[0])],
            (8, 6),
            ["lora_te1_", "lora_te2_"],
        ),
        (
            [Target("text_encoder", CLIP_PATHS[0]), Target("unet", "a.attn2.to_k")],
            (8, 2048),
            ["lora_te1_", "lora_unet_a_attn2"],
        ),
        (
            [Target("text_encoder", CLIP_PATHS[0]), Target("unet", "a.attn2.to_k")],
            (8, 768),
            ["lora_te_", "lora_unet_a_attn2"],
        ),
        (
            [Target("text_encoder", CLIP_PATHS[0]), Target("transformer", "a.b")],
            (8, 6),
            ["lora_te1_", "lora_unet_a_b"],
        ),
        (
            [Target("text_encoder_3", "encoder.block.0.layer.0.SelfAttention.q")],
            (8, 6),
            ["lora_te3_encoder_block_0"],
        ),
    ],
)
def test_kohya_numbers_the_text_encoders_of_a_base_with_several(
    targets: list[Target], shape: tuple[int, int], keys: list[str]
) -> None:
    written = get_dialect("kohya").write(adapter_of(*targets, shape=shape)).tensors
    assert all(any(key.startswith(prefix) for key in written) for prefix in keys)
    assert all(key.startswith(tuple(keys)) for key in written)


def test_what_a_dialect_has_no_name_for_is_refused() -> None:
    with pytest.raises(
        UnsupportedAdapterError, match=r"dialect 'kohya'.*text_encoder_4\.a \(no name for this"
    ):
        get_dialect("kohya").write(adapter_of(Target("text_encoder_4", "a")))
    sgm = Target(DENOISER, "input_blocks_4_1_proj_in", flat=True)
    with pytest.raises(UnsupportedAdapterError, match="an original \\(SGM\\) block name"):
        get_dialect("diffusers").write(adapter_of(sgm))
    for dialect in ("kohya", "diffusers"):
        with pytest.raises(
            UnsupportedAdapterError, match="1 keys that are not understood and would be lost: what"
        ):
            get_dialect(dialect).write(replace(adapter_of(Target("unet", "a")), unknown=("what",)))


def test_a_denoiser_without_a_name_is_told_by_its_paths() -> None:
    unet, other = (
        Target(DENOISER, "mid_block.attentions.0.proj_in"),
        Target(DENOISER, "transformer_blocks.0.attn.to_q"),
    )
    keys = get_dialect("diffusers").write(adapter_of(unet, other)).tensors
    assert {key.split(".")[0] for key in keys} == {"unet", "transformer"}


def test_a_file_at_scale_1_needs_no_metadata() -> None:
    assert (
        "lora_adapter_metadata"
        not in get_dialect("diffusers").write(adapter_of(Target("unet", "a"))).metadata
    )
    written = get_dialect("diffusers").write(adapter_of(Target("unet", "a"), alpha=1.0)).metadata
    assert json.loads(written["lora_adapter_metadata"])["unet.lora_alpha"] == 1.0


def tiny_unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def adapter_on(model: Any) -> Adapter:
    """Deltas of several ranks and alphas on every linear and convolution layer of a model."""
    entries = []
    layers = [
        (n, m) for n, m in model.named_modules() if n and isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    for i, (path, module) in enumerate(layers):
        out, inside, *kernel = module.weight.shape
        rank = 2 + i % 3
        down, up = torch.randn(rank, inside, *kernel), torch.randn(out, rank, *(1 for _ in kernel))
        alpha = None if i % 4 == 0 else 0.5 * (1 + i % 5)
        entries.append(Entry(Target("unet", path), LoraDelta(down, up, None, alpha), (), "rank"))
    return Adapter(tuple(entries), "test")


@pytest.mark.filterwarnings("ignore")
def test_diffusers_reads_what_is_written_for_it_at_the_same_strength(tmp_path: Path) -> None:
    from diffusers.loaders.lora_base import _fetch_state_dict

    unet = tiny_unet()
    adapter = adapter_on(unet)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    file = get_dialect("diffusers").write(adapter)
    path = write_safetensors(tmp_path / "x.safetensors", file.tensors, file.metadata)
    state_dict, metadata = _fetch_state_dict(
        str(path), None, True, True, None, False, None, None, None, None, {}, False
    )  # fmt: skip
    unet.load_lora_adapter(state_dict, prefix="unet", metadata=metadata)
    unet.fuse_lora()
    after = unet.state_dict()
    for entry in adapter.entries:
        name = entry.target.path
        fused = after.get(f"{name}.base_layer.weight", after.get(f"{name}.weight"))
        torch.testing.assert_close(
            fused - before[f"{name}.weight"], entry.delta.weight(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.filterwarnings("ignore")
def test_what_diffusers_saves_is_read_at_the_same_strength(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = tiny_unet()
    targets = ["to_q", "to_k", "ff.net.0.proj", "conv1"]
    unet.add_adapter(
        LoraConfig(
            r=4, lora_alpha=3, target_modules=targets, alpha_pattern={"to_q": 5}, rank_pattern={"conv1": 2}
        )
    )
    config = unet.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers={**get_peft_model_state_dict(unet)}, unet_lora_adapter_metadata=config
    )
    adapter = read_adapter(read_safetensors(tmp_path / "pytorch_lora_weights.safetensors"))
    assert not adapter.unknown
    assert {entry.scale_source for entry in adapter.entries} == {"metadata"}
    for entry in adapter.entries:
        layer = unet.get_submodule(entry.target.path)
        assert entry.delta.rank_scale == layer.scaling["default"]
        assert entry.delta.rank == layer.r["default"]
    assert len(adapter.entries) == len([m for m in unet.modules() if hasattr(m, "lora_A")])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stabilised", [False, True])
def test_what_peft_saves_is_read_at_the_same_strength(stabilised: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from lorry.files import read_adapter_file

    config = LoraConfig(
        r=4, lora_alpha=3, target_modules=["to_q", "to_v", "conv_in"], use_rslora=stabilised,
        alpha_pattern={"attn1.to_q": 5}, rank_pattern={"^conv_in": 2},
    )  # fmt: skip
    model: Any = get_peft_model(tiny_unet(), config)
    model.save_pretrained(str(tmp_path / "unet"))
    for folder in (tmp_path / "unet", tmp_path):
        adapter = read_adapter(read_adapter_file(folder))
        assert adapter.dialect == "peft"
        assert adapter.components == ("unet",)
        for entry in adapter.entries:
            layer = model.base_model.model.get_submodule(entry.target.path)
            assert entry.delta.rank_scale == pytest.approx(layer.scaling["default"], rel=1e-15)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_converts_kohyas_dialect_to_the_names_we_give() -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    adapter = adapter_on(tiny_unet())
    attention = tuple(entry for entry in adapter.entries if ".attn" in entry.target.path)
    written = dict(get_dialect("kohya").write(replace(adapter, entries=attention)).tensors)
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(written)
    found = read_adapter(TensorFile(theirs))
    assert [entry.target for entry in found.entries] == [
        entry.target for entry in sorted(attention, key=lambda e: e.target)
    ]
    assert not found.unknown


def test_writing_shares_the_adapters_tensors() -> None:
    file = make_file({"lora_unet_a.lora_down.weight": (2, 3), "lora_unet_a.lora_up.weight": (4, 2)})
    written = get_dialect("kohya").write(read_adapter(file)).tensors
    assert all(written[key].data_ptr() == tensor.data_ptr() for key, tensor in file.tensors.items())
