"""The adapters on one model: the one object that holds their state, and the only code that changes the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast, final

import torch
from torch import Tensor, nn

from lorry.algebra import Delta, LowRank
from lorry.errors import DuplicateAdapterError, FuseError, StateError, UnknownAdapterError, did_you_mean
from lorry.patching.call_scale import scaled_class, takes_scale
from lorry.patching.classes import change_class
from lorry.patching.fusing import check_fusable, fused_weight
from lorry.patching.placement import weight_of
from lorry.patching.resident import Resident
from lorry.patching.side_path import BUFFERS, DOWN, SCALE, UP, SidePath, side_path_class, trained_names
from lorry.patching.undo import Undo

Originals = Literal["device", "cpu", "none"]
"""Where the original weights of fused targets are kept: beside the fused ones (unfuse swaps pointers), in main memory
(unfuse copies them back), or nowhere (half the memory, and unfuse refuses)."""


@final
@dataclass(frozen=True, slots=True)
class Strength:
    """An adapter's strength: one number, or a number by module path with one for all others."""

    value: float = 1.0
    by_path: Mapping[str, float] | None = None

    def at(self, path: str) -> float:
        """Return the strength at a module."""
        return self.value if self.by_path is None else self.by_path.get(path, self.value)

    def times(self, factor: float) -> Strength:
        """Return this strength scaled by `factor`."""
        by_path = None if self.by_path is None else {path: s * factor for path, s in self.by_path.items()}
        return Strength(self.value * factor, by_path)

    def __str__(self) -> str:
        return f"{self.value:g}" if self.by_path is None else "by block"


@final
@dataclass(frozen=True, slots=True)
class _Joined:
    """The adapters whose factors stand in one module's side path, in their order."""

    names: tuple[str, ...]
    scales: tuple[float, ...]
    """The factor that each adapter's file puts on its delta here."""
    ranks: tuple[int, ...]


def find_state(model: nn.Module | None) -> AdapterState | None:
    """Return the adapters' state of a model, or None where it carries no adapters."""
    return None if model is None else vars(model).get("lorry")


def get_state(model: nn.Module, undo: Undo) -> AdapterState:
    """Return the adapters' state of a model, attached to it (as `model.lorry`) if there was none."""
    state = find_state(model)
    if state is None:
        state = AdapterState(model)
        state.attach(undo)
    return state


