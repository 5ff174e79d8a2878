"""Pipelines that carry nothing, what they are then, and how to bring one straight to what an account says."""

from __future__ import annotations

import copy
import functools
import tempfile
import weakref
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lorry.binding import BareParameter, carriers
from lorry.patching import Strength
from lorry.pipelines.components import components_of
from pipelines import oracle
from pipelines.account import Component, Dense, Strong
from pipelines.of_every_family import TARGETS, FilesOfEveryFamily
from small import changing
from snapshots import check_same, snapshot

Kind = Literal["sd", "sdxl", "flux", "wan"]


@functools.cache
def parts_of(kind: Kind, dtype: torch.dtype) -> Any:
    """A pipeline whose parts are copied for each that is taken."""
    pipeline = oracle.ours(kind)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype)
    return pipeline


@functools.cache
def files_of(kind: Kind) -> FilesOfEveryFamily:
    folder = tempfile.TemporaryDirectory(prefix="lorry-test-")
    files = FilesOfEveryFamily(kind, oracle.base(kind), Path(folder.name))
    weakref.finalize(files, folder.cleanup)
    return files


class Clean:
    """A pipeline that carries nothing, and what it is then."""

    idle: ClassVar[dict[Any, list[Clean]]] = {}
    """Those that were left clean, for who comes next; by kind and dtype."""

    def __init__(self, kind: Kind, dtype: torch.dtype) -> None:
        source = parts_of(kind, dtype)
        own = (*TARGETS[kind], "text_encoder_2")
        parts = {n: copy.deepcopy(part) if n in own else part for n, part in source.components.items()}
        self.key = (kind, dtype)
        self.pipe = oracle.made(type(source), parts)
        # diffusers and transformers put attributes on at the first call
        oracle.drawn(self.pipe, num_inference_steps=1)
        found = components_of(self.pipe)
        self.models: dict[str, Any] = {name: model for name, model in found.items() if model is not None}
        self.bare = {name: snapshot(model) for name, model in self.models.items()}
        self.tokenizer = self.pipe.tokenizer
        self.dense = Dense(kind, self.pipe)
        self.bytes = self.held()

    @classmethod
    def taken(cls, kind: Kind, dtype: torch.dtype) -> Clean:
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
        assert self.pipe.tokenizer is self.tokenizer
        assert not [name for name in vars(self.pipe) if name.startswith("_lorry")]
        assert self.held() == self.bytes

    def settle(self, changed: dict[str, set[str]]) -> None:
        """Take it as it is now for what it was, of which nothing but these parameters may differ (by component)."""
        for name, model in self.models.items():
            after = snapshot(model)
            fused = {key: after[key] for key in changed.get(name, ())}
            check_same({**after, **{key: self.bare[name][key] for key in fused}}, self.bare[name])
            self.bare[name] |= fused
        self.dense.take_down(self.pipe)

    def give_back(self) -> None:
        self.idle[self.key].append(self)


def parameter_key(model: Any, path: str, key: str) -> str:
    """What a parameter is called in a snapshot. A bare one has its block's path, which may be empty, and its name."""
    if isinstance(carriers(model)[path], BareParameter):
        return path if "." in path else f".{path}"
    return f"{path}.{key}"


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
def bare_file(kind: Kind, dtype: torch.dtype) -> bytes:
    """The denoiser's file of a pipeline on which nothing was ever loaded."""
    with tempfile.TemporaryDirectory() as folder:
        oracle.denoiser_of(parts_of(kind, dtype)).save_pretrained(folder)
        return (Path(folder) / "diffusion_pytorch_model.safetensors").read_bytes()
