"""The registry: one dialect a file, by explicit order, and errors that show the file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from dialects.conftest import assert_same_adapter, assert_total, make_file
from lorry.adapters import Adapter
from lorry.algebra import DoraDelta
from lorry.dialects import DIALECTS, Dialect, find_dialect, get_dialect, read_adapter
from lorry.dialects.registry import choose_claim
from lorry.errors import FormatError, UnknownDialectError, UnsupportedAdapterError
from lorry.files import TensorFile


class Toy(Dialect):
    name: ClassVar[str] = "toy"

    def claims(self, file: TensorFile) -> bool:
        return True

    def read(self, file: TensorFile) -> Adapter:
        return Adapter((), self.name)


class Greedy(Toy):
    name: ClassVar[str] = "greedy"
    before: ClassVar[tuple[str, ...]] = ("toy",)


def test_two_claims_are_an_error_unless_one_comes_first() -> None:
    other = Toy()
    assert choose_claim({}, "x") is None
    assert choose_claim({"toy": other}, "x") is other
    assert choose_claim({"toy": other, "greedy": Greedy()}, "x").__class__ is Greedy
    with pytest.raises(FormatError, match="x looks like several dialects at once: toy, other"):
        choose_claim({"toy": other, "other": other}, "x")


def test_names_are_unique_and_orders_name_dialects_that_exist() -> None:
    names = [dialect.name for dialect in DIALECTS]
    assert len(set(names)) == len(names)
    for dialect in DIALECTS:
        assert set(dialect.before) <= set(names) - {dialect.name}
        assert get_dialect(dialect.name) is dialect
        for later in dialect.before:
            assert dialect.name not in get_dialect(later).before


def test_an_unknown_name_is_corrected() -> None:
    with pytest.raises(UnknownDialectError, match=r"no dialect 'khoya'. Did you mean 'kohya'\?"):
        get_dialect("khoya")
    with pytest.raises(UnknownDialectError, match=r"Written: .*kohya, .*; read only: .*cloneofsimo"):
        get_dialect("khoya")


def test_an_empty_file_belongs_to_nobody() -> None:
    assert find_dialect(TensorFile({})) is None
    assert not any(dialect.claims(TensorFile({})) for dialect in DIALECTS)
    with pytest.raises(UnknownDialectError, match="a state dict holds no tensors at all"):
        read_adapter(TensorFile({}))


def test_an_unknown_file_is_shown() -> None:
    file = make_file({"encoder.weight": (3, 4), "bias": (2,)}, metadata={"format": "pt"})
    assert find_dialect(file) is None
    with pytest.raises(
        UnknownDialectError,
        match=r"2 keys begin with `bias` \(2,\), `encoder.weight` \(3, 4\). Its metadata has format",
    ):
        read_adapter(file)


def test_a_dialect_that_is_not_written_says_so() -> None:
    with pytest.raises(
        UnsupportedAdapterError, match="reads the dialect 'cloneofsimo' and does not write it"
    ):
        get_dialect("cloneofsimo").write(Adapter((), "x"))


REFUSED = {
    "ControlNet-LLLite": ["lllite_unet_input_blocks_1_0.conditioning1.0.weight"],
    "IP-Adapter": [
        "ip_adapter.1.to_k_ip.weight",
        "ip_adapter.0.to_q_lora.down.weight",
        "image_proj.proj.weight",
    ],
    "Control-LoRA": ["lora_controlnet", "input_blocks.1.0.in_layers.2.up"],
    "T2I-Adapter": ["adapter.body.0.resnets.0.block1.weight"],
    "T2I-Adapter. Load it": ["body.0.block1.weight", "body.2.in_conv.bias", "conv_in.weight"],
    "whole checkpoint": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.encoder.conv_in.weight",
    ],
    "ControlNet, which is a model": ["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"],
    "VAE": ["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"],
    "textual inversion": ["<toy>"],
    "textual inversion embedding": ["clip_l", "clip_g"],
    "textual": ["string_to_param.*"],
    "MiniMax-H3 LoRA of which nothing says": [f"blocks.0.attn.qkv_proj.lora_{s}.other.weight" for s in "AB"],
    "LoRM of ai-toolkit": [
        f"unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2.{side}.weight"
        for side in ("down", "up")
    ],
    "Nunchaku": ["transformer_blocks.0.mlp_fc1.lora_down", "transformer_blocks.0.mlp_fc1.lora_up"],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_lora_is_refused_by_name(what: str) -> None:
    file = make_file(dict.fromkeys(REFUSED[what], (2, 2)))
    assert find_dialect(file) is None
    with pytest.raises(UnsupportedAdapterError, match=rf"test\.safetensors is .*{what}") as caught:
        read_adapter(file)
    assert any(key in str(caught.value) for key in REFUSED[what])


def test_a_lorm_with_the_keys_of_a_lora_is_told_by_its_trainer_and_its_biases() -> None:
    shapes = {"lora_unet_a.lora_down.weight": (2, 4), "lora_unet_a.lora_up.weight": (4, 2)}
    bias = {"lora_unet_a.lora_up.bias": (4,)}
    trainer = {"software": '{"name": "ai-toolkit", "version": "0.1"}'}
    with pytest.raises(
        UnsupportedAdapterError, match=r"is a LoRM of ai-toolkit.*`lora_unet_a\.lora_up\.bias`"
    ):
        read_adapter(make_file({**shapes, **bias}, metadata=trainer))
    for file in (make_file(shapes, metadata=trainer), make_file({**shapes, **bias})):
        assert len(read_adapter(file).entries) == 1


def test_a_model_without_a_name_for_its_kind_is_guessed_at() -> None:
    with pytest.raises(UnknownDialectError, match="Is it a whole model, and no adapter"):
        read_adapter(make_file({"down_blocks.0.resnets.0.conv1.weight": (2, 2), "conv_in.bias": (2,)}))
    with pytest.raises(UnknownDialectError, match="Is it a LoRA file"):
        read_adapter(make_file({"down_blocks.0.resnets.0.conv1.weight": (2, 2), "conv_in.foo": (2,)}))


def test_a_minimax_file_of_another_trainer_is_read() -> None:
    file = make_file({f"diffusion_model.blocks.0.attn.qkv_proj.lora_{side}.weight": (2, 2) for side in "AB"})
    assert len(read_adapter(file).entries) == 1


def test_a_lora_under_a_checkpoints_prefix_is_a_lora() -> None:
    file = make_file({f"model.diffusion_model.a.b.lora_{side}.weight": (2, 2) for side in "AB"})
    assert len(read_adapter(file).entries) == 1


def test_a_lora_beside_an_embedding_is_a_lora() -> None:
    shapes = {f"lora_unet_a.lora_{side}.weight": (2, 2) for side in ("down", "up")}
    adapter = read_adapter(make_file({**shapes, "<toy>": (1, 2), "clip_l": (1, 2)}))
    assert len(adapter.entries) == 1
    assert adapter.unknown == ("<toy>", "clip_l")


EXPECTED = {
    "anima_lora_kohya_with_te_format": "kohya",
    "flux_control_lora_format": "diffusers",
    "flux_dora_onetrainer_format": "onetrainer",
    "flux_lora_aitoolkit_format": "comfyui",
    "flux_lora_kohya_format": "kohya",
    "flux_lora_xlabs_format": "xlabs",
    "krea2_lora_kohya_format": "kohya",
    "qwen_image_lora_diffusers_format": "dotted-kohya",
}


def of_header(path: Path, seed: int | None = None) -> TensorFile:
    shapes = json.loads(path.read_text())["keys"]
    keys = list(shapes)
    if seed is not None:
        random.Random(seed).shuffle(keys)
    tensors = {
        key: torch.ones(shapes[key]) if shapes[key] in ([], [1]) else torch.empty(shapes[key], device="meta")
        for key in keys
    }
    return TensorFile(tensors, source=path.name)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_real_header_is_claimed_once_and_read_in_full(name: str, shared_dir: Path) -> None:
    file = of_header(shared_dir / "headers" / f"{name}.json")
    dialect, adapter = find_dialect(file), read_adapter(file)
    assert dialect is not None
    assert dialect.name == EXPECTED[name]
    assert_total(adapter, file)
    assert not adapter.unknown
    assert not adapter.ignored
    layers = [key for key in file.tensors if "down.weight" in key or "lora_A" in key or "_norm.scale" in key]
    assert len(adapter.entries) == len(layers)


def test_onetrainers_dora_is_read_as_one_per_input_column(shared_dir: Path) -> None:
    adapter = read_adapter(of_header(shared_dir / "headers" / "flux_dora_onetrainer_format.json"))
    assert {entry.target.component for entry in adapter.entries} == {
        "transformer",
        "text_encoder",
        "text_encoder_2",
    }
    for entry in adapter.entries:
        assert isinstance(entry.delta, DoraDelta)
        assert entry.delta.on_input
        assert entry.delta.magnitude.numel() == entry.delta.shape[1]
        assert len(entry.keys) == 4


def test_every_real_header_is_expected_here(shared_dir: Path) -> None:
    assert {path.stem for path in (shared_dir / "headers").glob("*.json")} == set(EXPECTED)


def test_a_shuffled_header_gives_the_same_targets(shared_dir: Path) -> None:
    path = shared_dir / "headers" / "flux_lora_kohya_format.json"
    whole, shuffled = read_adapter(of_header(path)), read_adapter(of_header(path, seed=1))
    assert [(e.target, e.keys, e.delta.shape) for e in whole.entries] == [
        (e.target, e.keys, e.delta.shape) for e in shuffled.entries
    ]


def test_the_same_file_is_read_the_same_twice() -> None:
    file = make_file({"lora_unet_a.lora_down.weight": (2, 3), "lora_unet_a.lora_up.weight": (4, 2)})
    assert_same_adapter(read_adapter(file), read_adapter(file))