@final
class AdapterState:
    """Which adapters a model carries, which of them act, how strongly, and by which way.

    Every method either does the whole of what it says or, by its `undo`, nothing. Fields are replaced and never
    changed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        """Make the state of a model that carries nothing yet; `attach` puts it there."""
        self.model = model
        self.adapters: dict[str, Resident] = {}
        self.strengths: dict[str, Strength] = {}
        """For every loaded adapter, active or not."""
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.fused: dict[str, Strength] = {}
        self.call_scale = 1.0
        self._modules: dict[str, SidePath] = {}
        self._joined: dict[str, _Joined] = {}
        """What stands in each module's side path."""
        self._originals: dict[str, Tensor | None] = {}
        """The saved weight of each fused module; None where none was kept."""
        self._aside: dict[str, Tensor] | None = None
        """The fused weights, while the adapters are disabled."""

    # --- on and off the model ---------------------------------------------------------------------------------

    def attach(self, undo: Undo) -> None:
        """Put the state on its model."""
        undo.set_item(vars(self.model), "lorry", self)
        if takes_scale(self.model):
            change_class(self.model, scaled_class(type(self.model)), undo)

    def _detach(self, undo: Undo) -> None:
        own_class = vars(type(self.model)).get("lorry_class")
        if own_class is not None:
            change_class(self.model, own_class, undo)
        undo.delete_item(vars(self.model), "lorry")

    def add(self, name: str, deltas: Mapping[str, Delta], undo: Undo, *, replace: bool = False) -> None:
        """Load an adapter, inactive; `replace` puts it in the place of the one of that name, active as that was.

        Args:
            name: what to call it.
            deltas: {module path: delta of the module weight's shape}, out of a plan.

        Raises:
            DuplicateAdapterError: there is one of that name, and not `replace`.
            StateError: `replace`, and the one of that name is fused.
        """
        if name in self.adapters and not replace:
            raise DuplicateAdapterError(
                f"An adapter named {name!r} is loaded already. Choose another name, or take it off with "
                f"`delete_adapters({name!r})`."
            )
        if name in self.fused:
            raise StateError(f"{name!r} is fused: unfuse it before it is swapped for another.")
        modules = dict(self.model.named_modules())
        self._put(name, Resident.of(deltas, {path: modules[path] for path in deltas}), undo)

    def add_trainable(self, name: str, deltas: Mapping[str, Delta], undo: Undo) -> None:
        """Load an adapter whose tensors are parameters to be trained, inactive.

        While it is active, they are parameters of its modules (`….lorry_{name}_down`), so that `model.parameters()` has
        them; `model.state_dict()` never does.

        Raises:
            DuplicateAdapterError: there is one of that name.
        """
        if name in self.adapters:
            raise DuplicateAdapterError(f"An adapter named {name!r} is loaded already. Choose another name.")
        self._put(name, Resident(deltas, trainable=True), undo)

    def _put(self, name: str, resident: Resident, undo: Undo) -> None:
        undo.set_attribute(self, "adapters", {**self.adapters, name: resident})
        if name not in self.strengths:
            undo.set_attribute(self, "strengths", {**self.strengths, name: Strength()})
        self._forget_joined(name, undo)
        self._settle_modules(undo)
        self._refresh(undo)

    def remove(self, names: Iterable[str], undo: Undo) -> None:
        """Take adapters off, unfusing them where they are fused; the last one takes the state off the model too."""
        leaving = [name for name in names if name in self.adapters]
        if any(name in self.fused for name in leaving):
            self.unfuse(undo, [name for name in leaving if name in self.fused])
        undo.set_attribute(self, "adapters", {n: r for n, r in self.adapters.items() if n not in leaving})
        undo.set_attribute(self, "strengths", {n: s for n, s in self.strengths.items() if n not in leaving})
        undo.set_attribute(self, "active", tuple(name for name in self.active if name not in leaving))
        for name in leaving:
            self._forget_joined(name, undo)
        self._refresh(undo)
        self._settle_modules(undo)
        if not self.adapters and not self._originals:
            self._detach(undo)

    def clear(self, undo: Undo, *, keep_fused: bool = False) -> None:
        """Take every adapter off; with `keep_fused`, fused weights stay and their originals are let go."""
        if keep_fused:
            self.set_enabled(True, undo)
            undo.set_attribute(self, "fused", {})
            undo.set_attribute(self, "_originals", {})
        self.remove(list(self.adapters), undo)

    # --- which act, and how strongly --------------------------------------------------------------------------

    def set_active(self, strengths: Mapping[str, Strength], undo: Undo) -> None:
        """Make these adapters, and only these, active, each at its strength. Names not on this model are passed over.

        Raises:
            StateError: a fused adapter would get another strength than it is fused at.
        """
        here = {name: strength for name, strength in strengths.items() if name in self.adapters}
        for name, strength in here.items():
            if name in self.fused and self.strengths[name] != strength:
                raise StateError(
                    f"{name!r} is fused at {self.fused[name]}, which `set_adapters` cannot change to {strength}. "
                    "Call `unfuse_lora()` first, then set it, then fuse again."
                )
        undo.set_attribute(self, "active", tuple(here))
        undo.set_attribute(self, "strengths", {**self.strengths, **here})
        self._refresh(undo)

    def set_enabled(self, enabled: bool, undo: Undo) -> None:
        """Turn all adapters, fused ones included, off or on again as they were set.

        Raises:
            FuseError: an adapter is fused and no originals were kept.
        """
        if enabled == self.enabled:
            return
        if self._originals:
            self._swap_fused(enabled, undo)
        undo.set_attribute(self, "enabled", enabled)
        self._refresh(undo)

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        """Scale every active adapter's strength by `scale` inside the context.

        Raises:
            FuseError: adapters are fused, where a strength for one call has no meaning.
        """
        if scale == 1.0 or not self.enabled:
            yield
            return
        if self.fused:
            raise FuseError(
                f"A strength of {scale:g} for this call cannot reach {', '.join(map(repr, self.fused))}: fused. "
                "Call `unfuse_lora()` first, or fuse with `lora_scale`."
            )
        before = self.call_scale
        with Undo() as undo:
            undo.set_attribute(self, "call_scale", before * scale)
            self._refresh(undo)
        try:
            yield
        finally:
            self.call_scale = before
            with Undo() as undo:
                self._refresh(undo)

    def park(self, names: Iterable[str], device: torch.device, undo: Undo) -> None:
        """Move adapters' tensors to `device`; those that act keep working, from copies where their modules compute."""
        moved = {name: self.adapters[name].moved(device) for name in names if name in self.adapters}
        undo.set_attribute(self, "adapters", {**self.adapters, **moved})
        for name in moved:
            self._forget_joined(name, undo)
        self._refresh(undo)

    # --- fuse and unfuse --------------------------------------------------------------------------------------

    def fuse(
        self,
        undo: Undo,
        names: Sequence[str] | None = None,
        scale: float = 1.0,
        *,
        safe: bool = False,
        originals: Originals = "device",
    ) -> None:
        """Fuse adapters (all active ones when None) into the weights, at `scale` times their strength.

        Raises:
            FuseError: one is fused already, adapters are disabled, a weight cannot take a delta without loss, or `safe`
                and a fused weight would not be finite.
        """
        wanted = [name for name in (self.active if names is None else names) if name in self.adapters]
        again = [name for name in wanted if name in self.fused]
        if again and names is not None:
            raise FuseError(
                f"{again[0]!r} is fused already, at {self.fused[again[0]]}. Call `unfuse_lora()` first."
            )
        if wanted and not self.enabled:
            raise FuseError("The adapters are disabled: call `enable_lora()` before fusing them.")
        new = {name: self.strengths[name].times(scale) for name in wanted if name not in self.fused}
        if not new:
            return
        fused = {**self.fused, **new}
        self._rewrite(
            fused, [path for name in new for path in self.adapters[name].deltas], undo, safe, originals
        )
        undo.set_attribute(self, "fused", fused)
        self._refresh(undo)

    def unfuse(self, undo: Undo, names: Sequence[str] | None = None) -> None:
        """Take fused adapters (all when None) out of the weights, by their saved bits; they act as set before.

        Raises:
            FuseError: no originals were kept.
        """
        leaving = [name for name in (self.fused if names is None else names) if name in self.fused]
        if not leaving:
            return
        self._kept_originals()
        enabled = self.enabled
        self.set_enabled(True, undo)
        fused = {name: strength for name, strength in self.fused.items() if name not in leaving}
        paths = [path for name in leaving for path in self.adapters[name].deltas]
        self._rewrite(fused, paths, undo)
        undo.set_attribute(self, "fused", fused)
        self._refresh(undo)
        self.set_enabled(enabled, undo)

    @torch.no_grad()
    def _rewrite(
        self,
        fused: Mapping[str, Strength],
        paths: Iterable[str],
        undo: Undo,
        safe: bool = False,
        keep: Originals = "device",
    ) -> None:
        """Give the modules at `paths` the weight that `fused` makes of their original."""
        undo.set_attribute(self, "_originals", dict(self._originals))
        for path in dict.fromkeys(paths):
            module = self._modules[path]
            check_fusable(path, module)
            weight = weight_of(module)
            original = self._originals.get(path, weight.data)
            if original is None:
                raise _no_originals(path)
            original = original.to(weight.device, weight.dtype)
            deltas = [
                (self.adapters[n].deltas[path], s.at(path))
                for n, s in fused.items()
                if path in self.adapters[n].deltas
            ]
            if not deltas:
                undo.set_attribute(weight, "data", original)
                del self._originals[path]
                continue
            with torch.autocast(weight.device.type, enabled=False):
                new = fused_weight(original, deltas)
            if safe and not bool(torch.isfinite(new).all()):
                raise FuseError(
                    f"`{path}` would not be finite with {', '.join(fused)} fused: nothing was fused."
                )
            self._originals.setdefault(path, _kept(original, keep))
            undo.set_attribute(weight, "data", new)

    def _swap_fused(self, enabled: bool, undo: Undo) -> None:
        originals = self._kept_originals()
        if enabled:
            for path, fused in (self._aside or {}).items():
                weight = weight_of(self._modules[path])
                undo.set_attribute(weight, "data", fused.to(weight.device, weight.dtype))
            undo.set_attribute(self, "_aside", None)
            return
        undo.set_attribute(self, "_aside", {p: weight_of(self._modules[p]).data for p in self._originals})
        for path, original in originals.items():
            weight = weight_of(self._modules[path])
            undo.set_attribute(weight, "data", original.to(weight.device, weight.dtype))

    def _kept_originals(self) -> dict[str, Tensor]:
        kept = {path: original for path, original in self._originals.items() if original is not None}
        for path in self._originals.keys() - kept.keys():
            raise _no_originals(path)
        return kept

    # --- the side path ----------------------------------------------------------------------------------------

    def _settle_modules(self, undo: Undo) -> None:
        """Patch the modules that some adapter has a delta for, and unpatch all others."""
        wanted = dict.fromkeys(path for resident in self.adapters.values() for path in resident.deltas)
        modules = {path: module for path, module in self._modules.items() if path in wanted}
        for path, module in self._modules.items():
            if path not in wanted:
                _unpatch(module, undo)
        named = dict(self.model.named_modules()) if wanted.keys() - modules.keys() else {}
        for path in wanted:
            if path not in modules:
                modules[path] = _patched(path, named[path], undo)
        undo.set_attribute(self, "_modules", modules)

    def _forget_joined(self, name: str, undo: Undo) -> None:
        undo.set_attribute(
            self, "_joined", {path: j for path, j in self._joined.items() if name not in j.names}
        )

    def _refresh(self, undo: Undo) -> None:
        """Bring every module's side path to what the fields say: the joined factors, and their strengths."""
        acting = [name for name in self.active if name not in self.fused] if self.enabled else []
        joined: dict[str, _Joined] = {}
        for path, module in self._modules.items():
            names = tuple([name for name in acting if path in self.adapters[name].deltas])
            if module.lorry_trained or any(self.adapters[name].trainable for name in names):
                names = self._refresh_trained(path, module, names, undo)
            before = self._joined.get(path)
            if names and before is not None and before.names == names:
                joined[path] = before
            elif names:
                pairs = [self.adapters[name].factors(path, module) for name in names]
                joined[path] = _Joined(names, tuple([p.scale for p in pairs]), tuple([p.rank for p in pairs]))
                down, up = _join(pairs)
                undo.set_item(module._buffers, DOWN, down)
                undo.set_item(module._buffers, UP, up)
            elif module._buffers[DOWN] is not None:
                for buffer in BUFFERS:
                    undo.set_item(module._buffers, buffer, None)
        undo.set_attribute(self, "_joined", joined)
        self._write_scales(undo)

    def _refresh_trained(
        self, path: str, module: SidePath, names: Sequence[str], undo: Undo
    ) -> tuple[str, ...]:
        """Give a module the parameters of the trainable adapters among `names`; return the others."""
        trained = tuple(name for name in names if self.adapters[name].trainable)
        for name in set(module.lorry_trained) - set(trained):
            down, up, scale = trained_names(name)
            undo.delete_item(module._parameters, down)
            undo.delete_item(module._parameters, up)
            undo.delete_item(module._buffers, scale)
        for name in trained:
            pair = self.adapters[name].deltas[path].low_rank()
            if pair is None:
                raise StateError(
                    f"`{path}`: {self.adapters[name].deltas[path].family} cannot be trained yet."
                )
            strength = pair.scale * self.strengths[name].at(path) * self.call_scale
            down, up, scale = trained_names(name)
            undo.set_item(module._parameters, down, pair.down)
            undo.set_item(module._parameters, up, pair.up)
            vector = torch.full((pair.rank,), strength, dtype=torch.float32, device=pair.down.device)
            undo.set_item(module._buffers, scale, vector)
        undo.set_item(vars(module), "lorry_trained", trained)
        return tuple(name for name in names if name not in trained)

    def _write_scales(self, undo: Undo) -> None:
        """Give each module its piece of one vector of strengths: one copy to a device, whatever their number."""
        if not self._joined:
            return
        scales = [
            self.strengths[name].at(path) * self.call_scale * scale
            for path, joined in self._joined.items()
            for name, scale in zip(joined.names, joined.scales, strict=True)
        ]
        ranks = [rank for joined in self._joined.values() for rank in joined.ranks]
        vector = torch.tensor(scales, dtype=torch.float32).repeat_interleave(torch.tensor(ranks))
        sizes = [sum(joined.ranks) for joined in self._joined.values()]
        pieces: dict[torch.device, tuple[Tensor, ...]] = {}
        for number, path in enumerate(self._joined):
            buffers = self._modules[path]._buffers
            device = cast(Tensor, buffers[DOWN]).device
            if device not in pieces:
                pieces[device] = vector.to(device).split(sizes)
            undo.set_item(buffers, SCALE, pieces[device][number])

    # --- for people -------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """The bytes that adapters and saved originals hold, besides the model's own."""
        originals = sum(tensor.nbytes for tensor in self._originals.values() if tensor is not None)
        return originals + sum(resident.nbytes for resident in self.adapters.values())

    def mode(self, name: str) -> str:
        """Return how an adapter acts: "fused at 0.7", "active at 1", "inactive", or "disabled"."""
        if name not in self.adapters:
            raise unknown_adapter(name, self.adapters)
        if not self.enabled:
            return "disabled"
        if name in self.fused:
            return f"fused at {self.fused[name]}"
        return f"active at {self.strengths[name]}" if name in self.active else "inactive"

    def __str__(self) -> str:
        lines = [
            f"{name}: {self.mode(name)}, {len(resident.deltas)} targets, {resident.nbytes / 1e6:.1f} MB"
            for name, resident in self.adapters.items()
        ]
        head = f"{type(self.model).__name__}: {len(self.adapters)} adapters, {self.nbytes / 1e6:.1f} MB"
        return "\n  ".join([head, *lines])

    __repr__ = __str__


