"""An index of a live model's module paths, under every name that a file may use for them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import final

from torch import nn

from lorry.binding.original_names import sgm_names
from lorry.errors import StateError, UnknownTargetError
from lorry.names import Target

ROOT_LEVELS = ("text_model.", "model.")
"""Levels that versions of transformers have added or dropped at the root of a text encoder."""


@final
class ModuleIndex:
    """Finds the module that a `Target` means, by its path in the model."""

    def __init__(self, model: nn.Module) -> None:
        """Index every named module of `model`.

        Raises:
            StateError: PEFT has put its wrappers into the model, so that its paths are no longer its own.
        """
        self.modules = {path: module for path, module in model.named_modules() if path}
        if any(path.endswith(".base_layer") for path in self.modules):
            raise StateError(
                f"This {type(model).__name__} carries adapters that PEFT loaded (its modules are wrapped in "
                "`base_layer`). Unload them first: `pipe.unload_lora_weights()` of diffusers, before lorry is used."
            )

    @cached_property
    def _flat(self) -> dict[str, set[str]]:
        return _flattened((path, path) for path in self.modules)

    @cached_property
    def _original(self) -> dict[str, str]:
        return sgm_names(self.modules)

    @cached_property
    def _flat_original(self) -> dict[str, set[str]]:
        return _flattened(self._original.items())

    def find(self, target: Target) -> str | None:
        """Return the path of the module that `target` names, or None where the model has no such module.

        Raises:
            UnknownTargetError: a flattened name means two modules of this model.
        """
        if target.flat:
            return self._find_flat(target.path)
        for path in _with_and_without_root(target.path, "."):
            if path in self.modules:
                return path
        return self._original.get(target.path)

    def _find_flat(self, name: str) -> str | None:
        for spelling in _with_and_without_root(name, "_"):
            candidates = self._flat.get(spelling) or self._flat_original.get(spelling)
            if candidates and len(candidates) > 1:
                raise UnknownTargetError(
                    f"`{name}` can mean {' or '.join(sorted(candidates))}: the flattened name is ambiguous in this "
                    "model. Convert the file to dotted names (diffusers) and load that."
                )
            if candidates:
                return next(iter(candidates))
        return None


def _flattened(names: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    flat: dict[str, set[str]] = {}
    for name, path in names:
        flat.setdefault(name.replace(".", "_"), set()).add(path)
    return flat


def _with_and_without_root(path: str, separator: str) -> list[str]:
    roots = [root.replace(".", separator) for root in ROOT_LEVELS]
    return [
        path,
        *(path.removeprefix(root) for root in roots if path.startswith(root)),
        *(r + path for r in roots),
    ]
