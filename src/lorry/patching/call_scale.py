"""A strength for one call of a model, taken from the arguments that pipelines pass it in."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from threading import get_ident
from typing import Any, final

from torch import nn

from lorry.errors import StateError
from lorry.patching.undo import Undo

ARGUMENTS = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
"""The arguments of a denoiser's forward that hold `{"scale": …}`."""


def take_scale(kwargs: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the strength that `kwargs` ask for (1.0 when they do not), and `kwargs` without it.

    Raises:
        StateError: an argument is a number in place of a dict, or its strength is a string.
    """
    for name in ARGUMENTS:
        given = kwargs.get(name)
        if isinstance(given, (int, float)):
            raise StateError(f'`{name}`: expected a dict, as in {{"scale": {given}}}, got {given}.')
        if isinstance(given, dict) and "scale" in given:
            rest = {key: value for key, value in given.items() if key != "scale"}
            scale = given["scale"]
            if isinstance(scale, str):
                raise StateError(f"`scale`: expected a number, got {scale!r}.")
            return (1.0 if scale is None else float(scale)), {
                **kwargs,
                name: rest or None,
            }
    return 1.0, kwargs


def takes_scale(model: nn.Module) -> bool:
    """Whether the model's forward has an argument that can hold a strength."""
    return any(name in ARGUMENTS for name in inspect.signature(type(model).forward).parameters)


@final
class CallScale:
    """Two hooks on a model, by which the strength in a call's arguments holds for that call.

    The model keeps its class: diffusers' `from_pipe` asks for the very class of a model. A call that was broken off by
    something else than an exception of torch's own kind (Ctrl-C) is ended at the beginning of the next.

    It asks the model for its state each time. To keep hold of that would be a circle, and the layers of a model that
    nobody uses any more would be freed only when Python next looks for circles.
    """

    def __init__(self) -> None:
        self._call: ExitStack | None = None
        self._thread = 0
        """Whose call it is."""
        self._ids: tuple[int, ...] = ()

    def put_on(self, model: nn.Module, undo: Undo) -> None:
        """Hook the model."""
        before = model.register_forward_pre_hook(self._before, with_kwargs=True)
        undo.on_failure(before.remove)
        after = model.register_forward_hook(self._after, always_call=True)
        undo.on_failure(after.remove)
        self._ids = (before.id, after.id)

    def take_off(self, model: nn.Module, undo: Undo) -> None:
        """Leave no trace of the hooks."""
        for hooks in (
            model._forward_pre_hooks,
            model._forward_pre_hooks_with_kwargs,
            model._forward_hooks,
            model._forward_hooks_always_called,
        ):
            for number in self._ids:
                if number in hooks:
                    undo.delete_item(hooks, number)

    def _before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._call is not None:
            if self._thread != get_ident():
                raise StateError(
                    f"This {type(model).__name__} is being called with a strength of its own by another thread. Call "
                    "the pipeline, which waits, or keep your threads apart."
                )
            self._end()
        scale, rest = take_scale(kwargs)
        if rest is kwargs:
            return None
        if scale != 1.0:
            with ExitStack() as call:
                call.enter_context(vars(model)["lorry"].scaled(scale))
                self._call, self._thread = call.pop_all(), get_ident()
        return args, rest

    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call is not None and self._thread == get_ident():
            self._end()

    def _end(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.close()