def unknown_adapter(name: str, known: Iterable[str]) -> UnknownAdapterError:
    """Make the error for an adapter name that is not loaded."""
    loaded = list(known)
    listed = ", ".join(map(repr, loaded)) or "none"
    return UnknownAdapterError(
        f"No adapter named {name!r} is loaded (loaded: {listed}).{did_you_mean(name, loaded)}"
    )


def _no_originals(path: str) -> FuseError:
    return FuseError(
        f'`{path}` was fused with `originals="none"`: there are no saved bits to go back to. Load the base model '
        "again, or keep the fused weights for good with `unload_lora_weights(keep_fused=True)`."
    )


def _kept(original: Tensor, keep: Originals) -> Tensor | None:
    if keep == "none":
        return None
    return original if keep == "device" else original.to("cpu", copy=original.device.type == "cpu")


def _join(pairs: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    if len(pairs) == 1:
        return pairs[0].down, pairs[0].up
    return torch.cat([pair.down for pair in pairs]), torch.cat([pair.up for pair in pairs], dim=1)


def _patched(path: str, module: nn.Module, undo: Undo) -> SidePath:
    cls = side_path_class(type(module))
    if cls is None:
        raise StateError(f"`{path}` is a {type(module).__name__}, which has no side path.")
    change_class(module, cls, undo)
    undo.set_attribute(
        module, "_non_persistent_buffers_set", module._non_persistent_buffers_set | set(BUFFERS)
    )
    for buffer in BUFFERS:
        undo.set_item(module._buffers, buffer, None)
    return cast(SidePath, module)


def _unpatch(module: SidePath, undo: Undo) -> None:
    for buffer in BUFFERS:
        undo.delete_item(module._buffers, buffer)
    undo.set_attribute(
        module, "_non_persistent_buffers_set", module._non_persistent_buffers_set - set(BUFFERS)
    )
    for name in vars(module).get("lorry_trained", ()):
        for key in trained_names(name):
            undo.delete_item(module._parameters if key in module._parameters else module._buffers, key)
    if "lorry_trained" in vars(module):
        undo.delete_item(vars(module), "lorry_trained")
    change_class(module, module.lorry_class, undo)
