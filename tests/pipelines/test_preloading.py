"""Adapters that a thread reads while a pipeline does other things."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import lorry
from lorry.adapters import Adapter
from lorry.binding.known import find_known
from lorry.errors import AdapterNotFoundError, BindingError, DuplicateAdapterError, StateError
from lorry.files import write_safetensors
from lorry.pipelines import preloading
from pipelines.unet_alone import UnetAlone, attention_loras
from snapshots import check_same, snapshot


def written(folder: Path, pipeline: UnetAlone, name: str = "one", seed: int = 0) -> str:
    torch.manual_seed(seed)
    return str(write_safetensors(folder / f"{name}.safetensors", attention_loras(pipeline)))


def factors(pipeline: UnetAlone, name: str) -> list[torch.Tensor]:
    deltas = pipeline.unet.lorry.adapters[name].deltas
    return [tensor for delta in deltas.values() for tensor in delta.tensors().values()]


def test_what_was_preloaded_is_loaded_bit_for_bit_and_without_a_copy(tmp_path: Path) -> None:
    pipeline, other = UnetAlone(), UnetAlone()
    path = written(tmp_path, pipeline)
    coming = lorry.preload(path)
    assert coming._reading is not None
    adapter = coming._reading.result()
    places = {t.data_ptr() for entry in adapter.entries for t in entry.delta.tensors().values()}
    report = pipeline.load_lora_weights(coming, adapter_name="one")
    plain = other.load_lora_weights(path, adapter_name="one")
    assert str(report) == str(plain)
    assert {tensor.data_ptr() for tensor in factors(pipeline, "one")} == places
    for ours, theirs in zip(factors(pipeline, "one"), factors(other, "one"), strict=True):
        assert torch.equal(ours, theirs)


def test_it_is_read_while_others_work_and_loading_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, may_go_on = UnetAlone(), threading.Event()
    read_source, threads = preloading.read_source, []

    def slowly(*args: Any, **kwargs: Any) -> Adapter:
        threads.append(threading.current_thread().name)
        assert may_go_on.wait(60)
        return read_source(*args, **kwargs)

    monkeypatch.setattr(preloading, "read_source", slowly)
    coming = lorry.preload(written(tmp_path, pipeline))
    assert not coming.done
    pipeline.load_lora_weights(attention_loras(pipeline), adapter_name="meanwhile")
    threading.Timer(0.2, may_go_on.set).start()
    pipeline.load_lora_weights(coming, adapter_name="one")
    assert coming.done
    assert pipeline.get_active_adapters() == ["one"]
    assert threads == ["lorry: _read"]


def test_a_dict_keeps_its_tensors() -> None:
    pipeline = UnetAlone()
    tensors = attention_loras(pipeline)
    pipeline.load_lora_weights(lorry.preload(tensors), adapter_name="one")
    assert {t.data_ptr() for t in factors(pipeline, "one")}.isdisjoint(t.data_ptr() for t in tensors.values())


def test_its_layout_is_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = UnetAlone()
    pipeline.load_lora_weights(written(tmp_path, pipeline), adapter_name="one")
    found = []
    monkeypatch.setattr("lorry.binding.plan.find_known", lambda *a: found.append(find_known(*a)) or found[-1])
    pipeline.load_lora_weights(lorry.preload(written(tmp_path, pipeline, "two", 1)), adapter_name="two")
    assert found[0] is not None


def test_errors_of_the_file_are_raised_where_it_is_loaded_and_change_nothing(tmp_path: Path) -> None:
    pipeline = UnetAlone()
    before = snapshot(pipeline.unet)
    missing = lorry.preload(tmp_path / "none.safetensors")
    with pytest.raises(AdapterNotFoundError, match=r"none\.safetensors"):
        pipeline.load_lora_weights(missing)
    layer = "unet.no.such.layer"
    foreign = {f"{layer}.lora_A.weight": torch.ones(2, 3), f"{layer}.lora_B.weight": torch.ones(3, 2)}
    with pytest.raises(BindingError):
        pipeline.load_lora_weights(lorry.preload(foreign))
    check_same(snapshot(pipeline.unet), before)


def test_it_is_loaded_once_and_wrong_arguments_are_named(tmp_path: Path) -> None:
    pipeline = UnetAlone()
    path = written(tmp_path, pipeline)
    coming = lorry.preload(path)
    with pytest.raises(TypeError, match=r"'weight_name' says where a file is: give it to `lorry\.preload`"):
        pipeline.load_lora_weights(coming, weight_name="a.safetensors")
    pipeline.load_lora_weights(coming, adapter_name="one")
    with pytest.raises(
        StateError, match=r"Preloaded\('.*one\.safetensors', device='cpu'\) was loaded already"
    ):
        pipeline.load_lora_weights(coming, adapter_name="two")
    with pytest.raises(TypeError, match=r"Unexpected argument 'wight_name'\. Did you mean 'weight_name'"):
        lorry.preload(path, wight_name="a")
    with pytest.raises(StateError, match="'moon' cannot be used on this machine"):
        lorry.preload(path, device="moon")
    assert pipeline.get_active_adapters() == ["one"]


@pytest.mark.parametrize("kind", ["file", "dict"])
def test_a_load_that_fails_can_be_tried_again(kind: str, tmp_path: Path) -> None:
    pipeline = UnetAlone()
    pipeline.load_lora_weights(attention_loras(pipeline), adapter_name="one")
    tensors = attention_loras(pipeline)
    coming = lorry.preload(
        str(write_safetensors(tmp_path / "a.safetensors", tensors)) if kind == "file" else tensors
    )
    for _ in range(2):
        with pytest.raises(DuplicateAdapterError):
            pipeline.load_lora_weights(coming, adapter_name="one")
        assert coming.done
    pipeline.load_lora_weights(coming, adapter_name="two")
    with pytest.raises(StateError, match="was loaded already"):
        pipeline.load_lora_weights(coming, adapter_name="three")
    pipeline.load_lora_weights(tensors, adapter_name="three")
    for ours, theirs in zip(factors(pipeline, "two"), factors(pipeline, "three"), strict=True):
        assert torch.equal(ours, theirs)


def test_its_device_is_named_as_tensors_name_it(tmp_path: Path) -> None:
    coming = lorry.preload(written(tmp_path, UnetAlone()), device="cpu:0")
    assert coming._device == torch.device("cpu")
    coming.take()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_has_it_before_it_is_loaded(tmp_path: Path) -> None:
    pipeline = UnetAlone()
    path = written(tmp_path, pipeline)
    pipeline.unet.to("cuda")
    coming = lorry.preload(path, device="cuda")
    assert coming._reading is not None
    assert {t.device.type for t in preloading._tensors(coming._reading.result())} == {"cuda"}
    pipeline.load_lora_weights(coming, adapter_name="one")
    pipeline.load_lora_weights(path, adapter_name="two")
    for ours, theirs in zip(factors(pipeline, "one"), factors(pipeline, "two"), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_dict_that_is_on_a_gpu_is_copied_there() -> None:
    pipeline = UnetAlone()
    pipeline.unet.to("cuda")
    tensors = {key: tensor.cuda() for key, tensor in attention_loras(pipeline).items()}
    pipeline.load_lora_weights(lorry.preload(tensors, device="cuda"), adapter_name="one")
    pipeline.load_lora_weights(tensors, adapter_name="two")
    for ours, theirs in zip(factors(pipeline, "one"), factors(pipeline, "two"), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["file", "dict"])
def test_it_holds_nothing_once_it_is_loaded(kind: str, tmp_path: Path) -> None:
    pipeline = UnetAlone()
    coming = lorry.preload(written(tmp_path, pipeline) if kind == "file" else attention_loras(pipeline))
    pipeline.load_lora_weights(coming, adapter_name="one")
    held = [weakref.ref(tensor) for tensor in factors(pipeline, "one")]
    pipeline.unload_lora_weights()
    gc.collect()
    assert coming.done
    assert not any(one() is not None for one in held)
