"""A strength for one call of a pipeline: `pipe(…, cross_attention_kwargs={"scale": 0.5})` and its kin."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from lorry.names import TEXT_ENCODERS
from lorry.patching import check_strength, exclusive, take_scale
from lorry.pipelines.components import components_of, states_of
from lorry.pipelines.following import following_steps

Given = ParamSpec("Given")
Result = TypeVar("Result")


@contextmanager
def scaled(pipeline: Any, scale: float, only_text: bool = False) -> Iterator[None]:
    """Scale the active adapters of the pipeline's components (of its text encoders only) inside the context."""
    with ExitStack() as stack:
        for name, state in states_of(pipeline).items():
            if name in TEXT_ENCODERS or not only_text:
                stack.enter_context(state.scaled(scale))
        yield


@contextmanager
def _remembered(pipeline: Any, scale: float) -> Iterator[None]:
    """Keep the strength of a call for `pipeline.lora_scale`."""
    outside = vars(pipeline).get("_lora_scale")  # of a call that this one stands in
    pipeline._lora_scale = scale if outside is None else outside * scale
    try:
        yield
    finally:
        vars(pipeline).pop("_lora_scale", None)
        if outside is not None:
            pipeline._lora_scale = outside


def alone(method: Callable[Concatenate[Any, Given], Result]) -> Callable[Concatenate[Any, Given], Result]:
    """Let a pipeline's method wait for calls of it and changes to it in other threads, and these for it."""

    @functools.wraps(method)
    def waiting(self: Any, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with exclusive(components_of(self).values()):
            return method(self, *args, **kwargs)

    return waiting


def obeying_scale(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a pipeline's `__call__` so that the strength in its attention arguments reaches every component.

    The strength is taken out of the arguments: diffusers would look for PEFT's layers with it. While the call runs, no
    other thread calls the pipeline or changes its adapters.
    """

    @functools.wraps(call)
    def call_with_scale(self: Any, *args: Any, **kwargs: Any) -> Any:
        scale, kwargs = take_scale(kwargs)
        check_strength(scale, "`scale`")
        with (
            exclusive(components_of(self).values()),
            _remembered(self, scale),
            scaled(self, scale),
            following_steps(self, call, kwargs) as followed,
        ):
            for state in states_of(self).values():
                state.check_called()
                state.check_standing()
            return call(self, *args, **followed)

    return call_with_scale


def obeying_lora_scale(encode_prompt: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a pipeline's `encode_prompt` so that its `lora_scale` reaches the text encoders."""
    signature = inspect.signature(encode_prompt)

    @functools.wraps(encode_prompt)
    def encode_with_scale(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            return encode_prompt(self, *args, **kwargs)
        scale = bound.arguments.pop("lora_scale", None)
        scale = 1.0 if scale is None else check_strength(scale, "`lora_scale`")
        with exclusive(components_of(self).values()), scaled(self, scale, only_text=True):
            return encode_prompt(*bound.args, **bound.kwargs)

    return encode_with_scale if "lora_scale" in signature.parameters else encode_prompt


def wrap_calls(cls: type) -> None:
    """Give a pipeline class calls that obey a strength, in place of those that it inherits from diffusers."""
    for name, wrapper in (("__call__", obeying_scale), ("encode_prompt", obeying_lora_scale)):
        inherited = getattr(cls, name, None)
        if inspect.isfunction(inherited) and not hasattr(inherited, "lorry_obeys"):
            wrapped = wrapper(inherited)
            wrapped.lorry_obeys = True  # type: ignore[attr-defined]
            setattr(cls, name, wrapped)
