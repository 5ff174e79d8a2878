"""The fused weights of one model, and the originals that they are taken back to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter, is_
from types import MappingProxyType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from lorry.algebra import Delta
from lorry.background import begun
from lorry.binding import BareParameter
from lorry.errors import FuseError
from lorry.patching.exchanging import can_exchange
from lorry.patching.following import bring
from lorry.patching.fuse_loss import FuseLoss
from lorry.patching.fusing import fused_parameter
from lorry.patching.grouped import Grouped
from lorry.patching.layer_kinds import PARAMETERS, LayerKind, check_fusable, find_kind, plain_parameter
from lorry.patching.memory import is_held_once
from lorry.patching.modes import changing_weights
from lorry.patching.originals import Keeper, Originals, Saved, no_originals, there
from lorry.patching.undo import Undo

Contributions = Sequence[tuple[Delta, float]]


class _One(NamedTuple):
    """A plain parameter that was given fused memory in exchange for its tensor."""

    name: str
    holder: dict[str, nn.Parameter | None]
    """The parameters of its module."""
    key: str
    parameter: nn.Parameter
    own: Tensor
    """Has the tensor that was the parameter's, with the original memory."""
    needs_grad: bool
    dtype: torch.dtype
    address: int
    """Of the fused memory, which is not held: offloading may put other memory in its place to have it free."""


@final
class _Given:
    """All such parameters, by what each of them has: they are asked and changed together."""

    def __init__(self, ones: Iterable[_One] = ()) -> None:
        columns = zip(*ones, strict=True)
        (
            self.names,
            self._holders,
            self._keys,
            self.parameters,
            self.own,
            self._need_grad,
            self._dtypes,
            self._addresses,
        ) = ([*next(columns, ())] for _ in _One._fields)

    def by_name(self) -> dict[str, _One]:
        """Return each by its name."""
        where = (self._holders, self._keys, self.parameters, self.own)
        facts = (self._need_grad, self._dtypes, self._addresses)
        return {one[0]: _One(*one) for one in zip(self.names, *where, *facts, strict=True)}

    def are_as_given(self) -> bool:
        """Whether all of them are where they were, with the memory that they were given and nothing else."""
        return (
            all(map(is_, map(dict.get, self._holders, self._keys), self.parameters))
            and [*map(Tensor.data_ptr, self.parameters)] == self._addresses
            and all(map(is_, map(attrgetter("dtype"), self.parameters), self._dtypes))
            and [*map(attrgetter("requires_grad"), self.parameters)] == self._need_grad
            and can_exchange(self.parameters)
        )


