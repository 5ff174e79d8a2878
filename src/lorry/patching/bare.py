"""Bare parameters: those of a block itself and of no layer in it, as Wan's `blocks.0.scale_shift_table`.

A block that has such parameters is the same object under a subclass of its own class, in which their names are
properties. What is read there is computed when it is read, so that it follows the parameter wherever it goes:

    read = parameter + change,    change = sum(strength * delta), in float32 at least

rounded once. The change is a non-persistent buffer of the block; the parameter itself is not touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast, final
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from lorry.binding import BareParameter, bare_names, bare_parameters, modules_at
from lorry.errors import StateError
from lorry.patching.copies import Acting
from lorry.patching.following import Home, kept_in, say_moved
from lorry.patching.fused import FusedWeights
from lorry.patching.layer_kinds import COMPUTE_DTYPES
from lorry.patching.modes import without_modes
from lorry.patching.patches import check_own_class, mark_empty, mark_filled, patched_already, take_out
from lorry.patching.placement import device_with
from lorry.patching.sharded import is_sharded
from lorry.patching.undo import Undo

Tell = Callable[[str, torch.device, torch.device], None]


class Owner(nn.Module):
    """What the subclass of a block adds to it."""

    lorry_class: ClassVar[type[nn.Module]]
    """The block's own class."""
    lorry_names: ClassVar[tuple[str, ...]]
    """Its bare parameters. What adapters add to one is the buffer `lorry_{name}`, None where that is nothing."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _revived, (self.lorry_class, self.lorry_names), self.__dict__

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Follow the block, but keep what is added in its own dtype."""
        names = _buffers_of(self.lorry_names)
        exact = {name: tensor for name in names if (tensor := self._buffers[name]) is not None}
        before = kept_in(self)
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            applied = cast(Tensor, self._buffers[name])
            self._buffers[name] = applied if applied.dtype == tensor.dtype else tensor.to(applied.device)
        say_moved(self, before)
        return self


@final
class BareParameters:
    """The bare parameters of one model that adapters change. It keeps no hold on the model, which may own some."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        """Those whose blocks are patched."""
        self._all: tuple[str, ...] | None = None
        """All of a prepared model; None of one that is not."""

    def stand_ins(self, model: nn.Module) -> dict[str, BareParameter]:
        """Return what stands for each of them, as if it were a layer: so they are fused."""
        found = {name: _find(model, name) for name in self._names if not is_replaced(model, name)}
        return {name: BareParameter(one) for name, one in found.items() if one is not None}

    def tensors(self, model: nn.Module) -> list[Tensor]:
        """Return what is added to them."""
        places = ((_owner_at(model, name), _split(name)[1]) for name in self._names)
        held = (None if owner is None else owner._buffers.get(f"lorry_{name}") for owner, name in places)
        return [tensor for tensor in held if tensor is not None]

    def refresh(
        self,
        model: nn.Module,
        names: tuple[str, ...],
        acting: Mapping[str, Acting],
        weights: FusedWeights,
        tell: Tell,
        undo: Undo,
        *,
        all_of_them: bool = False,
    ) -> None:
        """Bring what is added to each to what `acting` says.

        Args:
            model: has them.
            names: of those that a loaded adapter, acting or not, has something for: their blocks stay patched. One that
                was taken out of the model since is passed over.
            acting: by name.
            weights: the fused weights, for families that need the original.
            tell: is told when a block has moved or was cast.
            undo: takes it back.
            all_of_them: patch every block and add zeros where nothing acts, so that compiled code stays as it is.

        Raises:
            StateError: a parameter is spread over processes, packed, or needed and not here.
        """
        if not (names or self._names or all_of_them or self._all):
            return
        if all_of_them and self._all is None:
            undo.set_attribute(self, "_all", tuple(bare_parameters(model)))
        elif not all_of_them:
            undo.set_attribute(self, "_all", None)
        wanted = names if self._all is None else self._all
        wanted = tuple(name for name in wanted if _find(model, name) is not None)
        owners = {_split(name)[0]: _owner_at(model, name) for name in self._names}
        for path in dict.fromkeys(_split(name)[0] for name in wanted):
            owner = model.get_submodule(path)
            # another block may have been put in the place of one that was patched
            known = path in owners and isinstance(owner, Owner)
            _patch(path, owner, tell, undo, known=known)
            owners.pop(path, None)
        for name in wanted:
            self._put(model, name, acting, weights, undo, zeros=all_of_them)
        for owner in filter(None, owners.values()):
            _unpatch(owner, undo)
        undo.set_attribute(self, "_names", wanted)

    def recast(
        self, model: nn.Module, owner: str, acting: Mapping[str, Acting], weights: FusedWeights
    ) -> None:
        """Make what is added in one block anew: the block was cast, and some families go by the parameter."""
        for name in self.names_of(owner):
            if model.get_submodule(owner)._buffers[f"lorry_{_split(name)[1]}"] is not None:
                self._put(model, name, acting, weights, Undo(), zeros=True)

    def names_of(self, owner: str) -> list[str]:
        """Return those of one block."""
        return [name for name in self._names if _split(name)[0] == owner]

    @without_modes()
    def _put(
        self,
        model: nn.Module,
        full: str,
        acting: Mapping[str, Acting],
        weights: FusedWeights,
        undo: Undo,
        *,
        zeros: bool,
    ) -> None:
        owner, name = _place(model, full)
        parts = [
            (delta, one.strength.at(full))
            for one in acting.values()
            if (delta := one.resident.bare.get(full)) is not None
        ]
        parameter = _checked(full, owner, name)
        device = device_with(owner, parameter)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        change = torch.zeros(parameter.shape, dtype=wide, device=device)
        for delta, strength in parts:
            base = _base(full, parameter, weights).to(device) if delta.needs_base else None
            here = delta.with_tensors({key: tensor.to(device) for key, tensor in delta.tensors().items()})
            change = here.weight(base, wide, strength).reshape(parameter.shape).add_(change)
        buffer, is_filled = f"lorry_{name}", bool(zeros or parts)
        undo.set_item(owner._buffers, buffer, change if is_filled else None)
        mark = mark_filled if is_filled else mark_empty
        mark([owner], [buffer], undo)


def is_replaced(model: nn.Module, full: str) -> bool:
    """Whether another block stands where the one was that was patched for a bare parameter."""
    owner = _owner_at(model, full)
    return owner is not None and not isinstance(owner, Owner)


def bare_buffers(module: nn.Module) -> list[str]:
    """Return the names of the buffers that hold what is added to a block's parameters; none for another module."""
    return _buffers_of(module.lorry_names) if isinstance(module, Owner) else []


