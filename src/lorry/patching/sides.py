"""The side paths of one model: which modules are patched, and what stands in each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, final

from torch import Tensor, nn

from lorry.binding import named_modules, weight_shape
from lorry.patching.copies import COPIES, Acting, Copies
from lorry.patching.fused import FusedWeights
from lorry.patching.modes import without_modes
from lorry.patching.patches import mark_empty, mark_filled, patch, unpatch
from lorry.patching.placement import layer_hooks
from lorry.patching.resident import Resident
from lorry.patching.scenes import Scene, build_scene
from lorry.patching.side_path import BUFFERS, DOWN, DOWN_AND_UP, SCALE, UP, SidePath
from lorry.patching.slots import fill_slots, share_parameters
from lorry.patching.trained import place_trained
from lorry.patching.undo import Undo

Standing = Mapping[str, Mapping[str, Any]]
"""What the buffers of each module are, by its path."""


@final
class SidePaths:
    """Patches and fills the modules of one model. Fields are replaced, never changed in place."""

    def __init__(self) -> None:
        self.modules: dict[str, SidePath] = {}
        self._uses: dict[str, int] = {}
        """How many loaded adapters have a delta for each module."""
        self._scenes: dict[tuple[str, ...], Scene] = {}
        """Those of one adapter, which share its memory, and the last one of several, by the adapters' names. On a
        prepared model, the last one alone."""
        self._scene: Scene | None = None
        """The one that stands."""
        self._copies = Copies()
        self._training: tuple[str, ...] = ()
        """The paths of the modules that hold parameters of adapters in training."""
        self.room: int | None = None
        """The rank of the slots of a prepared model; None of one that is not."""
        self._prepared: tuple[str, ...] = ()
        """The paths of the modules that stay patched whoever is loaded."""

    def __getstate__(self) -> dict[str, Any]:
        scene = None if self._scene is None else self._scene.without_tensors()
        return {**vars(self), "_scenes": {}, "_scene": scene}

    def add(self, modules: Mapping[str, nn.Module], undo: Undo) -> None:
        """Patch the modules that an adapter has deltas for, by path."""
        patched = patch({path: m for path, m in modules.items() if path not in self.modules}, undo)
        undo.set_attribute(self, "modules", {**self.modules, **patched})
        uses = {path: self._uses.get(path, 0) + 1 for path in modules}
        undo.set_attribute(self, "_uses", {**self._uses, **uses})

    def drop(self, resident: Resident, undo: Undo) -> None:
        """Unpatch the modules that no other adapter has a delta for. Nothing stands in them any more."""
        self._leave(resident.deltas, undo)

    def prepare(self, model: nn.Module, room: int, undo: Undo) -> None:
        """Patch every layer that can carry a delta, and keep what stands there in one form: see `slots`."""
        modules = {path: m for path, m in named_modules(model).items() if weight_shape(m) is not None}
        self.unprepare(undo)
        self.add(modules, undo)
        undo.set_attribute(self, "_prepared", tuple(modules))
        undo.set_attribute(self, "room", room)
        undo.set_attribute(self, "_scenes", {})
        self.forget_copies(undo)  # what acted by factors beside them may act through them now

    def unprepare(self, undo: Undo) -> None:
        """Leave the layers to adapters alone. What stands in them is put in order by the next refresh."""
        if self.room is None:
            return
        undo.set_attribute(self, "room", None)
        undo.set_attribute(self, "_scenes", {})
        shared = [self.modules[path] for path in self._prepared]
        for name in COPIES:
            undo.set_in_all([module._buffers for module in shared], name, repeat(None))
            mark_empty(shared, [name], undo)
        self.forget_copies(undo)
        self._leave(self._prepared, undo)
        undo.set_attribute(self, "_prepared", ())

    def _leave(self, paths: Iterable[str], undo: Undo) -> None:
        uses = {path: self._uses[path] - 1 for path in paths}
        unused = {path for path, number in uses.items() if not number}
        left = {**self._uses, **uses}
        if unused:
            if self._scene is not None and not unused.isdisjoint(self._scene.buffers):
                # that of nobody, or of a prepared model: a module is unpatched with all of its factors or none
                self._put(build_scene({}, {}), undo, is_held=False)
            unpatch([self.modules[path] for path in unused], undo)
            modules = {path: module for path, module in self.modules.items() if path not in unused}
            undo.set_attribute(self, "modules", modules)
            left = {path: number for path, number in left.items() if number}
        undo.set_attribute(self, "_uses", left)

    def forget(self, name: str, undo: Undo) -> None:
        """Make the scenes of an adapter anew when they are next needed: its tensors change."""
        kept = {names: scene for names, scene in self._scenes.items() if name not in names}
        undo.set_attribute(self, "_scenes", kept)

    def forget_copies(self, undo: Undo) -> None:
        """Make all copies anew at the next refresh: what they were made from changes."""
        self._copies.forget(undo)

    def let_scenes_go(self) -> None:
        """Keep no tensor but those that stand in the modules, which have moved or are cast: the others are what they
        were.
        """
        scene = self._scene
        if scene is not None and (self._scenes or scene.strengths.pieces.tensors):
            self._scenes, self._scene = {}, scene.without_tensors()

    def forget_weights(self, undo: Undo) -> bool:
        """Make anew, at the next refresh, what was made from or for the modules' weights, which are others now.

        Returns:
            Whether there may be such.
        """
        are_elsewhere = self._scene is not None and not self._scene.places.hold()
        if are_elsewhere:
            self.let_scenes_go()
        self.forget_copies(undo)
        return are_elsewhere or self.room is not None or bool(self._copies)

    def tensors(self) -> list[Tensor]:
        """Return what stands in all modules, and what is kept to stand there."""
        standing = [module._buffers[name] for module in self.modules.values() for name in BUFFERS]
        kept = [tensor for scene in self._scenes.values() for tensor in scene.tensors()]
        return [tensor for tensor in (*standing, *kept) if tensor is not None]

    def standing(self) -> Standing:
        """Return what stands in each module."""
        return {path: module._buffers.copy() for path, module in self.modules.items()}

    def put_back(self, before: Standing, after: Standing) -> bool:
        """Put `before` back in place of `after`, unless something else than `after` stands there by now.

        Returns:
            Whether it was put back. Pointers only: it cannot fail half way.
        """
        now = {path: module._buffers for path, module in self.modules.items()}
        same = now.keys() == after.keys() and all(_is_same(now[path], after[path]) for path in now)
        if same:
            for path, tensors in before.items():
                now[path].update(tensors)
        return same

    def refresh(
        self,
        acting: Mapping[str, Acting],
        weights: FusedWeights,
        undo: Undo,
        *,
        for_call: bool = False,
        may_idle: bool = True,
    ) -> bool:
        """Bring every module's side path to what `acting` says: joined factors, their strengths, and copies.

        Args:
            acting: by name.
            weights: the fused weights, for copies of them.
            undo: takes it back.
            for_call: leave the strengths that stand now unwritten, to be put back by `put_back`. Those of a prepared
                model are written all the same, and another refresh takes them back.
            may_idle: let modules keep their strengths where nobody acts: somebody may again.

        Returns:
            Whether something stood in the same modules, where it had been put.
        """
        trained = {name: one for name, one in acting.items() if one.resident.trainable}
        if trained or self._training:
            self._place_trained(trained, undo, any_fused=bool(weights))
        joined = {name: one for name, one in acting.items() if name not in trained}
        scene, unmoved = self._set_scene(joined, undo, for_call, may_idle)
        self._copies.refresh(scene, joined, self.modules, weights, undo)
        if self.room is not None:
            share_parameters(self.modules, scene.copied, undo)
        return unmoved

    @without_modes()
    def recast(self, path: str, acting: Mapping[str, Acting], weights: FusedWeights) -> None:
        """Make what stands in one module anew, in the dtype that it computes in now, from the bits of the files.

        Under hooks of diffusers that cast at each call nothing was rounded, and nothing is done.
        """
        module = self.modules[path]
        here = {
            name: Acting(one.resident.only(path), one.strength)
            for name, one in acting.items()
            if path in one.resident.deltas and not one.resident.trainable
        }
        if layer_hooks(module) is not None:
            return
        self.let_scenes_go()
        if not here:
            return
        scene = build_scene(
            {name: one.resident for name, one in here.items()}, {path: module}, None, self.room
        )
        fill_slots(scene.slots() if self.room is not None else {}, {}, scene.joined, Undo())
        for name in (DOWN, UP):
            Undo().set_in_all(scene.buffers.values(), name, scene.columns[name])
        Copies().refresh(scene, here, self.modules, weights, Undo())  # some need the weights of others
        if self.room is not None:
            share_parameters({path: module}, scene.copied, Undo())

    def _set_scene(
        self, acting: Mapping[str, Acting], undo: Undo, for_call: bool, may_idle: bool
    ) -> tuple[Scene, bool]:
        """Make the scene of `acting` stand, at their strengths; return it, and what `refresh` returns."""
        for_call = for_call and self.room is None  # strengths keep their addresses there, and are written
        names, strengths = tuple(acting), {name: one.strength for name, one in acting.items()}
        scene, standing = self._scenes.get(names), self._scene
        held = standing if standing is not None and standing.is_held else None
        unmoved = None if held is None else held.places
        is_nobody = not names and self.room is None and may_idle
        if is_nobody and standing is not None and standing.is_idle:  # wherever its modules are by now
            return standing, held is not None
        if is_nobody and held is not None and held.room is None:
            scene = held.left_by_all(self.modules)
        elif scene is None or not (scene.places is unmoved or scene.fits):
            residents = {name: one.resident for name, one in acting.items()}
            scene = build_scene(residents, self.modules, held, self.room)
            self._keep(names, scene, undo)
        if not (for_call or scene.is_idle):
            scene.strengths.write(strengths, undo)
        if scene is not held:
            self._put(scene, undo, is_held=held is not None)
        if for_call and not scene.is_idle:
            undo.set_in_all(scene.buffers.values(), SCALE, scene.strengths.apart(strengths))
        return scene, bool(scene.buffers) and scene.places is unmoved

    def _keep(self, names: tuple[str, ...], scene: Scene, undo: Undo) -> None:
        is_joined = len(names) > 1
        kept = {
            key: other
            for key, other in self._scenes.items()
            if self.room is None and not (is_joined and len(key) > 1)
        }
        undo.set_attribute(self, "_scenes", {**kept, names: scene})

    def _put(self, scene: Scene, undo: Undo, *, is_held: bool) -> None:
        """Put a scene in place of the one that stands; `is_held`: the modules hold what that one put into them."""
        standing = self._scene
        before = {} if standing is None else standing.buffers
        if scene.room is not None:
            written = standing.joined if standing is not None and before is scene.buffers else {}
            fill_slots(scene.slots(), written, scene.joined, undo)
        is_beside = standing is not None and scene.is_beside(standing)
        known = standing.columns if standing is not None and is_beside and is_held else {}
        if not is_beside:
            left = [before[path] for path in before.keys() - scene.buffers.keys() if path in self.modules]
            for name in scene.columns:
                undo.set_in_all(left, name, repeat(None))
        for name, column in scene.columns.items():
            if known.get(name) is not column:
                undo.set_in_all(scene.buffers.values(), name, column, known.get(name))
        undo.set_attribute(self, "_scene", scene)
        if standing is None or not is_beside:
            self._mark(DOWN_AND_UP, {} if standing is None else standing.acting, scene.acting, undo)
            self._mark([SCALE], before, scene.buffers, undo)
        elif standing.is_idle and not scene.is_idle:
            undo.add_to_sets(standing.names_known, DOWN_AND_UP)
        elif scene.is_idle and not standing.is_idle:
            self._mark(DOWN_AND_UP, standing.acting, {}, undo)

    def _mark(self, names: Sequence[str], before: Collection[str], now: Collection[str], undo: Undo) -> None:
        """Let nn.Module know that these buffers were filled at some paths, and are filled at others now."""
        mark_empty(
            [self.modules[path] for path in before if path not in now and path in self.modules], names, undo
        )
        mark_filled([self.modules[path] for path in now if path not in before], names, undo)

    @without_modes()
    def _place_trained(self, trained: Mapping[str, Acting], undo: Undo, *, any_fused: bool) -> None:
        """Give modules the parameters of the adapters in training."""
        paths = dict.fromkeys(
            (*self._training, *(p for one in trained.values() for p in one.resident.deltas))
        )
        for path in paths:
            here = {n: one for n, one in trained.items() if path in one.resident.deltas}
            deltas = {name: (one.resident.deltas[path], one.strength) for name, one in here.items()}
            place_trained(path, self.modules[path], deltas, undo, any_fused=any_fused)
        modules = {path: self.modules[path] for path in paths}
        standing = [path for path, m in modules.items() if m.lorry_trained or m.lorry_formulas]
        undo.set_attribute(self, "_training", tuple(standing))


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)
