"""Metadata on conversion, pair by pair: from each dialect into each that is written, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dialects.test_carrying import processors
from dialects.test_cloneofsimo import PLAIN, by_key, classes
from dialects.test_minimax_h3 import file as minimax_h3
from lorry.adapters import Adapter, Entry
from lorry.algebra import LoraDelta
from lorry.binding import bind
from lorry.dialects import DIALECTS, get_dialect, read_adapter
from lorry.dialects._walks import unet_walk
from lorry.errors import UnsupportedAdapterError
from lorry.files import (
    HASH_KEYS,
    TensorFile,
    find_weights,
    hash_file,
    read_adapter_file,
    read_safetensors,
    write_folders,
    write_safetensors,
)
from lorry.names import Target
from lorry.workflows.convert import convert_file
from models import tiny_unet

Models = Mapping[str, nn.Module]
OF_ONE_MODEL = "stable-audio"
"""It has names for Stable Audio 3 alone: `tests/test_stable_audio_3.py`."""
WRITTEN = [dialect.name for dialect in DIALECTS if dialect.is_written and dialect.name != OF_ONE_MODEL]
PAIRS = [(source, target) for source in WRITTEN for target in WRITTEN if source != target]
WITHOUT_ALPHA = ("lora-layers", "attention-processors", "xlabs")
OF_A_CONFIG = ("diffusers", "peft")
STRANGERS = {frozenset({"xlabs", "attention-processors"})}
"""One has names for Flux alone, the other for UNets."""
WORDS = {
    "ss_output_name": "zuzu-v2", "ss_tag_frequency": '{"10_zuzu": {"zuzu": 3}}', "ss_learning_rate": "0.0001",
    "ss_network_module": "networks.lora", "ss_training_comment": "of a bear", "ss_trigger_words": "zuzu, krok",
    "modelspec.title": "Zuzu", "modelspec.author": "Ž", "modelspec.trigger_phrase": "zuzu, krok",
    "modelspec.thumbnail": "data:image/jpeg;base64,AAAA", "trained_words": '["zuzu"]', "trigger_word": "zuzu",
    "software": '{"name": "ai-toolkit"}', "training_info": '{"step": 7}', "ot_revision": "1f2e", "my own": "words",
}  # fmt: skip
"""What is true of an adapter in whatever dialect it is."""
FACTS = (
    "ss_network_dim", "ss_network_alpha", "ss_base_model_version", "lora_adapter_metadata", "lorry.peft_config"
)  # fmt: skip
"""What a dialect says of an adapter that another does not, and what is still there on the way back."""
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
PATHS = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k")
CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"attn2.to_k": 4},
    "alpha_pattern": {"attn2.to_k": 3}, "target_modules": ["to_k", "to_q"], "base_model_name_or_path": "x/y",
    "inference_mode": True,
}  # fmt: skip


@cache
def models_of(*dialects: str) -> Models:
    """What the files of a pair are for: FLUX.1 where one of them has names for nothing else."""
    if "xlabs" not in dialects:
        return {"unet": tiny_unet()}
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return {"transformer": FluxTransformer2DModel(num_layers=1, num_single_layers=8)}


def adapter_for(models: Models, alpha: float | None) -> Adapter:
    """LoRAs of rank 2 and 4, or XLabs' layers at rank 1."""
    if "transformer" in models:
        return read_adapter(TensorFile(processors(1)))
    entries = []
    for rank, path in zip((2, 4), PATHS, strict=True):
        rows, columns = models["unet"].get_submodule(path).get_parameter("weight").shape
        own = alpha if alpha is None else alpha * rank
        delta = LoraDelta(torch.randn(rank, columns), torch.randn(rows, rank), None, own)
        entries.append(Entry(Target("unet", path), delta, ()))
    return Adapter(tuple(entries), "test")


def place(folder: Path, dialect: str, name: str) -> Path:
    return folder / (f"{name}-{dialect}" if dialect == "peft" else f"{name}-{dialect}.safetensors")