def _patch(path: str, owner: nn.Module, tell: Tell, undo: Undo, *, known: bool) -> None:
    """Give a block its properties, which read the parameters themselves as long as nothing is added to them."""
    if isinstance(owner, Owner) and not known:
        raise patched_already(path)
    if not known:
        names = tuple(bare_names(owner))
        undo.set_classes([owner], [_owner_class(type(owner), names)])
        undo.set_item(vars(owner), "_buffers", {**owner._buffers, **dict.fromkeys(_buffers_of(names))})
    home = vars(owner).get("lorry_home")
    if home is None or not home.tells:
        undo.set_item(vars(owner), "lorry_home", Home(path, WeakMethod(tell)))


def _split(full: str) -> tuple[str, str]:
    owner, _, name = full.rpartition(".")
    return owner, name


def _place(model: nn.Module, full: str) -> tuple[nn.Module, str]:
    owner, name = _split(full)
    return model.get_submodule(owner), name


def _owner_at(model: nn.Module, full: str) -> nn.Module | None:
    """Return the block that has a bare parameter; None where it is gone."""
    path, _ = _split(full)
    return modules_at(model, [path]).get(path) if path else model


def _find(model: nn.Module, full: str) -> nn.Parameter | None:
    owner = _owner_at(model, full)
    return None if owner is None else owner._parameters.get(_split(full)[1])


def _buffers_of(names: Iterable[str]) -> list[str]:
    return [f"lorry_{name}" for name in names]


def _checked(full: str, owner: nn.Module, name: str) -> nn.Parameter:
    parameter = cast(nn.Parameter, owner._parameters[name])
    if is_sharded(parameter.data) or parameter.dtype not in COMPUTE_DTYPES:
        kind = "spread over processes" if is_sharded(parameter.data) else f"kept as {parameter.dtype}"
        raise StateError(
            f"`{full}` is {kind}: nothing can be added to it there. `strict=False` of a file without this tensor, or "
            "loading before the model is sharded, works."
        )
    return parameter


def _base(full: str, parameter: nn.Parameter, weights: FusedWeights) -> Tensor:
    if parameter.is_meta:
        raise StateError(
            f"`{full}` is offloaded: its numbers are not here, and this adapter's family needs them. Load the adapter "
            "before offloading."
        )
    return weights.unfused(full, BareParameter(parameter), "weight", parameter.data)


def _unpatch(owner: nn.Module, undo: Undo) -> None:
    """Make a block what it was."""
    if not isinstance(owner, Owner):
        return
    take_out([owner], [[name] for name in _buffers_of(owner.lorry_names)], undo)
    check_own_class(owner, _owner_class(owner.lorry_class, owner.lorry_names))
    undo.set_classes([owner], [owner.lorry_class])


# --- the classes of patched blocks --------------------------------------------------------------------------------


class _AsItsClass(type):
    """A class that is equal to the one that it was made of.

    A model may have bare parameters itself, and diffusers' `from_pipe` looks whether a model's class is in a list.
    """

    lorry_class: type[nn.Module]

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is cls.lorry_class

    def __hash__(cls) -> int:
        return hash(cls.lorry_class)


@functools.cache
def _owner_class(cls: type[nn.Module], names: tuple[str, ...]) -> type[Owner]:
    attributes: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "lorry_class": cls,
        "lorry_names": names,
        **{name: _property(name) for name in names},
    }
    meta = _AsItsClass if type(cls) is type else type(cls)
    return cast("type[Owner]", meta(cls.__name__, (Owner, cls), attributes))  # pyright: ignore[reportCallIssue]


def _property(name: str) -> property:
    buffer = f"lorry_{name}"

    def read(self: Owner) -> Tensor | None:
        parameter, change = self._parameters.get(name), self._buffers[buffer]
        if parameter is None or change is None:
            return parameter
        wide = torch.promote_types(parameter.dtype, change.dtype)
        return (parameter.to(wide) + change.to(parameter.device, wide)).to(parameter.dtype)

    return property(read, doc=f"`{name}` with what adapters add to it.")


def _revived(cls: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Make an empty patched block, for pickle and `copy.deepcopy` to fill."""
    return object.__new__(_owner_class(cls, names))
