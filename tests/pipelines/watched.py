"""A pipeline under watch: what is done to it is written into an account, and what must hold then is looked at."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from hypothesis.stateful import RuleBasedStateMachine, invariant
from torch import Tensor

from faults import FAULTS, InjectedError
from lorry.binding import carriers
from lorry.errors import FuseError, LorryError
from lorry.patching import find_state
from pipelines.account import Component, Step
from pipelines.clean import Clean, Kind, files_of, parameter_key
from pipelines.of_every_family import Spec

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Of the largest number of a layer's output, its own and what adapters add to it: five roundings of the dtype."""
Fault = tuple[str | None, int]
"""What fails, and at which step; None: nothing is made to fail."""


class Watched(RuleBasedStateMachine):
    """The pipeline under test, and beside it the account."""

    kind: ClassVar[Kind] = "sd"
    dtype: ClassVar[torch.dtype] = torch.float32
    count: ClassVar[Counter[str]] = Counter()
    """How many operations were done, refused, or failed on the way, in all sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.clean = Clean.taken(self.kind, self.dtype)
        self.pipe, self.models, self.dense = self.clean.pipe, self.clean.models, self.clean.dense
        self.modules = [module for model in self.models.values() for module in model.modules()]
        self.account = {name: Component() for name in self.models}
        self.tokens: dict[str, Spec] = {}
        self.rows = len(self.pipe.text_encoder.get_input_embeddings().weight)
        self.born: list[weakref.ref[Tensor]] = []
        self.settled = False
        self.count["sequences"] += 1

    # --- what there is ---

    @property
    def denoiser(self) -> str:
        return next(name for name in self.models if not name.startswith("text"))

    @property
    def there(self) -> dict[str, Component]:
        return {name: one for name, one in self.account.items() if one.exists()}

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.account.values() for name in one.loaded))

    @property
    def fused(self) -> bool:
        return any(one.fused for one in self.account.values())

    @property
    def no_way_back(self) -> bool:
        return any(one.no_way_back for one in self.account.values())

    def chosen(self, parts: str) -> list[str]:
        return list(self.models) if parts == "all" else [self.denoiser if parts == "denoiser" else parts]

    def seen(self) -> list[Any]:
        """All that an operation which fails must leave alone."""
        seen: list[Any] = [
            (self.pipe.tokenizer, len(self.pipe.tokenizer), self.pipe.text_encoder.config.vocab_size)
        ]
        for module in self.modules:
            seen.append((type(module), list(vars(module)), len(module._forward_hooks)))
            tensors = (*module._parameters.items(), *module._buffers.items())
            seen += [(name, id(t), None if t is None else t.detach().clone()) for name, t in tensors]
        for state in filter(None, map(find_state, self.models.values())):
            seen.append(
                (list(state.adapters), dict(state.strengths), state.active, dict(state.fused), state.enabled)
            )
            seen.append((state.call_scale, state.step))
        return seen

    def check_unchanged(self, before: list[Any], identity: bool = True) -> None:
        """Raise where anything is not as it was; without `identity`, tensors may be others of the same bits."""
        after = self.seen()
        assert len(after) == len(before)
        for now, then in zip(after, before, strict=True):
            if isinstance(then[-1], Tensor):
                assert now[: 2 if identity else 1] == then[: 2 if identity else 1]
                assert torch.equal(now[2], then[2]), then[0]
            else:
                assert now == then

    def attempt(
        self,
        operation: Callable[[], object],
        refused: type[LorryError] | None = None,
        fault: Fault = (None, 0),
        *,
        may_need_originals: bool = False,
    ) -> bool:
        """Do it, perhaps with a fault, and return whether it was done.

        Raise where it was refused and should not be, or the other way round, or where it was not done and has left
        anything changed. Where an adapter is fused for good, or is to be, what needs the weight as it was may be
        refused too.
        """
        what, at = fault
        may_need_originals = may_need_originals or self.no_way_back
        before = self.seen() if refused or what or may_need_originals else []
        try:
            with FAULTS[what](at) if what else nullcontext():
                operation()
        except InjectedError:
            self.check_unchanged(before)
            self.count["failed on the way"] += 1
            return False
        except LorryError as error:
            may_be = may_need_originals and isinstance(error, FuseError)
            if not may_be and (refused is None or not isinstance(error, refused)):
                raise
            self.check_unchanged(before)
            self.count["refused"] += 1
            return False
        assert refused is None, f"expected a {refused}"
        self.count["done"] += 1
        return True

    def remember_tensors(self, name: str) -> None:
        """Note every tensor that is kept for an adapter, to see that it goes."""
        for state in filter(None, map(find_state, self.models.values())):
            if name in state.adapters:
                self.born += [weakref.ref(tensor) for tensor in state.adapters[name].tensors()]

    def all_is_off(self, keep_fused: bool) -> None:
        stays = {name: Component(one.loaded, fused=one.fused) for name, one in self.account.items()}
        self.account = {name: Component() for name in self.account}
        self.tokens = {}
        if not keep_fused:
            return
        for name, one in stays.items():
            self.dense.check(self.pipe, name, one, TOLERANCE[self.dtype])
        fused = {
            name: {parameter_key(self.models[name], *one_of) for one_of in one.parameters(one.fused)}
            for name, one in stays.items()
        }
        self.settled = self.settled or any(fused.values())
        self.clean.settle(fused)

    # --- what must hold ---

    def check_layers(self, scale: float = 1.0, step: Step | None = None) -> None:
        for component, one in self.account.items():
            self.dense.check(self.pipe, component, one, TOLERANCE[self.dtype], scale, step)

    @invariant()
    def every_layer_computes_the_exact_sum(self) -> None:
        self.check_layers()

    @invariant()
    def parameters_without_anything_fused_into_them_have_their_own_bits(self) -> None:
        for (component, path, key), base in self.dense.base.items():
            parameter = carriers(self.models[component])[path]._parameters[key]
            fused = path in self.account[component].fused_paths()
            assert fused or (parameter is not None and torch.equal(parameter, base)), f"{component}.{path}"

    @invariant()
    def the_pipeline_says_what_was_done(self) -> None:
        loaded = {name: list(one.loaded) for name, one in self.account.items() if one.loaded}
        assert self.pipe.get_list_adapters() == loaded
        active = dict.fromkeys(name for one in self.account.values() for name in one.active)
        assert self.pipe.get_active_adapters() == list(active)
        assert self.pipe.fused_loras == {name for one in self.account.values() for name in one.fused}
        for component, one in self.account.items():
            assert (find_state(self.models[component]) is not None) == one.exists()

    @invariant()
    def tokens_are_those_of_the_adapters(self) -> None:
        assert (self.pipe.tokenizer is self.clean.tokenizer) == (not self.tokens)
        embedding = self.pipe.text_encoder.get_input_embeddings().weight
        assert len(embedding) == max(self.rows, len(self.pipe.tokenizer))
        for spec in self.tokens.values():
            ids = self.pipe.tokenizer.convert_tokens_to_ids([spec.token, f"{spec.token}_1"])
            assert torch.equal(embedding[ids], files_of(self.kind).vectors(spec).to(embedding.dtype)), spec

    def teardown(self) -> None:
        """Take everything off; raise where anything is not as at the start, or is left of an adapter."""
        if sys.exception() is not None:  # it failed: what is there now says nothing
            return
        stuck = self.no_way_back
        if stuck:
            self.attempt(self.pipe.unload_lora_weights, FuseError)
        self.pipe.unload_lora_weights(keep_fused=stuck)
        self.all_is_off(stuck)
        self.clean.check()
        if any(tensor() is not None for tensor in self.born):
            gc.collect()
        left = [found.shape for tensor in self.born if (found := tensor()) is not None]
        assert not left, f"{len(left)} tensors of adapters are left"
        if not self.settled:
            self.clean.give_back()
