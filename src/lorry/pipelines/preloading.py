"""Adapters read ahead, by a thread of their own, while a pipeline is drawing."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, final

import torch

from lorry.adapters import Adapter, with_form_of
from lorry.background import begun
from lorry.errors import StateError
from lorry.patching import copied
from lorry.pipelines.devices import usable_device
from lorry.pipelines.loading import collector_paused
from lorry.pipelines.reading import Source, check_arguments, read_source


@final
class Preloaded:
    """An adapter that is on its way into memory, for one `load_lora_weights`."""

    def __init__(self, source: Source, device: torch.device, where: dict[str, Any]) -> None:
        """Begin to read it; `preload` makes these."""
        self._source, self._device = source, device
        self._reading: Future[Adapter] | None = begun(_read, source, device, where)
        """None once it is taken: who has loaded it lets its memory go when it is taken off."""

    @property
    def done(self) -> bool:
        """Whether it is there, or reading it has failed: whether loading it would not wait."""
        return self._reading is None or self._reading.done()

    @property
    def owned(self) -> bool:
        """Whether nobody else has its memory: a state dict on the CPU keeps its own."""
        return self._device.type == "cuda" or not isinstance(self._source, Mapping)

    def take(self) -> Adapter:
        """Wait for it, and return it, once, or again where it was put back.

        Raises:
            FileError, FormatError: the file cannot be had, read or understood.
            StateError: it was taken already.
        """
        reading = self._reading
        if reading is None:
            raise StateError(f"{self} was loaded already, and is loaded once. Call `lorry.preload` again.")
        adapter = reading.result()
        self._reading = None
        if isinstance(self._source, Mapping):
            self._source = {}
        if self._device.type == "cuda":
            # Its memory was another stream's: it is not to be used again before the work of this one is done.
            stream = torch.cuda.current_stream(self._device)
            for tensor in _tensors(adapter):
                tensor.record_stream(stream)
        return adapter

    def put_back(self, adapter: Adapter) -> None:
        """Have an adapter again that was taken from here, and could not be loaded."""
        self._reading = Future()
        self._reading.set_result(adapter)

    def __repr__(self) -> str:
        what = "a state dict" if isinstance(self._source, Mapping) else repr(str(self._source))
        return f"Preloaded({what}, device={str(self._device)!r})"


def preload(source: Source, device: str | torch.device = "cpu", **where: Any) -> Preloaded:
    """Begin to read an adapter, in a thread, and return at once.

    `load_lora_weights` takes what this returns in place of a path, waits where it is not there yet, and then places it
    without reading, downloading or copying anything. Errors of the file are raised there.

    Args:
        source: a Hub model id, a local folder, a local file, or a state dict, which is not to be changed meanwhile.
        device: where its tensors are wanted: where the model computes. A GPU gets them from pinned memory, over a
            stream of its own, while others compute.
        where: arguments of `load_lora_weights` that say where the file is (`weight_name`, `subfolder`, …).

    Raises:
        StateError: there is no such device on this machine.
        TypeError: an argument that says nothing about a file.
    """
    check_arguments(where)
    return Preloaded(source, usable_device(device), where)


@torch.inference_mode(False)
@torch.no_grad()
def _read(source: Source, device: torch.device, where: dict[str, Any]) -> Adapter:
    with collector_paused():
        adapter = read_source(source, **where)
        if device.type != "cuda":
            return adapter
        stream, tensors = _stream(device), _tensors(adapter)
        for elsewhere in {tensor.device for tensor in tensors if tensor.is_cuda}:
            torch.cuda.synchronize(elsewhere)  # other streams may still be making a state dict
        with torch.cuda.stream(stream):
            moved = copied(tensors, device, pinned=True)
        stream.synchronize()
    there = {id(tensor): copy for tensor, copy in zip(tensors, moved, strict=True)}
    return with_form_of(adapter, adapter.map_tensors(lambda tensor: there.get(id(tensor), tensor)))


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of a device that adapters come over.

    Memory that was allocated for a stream is used again for that one alone: with a stream for each adapter, what those
    that have gone held would be no use to those that come.
    """
    return torch.cuda.Stream(device)


def _tensors(adapter: Adapter) -> list[torch.Tensor]:
    tensors = (tensor for entry in adapter.entries for tensor in entry.delta.tensors().values())
    return list({id(tensor): tensor for tensor in tensors}.values())
