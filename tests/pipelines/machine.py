"""Random sequences of everything that users do to a pipeline, against a plain account of what must hold.

The same seed gives the same sequence. What an operation is done to is chosen by what is there, so that most of them do
something; the others must be refused and leave everything alone.
"""

from __future__ import annotations

import copy
import functools
import gc
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lorry
from faults import FAULTS, InjectedError
from lorry.binding import carriers
from lorry.errors import DuplicateAdapterError, FuseError, LorryError, StateError, UnknownAdapterError
from lorry.patching import Strength, find_state
from lorry.pipelines.components import components_of
from pipelines import oracle
from pipelines.account import Component, Dense, Strong
from pipelines.of_every_family import DTYPES, KINDS, TARGETS, WHERE, FilesOfEveryFamily, Spec
from small import changing, check_near
from snapshots import check_same, snapshot

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Of the largest number of a layer's output, its own and what adapters add to it: five roundings of the dtype."""
WIDER = {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}
SEGMENTS = {"sd": "down_blocks", "sdxl": "mid_block", "flux": "single_transformer_blocks", "wan": "1"}

NAMES = ("a", "b", "c")
VALUES = (0.0, 0.25, 0.5, 1.0, -0.75)
Fault = tuple[str, int] | None
"""What fails, and at which step; None: nothing is made to fail."""


@functools.cache
def parts_of(kind: str, dtype: torch.dtype) -> Any:
    """A pipeline whose parts are copied for each sequence."""
    pipeline = oracle.ours(kind)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype)
    return pipeline


@functools.cache
def files_of(kind: str) -> FilesOfEveryFamily:
    folder = tempfile.TemporaryDirectory(prefix="lorry-test-")
    files = FilesOfEveryFamily(kind, oracle.base(kind), Path(folder.name))
    weakref.finalize(files, folder.cleanup)
    return files