@final
class FusedWeights:
    """Which parameters of a model are fused, and what they were. Fields are replaced, never changed in place."""

    def __init__(self) -> None:
        self._originals: dict[str, Saved] = {}
        """Of each fused parameter."""
        self._given = _Given()
        """Those of them that exchanged their tensors, which are given back as they were."""
        self._aside: dict[str, Tensor] | None = None
        """The fused tensors, while they are put aside."""
        self._spare: dict[str, Tensor] = {}
        """Memory of parameters that were fused, for the next time: new memory costs as much as the sums do."""
        self._written: list[nn.Parameter] = []
        """Parameters that have other numbers since `take_written` was called."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_given": _Given()}  # the parameters of a copy have memory of their own

    def __bool__(self) -> bool:
        return bool(self._originals)

    def tensors(self) -> list[Tensor]:
        """Return what is held besides the model's own parameters."""
        originals = [saved.tensor for saved in self._originals.values() if saved.tensor is not None]
        return [*originals, *(self._aside or {}).values(), *self._spare.values()]

    def unfused(self, path: str, module: nn.Module, key: str, plain: Tensor) -> Tensor:
        """Return a parameter as plain numbers as it was before it was fused: `plain`, where it is not.

        Raises:
            FuseError: it is fused, and no original was kept.
        """
        name, parameter, kind = f"{path}.{key}", module._parameters[key], find_kind(module, key)
        if name not in self._originals or parameter is None or kind is None:
            return plain
        if self._originals[name].tensor is None:
            raise FuseError(
                f"`{path}`: an adapter that is active needs the {key} as it was before others were fused into it, and "
                'with `originals="none"` it is not kept. Fuse with another `originals`, or leave that adapter inactive.'
            )
        return kind.plain(module, self._original(name, parameter))

    def completed(
        self,
        parts: Contributions,
        modules: Mapping[str, nn.Module],
        before: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Contributions:
        """Return deltas with the base weights of other layers, where they depend on those.

        Args:
            parts: the deltas with their strengths.
            modules: by path.
            before: what parameters held that are being fused, of which no original may be kept.

        Raises:
            FuseError: such a weight is fused, and no original was kept.
        """

        def weight_of(path: str) -> Tensor:
            module, held = modules[path], before.get(f"{path}.weight")
            kind = find_kind(module, "weight")
            if held is not None and kind is not None:
                return kind.plain(module, held)
            return self.unfused(path, module, "weight", plain_parameter(path, module, "weight"))

        return [(delta.completed(weight_of), strength) for delta, strength in parts]

    def _original(self, name: str, contents: Tensor) -> Tensor:
        """Return what is to be put back in place of a parameter's contents: these, where it is not fused."""
        return self._originals[name].found(contents, name) if name in self._originals else contents

    def follow(self, path: str, before: torch.device, now: torch.device) -> None:
        """Move what is kept beside a module's parameters from the device they were on to where they are."""
        for key in PARAMETERS:
            name = f"{path}.{key}"
            saved = self._originals.get(name)
            beside = saved.tensor if saved is not None and saved.beside else None
            self._spare.pop(name, None)
            self._given = _Given()  # what one of them was is not to be held
            for tensor in (beside, (self._aside or {}).get(name)):
                if tensor is not None and type(tensor) is Tensor and tensor.device == before:
                    bring(tensor, now)

    @changing_weights()
    def rewrite(
        self,
        modules: Mapping[str, nn.Module],
        contributions: Mapping[str, Contributions],
        undo: Undo,
        *,
        safe: bool = False,
        keep: Originals = "device",
        lossy: bool = False,
    ) -> dict[str, FuseLoss]:
        """Make modules' parameters what `contributions` make of their originals; without any, the originals.

        Args:
            modules: by path.
            contributions: by path.
            safe: refuse values that are not finite.
            keep: where originals go that are not saved yet.
            lossy: quantize sums again where a weight is quantized.

        Returns:
            What was lost, for each parameter that was quantized again.

        Raises:
            FuseError: a parameter cannot take a delta without loss (and not `lossy`, or its library cannot quantize it
                again), two layers share it, its original was not kept, or `safe` found a value that is not finite.
        """
        lost: dict[str, FuseLoss] = {}
        fused, before, later = dict[str, Tensor](), dict[str, Tensor](), Grouped()
        leaving: list[str] = []
        paths = {name: name.rpartition(".")[::2] for name in self._originals}
        names = {
            id(modules[path]._parameters.get(key)): name
            for name, (path, key) in paths.items()
            if path in modules
        }
        undo.set_attribute(self, "_originals", dict(self._originals))
        undo.set_attribute(self, "_spare", dict(self._spare))
        given = self._given.by_name()
        with Keeper(keep) as keeper:
            for path, deltas in contributions.items():
                for key in PARAMETERS if path in modules else ():
                    name = f"{path}.{key}"
                    parts = [(one, s) for delta, s in deltas if (one := delta.part(key)) is not None]
                    if parts:
                        parts = self.completed(parts, modules, before)
                        # what is fused with loss already was asked for
                        again = lossy or name in self._originals
                        parameter, kind = check_fusable(path, modules[path], key, lossy=again)
                        _check_untied(names.setdefault(id(parameter), name), name)
                        if name not in self._originals:
                            before[name] = _contents(parameter, kind)  # `undo` holds it as long
                        if kind.refusal is None:
                            fused[name] = self._fuse(
                                name, modules[path], parameter, parts, later, keeper, given, undo
                            )
                        else:
                            lost[name] = self._repack(name, modules, kind, parts, safe, keeper, undo)
                    elif name in self._originals:
                        leaving.append(name)
            later.run()
        left = _Given(given.pop(name) for name in leaving if name in given)
        undo.set_attribute(self, "_given", _Given(given.values()))
        self._restore({name: self._originals.pop(name) for name in leaving}, left, modules, undo)
        if safe:
            for name, new in fused.items():
                _check_finite(name, new)
        return lost

    def _fuse(
        self,
        name: str,
        module: nn.Module,
        parameter: nn.Parameter,
        parts: Contributions,
        later: Grouped,
        keeper: Keeper,
        given: dict[str, _One],
        undo: Undo,
    ) -> Tensor:
        """Give a parameter the sum of its original and the deltas; return that, which may be filled `later`.

        The parameter exchanges its tensor for one with the sum, where it can, or has done so before (`given`).
        """
        original = self._original(name, parameter.data)
        saved = self._originals.get(name) or keeper.keep(original)
        out = _reusable(self._spare.pop(name, None), original)
        # an original that is kept elsewhere is not to be held until all are computed
        new = fused_parameter(original, parts, out=out, later=later if saved.beside else None)
        own = saved.beside_it(new) if given.pop(name, None) is not None else None
        if (
            name not in self._originals
            and saved.beside
            and not isinstance(module, BareParameter)  # for one, another module stands each time
            and can_exchange([parameter])
        ):
            own = new.detach().requires_grad_(parameter.requires_grad)
            undo.exchange([parameter], [own])
            saved = Saved(own, beside=True)
        else:
            undo.set_attribute(parameter, "data", new)
        if own is not None:
            where = (name, module._parameters, name.rpartition(".")[2], parameter, own)
            given[name] = _One(*where, own.requires_grad, new.dtype, new.data_ptr())
        self._originals[name] = saved
        self._written.append(parameter)
        return new

    def _repack(
        self,
        name: str,
        modules: Mapping[str, nn.Module],
        kind: LayerKind,
        parts: Contributions,
        safe: bool,
        keeper: Keeper,
        undo: Undo,
    ) -> FuseLoss:
        """Quantize the sum of the dequantized original and the deltas as the original is quantized."""
        module, parameter = modules[name.rpartition(".")[0]], _parameter(modules, name)
        original = self._original(name, _taken(parameter, modules, name, undo))
        base = kind.plain(module, original).float()
        exact = fused_parameter(base, parts)
        if safe:
            _check_finite(name, exact)
        new = kind.repacked(module, original, exact)
        if name not in self._originals:
            self._originals[name] = keeper.keep(original)
        self._spare.pop(name, None)
        self._put(parameter, new, modules, name, undo)
        return FuseLoss.of(base, exact, kind.plain(module, new).float())

    @changing_weights()
    def restore(self, modules: Mapping[str, nn.Module], undo: Undo) -> None:
        """Put back all originals: nothing is fused any more."""
        saved, given = self._originals, self._given
        undo.set_attribute(self, "_originals", {})
        undo.set_attribute(self, "_given", _Given())
        self._restore(saved, given, modules, undo)

    def _restore(
        self,
        saved: Mapping[str, Saved],
        given: _Given,
        modules: Mapping[str, nn.Module],
        undo: Undo,
    ) -> None:
        """Put parameters' originals back, which swaps pointers where those are on the device.

        Args:
            saved: the originals.
            given: those of them that have exchanged their tensors.
            modules: by path.
            undo: takes it back.
        """
        if not given.are_as_given():
            given = _Given()
        undo.exchange(given.parameters, given.own)
        spare: dict[str, Tensor] = dict(zip(given.names, given.own, strict=True))
        swapped, originals, fused = list[nn.Parameter](), list[Tensor](), list[Tensor]()
        others = [name for name in saved if name not in spare] if len(spare) < len(saved) else ()
        for name in others:
            if not _is_there(modules, name):
                continue
            one = saved[name]
            parameter = _parameter(modules, name)
            contents = _taken(parameter, modules, name, undo)
            original = one.found(contents, name)
            if type(original) is Tensor:
                swapped.append(parameter)
                fused.append(contents)
                originals.append(original)
                if original is one.tensor:
                    spare[name] = contents
            else:
                self._put(parameter, original, modules, name, undo)
        undo.set_attribute(self, "_spare", {**self._spare, **spare} if self._spare else spare)
        undo.set_data(swapped, originals, fused)
        self._written += given.parameters + swapped

    def free_spare(self, undo: Undo) -> None:
        """Let the memory go that is kept for the next time.

        Giving gigabytes back takes tenths of a second, which is left to a thread. It begins when all else is done: two
        threads that let tensors go wait for each other.
        """
        if self._spare:
            undo.on_success(partial(begun, self._spare.clear))
            undo.set_attribute(self, "_spare", {})

    @changing_weights()
    def put_aside(self, modules: Mapping[str, nn.Module], undo: Undo) -> None:
        """Put the originals in place of the fused parameters.

        Raises:
            FuseError: an original was not kept.
        """
        self.check_kept()
        here = [name for name in self._originals if _is_there(modules, name)]
        parameters = {name: _parameter(modules, name) for name in here}
        aside = {name: _taken(one, modules, name, undo) for name, one in parameters.items()}
        undo.set_attribute(self, "_aside", aside)
        for name, one in parameters.items():
            self._put(one, self._original(name, one), modules, name, undo)

    @changing_weights()
    def bring_back(self, modules: Mapping[str, nn.Module], undo: Undo) -> None:
        """Put the fused parameters back that were put aside."""
        for name, tensor in (self._aside or {}).items():
            if not _is_there(modules, name):
                continue
            parameter = _parameter(modules, name)
            _taken(parameter, modules, name, undo)
            self._put(parameter, there(tensor, parameter.device, parameter.dtype), modules, name, undo)
        undo.set_attribute(self, "_aside", None)

    def let_go(self, undo: Undo) -> None:
        """Forget the originals: what is fused now stays for good."""
        undo.set_attribute(self, "_originals", {})
        undo.set_attribute(self, "_given", _Given())

    def check_kept(self) -> None:
        """Raise when an original was not kept.

        Raises:
            FuseError: names the parameter.
        """
        if len(self._given.names) == len(self._originals):
            return
        for name, saved in self._originals.items():
            if saved.tensor is None:
                raise no_originals(name)

    def _put(
        self,
        parameter: nn.Parameter,
        contents: Tensor,
        modules: Mapping[str, nn.Module],
        name: str,
        undo: Undo,
    ) -> None:
        """Give a parameter these contents."""
        if isinstance(contents, nn.Parameter):
            path, _, key = name.rpartition(".")
            undo.set_item(modules[path]._parameters, key, contents)
        else:
            undo.set_attribute(parameter, "data", contents)
        self._written.append(contents if isinstance(contents, nn.Parameter) else parameter)

    def take_written(self) -> list[nn.Parameter]:
        """Return the parameters that have other numbers since the last time that this was called."""
        written, self._written = self._written, []
        return written


def _is_there(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a parameter that was fused is in its module, and that in the model: somebody may have taken it out."""
    path, _, key = name.rpartition(".")
    return path in modules and modules[path]._parameters.get(key) is not None


def _parameter(modules: Mapping[str, nn.Module], name: str) -> nn.Parameter:
    path, _, key = name.rpartition(".")
    parameter = modules[path]._parameters[key]
    if parameter is None:
        raise FuseError(f"`{name}` was fused and is gone.")
    if parameter.is_meta:
        raise FuseError(
            f"`{path}` is offloaded: its {key}, which an adapter is fused into, is not here, so that its "
            "original cannot be put back. Take the offloading off first (`pipe.remove_all_hooks()`)."
        )
    return parameter


def _contents(parameter: nn.Parameter, kind: LayerKind | None) -> Tensor:
    """What makes a parameter what it is: its data, or itself where its library keeps more in it."""
    is_data = type(parameter) is nn.Parameter or (kind is not None and kind.is_data)
    return parameter.data if is_data else parameter


def _taken(parameter: nn.Parameter, modules: Mapping[str, nn.Module], name: str, undo: Undo) -> Tensor:
    """Return the contents of a parameter, with all that its layer has moved out of it."""
    if type(parameter) is nn.Parameter:
        return parameter.data
    path, _, key = name.rpartition(".")
    module, kind = modules[path], find_kind(modules[path], key)
    for part in () if kind is None else kind.moved:
        if getattr(parameter, part) is None:
            undo.set_attribute(parameter, part, getattr(module.state, part))
            undo.set_attribute(module.state, part, None)
    return _contents(parameter, kind)


def _check_untied(other: str, name: str) -> None:
    if other != name:
        raise FuseError(
            f"`{other}` and `{name}` are one parameter, in which what is fused for either layer would act in both. "
            "Leave the adapter unfused, where each layer has its own."
        )


def _check_finite(name: str, new: Tensor) -> None:
    if not bool(torch.isfinite(new).all()):
        raise FuseError(f"`{name}` would not be finite: nothing was fused.")


def _reusable(spare: Tensor | None, like: Tensor) -> Tensor | None:
    """Return memory for a tensor like another, where there is such and nobody else has it."""
    if spare is None or spare.shape != like.shape or spare.stride() != like.stride():
        return None
    fits = spare.dtype is like.dtype and spare.device == like.device
    return spare.data if fits and is_held_once(spare) else None