def source_file(
    folder: Path, dialect: str, models: Models, text: Mapping[str, str], alpha: float | None = None
) -> Path:
    """A file of a dialect with this text in its header, and with true hashes."""
    plain, first = folder / "plain.safetensors", place(folder, dialect, "in")
    file = get_dialect("comfyui" if "transformer" in models else "diffusers").write(
        adapter_for(models, alpha)
    )
    write_safetensors(plain, file.tensors, {**file.metadata, **text, **dict.fromkeys(HASH_KEYS, "stale")})
    convert_file(plain, first, dialect, lambda _: models)
    return first


def header_of(path: Path) -> dict[str, str]:
    """The header of a file, or of the first component of a folder of PEFT's."""
    return dict(read_safetensors(find_weights(next(path.iterdir()) if path.is_dir() else path)).metadata)


def assert_true_hashes(path: Path) -> None:
    path = find_weights(next(path.iterdir()) if path.is_dir() else path)
    header, found = read_safetensors(path).metadata, hash_file(path)
    true = (found.sshs_model_hash, found.sshs_legacy_hash, f"0x{found.sshs_model_hash}")
    said = tuple(header.get(key) for key in HASH_KEYS)
    if said != true:
        raise AssertionError((path, said, true))


def scales_of(path: Path, models: Models) -> dict[str, float]:
    deltas = bind(read_adapter(read_adapter_file(path)), models).deltas
    return {module: delta.rank_scale for found in deltas.values() for module, delta in found.items()}


def configs_of(path: Path) -> dict[str, Any]:
    """The config that a file of diffusers or a folder of PEFT's comes with."""
    if path.is_dir():
        return json.loads((path / "unet" / "adapter_config.json").read_text())
    found = json.loads(header_of(path)["lora_adapter_metadata"])
    return {key.removeprefix("unet."): value for key, value in found.items()}


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_words_and_true_hashes_go_from_each_dialect_into_each_other_and_back(
    source: str, target: str, tmp_path: Path
) -> None:
    models = models_of(source, target)
    if frozenset({source, target}) in STRANGERS:
        with pytest.raises(UnsupportedAdapterError, match="no name for this layer"):
            get_dialect(target).write(adapter_for(models_of(source), None))
        return
    first = source_file(tmp_path, source, models, WORDS)
    there, back = place(tmp_path, target, "there"), place(tmp_path, source, "back")
    assert header_of(first).items() >= WORDS.items()
    convert_file(first, there, target, lambda _: models)
    assert header_of(there).items() >= WORDS.items()
    convert_file(there, back, source, lambda _: models)
    for path in (first, there, back):
        assert_true_hashes(path)
    came, went = ({k: v for k, v in header_of(path).items() if k not in HASH_KEYS} for path in (back, first))
    assert came.items() >= went.items()
    assert came.keys() - went.keys() <= set(FACTS)


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if not set(pair) & set(WITHOUT_ALPHA)])
def test_ranks_and_alphas_in_headers_are_those_of_the_layers(
    source: str, target: str, tmp_path: Path
) -> None:
    models = models_of(source, target)
    first = source_file(tmp_path, source, models, WORDS, alpha=0.75)
    there, back = place(tmp_path, target, "there"), place(tmp_path, source, "back")
    convert_file(first, there, target, lambda _: models)
    convert_file(there, back, source, lambda _: models)
    assert scales_of(first, models) == dict.fromkeys(PATHS, 0.75)
    assert scales_of(there, models) == scales_of(back, models) == scales_of(first, models)
    for path, dialect in ((there, target), (back, source)):
        header = header_of(path)
        if dialect in ("kohya", "lycoris"):
            assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("Dynamic", "Dynamic")
        if dialect in OF_A_CONFIG:
            config = configs_of(path)
            pairs = {
                path: (
                    config["rank_pattern"].get(f"^{path}", config["r"]),
                    config["alpha_pattern"].get(f"^{path}", config["lora_alpha"]),
                )
                for path in PATHS
            }
            assert pairs == dict(zip(PATHS, [(2, 1.5), (4, 3.0)], strict=True))