class Clean:
    """A pipeline that carries nothing, and what it is then."""

    idle: ClassVar[dict[Any, list[Clean]]] = {}
    """Those that sequences have left clean, for the next ones; by kind and dtype."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        source = parts_of(kind, dtype)
        own = (*TARGETS[kind], "text_encoder_2")
        parts = {n: copy.deepcopy(part) if n in own else part for n, part in source.components.items()}
        self.key = (kind, dtype)
        self.pipe = oracle.made(type(source), parts)
        oracle.drawn(
            self.pipe, num_inference_steps=1
        )  # diffusers and transformers put attributes on at first calls
        found = components_of(self.pipe)
        self.models: dict[str, Any] = {name: model for name, model in found.items() if model is not None}
        self.bare = {name: snapshot(model) for name, model in self.models.items()}
        self.dense = Dense(kind, self.pipe)
        self.bytes = self.held()

    @classmethod
    def taken(cls, kind: str, dtype: torch.dtype) -> Clean:
        idle = cls.idle.setdefault((kind, dtype), [])
        return idle.pop() if idle else cls(kind, dtype)

    def held(self) -> int:
        """The bytes behind all parameters and buffers, memory of which they are a part counted whole."""
        tensors = [t for model in self.models.values() for t in (*model.parameters(), *model.buffers())]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def check(self) -> None:
        """Raise where it is not what it was."""
        for name, model in self.models.items():
            check_same(snapshot(model), self.bare[name])
        assert self.held() == self.bytes

    def give_back(self) -> None:
        self.idle[self.key].append(self)


class Machine:
    """The pipeline under test, and beside it the account."""

    def __init__(self, kind: str, dtype: torch.dtype, seed: int) -> None:
        self.kind, self.dtype, self.random = kind, dtype, Random(f"{kind} {dtype} {seed}")
        self.clean = Clean.taken(kind, dtype)
        self.pipe, self.models, self.dense = self.clean.pipe, self.clean.models, self.clean.dense
        self.modules = [module for model in self.models.values() for module in model.modules()]
        self.bare = self.clean.bare
        self.account = {name: Component() for name in self.models}
        self.born: list[weakref.ref[Tensor]] = []
        self.kept_fused = False
        self.log: list[str] = []
        self.count: Counter[str] = Counter()

    def seen(self) -> list[Any]:
        """All that an operation which fails must leave alone."""
        seen: list[Any] = []
        for module in self.modules:
            seen.append((type(module), list(vars(module)), len(module._forward_hooks)))
            tensors = (*module._parameters.items(), *module._buffers.items())
            seen += [(name, id(t), None if t is None else t.detach().clone()) for name, t in tensors]
        for state in filter(None, map(find_state, self.models.values())):
            seen.append(
                (list(state.adapters), dict(state.strengths), state.active, dict(state.fused), state.enabled)
            )
        return seen

    def check_unchanged(self, before: list[Any]) -> None:
        after = self.seen()
        assert len(after) == len(before)
        for now, then in zip(after, before, strict=True):
            if isinstance(then[-1], Tensor):
                assert now[:2] == then[:2]
                assert torch.equal(now[2], then[2]), then[0]
            else:
                assert now == then

    @property
    def denoiser(self) -> str:
        return next(name for name in self.models if not name.startswith("text"))

    @property
    def there(self) -> dict[str, Component]:
        return {name: one for name, one in self.account.items() if one.exists()}

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.account.values() for name in one.loaded))

    # --- what there is to choose from ---

    def one_name(self) -> str:
        """A loaded adapter, nearly always."""
        known = self.names if self.names and self.random.random() < 0.9 else NAMES
        return self.random.choice(known)

    def some_names(self) -> list[str]:
        return list(dict.fromkeys(self.one_name() for _ in range(self.random.randint(1, 3))))

    def value(self) -> float:
        return self.random.choice(VALUES)

    def spec(self) -> Spec:
        pick = self.random.choice
        return Spec(pick(KINDS), pick(list(WHERE)), pick(range(3)), pick(DTYPES))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def chosen(self) -> list[str]:
        """Some of the components."""
        return self.random.choice([list(self.models), [self.denoiser], ["text_encoder"]])

    def run(self, steps: int) -> None:
        """Do that many operations; raise where anything is not as it must be after one, or after all is off again."""
        self.load()
        self.load()
        for _ in range(steps):
            operation, _ = self.random.choices(OPERATIONS, [weight for _, weight in OPERATIONS])[0]
            operation(self)
            self.check()
        self.end()

    def attempt(
        self, what: str, operation: Callable[[], object], refused: type[LorryError] | None = None
    ) -> bool:
        """Do it, perhaps with a fault, and return whether it was done.

        Raise where it was refused and should not be, or the other way round, or where it was not done and has left
        anything changed.
        """
        fault = (self.random.choice(sorted(FAULTS)), self.random.randint(1, 60)) if self.chance(0.2) else None
        self.log.append(f"{what}{f', failing at {fault}' if fault else ''}{' (refused)' if refused else ''}")
        before = self.seen() if refused or fault else []
        try:
            with FAULTS[fault[0]](fault[1]) if fault else nullcontext():
                operation()
        except InjectedError:
            self.check_unchanged(before)
            self.count["failed on the way"] += 1
            return False
        except LorryError as error:
            if refused is None or not isinstance(error, refused):
                raise
            self.check_unchanged(before)
            self.count["refused"] += 1
            return False
        assert refused is None, f"expected a {refused}"
        self.count["done"] += 1
        return True

    # --- load and take off ---

    def load(self) -> None:
        free = [name for name in NAMES if name not in self.names]
        name, spec = self.random.choice(free if free and self.chance(0.9) else NAMES), self.spec()
        path, deltas = files_of(self.kind).get(spec)
        refused = DuplicateAdapterError if name in self.names else None
        if not self.attempt(
            f"load {name} {spec}", lambda: self.pipe.load_lora_weights(path, adapter_name=name), refused
        ):
            return
        before = list(self.there.values())
        disabled = bool(before) and not any(one.enabled for one in before)
        for component, found in deltas.items():
            self.account[component].put(name, found)
        for one in self.there.values():
            one.choose({name: Strong()})
            one.enabled = one.enabled and not disabled
        self.remember_tensors(name)

    def swap(self) -> None:
        name, spec = self.one_name(), self.spec()
        path, deltas = files_of(self.kind).get(spec)
        here = [one for one in self.account.values() if name in one.loaded]
        fused = any(name in self.account[component].fused for component in deltas)
        refused = UnknownAdapterError if not here else StateError if fused else None
        load = functools.partial(self.pipe.load_lora_weights, path, adapter_name=name, hotswap=True)
        if not self.attempt(f"swap {name} {spec}", load, refused):
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
        self.remember_tensors(name)

    def remember_tensors(self, name: str) -> None:
        """Note every tensor that is kept for an adapter, to see that it goes."""
        for state in filter(None, map(find_state, self.models.values())):
            if name in state.adapters:
                self.born += [weakref.ref(tensor) for tensor in state.adapters[name].tensors()]

    def load_what_is_broken(self) -> None:
        what = self.random.choice(["another shape", "not finite", "no file", "cut short"])
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
            self.attempt(
                f"load {what}", lambda: self.pipe.load_lora_weights(broken, adapter_name="z"), LorryError
            )

    def delete(self) -> None:
        names = self.some_names()
        refused = None if {*names} <= {*self.names} else UnknownAdapterError
        if self.attempt(f"delete {names}", lambda: self.pipe.delete_adapters(names), refused):
            for one in self.account.values():
                one.remove(names)

    def unload(self) -> None:
        keep_fused = self.chance(0.3)
        if self.attempt(
            f"unload, {keep_fused=}", lambda: self.pipe.unload_lora_weights(keep_fused=keep_fused)
        ):
            fused = keep_fused and any(one.fused for one in self.account.values())
            self.account = {name: Component() for name in self.account}
            if fused:
                self.dense.take_down(self.pipe)
                self.bare.update({name: snapshot(model) for name, model in self.models.items()})
                self.kept_fused = True

    def prepare(self) -> None:
        rank = self.random.choice([0, 4])
        if self.attempt(f"prepare {rank}", lambda: lorry.prepare(self.pipe, rank)):
            for one in self.account.values():
                one.prepared = True

    # --- choose and weigh ---

    def strong(self) -> Strong:
        return Strong(
            self.value(), self.random.choice(["", "", "segment"]), self.random.choice([0.0, 0.5, 2.0])
        )

    def given(self, strength: Strong) -> Any:
        """A strength as a user writes it."""
        if not strength.segment:
            return strength.value
        return lorry.Strengths(strength.value, parts={SEGMENTS[self.kind]: strength.factor})

    def meant(self, strength: Strong, component: str) -> Strong:
        """What it means on a component."""
        if not strength.segment:
            return Strong(strength.value)
        paths = list(carriers(self.models[component]))
        return Strong(strength.value, SEGMENTS[self.kind], strength.factor).on(paths)

    def choose(self) -> None:
        chosen = {name: self.strong() for name in self.some_names()}
        meant = {c: {n: self.meant(s, c) for n, s in chosen.items()} for c in self.there}
        refused = None if all(one.may_choose(meant[c]) for c, one in self.there.items()) else StateError
        refused = refused if chosen.keys() <= set(self.names) else UnknownAdapterError
        weights = [self.given(strength) for strength in chosen.values()]
        if self.attempt(f"choose {chosen}", lambda: self.pipe.set_adapters(list(chosen), weights), refused):
            for component, one in self.there.items():
                one.choose(meant[component])

    def choose_by_component(self) -> None:
        name = self.one_name()
        numbers = {self.denoiser: self.value(), "text_encoder": self.value()}
        meant = {c: {name: Strong(numbers.get(c, 1.0))} for c in self.there}
        refused = None if all(one.may_choose(meant[c]) for c, one in self.there.items()) else StateError
        refused = refused if name in self.names else UnknownAdapterError
        if self.attempt(f"choose {name} {numbers}", lambda: self.pipe.set_adapters(name, numbers), refused):
            for component, one in self.there.items():
                one.choose(meant[component])

    def choose_for_text_encoder(self) -> None:
        chosen = {name: self.value() for name in self.some_names()}
        one = self.account["text_encoder"]
        meant = {name: Strong(value) for name, value in chosen.items()}
        refused = None if one.may_choose(meant) else StateError
        refused = refused if chosen.keys() <= one.loaded.keys() else UnknownAdapterError
        values = list(chosen.values())
        choose = functools.partial(self.pipe.set_adapters_for_text_encoder, list(chosen), None, values)
        if self.attempt(f"choose for text {chosen}", choose, refused):
            one.choose(meant)

    def enable(self) -> None:
        enabled, only_text = self.chance(0.6), self.chance(0.3)
        verb = "enable_lora" if enabled else "disable_lora"
        if self.attempt(
            f"{verb}, {only_text=}", getattr(self.pipe, f"{verb}_for_text_encoder" if only_text else verb)
        ):
            for component, one in self.there.items():
                if component == "text_encoder" or not only_text:
                    one.enabled = enabled

    def park(self) -> None:
        names = self.some_names()
        refused = None if {*names} <= {*self.names} else UnknownAdapterError
        self.attempt(f"park {names}", lambda: self.pipe.set_lora_device(names, "cpu"), refused)
        for name in self.names:
            self.remember_tensors(name)

    # --- fuse and unfuse ---

    def fuse(self) -> None:
        names = None if self.chance(0.5) else self.some_names()
        components, scale, safe = self.chosen(), self.value(), self.chance(0.3)
        keep = self.random.choice(["device", "cpu", "disk"])
        wanted = {
            component: [n for n in (one.active if names is None else names) if n in one.loaded]
            for component, one in self.there.items()
            if component in components
        }
        pairs = [(self.account[component], name) for component, found in wanted.items() for name in found]
        refused: type[LorryError] | None = None
        if names is not None and not set(names) <= set(self.names):
            refused = UnknownAdapterError
        else:
            again = [name in one.fused for one, name in pairs]
            disabled = any(not one.enabled for one, _ in pairs)
            refused = FuseError if disabled or not again or (any if names else all)(again) else None
        fuse = functools.partial(
            self.pipe.fuse_lora,
            lora_scale=scale,
            safe_fusing=safe,
            adapter_names=names,
            components=components,
            originals=keep,
        )
        if self.attempt(f"fuse {names} of {components} at {scale} {keep}", fuse, refused):
            for component, found in wanted.items():
                self.account[component].fuse(found, scale)

    def unfuse(self) -> None:
        components = self.chosen()
        if self.attempt(f"unfuse {components}", lambda: self.pipe.unfuse_lora(components=components)):
            for component in components:
                self.account[component].fused.clear()

    # --- what must not matter ---

    def cast_there_and_back(self) -> None:
        self.log.append("cast there and back")
        own = [(m, n, b) for m in self.modules for n, b in m._buffers.items() if "lorry" not in n]
        for model in self.models.values():
            model.to(WIDER[self.dtype])
        self.check_layers()
        for model in self.models.values():
            model.to(self.dtype)
        for module, name, buffer in own:  # casts make new ones (Wan's positions)
            module._buffers[name] = buffer

    def draw(self) -> None:
        """Call the pipeline at a strength; what its layers compute is looked at in the middle of the call."""
        scale, fails = self.random.choice([0.5, 1.0, 2.0]), self.chance(0.3)
        self.log.append(f"draw at {scale}, {fails=}")
        looked = []

        def look(*_: Any) -> dict[str, Any]:
            self.check_layers(scale)
            looked.append(True)
            if fails:
                raise InjectedError
            return {}

        kwargs = {oracle.scale_argument(self.pipe): {"scale": scale}, "num_inference_steps": 2}
        fused = any(one.enabled and one.fused for one in self.account.values())
        try:
            oracle.drawn(self.pipe, callback_on_step_end=look, **kwargs)
        except FuseError:
            assert fused
            assert scale != 1.0
        except InjectedError:
            assert fails
        else:
            assert looked
            assert not fused or scale == 1.0

    def save(self) -> None:
        """Save the denoiser; with nothing fused into it, it is the base's file byte for byte."""
        for name, one in self.models.items():
            assert list(one.state_dict()) == self.bare[name]["keys"]
        model = self.models[self.denoiser]
        self.log.append("save")
        if self.kept_fused or self.account[self.denoiser].fused_paths():
            return
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            name = "diffusion_pytorch_model.safetensors"
            assert (Path(folder) / name).read_bytes() == bare_file(self.kind, self.dtype)

    def compare_with_a_fresh_pipeline(self) -> None:
        """What was done before does not matter: a pipeline that was never anything else draws the same."""
        if self.kept_fused or any(one.prepared for one in self.account.values()):
            return
        self.log.append("compare")
        fresh = Clean.taken(self.kind, self.dtype)
        for component, one in self.account.items():
            replay(fresh.models[component], one)
        for got, expected in zip(all_outputs(self.pipe), all_outputs(fresh.pipe), strict=True):
            check_near(got, expected, TOLERANCE[self.dtype])
        fresh.pipe.unload_lora_weights()
        fresh.check()
        fresh.give_back()

    # --- what must hold ---

    def check_layers(self, scale: float = 1.0) -> None:
        for component, one in self.account.items():
            self.dense.check(self.pipe, component, one, TOLERANCE[self.dtype], scale)

    def check(self) -> None:
        self.check_layers()
        self.parameters_without_anything_fused_into_them_have_their_own_bits()
        self.the_pipeline_says_what_was_done()

    def parameters_without_anything_fused_into_them_have_their_own_bits(self) -> None:
        for (component, path, key), base in self.dense.base.items():
            parameter = carriers(self.models[component])[path]._parameters[key]
            fused = path in self.account[component].fused_paths()
            assert fused or (parameter is not None and torch.equal(parameter, base)), f"{component}.{path}"

    def the_pipeline_says_what_was_done(self) -> None:
        loaded = {name: list(one.loaded) for name, one in self.account.items() if one.loaded}
        assert self.pipe.get_list_adapters() == loaded
        active = dict.fromkeys(name for one in self.account.values() for name in one.active)
        assert self.pipe.get_active_adapters() == list(active)
        assert self.pipe.fused_loras == {name for one in self.account.values() for name in one.fused}
        for component, one in self.account.items():
            assert (find_state(self.models[component]) is not None) == one.exists()

    def end(self) -> None:
        """Take everything off; raise where anything is not as at the start, or is left of an adapter."""
        self.log.append("end")
        self.pipe.unload_lora_weights()
        self.clean.check()
        if any(tensor() is not None for tensor in self.born):
            gc.collect()
        left = [found.shape for tensor in self.born if (found := tensor()) is not None]
        assert not left, f"{len(left)} tensors of adapters are left"
        if not self.kept_fused:
            self.clean.give_back()


