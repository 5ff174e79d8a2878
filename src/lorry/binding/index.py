"""An index of a live model's module paths, under every name that a file may use for them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Literal, final

from torch import nn

from lorry.binding.original_names import unet_names
from lorry.binding.places import Place, computes_fused, joined, places_of, usual_names, where_fused
from lorry.binding.tables import Names, Piece, exchanged_names, original_names
from lorry.binding.targets import carriers, weight_shape
from lorry.errors import StateError, UnknownTargetError
from lorry.names import Target

ROOT_LEVELS = ("text_model.", "model.", "language_model.", "model.language_model.", "language_model.model.")
"""Levels that versions of transformers have added or dropped at the root of a text encoder, or that a model has there
which holds a text encoder (Llava)."""

Make = tuple[type, list[tuple[str, tuple[int, ...] | None, bool]], list[str]]
"""A class of model; of every module, its path, the shape of the weight that a delta must have, and whether there is no
bias; and the attentions that compute with a fused layer."""


@final
class ModuleIndex:
    """Finds where the rows of a `Target` land in a model."""

    def __init__(self, model: nn.Module) -> None:
        """Make the index of `model`, which is walked when a module is first looked for.

        Raises:
            StateError: PEFT has put its wrappers into the model, so that its paths are no longer its own.
        """
        self.model = model
        if "peft_config" in vars(model):
            _ = self.modules

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every named module, and what stands for the bare parameters, by path.

        Raises:
            StateError: PEFT has wrapped some.
        """
        modules = carriers(self.model)
        if any(path.endswith(".base_layer") for path in modules):
            raise StateError(
                f"This {type(self.model).__name__} carries adapters that PEFT loaded (its modules are wrapped in "
                "`base_layer`), which lorry's methods do not see. Take them out first by the pipeline's "
                "`unload_lora_weights()`."
            )
        return modules

    @property
    def make(self) -> Make:
        """All of the model that a plan depends on: its class, and which modules it has, and of what shapes."""
        layers = [
            (path, weight_shape(module), module._parameters.get("bias") is None)
            for path, module in self.modules.items()
        ]
        fused = [path for path, module in self.modules.items() if computes_fused(module)]
        return type(self.model), layers, fused

    @cached_property
    def _fuses(self) -> bool:
        return any(path.endswith((".to_qkv", ".to_kv")) for path in self.modules)

    @cached_property
    def _original(self) -> Names:
        return original_names(self.model, self.modules) or unet_names(self.modules)

    @cached_property
    def _also(self) -> Names:
        return original_names(self.model, self.modules, "also")

    @cached_property
    def _spelt(self) -> Names:
        """The original names, and other spellings of them."""
        return {**self._also, **self._original}

    @cached_property
    def _usual(self) -> Names:
        return usual_names(self.modules)

    @cached_property
    def _flat(self) -> dict[str, set[str]]:
        return _flattened(self.modules)

    @cached_property
    def _flat_original(self) -> dict[str, set[str]]:
        return {**_flattened(self._also), **_flattened(self._original)}

    @cached_property
    def _flat_usual(self) -> dict[str, set[str]]:
        return _flattened(self._usual)

    def is_exchanged(self, target: Target) -> bool:
        """Whether a name is one module's in the original checkpoint and another one's in this model."""
        pattern = exchanged_names(type(self.model))
        return pattern is not None and pattern.fullmatch(target.path) is not None

    def names_in(self, target: Target) -> Literal["original", "diffusers", "both"]:
        """Say in which names a target is to be found: only the original's, only the model's, or in both or neither."""
        own, original = (self._flat, self._flat_original) if target.flat else (self.modules, self._spelt)
        if (target.path in own) == (target.path in original):
            return "both"
        return "diffusers" if target.path in own else "original"

    def find(self, target: Target) -> tuple[Place, ...] | None:
        """Return where the rows of `target` land, or None where the model has no such module.

        Raises:
            UnknownTargetError: a flattened name means two modules of this model.
        """
        pieces = self.find_pieces(target)
        if pieces is None:
            return None
        places = places_of(pieces, self.modules)
        if not self._fuses:
            return places
        return joined(tuple(where_fused(place, self.modules) for place in places), self.modules)

    def find_pieces(self, target: Target) -> tuple[Piece, ...] | None:
        """Return the pieces that the rows of `target` are, in their order, or None where there is no such module.

        Raises:
            UnknownTargetError: a flattened name means two modules of this model.
        """
        if target.original:
            names = self._flat_original[target.path] if target.flat else (target.path,)
            return self._original[next(iter(names))]
        return self._find_flat(target.path) if target.flat else self._find_dotted(target.path)

    @property
    def original(self) -> Names:
        """The names that the original checkpoint has for modules which are called otherwise in this model."""
        return self._original

    def find_path(self, target: Target) -> str | None:
        """Return the path of the one module that `target` names whole, or None."""
        places = self.find(target)
        return places[0].path if places and len(places) == 1 and places[0] == Place(places[0].path) else None

    def _find_dotted(self, path: str) -> tuple[Piece, ...] | None:
        """Find a dotted path; where no module has it, one that differs from it by dots for underscores alone.

        A converter that takes a flattened name apart has to guess: `noise.refiner.0.attention.to_q` (musubi-tuner's),
        `double_blocks.0.img_attn_qkv` of a FLUX.1.
        """
        own = next(
            (spelling for spelling in _with_and_without_root(path, ".") if spelling in self.modules), None
        )
        if own is not None and self._carries(own):
            return (Piece(self._called(own)),)
        return (
            self._spelt.get(path)
            or self._usual.get(path)
            or ((Piece(own),) if own else self._find_part(path))
            or self._find_flat(path.replace(".", "_"))
        )

    def _carries(self, path: str) -> bool:
        """Whether a delta can be put on a module. A name of one that cannot may be an original name of another.

        Wan's original `norm3` is the model's `norm2`, and its own `norm3` has no weight.
        """
        return weight_shape(self.modules[path]) is not None

    def _called(self, path: str) -> str:
        """Return the module that the model calls, of several with one weight: the last embedding.

        A T5 has `shared`, and calls `encoder.embed_tokens`.
        """
        module = self.modules[path]
        if not isinstance(module, nn.Embedding):
            return path
        weight = module._parameters["weight"]
        alike = (p for p, other in reversed(self.modules.items()) if isinstance(other, nn.Embedding))
        return next(p for p in alike if self.modules[p]._parameters["weight"] is weight)

    def _find_part(self, path: str) -> tuple[Piece, ...] | None:
        """Find parts of a fused module by their numbers: `img_attn.qkv.0` (OneTrainer), `linear1.0-2` (XLabs)."""
        whole, _, numbers = path.rpartition(".")
        pieces = self._spelt.get(whole, ())
        first, _, last = numbers.partition("-")
        last = last or first
        is_part = first.isdecimal() and last.isdecimal() and int(first) <= int(last) < len(pieces) > 1
        return pieces[int(first) : int(last) + 1] if is_part else None

    def _find_flat(self, name: str) -> tuple[Piece, ...] | None:
        for spelling in _with_and_without_root(name, "_"):
            own = _only(name, self._flat.get(spelling))
            if own is not None and self._carries(own):
                return (Piece(self._called(own)),)
            original = _only(name, self._flat_original.get(spelling))
            if original is not None:
                return self._spelt[original]
            usual = _only(name, self._flat_usual.get(spelling))
            if usual is not None:
                return self._usual[usual]
            if own is not None:
                return (Piece(own),)
        whole, _, number = name.rpartition(".")  # a part of a fused layer, whose name alone is flattened
        pieces = (self._find_flat(whole) or ()) if number.isdecimal() else ()
        return pieces[int(number) :][:1] or None if len(pieces) > 1 else None


def _only(name: str, candidates: set[str] | None) -> str | None:
    if candidates and len(candidates) > 1:
        raise UnknownTargetError(
            f"`{name}` can mean {' or '.join(sorted(candidates))}: the flattened name is ambiguous in this "
            "model. Convert the file to dotted names (diffusers) and load that."
        )
    return next(iter(candidates)) if candidates else None


def _flattened(names: Iterable[str]) -> dict[str, set[str]]:
    flat: dict[str, set[str]] = {}
    for name in names:
        flat.setdefault(name.replace(".", "_"), set()).add(name)
    return flat


def _with_and_without_root(path: str, separator: str) -> list[str]:
    roots = [root.replace(".", separator) for root in ROOT_LEVELS]
    return [
        path,
        *(path.removeprefix(root) for root in roots if path.startswith(root)),
        *(r + path for r in roots),
    ]