@pytest.mark.parametrize("source", OF_A_CONFIG)
@pytest.mark.parametrize("target", [name for name in WRITTEN if name not in WITHOUT_ALPHA])
def test_a_config_of_peft_becomes_alphas_or_a_config_and_itself_again(
    source: str, target: str, tmp_path: Path
) -> None:
    models = models_of(source)
    file = get_dialect("peft").write(adapter_for(models, None))
    named = {f"unet.{key}": value for key, value in CONFIG.items()}
    file = TensorFile(file.tensors, {**WORDS, "lora_adapter_metadata": json.dumps(named)})
    first = write_folders(tmp_path / "first", file)
    if source == "diffusers":
        convert_file(first, place(tmp_path, source, "in"), source, lambda _: models)
        first = place(tmp_path, source, "in")
    there, back = place(tmp_path, target, "there"), place(tmp_path, source, "back")
    convert_file(first, there, target, lambda _: models)
    convert_file(there, back, source, lambda _: models)
    assert scales_of(first, models) == {
        PATHS[0]: pytest.approx(8 / 2**0.5),
        PATHS[1]: pytest.approx(3 / 4**0.5),
    }
    assert scales_of(there, models) == scales_of(back, models) == scales_of(first, models)
    assert configs_of(first) == configs_of(back) == CONFIG
    if target in OF_A_CONFIG:
        assert configs_of(there) == CONFIG
    for path in (there, back):
        assert header_of(path).items() >= WORDS.items()


@pytest.mark.parametrize("target", [name for name in WRITTEN if name in WITHOUT_ALPHA])
def test_a_strength_that_a_config_tells_is_refused_where_there_are_no_alphas(
    target: str, tmp_path: Path
) -> None:
    models = models_of("peft")
    file = get_dialect("diffusers").write(adapter_for(models, 0.75))
    first = write_safetensors(tmp_path / "in.safetensors", file.tensors, file.metadata)
    with pytest.raises(UnsupportedAdapterError, match=re.escape(f"{target!r}")):
        convert_file(first, tmp_path / "out.safetensors", target, lambda _: models_of("peft"))
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("target", [name for name in WRITTEN if name not in ("xlabs", "omi")])
def test_words_of_a_dialect_that_is_read_alone_are_kept_and_its_positions_are_not(target: str) -> None:
    positions = {"unet": classes("CrossAttention", "Attention", "GEGLU"), "unet:0:rank": "1"}
    only = by_key("unet", unet_walk(PLAIN, 768, False)[:1])
    adapter = read_adapter(TensorFile(only, {**WORDS, **positions}))
    assert adapter.dialect == "cloneofsimo"
    written = get_dialect(target).write(adapter).metadata
    assert written.items() >= WORDS.items()
    assert not written.keys() & positions.keys()


@pytest.mark.parametrize(
    "target", [name for name in WRITTEN if name not in ("xlabs", "attention-processors", "omi")]
)
def test_words_of_diffsynths_files_are_kept(target: str) -> None:
    adapter = read_adapter(minimax_h3(".default", WORDS))
    assert adapter.dialect == "diffsynth-h3"
    assert get_dialect(target).write(adapter).metadata.items() >= WORDS.items()


def test_a_header_without_hashes_gets_none(tmp_path: Path) -> None:
    models = models_of("kohya")
    file = get_dialect("diffusers").write(adapter_for(models, None))
    first = write_safetensors(tmp_path / "in.safetensors", file.tensors, WORDS)
    convert_file(first, tmp_path / "out.safetensors", "kohya", lambda _: models)
    assert not header_of(tmp_path / "out.safetensors").keys() & set(HASH_KEYS)
