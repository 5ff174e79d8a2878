"""The form of an adapter: all of it but its weights. Adapters of one trainer have it in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lorry.adapters.adapter import Adapter, BlockNames, Entry
from lorry.background import there
from lorry.memory import IN_USE


@final
@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Form:
    """What is left of an adapter without its weights, and from which keys of a file each is filled in."""

    dialect: str
    block_names: BlockNames
    """What the adapter says of its targets' names."""
    text_encoders: Mapping[str, str]
    """What it says of its text encoders."""
    entries: tuple[tuple[Entry, tuple[tuple[str, str], ...]], ...]
    """Each over tensors on the meta device, with (name of a tensor, key of the file)."""
    fills: tuple[torch.dtype, int] | None
    """The dtype of its tensors and how many bytes they take, where they have one dtype and no key is there twice."""

    @classmethod
    def of(cls, adapter: Adapter, tensors: Mapping[str, Tensor]) -> Self | None:
        """Return the form of an adapter that was read from `tensors`, and remember that it is of it.

        None where anything of the adapter is not just one of `tensors`: a key that is left out, a token, or a tensor
        that was computed.
        """
        if adapter.ignored or adapter.unknown or adapter.embeddings:
            return None
        keys = {id(tensor): key for key, tensor in tensors.items()}
        outlines: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        entries = []
        for entry in adapter.entries:
            own = entry.delta.tensors()
            if not all(id(tensor) in keys for tensor in own.values()):
                return None
            hollow = {name: _outline(tensor, outlines) for name, tensor in own.items()}
            filled_from = tuple((name, keys[id(tensor)]) for name, tensor in own.items())
            entries.append((replace(entry, delta=entry.delta.with_tensors(hollow)), filled_from))
        used = [key for _, filled_from in entries for _, key in filled_from]
        dtypes = {tensors[key].dtype for key in used}
        is_plain = len(dtypes) == 1 and len({*used}) == len(used)
        fills = (dtypes.pop(), sum(tensors[key].nbytes for key in used)) if is_plain else None
        form = cls(adapter.dialect, adapter.block_names, adapter.text_encoders, tuple(entries), fills)
        _forms[adapter] = form
        return form

    def filled(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        source: str,
        arrived: Callable[[], object] = there,
        block: Tensor | None = None,
    ) -> Adapter:
        """Return the adapter of this form that a file's tensors make.

        Args:
            tensors: by key.
            metadata: of the file.
            source: the file.
            arrived: waits for the tensors' numbers.
            block: (bytes,) of uint8, the memory that they are views of, which nothing else has.
        """
        entries = tuple(
            Entry(
                entry.target,
                entry.delta.with_tensors({name: tensors[key] for name, key in names}),
                entry.keys,
                entry.scale_source,
            )
            for entry, names in self.entries
        )
        adapter = Adapter(
            entries,
            self.dialect,
            metadata=metadata,
            source=source,
            block_names=self.block_names,
            text_encoders=self.text_encoders,
            arrived=arrived,
        )
        _forms[adapter] = self
        if block is not None and self.fills is not None and self.fills[1] >= IN_USE * len(block):
            dtype = self.fills[0]
            _blocks[adapter] = block[: len(block) // dtype.itemsize * dtype.itemsize].view(dtype)
        return adapter


def with_form_of(adapter: Adapter, moved: Adapter) -> Adapter:
    """Return `moved`, which is `adapter` over other memory, and remember that it has its form."""
    form = form_of(adapter)
    if form is not None:
        _forms[moved] = form
    return moved


_forms: WeakKeyDictionary[Adapter, Form] = WeakKeyDictionary()
_blocks: WeakKeyDictionary[Adapter, Tensor] = WeakKeyDictionary()


def form_of(adapter: Adapter) -> Form | None:
    """Return the form of an adapter just as it was read; None of one that was changed since, or has none."""
    return _forms.get(adapter)


def block_of(adapter: Adapter) -> Tensor | None:
    """Return the memory, (numbers,), that the tensors of an adapter just as it was read fill, with nothing else in it.

    None where that is not known: what has no form, or was moved or changed since.
    """
    return _blocks.get(adapter)


def _outline(tensor: Tensor, outlines: dict[tuple[torch.Size, torch.dtype], Tensor]) -> Tensor:
    kind = (tensor.shape, tensor.dtype)
    if kind not in outlines:
        outlines[kind] = torch.empty_like(tensor, device="meta")
    return outlines[kind]
