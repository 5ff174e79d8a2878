"""The adapters on one model: the one object that holds their state, and the only code that changes the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import methodcaller
from typing import Any, final
from weakref import WeakMethod, ref

import torch
from torch import nn

from lorry.algebra import Delta, pad_channels
from lorry.binding import bare_parameters, find_idle, modules_at, size_of
from lorry.errors import DuplicateAdapterError, FuseError, StateError, UnknownAdapterError, did_you_mean
from lorry.memory import shrink_spare
from lorry.patching.bare import BareParameters, is_replaced
from lorry.patching.call_scale import CallScale, takes_scale
from lorry.patching.copies import Acting
from lorry.patching.following import Home
from lorry.patching.fuse_loss import FuseLoss
from lorry.patching.fused import FusedWeights
from lorry.patching.group_copies import keep_in_step
from lorry.patching.memory import held_bytes
from lorry.patching.originals import Originals
from lorry.patching.resident import Resident
from lorry.patching.sharded import check_not_fully_sharded
from lorry.patching.sides import SidePaths
from lorry.patching.strength import Step, Strength
from lorry.patching.undo import Undo
from lorry.patching.widening import Widened

log = logging.getLogger("lorry")


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
        self._model = ref(model)
        self.adapters: dict[str, Resident] = {}
        self._bare_names: tuple[str, ...] = ()
        """The bare parameters that they have deltas for, acting or not."""
        self.strengths: dict[str, Strength] = {}
        """For every loaded adapter, active or not."""
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.fused: dict[str, Strength] = {}
        self.call_scale = 1.0
        self.step: Step | None = None
        """The denoising step that strengths are set for; None outside of a run."""
        self._hooks: CallScale | None = None
        self._load_hook: int | None = None
        self._sides = SidePaths()
        self._bare = BareParameters()
        self._weights = FusedWeights()
        self._widened = Widened()

    @property
    def model(self) -> nn.Module:
        """The model. The state belongs to it and keeps no hold on it."""
        model = self._model()
        if model is None:
            raise StateError("The model of this state is gone.")
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _model=ref(state["_model"]))
        self._settle(self._sides.modules, Undo())

    # --- on and off the model ---------------------------------------------------------------------------------

    def attach(self, undo: Undo) -> None:
        """Put the state on its model."""
        undo.set_item(vars(self.model), "lorry", self)
        hook = self.model.register_load_state_dict_post_hook(_weights_replaced)
        undo.on_failure(hook.remove)
        self._load_hook = hook.id
        if takes_scale(self.model):
            self._hooks = CallScale()
            self._hooks.put_on(self.model, undo)

    def _detach(self, undo: Undo) -> None:
        if self._hooks is not None:
            self._hooks.take_off(self.model, undo)
        hooks = self.model._load_state_dict_post_hooks
        if self._load_hook in hooks:
            undo.delete_item(hooks, self._load_hook)
        undo.delete_item(vars(self.model), "lorry")

    def add(
        self,
        name: str,
        deltas: Mapping[str, Delta],
        undo: Undo,
        *,
        replace: bool = False,
        owned: bool = False,
        layers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Load an adapter, inactive; `replace` puts it in the place of the one of that name, active as that was.

        Args:
            name: what to call it.
            deltas: {path of a module, or name of a bare parameter: delta of its weight's shape}, out of a plan.
            owned: nobody else has their memory, which is not copied where it is on the modules' device.
            layers: the modules at their paths, where the caller has them.

        Raises:
            DuplicateAdapterError: there is one of that name, and not `replace`.
            StateError: `replace`, and the one of that name is fused; or a layer is another one than that which adapters
                were loaded on before.
        """
        if name in self.adapters and not replace:
            raise DuplicateAdapterError(
                f"An adapter named {name!r} is loaded already. Choose another name, or take it off with "
                f"`delete_adapters({name!r})`."
            )
        if name in self.fused:
            raise StateError(f"{name!r} is fused: unfuse it before it is swapped for another.")
        modules = modules_at(self.model, deltas) if layers is None else layers
        self._check_there(deltas.keys() - modules.keys())
        patched = self._sides.modules
        other = next((path for path, one in modules.items() if patched.get(path, one) is not one), None)
        if other is not None:
            raise self._replaced(other)
        self._make_room(self._widened.wanted(modules, {path: deltas[path] for path in modules}), undo)
        self._put(name, Resident.of(deltas, modules, owned=owned), modules, undo)

    def _check_there(self, bare: Collection[str]) -> None:
        """Raise a KeyError where one of these is no bare parameter of the model: a plan never has such."""
        known = bare_parameters(self.model) if bare else {}
        for name in bare:
            _ = known[name]

    def _make_room(self, wanted: Mapping[str, tuple[int, int]], undo: Undo) -> None:
        """Widen the weights of layers to these shapes, and what is loaded there with them."""
        for path, shape in wanted.items():
            self._check_free(path)
            self._widened.widen(self.model, path, shape[1], undo)
            self._reshape(path, partial(pad_channels, shape=shape), undo)

    def _give_room_back(self, undo: Undo) -> None:
        """Narrow the layers that nothing loaded needs wide."""
        if not self._widened.any():
            return
        left: dict[str, list[Delta]] = {}
        for resident in self.adapters.values():
            for path, delta in resident.deltas.items():
                left.setdefault(path, []).append(delta)
        for path, inputs in self._widened.to_narrow(left).items():
            self._check_free(path)
            self._widened.narrow(self.model, path, undo)
            self._reshape(path, methodcaller("narrowed", inputs), undo)
            self._refresh(undo)

    def _check_free(self, path: str) -> None:
        fused = [name for name in self.fused if path in self.adapters[name].deltas]
        if fused:
            raise FuseError(
                f"`{path}` changes its number of inputs, and {fused[0]!r} is fused into it. Call `unfuse_lora()` first."
            )
        if self._sides.room is not None:
            raise StateError(
                f"`{path}` changes its number of inputs, and the model is prepared for those it has."
            )

    def _reshape(self, path: str, change: Callable[[Delta], Delta | None], undo: Undo) -> None:
        """Change every loaded delta of a layer."""
        for name, resident in self.adapters.items():
            if path not in resident.deltas:
                continue
            delta = None if resident.trainable else change(resident.deltas[path])
            if delta is None:
                raise StateError(f"`{path}`: {name!r} cannot follow this layer to another number of inputs.")
            deltas = {**resident.deltas, path: delta}
            reshaped = Resident(deltas, parked=resident.parked, bare=resident.bare)
            self._carry({**self.adapters, name: reshaped}, undo)
            self._sides.forget(name, undo)
        self._sides.forget_copies(undo)

    def add_trainable(self, name: str, deltas: Mapping[str, Delta], undo: Undo) -> None:
        """Load an adapter whose tensors are parameters to be trained, inactive.

        While it is active, they are parameters of its modules (`….lorry_{name}_down`), so that `model.parameters()` has
        them; `model.state_dict()` never does.

        Raises:
            DuplicateAdapterError: there is one of that name.
        """
        if name in self.adapters:
            raise DuplicateAdapterError(f"An adapter named {name!r} is loaded already. Choose another name.")
        self._put(name, Resident(deltas, trainable=True), modules_at(self.model, deltas), undo)

    def _carry(self, adapters: dict[str, Resident], undo: Undo) -> None:
        undo.set_attribute(self, "adapters", adapters)
        bare = dict.fromkeys(name for resident in adapters.values() for name in resident.bare)
        undo.set_attribute(self, "_bare_names", tuple(bare))

    def _put(self, name: str, resident: Resident, modules: Mapping[str, nn.Module], undo: Undo) -> None:
        before = self.adapters.get(name)
        self._carry({**self.adapters, name: resident}, undo)
        if before is None:
            undo.set_attribute(self, "strengths", {**self.strengths, name: Strength()})
        self._sides.add(modules, undo)
        self._settle(modules, undo)
        if before is not None:
            self._sides.forget(name, undo)
            self._refresh(undo)
            self._give_room_back(undo)
            self._sides.drop(before, undo)

    def remove(self, names: Iterable[str], undo: Undo) -> None:
        """Take adapters off, unfusing them where they are fused; the last one takes the state off the model too."""
        leaving = {name: self.adapters[name] for name in names if name in self.adapters}
        if any(name in self.fused for name in leaving):
            self.unfuse(undo, [name for name in leaving if name in self.fused])
        self._carry({n: r for n, r in self.adapters.items() if n not in leaving}, undo)
        undo.set_attribute(self, "strengths", {n: s for n, s in self.strengths.items() if n not in leaving})
        undo.set_attribute(self, "active", tuple(name for name in self.active if name not in leaving))
        for name in leaving:
            self._sides.forget(name, undo)
        self._refresh(undo)
        self._give_room_back(undo)
        for resident in leaving.values():
            self._sides.drop(resident, undo)
        self._weights.free_spare(undo)
        undo.on_success(shrink_spare)
        if not self.adapters and not self._weights and self._sides.room is None:
            self._detach(undo)

    def clear(self, undo: Undo, *, keep_fused: bool = False) -> None:
        """Take every adapter off; with `keep_fused`, fused weights stay and their originals are let go."""
        if keep_fused:
            self.set_enabled(True, undo)
            undo.set_attribute(self, "fused", {})
            self._weights.let_go(undo)
        self._sides.unprepare(undo)
        self.remove(list(self.adapters), undo)

    def prepare(self, rank: int, undo: Undo) -> None:
        """Give every linear layer slots of `rank`, so that code compiled for the model never has to be compiled anew.

        What finds no room there (joined ranks beyond `rank`, other layers, families without factors) acts through a
        copy of the weight, which costs a call nothing. Adapters in training keep their own way. The slots go with
        `clear`.

        Raises:
            StateError: the rank is negative, or a layer cannot be patched.
        """
        if rank < 0:
            raise StateError(f"Slots have a rank of 0 or more, got {rank}.")
        if self._sides.room != rank:
            self._sides.prepare(self.model, rank, undo)
            self._settle(self._sides.modules, undo)
            self._refresh(undo)

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
        if self._weights:
            swap = self._weights.bring_back if enabled else self._weights.put_aside
            swap(self._layers(), undo)
            self._sides.forget_copies(undo)
        undo.set_attribute(self, "enabled", enabled)
        self._refresh(undo)

    def check_called(self, names: Iterable[str] | None = None) -> None:
        """Check that the model still calls the layers of adapters: of those that act beside the weights when None.

        Raises:
            StateError: its attentions were fused, or taken apart, since the adapters were loaded.
        """
        chosen = self._acting() if names is None else names
        modules = self._sides.modules
        layers = {path: modules[path] for name in chosen for path in self.adapters[name].firsts}
        idle = find_idle(self.model, layers)
        if idle is not None:
            raise StateError(
                f"`{idle}`: the {type(self.model).__name__} does not call this layer any more, so that what is loaded "
                "for it does nothing: its attentions were fused or taken apart after that. Take that back "
                "(`unfuse_qkv_projections()` or `fuse_qkv_projections()`); to keep it, do it before loading."
            )

    def check_standing(self, names: Iterable[str] | None = None) -> None:
        """Check that no other layer stands where adapters were loaded: those that act beside the weights when None.

        Raises:
            StateError: one does, on which they do nothing.
        """
        chosen = [self.adapters[name] for name in (self._acting() if names is None else names)]
        layers = {path: self._sides.modules[path] for one in chosen for path in one.deltas}
        standing = modules_at(self.model, layers)
        others = [path for path, layer in standing.items() if layer is not layers[path]]
        if others:
            # a layer that was wrapped since, as by `torch.compile(layer)`, is inside of what stands there
            inside = {*self.model.modules()}
            others = [path for path in others if layers[path] not in inside]
        others += [name for one in chosen for name in one.bare if is_replaced(self.model, name)]
        if others:
            raise self._replaced(others[0])

    def _replaced(self, path: str) -> StateError:
        return StateError(
            f"`{path}`: another one stands here in this {type(self.model).__name__} than adapters were loaded on "
            "(quantizing after loading does that), and they do nothing there. Call `unload_lora_weights()`, and load "
            "what is to act again."
        )

    @property
    def changes_by_step(self) -> bool:
        """Whether an adapter that acts has a strength that changes by step."""
        return self.enabled and any(
            self.strengths[name].steps is not None for name in self.active if name not in self.fused
        )

    def set_step(self, step: Step | None, undo: Undo) -> None:
        """Bring strengths that change by step to what they are in a step; None: a run is over."""
        before = {name: self.strengths[name].in_step(self.step) for name in self.active}
        undo.set_attribute(self, "step", step)
        if any(self.strengths[name].in_step(step) != strength for name, strength in before.items()):
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
        scale_before, standing_before = self.call_scale, self._sides.standing()
        with Undo() as undo:
            undo.set_attribute(self, "call_scale", scale_before * scale)
            self._refresh(undo, for_call=True)
        standing = self._sides.standing()
        try:
            yield
        finally:
            self.call_scale = scale_before
            self._sides.forget_copies(Undo())
            with Undo() as undo:
                if self._sides.room is None and self._sides.put_back(standing_before, standing):
                    self._refresh_bare(self._acting(), undo)
                else:
                    self._refresh(undo)
                keep_in_step(self.model, undo, prepared=self._sides.room is not None)

    def follow(self, path: str, before: torch.device, now: torch.device) -> None:
        """Let everything that is kept for one module, but parked adapters, go where the module has gone.

        Args:
            path: the module.
            before: where it was.
            now: where it is. Its buffers have moved with it. Where both are one, it was cast, and what stands in it,
                rounded now, is made anew from the bits of the files.
        """
        self._weights.follow(path, before, now)
        if before == now:
            self._sides.recast(path, self._acting(), self._weights)
            return
        self._sides.let_scenes_go()
        for resident in self.adapters.values():
            resident.follow(path, now)

    def follow_bare(self, owner: str, before: torch.device, now: torch.device) -> None:
        """Do so for a block that has bare parameters."""
        for name in self._bare.names_of(owner):
            self._weights.follow(name, before, now)
        if before == now:
            self._bare.recast(self.model, owner, self._acting(), self._weights)

    def weights_replaced(self) -> None:
        """Make anew what was made from the model's weights, which are others now."""
        if self.fused:
            log.warning(
                "Weights were loaded into this %s while adapters (%s) are fused into it: taking these off brings back "
                "the weights from before. Call `unfuse_lora()` first, load the weights, and fuse again.",
                type(self.model).__name__,
                ", ".join(self.fused),
            )
        with Undo() as undo:
            if self._sides.forget_weights(undo) or self._bare_names:
                self._refresh(undo)

    def _settle(self, paths: Iterable[str], undo: Undo) -> None:
        """Let modules tell where they go."""
        tell = WeakMethod(self.follow)
        for path in paths:
            attributes = vars(self._sides.modules[path])
            home = attributes.get("lorry_home")
            if home is None or not home.tells:
                undo.set_item(attributes, "lorry_home", Home(path, tell))

    def park(self, names: Iterable[str], device: torch.device, undo: Undo) -> None:
        """Move adapters' tensors to `device`; those that act keep working, from copies where their modules compute.

        One that was parked elsewhere and is moved to where its modules are follows them again.
        """
        moved = {
            name: self.adapters[name].moved(device, self._sides.modules)
            for name in names
            if name in self.adapters
        }
        self._carry({**self.adapters, **moved}, undo)
        for name in moved:
            self._sides.forget(name, undo)
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
        lossy: bool = False,
    ) -> dict[str, FuseLoss]:
        """Fuse adapters (all active ones when None) into the weights, at `scale` times their strength.

        Returns:
            What was lost, by parameter, where `lossy` has quantized a sum again.

        Raises:
            FuseError: one is fused already, or has a strength that changes by step, adapters are disabled, a weight
                cannot take a delta without loss (and not `lossy`, or it cannot be quantized again), or `safe` and a
                fused weight would not be finite.
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
        moving = [name for name, strength in new.items() if strength.steps is not None]
        if moving:
            raise FuseError(
                f"The strength of {moving[0]!r} changes by step, and a fused adapter has one strength. Set one with "
                "`set_adapters` first."
            )
        if not new:
            return {}
        self.check_standing(new)
        check_not_fully_sharded(self.model)
        return self._rewrite({**self.fused, **new}, new, undo, safe=safe, keep=originals, lossy=lossy)

    def unfuse(self, undo: Undo, names: Sequence[str] | None = None) -> None:
        """Take fused adapters (all when None) out of the weights, by their saved bits; they act as set before.

        Raises:
            FuseError: no originals were kept.
        """
        leaving = [name for name in (self.fused if names is None else names) if name in self.fused]
        if not leaving:
            return
        self._weights.check_kept()
        enabled = self.enabled
        self.set_enabled(True, undo)
        staying = {name: strength for name, strength in self.fused.items() if name not in leaving}
        self._rewrite(staying, leaving, undo)
        self.set_enabled(enabled, undo)

    def _rewrite(
        self,
        contributing: Mapping[str, Strength],
        changed: Collection[str],
        undo: Undo,
        *,
        safe: bool = False,
        keep: Originals = "device",
        lossy: bool = False,
    ) -> dict[str, FuseLoss]:
        """Give the modules that the `changed` adapters reach the weights that `contributing` make of originals."""
        self.check_called(changed)
        lost: dict[str, FuseLoss] = {}
        if contributing:
            contributions = self._contributions(changed, contributing)
            lost = self._weights.rewrite(
                self._layers(), contributions, undo, safe=safe, keep=keep, lossy=lossy
            )
        else:
            self._weights.restore(self._layers(), undo)
        self._sides.forget_copies(undo)
        undo.set_attribute(self, "fused", contributing)
        self._refresh(undo)
        return lost

    def contributions(self, names: Iterable[str]) -> dict[str, list[tuple[Delta, float]]]:
        """Return what adapters would add to their modules, by path, each with its strength there."""
        here = {name: self.strengths[name] for name in names if name in self.adapters}
        return self._contributions(here, here)

    def _contributions(
        self, reaching: Iterable[str], contributing: Mapping[str, Strength]
    ) -> dict[str, list[tuple[Delta, float]]]:
        """Return what `contributing` adapters add to the modules that the `reaching` ones reach."""
        deltas = {name: self.adapters[name].everywhere for name in (*contributing, *reaching)}
        return {
            path: [
                (deltas[name][path], strength.at(path))
                for name, strength in contributing.items()
                if path in deltas[name]
            ]
            for path in dict.fromkeys(path for name in reaching for path in deltas[name])
        }

    def _refresh(self, undo: Undo, *, for_call: bool = False) -> None:
        """Bring every module's side path to what the fields say; `for_call`, so that `put_back` takes it back."""
        acting = self._acting()
        unmoved = self._sides.refresh(
            acting, self._weights, undo, for_call=for_call, may_idle=bool(self.adapters)
        )
        self._refresh_bare(acting, undo)
        keep_in_step(
            self.model,
            undo,
            prepared=self._sides.room is not None,
            unmoved=unmoved,
            written=self._weights.take_written(),
        )

    def _refresh_bare(self, acting: Mapping[str, Acting], undo: Undo) -> None:
        """Bring what is added to bare parameters to what the fields say."""
        prepared = self._sides.room is not None
        self._bare.refresh(
            self.model,
            self._bare_names,
            acting,
            self._weights,
            self.follow_bare,
            undo,
            all_of_them=prepared,
        )

    def _layers(self) -> Mapping[str, nn.Module]:
        """Return what adapters are fused into: the patched modules, and what stands for bare parameters."""
        bare = self._bare.stand_ins(self.model)
        return {**self._sides.modules, **bare} if bare else self._sides.modules

    def _acting(self) -> dict[str, Acting]:
        """Return who acts through the side path, and how strongly now."""
        return {
            name: Acting(self.adapters[name], self.strengths[name].in_step(self.step).times(self.call_scale))
            for name in self.active
            if self.enabled and name not in self.fused
        }

    # --- for people -------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """The bytes that adapters and saved originals hold, besides the model's own."""
        tensors = [*self._sides.tensors(), *self._bare.tensors(self.model), *self._weights.tensors()]
        tensors += [tensor for resident in self.adapters.values() for tensor in resident.tensors()]
        return held_bytes(tensors)

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
            f"{name}: {self.mode(name)}, {len(resident.everywhere)} targets, {size_of(resident.nbytes)}"
            for name, resident in self.adapters.items()
        ]
        head = f"{type(self.model).__name__}: {len(self.adapters)} adapters, {size_of(self.nbytes)}"
        return "\n  ".join([head, *lines])

    __repr__ = __str__


def _weights_replaced(model: nn.Module, _keys: object) -> None:
    """Tell a model's state that `load_state_dict` was called. The hook keeps no hold on either."""
    state = find_state(model)
    if state is not None:
        state.weights_replaced()


def unknown_adapter(name: str, known: Iterable[str]) -> UnknownAdapterError:
    """Make the error for an adapter name that is not loaded."""
    loaded = list(known)
    listed = ", ".join(map(repr, loaded)) or "none"
    return UnknownAdapterError(
        f"No adapter named {name!r} is loaded (loaded: {listed}).{did_you_mean(name, loaded)}"
    )