OPERATIONS: list[tuple[Callable[[Machine], None], float]] = [
    (Machine.load, 4),
    (Machine.swap, 1),
    (Machine.load_what_is_broken, 0.7),
    (Machine.delete, 0.7),
    (Machine.unload, 0.3),
    (Machine.prepare, 0.3),
    (Machine.choose, 4),
    (Machine.choose_by_component, 1),
    (Machine.choose_for_text_encoder, 1),
    (Machine.enable, 2),
    (Machine.park, 0.7),
    (Machine.fuse, 3),
    (Machine.unfuse, 2),
    (Machine.cast_there_and_back, 0.7),
    (Machine.draw, 1),
    (Machine.save, 0.5),
    (Machine.compare_with_a_fresh_pipeline, 0.7),
]
"""Each with how often it is done beside the others."""


def run_sequence(kind: str, dtype: torch.dtype, seed: int, steps: int = 15) -> Counter[str]:
    """Drive a pipeline through the sequence of a seed.

    Returns:
        How many operations were done, refused, or failed on the way.

    Raises:
        AssertionError, LorryError: something is not as it must be; with a note of what was done.
    """
    machine = Machine(kind, dtype, seed)
    try:
        machine.run(steps)
    except BaseException as error:
        done = "\n  ".join(machine.log)
        error.add_note(f"in sequence {seed} of {kind} in {dtype}:\n  {done}")
        raise
    return machine.count


