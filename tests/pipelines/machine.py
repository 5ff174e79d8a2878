"""A state machine of everything that users do to a pipeline, against a plain account of what must hold.

hypothesis chooses the operations and what they are done to, and makes a sequence that fails as short as it can. What is
chosen is mostly there, so that most operations do something; the others must be refused and leave everything alone.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from safetensors.torch import load_file, save_file

import lorry
from faults import FAULTS, InjectedError
from lorry.binding import carriers
from lorry.errors import DuplicateAdapterError, FuseError, LorryError, StateError, UnknownAdapterError
from lorry.patching import find_state
from pipelines import oracle
from pipelines.account import Strong
from pipelines.clean import Clean, Kind, all_outputs, bare_file, files_of, replay
from pipelines.of_every_family import DIALECTS, DTYPES, KINDS, WHERE, Spec
from pipelines.watched import TOLERANCE, Fault, Watched
from small import check_near

WIDER = {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}
SEGMENTS = {"sd": "down_blocks", "sdxl": "mid_block", "flux": "single_transformer_blocks", "wan": "1"}
BLOCKS = {"sd": "down", "sdxl": "mid", "flux": "single_transformer_blocks", "wan": "blocks.1"}
"""The same as `set_adapters` calls them in a dict for the denoiser."""

NAMES = ["a", "b", "c"]
VALUES = st.sampled_from([1.0, 0.5, 0.25, 0.0, -0.75])
BOOLEANS = st.booleans()
NO_FAULT = [None] * 12
"""Beside the three kinds of faults: one operation in five has one."""


def of_machine(choices: Callable[[Any], list[Any]]) -> st.SearchStrategy[Any]:
    """One of what the machine has to offer."""
    return st.runner().flatmap(lambda machine: st.sampled_from(choices(machine)))


LOADED = of_machine(lambda machine: [*machine.names * 5, *NAMES])
"""The name of an adapter that is loaded, nearly always."""
SOME_LOADED = st.lists(LOADED, min_size=1, max_size=3, unique=True)
FREE = of_machine(lambda machine: [*[name for name in NAMES if name not in machine.names] * 5, *NAMES])
SPECS = st.builds(
    Spec,
    st.sampled_from(KINDS),
    st.sampled_from(list(WHERE)),
    st.integers(0, 2),
    st.sampled_from(DTYPES),
    st.sampled_from([False, False, False, True]),
).map(
    lambda spec: (
        spec if spec.family not in DIALECTS else Spec(spec.family, "everywhere", spec.seed, spec.dtype)
    )
)
FAULT = st.tuples(st.sampled_from([*NO_FAULT, *FAULTS]), st.integers(1, 60))
PARTS = st.sampled_from(["all", "denoiser", "text_encoder"])
STRONG = st.builds(
    Strong,
    VALUES,
    st.sampled_from(["", "segment"]),
    st.sampled_from([0.5, 2.0, 0.0]),
    st.sampled_from([None, None, (1.0, 0.0), (0.25, 1.5)]),
)
"""As it is written; `segment` stands for the one that the pipeline has."""


class Pipeline(Watched):
    """All that users do."""

    # --- load and take off ---

    @initialize(name=st.just("a"), spec=SPECS)
    def first(self, name: str, spec: Spec) -> None:
        self.load(name, spec, (None, 0))

    @initialize(name=st.just("b"), spec=SPECS)
    def second(self, name: str, spec: Spec) -> None:
        self.load(name, spec, (None, 0))

    @rule(name=FREE, spec=SPECS, fault=FAULT)
    def load(self, name: str, spec: Spec, fault: Fault) -> None:
        path, deltas = files_of(self.kind).get(spec)
        refused = DuplicateAdapterError if name in self.names else self.token_is_known(name, spec)
        load = functools.partial(self.pipe.load_lora_weights, path, adapter_name=name)
        if not self.attempt(load, refused, fault):
            return
        before = list(self.there.values())
        disabled = bool(before) and not any(one.enabled for one in before)
        for component, found in deltas.items():
            self.account[component].put(name, found)
        for one in self.there.values():
            one.choose({name: Strong()})
            one.enabled = one.enabled and not disabled
        self.remember(name, spec)

    @precondition(lambda self: self.names)
    @rule(name=LOADED, spec=SPECS, fault=FAULT)
    def swap(self, name: str, spec: Spec, fault: Fault) -> None:
        path, deltas = files_of(self.kind).get(spec)
        here = [one for one in self.account.values() if name in one.loaded]
        fused = any(name in self.account[component].fused for component in deltas)
        refused = (
            UnknownAdapterError if not here else StateError if fused else self.token_is_known(name, spec)
        )
        load = functools.partial(self.pipe.load_lora_weights, path, adapter_name=name, hotswap=True)
        if not self.attempt(load, refused, fault):
            return
        first = here[0]
        acts, enabled, strength = name in first.active, first.enabled, Strong(first.strengths[name].value)
        for component, one in self.account.items():
            if component in deltas:
                existed, known = one.exists(), name in one.loaded
                one.put(name, deltas[component])
                if acts and not known:
                    one.choose({**{n: one.strengths[n] for n in one.active}, name: strength})
                one.enabled = one.enabled and (existed or enabled)
            else:
                one.remove([name])
        self.remember(name, spec)

    def token_is_known(self, name: str, spec: Spec) -> type[StateError] | None:
        others = [one.token for other, one in self.tokens.items() if other != name]
        return StateError if spec.tokens and spec.token in others else None

    def remember(self, name: str, spec: Spec) -> None:
        self.tokens.pop(name, None)
        if spec.tokens:
            self.tokens[name] = spec
        self.remember_tensors(name)

    @rule(what=st.sampled_from(["another shape", "not finite", "no file", "cut short"]))
    def load_what_is_broken(self, what: str) -> None:
        path, _ = files_of(self.kind).get(Spec("lora"))
        with tempfile.TemporaryDirectory() as folder:
            broken = Path(folder) / "broken.safetensors"
            if what == "cut short":
                broken.write_bytes(path.read_bytes()[:-9])
            elif what != "no file":
                tensors = load_file(path)
                key = next(key for key in reversed(tensors) if key.endswith("lora_up.weight"))
                bad = torch.cat([tensors[key]] * 2) if what == "another shape" else tensors[key] * torch.nan
                save_file({**tensors, key: bad}, broken)
            self.attempt(lambda: self.pipe.load_lora_weights(broken, adapter_name="z"), LorryError)

    @precondition(lambda self: self.names)
    @rule(names=SOME_LOADED, fault=FAULT)
    def delete(self, names: list[str], fault: Fault) -> None:
        stuck = any(one.no_way_back and {*names} & {*one.fused} for one in self.account.values())
        refused = UnknownAdapterError if not {*names} <= {*self.names} else FuseError if stuck else None
        if self.attempt(lambda: self.pipe.delete_adapters(names), refused, fault):
            for one in self.account.values():
                one.remove(names)
            for name in names:
                self.tokens.pop(name, None)

    @precondition(lambda self: self.there)
    @rule(keep_fused=BOOLEANS, fault=FAULT)
    def unload(self, keep_fused: bool, fault: Fault) -> None:
        refused = FuseError if self.no_way_back and not keep_fused else None
        unload = functools.partial(self.pipe.unload_lora_weights, keep_fused=keep_fused)
        if self.attempt(unload, refused, fault):
            self.all_is_off(keep_fused)

    @rule(rank=st.sampled_from([4, 0]), fault=FAULT)
    def prepare(self, rank: int, fault: Fault) -> None:
        if self.attempt(lambda: lorry.prepare(self.pipe, rank), None, fault):
            for one in self.account.values():
                one.prepared = True

    # --- choose and weigh ---

    def given(self, strength: Strong) -> Any:
        """A strength as a user writes it."""
        if not strength.segment and strength.ends is None:
            return strength.value
        parts = {SEGMENTS[self.kind]: strength.factor} if strength.segment else {}
        steps = None if strength.ends is None else list(zip((0.0, 1.0), strength.ends, strict=True))
        return lorry.Strengths(strength.value, parts=parts, steps=steps)

    def meant(self, strength: Strong, component: str) -> Strong:
        """What it means on a component."""
        segment = SEGMENTS[self.kind] if strength.segment else ""
        written = Strong(strength.value, segment, strength.factor, strength.ends)
        return written.on(component, list(carriers(self.models[component])))

    def set_adapters(
        self,
        names: list[str],
        weights: Any,
        meant: dict[str, dict[str, Strong]],
        fault: Fault,
    ) -> None:
        refused = None if all(one.may_choose(meant[c]) for c, one in self.there.items()) else StateError
        refused = refused if {*names} <= {*self.names} else UnknownAdapterError
        if self.attempt(lambda: self.pipe.set_adapters(names, weights), refused, fault):
            for component, one in self.there.items():
                one.choose(meant[component])

    @precondition(lambda self: self.names)
    @rule(chosen=st.dictionaries(LOADED, STRONG, min_size=1, max_size=3), fault=FAULT)
    def choose(self, chosen: dict[str, Strong], fault: Fault) -> None:
        meant = {c: {n: self.meant(s, c) for n, s in chosen.items()} for c in self.there}
        self.set_adapters(list(chosen), [self.given(strength) for strength in chosen.values()], meant, fault)

    @precondition(lambda self: self.names)
    @rule(name=LOADED, own=VALUES, text=VALUES, fault=FAULT)
    def choose_by_component(self, name: str, own: float, text: float, fault: Fault) -> None:
        numbers = {self.denoiser: own, "text_encoder": text}
        meant = {c: {name: Strong(numbers.get(c, 1.0))} for c in self.there}
        self.set_adapters([name], numbers, meant, fault)

    @precondition(lambda self: self.names)
    @rule(name=LOADED, value=VALUES, fault=FAULT)
    def choose_by_block(self, name: str, value: float, fault: Fault) -> None:
        by_block = Strong(1.0, SEGMENTS[self.kind], value, by_block=True)
        meant = {c: {name: by_block if c == self.denoiser else Strong()} for c in self.there}
        self.set_adapters([name], {self.denoiser: {BLOCKS[self.kind]: value}}, meant, fault)

    @precondition(lambda self: self.account["text_encoder"].loaded)
    @rule(chosen=st.dictionaries(LOADED, VALUES, min_size=1, max_size=3), fault=FAULT)
    def choose_for_text_encoder(self, chosen: dict[str, float], fault: Fault) -> None:
        one = self.account["text_encoder"]
        meant = {name: Strong(value) for name, value in chosen.items()}
        refused = None if one.may_choose(meant) else StateError
        refused = refused if chosen.keys() <= one.loaded.keys() else UnknownAdapterError
        values = list(chosen.values())
        choose = functools.partial(self.pipe.set_adapters_for_text_encoder, list(chosen), None, values)
        if self.attempt(choose, refused, fault):
            one.choose(meant)

    @precondition(lambda self: self.there)
    @rule(enabled=BOOLEANS, only_text=BOOLEANS, fault=FAULT)
    def enable(self, enabled: bool, only_text: bool, fault: Fault) -> None:
        reached = [one for name, one in self.there.items() if name == "text_encoder" or not only_text]
        stuck = not enabled and any(one.enabled and one.no_way_back for one in reached)
        verb = "enable_lora" if enabled else "disable_lora"
        switch = getattr(self.pipe, f"{verb}_for_text_encoder" if only_text else verb)
        if self.attempt(switch, FuseError if stuck else None, fault):
            for one in reached:
                one.enabled = enabled

    @precondition(lambda self: self.names)
    @rule(names=SOME_LOADED, fault=FAULT)
    def park(self, names: list[str], fault: Fault) -> None:
        refused = None if {*names} <= {*self.names} else UnknownAdapterError
        self.attempt(lambda: self.pipe.set_lora_device(names, "cpu"), refused, fault)
        for name in self.names:
            self.remember_tensors(name)

    # --- fuse and unfuse ---

    @precondition(lambda self: self.names)
    @rule(
        names=st.none() | SOME_LOADED,
        parts=PARTS,
        scale=VALUES,
        safe=BOOLEANS,
        originals=st.sampled_from(["device", "device", "cpu", "cpu", "disk", "disk", "none"]),
        fault=FAULT,
    )
    def fuse(
        self,
        names: list[str] | None,
        parts: str,
        scale: float,
        safe: bool,
        originals: str,
        fault: Fault,
    ) -> None:
        components = self.chosen(parts)
        wanted = {
            component: [n for n in (one.active if names is None else names) if n in one.loaded]
            for component, one in self.there.items()
            if component in components
        }
        fuse = functools.partial(
            self.pipe.fuse_lora,
            lora_scale=scale,
            safe_fusing=safe,
            adapter_names=names,
            components=components,
            originals=originals,
        )
        refused = self.fuse_is_refused(names, wanted)
        if self.attempt(fuse, refused, fault, may_need_originals=originals == "none"):
            for component, found in wanted.items():
                self.account[component].fuse(found, scale, keep=originals != "none")

    def fuse_is_refused(
        self, names: list[str] | None, wanted: dict[str, list[str]]
    ) -> type[LorryError] | None:
        if names is not None and not {*names} <= {*self.names}:
            return UnknownAdapterError
        pairs = [(self.account[component], name) for component, found in wanted.items() for name in found]
        again = [name in one.fused for one, name in pairs]
        if any(not one.enabled for one, _ in pairs) or not again or (any if names else all)(again):
            return FuseError
        for one, name in pairs:
            if name not in one.fused and (
                one.strengths[name].ends is not None
                or any(not one.kept.get(parameter, True) for parameter in one.parameters([name]))
            ):
                return FuseError
        return None

    @precondition(lambda self: self.fused)
    @rule(parts=PARTS, fault=FAULT)
    def unfuse(self, parts: str, fault: Fault) -> None:
        components = self.chosen(parts)
        reached = [self.account[component] for component in components]
        refused = FuseError if any(one.no_way_back for one in reached) else None
        if self.attempt(lambda: self.pipe.unfuse_lora(components=components), refused, fault):
            for one in reached:
                one.unfuse(list(one.fused))

    # --- what must not matter ---

    @rule()
    def cast_there_and_back(self) -> None:
        own = [(m, n, b) for m in self.modules for n, b in m._buffers.items() if "lorry" not in n]
        for model in self.models.values():
            model.to(WIDER[self.dtype])
        self.check_layers()
        for model in self.models.values():
            model.to(self.dtype)
        for module, name, buffer in own:  # casts make new ones (Wan's positions)
            module._buffers[name] = buffer

    @rule()
    def move_to_other_memory(self) -> None:
        """What a way to another device and back does: every tensor lies in new memory."""
        own = [(m, n, b) for m in self.modules for n, b in m._buffers.items() if "lorry" not in n]
        for model in self.models.values():
            model._apply(lambda tensor: tensor.clone() if tensor.is_floating_point() else tensor)
        for module, name, buffer in own:
            module._buffers[name] = buffer

    @rule()
    def ask(self) -> None:
        before = self.seen()
        lorry.fuse_support(self.pipe)
        for state in filter(None, map(find_state, self.models.values())):
            assert str(state)
            assert state.nbytes >= 0
        self.check_unchanged(before)

    @rule(
        scale=st.sampled_from([1.0, 0.5, 2.0]),
        steps=st.integers(1, 3),
        raises=st.sampled_from([False, False, True]),
        fault=st.tuples(st.sampled_from([*NO_FAULT, "torch"]), st.integers(1, 3000)),
    )
    def draw(self, scale: float, steps: int, raises: bool, fault: Fault) -> None:
        """Call the pipeline at a strength; what its layers compute is looked at after each step of the call."""
        looked = []

        def look(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
            looked.append(step)
            if not fault[0]:
                self.check_layers(scale, (step + 1, pipe.num_timesteps))
            if raises:
                raise InjectedError
            return {}

        before = self.seen()
        kwargs = {oracle.scale_argument(self.pipe): {"scale": scale}, "num_inference_steps": steps}
        fused = any(one.enabled and one.fused for one in self.account.values())
        try:
            with FAULTS["torch"](fault[1]) if fault[0] else nullcontext():
                oracle.drawn(self.pipe, callback_on_step_end=look, **kwargs)
        except FuseError:
            assert fused
            assert scale != 1.0 or self.no_way_back
        except InjectedError:
            assert raises or fault[0]
            self.count["failed on the way"] += 1
        else:
            assert looked
            assert not fused or scale == 1.0
            self.count["done"] += 1
        self.check_unchanged(before, identity=False)

    @rule()
    def save(self) -> None:
        """Save the denoiser; with nothing fused into it, it is the base's file byte for byte."""
        for name, one in self.models.items():
            assert list(one.state_dict()) == self.clean.bare[name]["keys"]
        if self.settled or self.account[self.denoiser].fused_paths():
            return
        with tempfile.TemporaryDirectory() as folder:
            self.models[self.denoiser].save_pretrained(folder)
            name = "diffusion_pytorch_model.safetensors"
            assert (Path(folder) / name).read_bytes() == bare_file(self.kind, self.dtype)

    @precondition(lambda self: not self.settled and not any(one.prepared for one in self.account.values()))
    @rule()
    def compare_with_a_fresh_pipeline(self) -> None:
        """What was done before does not matter: a pipeline that was never anything else draws the same."""
        fresh = Clean.taken(self.kind, self.dtype)
        for component, one in self.account.items():
            replay(fresh.models[component], one)
        for got, expected in zip(all_outputs(self.pipe), all_outputs(fresh.pipe), strict=True):
            check_near(got, expected, TOLERANCE[self.dtype])
        fresh.pipe.unload_lora_weights()
        fresh.check()
        fresh.give_back()


@functools.cache
def machine_of(kind: Kind, dtype: torch.dtype) -> type[Pipeline]:
    """The machine for one kind of pipeline in one dtype."""
    name = f"{kind}_{str(dtype).removeprefix('torch.')}"
    return type(name, (Pipeline,), {"kind": kind, "dtype": dtype, "count": Counter(), "__module__": __name__})


def settings_for(sequences: int, steps: int) -> settings:
    """So many sequences, each of at most so many operations; a failing one is made shorter and printed."""
    return settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