def replay(model: Any, account: Component) -> None:
    """Bring a model on which nothing was ever loaded to what an account says, by the shortest way."""

    def strength(one: Strong) -> Strength:
        by_path = {p: one.at(p) for p in carriers(model) if one.at(p) != one.value}
        return Strength(one.value, by_path or None)

    if not account.loaded:
        return
    with changing(model) as (state, undo):
        for name, deltas in account.loaded.items():
            state.add(name, deltas, undo)
        for name, fused in account.fused.items():
            state.set_active({name: strength(fused)}, undo)
            state.fuse(undo, [name])
        state.strengths = {name: strength(one) for name, one in account.strengths.items()}
        state.set_active({name: state.strengths[name] for name in account.active}, undo)
        state.set_enabled(account.enabled, undo)


def all_outputs(pipeline: Any) -> list[Tensor]:
    return [oracle.denoised(pipeline), *oracle.encoded(pipeline).values()]


@functools.cache
def bare_file(kind: str, dtype: torch.dtype) -> bytes:
    """The denoiser's file of a pipeline on which nothing was ever loaded."""
    with tempfile.TemporaryDirectory() as folder:
        oracle.denoiser_of(parts_of(kind, dtype)).save_pretrained(folder)
        return (Path(folder) / "diffusion_pytorch_model.safetensors").read_bytes()
