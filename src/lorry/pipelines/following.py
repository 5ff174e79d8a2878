"""Strengths that change by step, followed through the denoising steps of a pipeline's call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lorry.errors import StateError
from lorry.patching import AdapterState, Undo
from lorry.pipelines.components import states_of

CALLBACK = "callback_on_step_end"
INPUTS = "callback_on_step_end_tensor_inputs"


@contextmanager
def following_steps(
    pipeline: Any, call: Callable[..., Any], kwargs: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Set strengths that change by step before each denoising step of `call`, which is to take the arguments yielded.

    The pipeline says when a step is over, so nothing hangs on the denoiser and nothing in it is compiled anew.

    Raises:
        StateError: strengths change by step, and the pipeline does not say when a step is over.
    """
    states = [state for state in states_of(pipeline).values() if state.changes_by_step]
    if not states:
        yield dict(kwargs)
        return
    parameters = inspect.signature(call).parameters
    if CALLBACK not in parameters:
        raise StateError(
            f"{type(pipeline).__name__} does not say when a denoising step is over (it takes no `{CALLBACK}`), so that "
            "strengths cannot change by step in it. Set one strength for all steps with `set_adapters`."
        )
    given: Any = kwargs.get(CALLBACK)

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        returned = tensors if given is None else given(pipe, step, timestep, tensors)
        steps = getattr(pipe, "num_timesteps", None) or len(pipe.scheduler.timesteps)
        if step + 1 < steps:
            _set_step(states, (step + 2, steps))
        return returned

    inputs = {INPUTS: given.tensor_inputs} if hasattr(given, "tensor_inputs") else {}
    default = parameters["num_inference_steps"].default if "num_inference_steps" in parameters else 1
    _set_step(states, (1, int(kwargs.get("num_inference_steps") or default or 1)))
    try:
        yield {**kwargs, CALLBACK: after_step, **inputs}
    finally:
        _set_step(states, None)


def _set_step(states: list[AdapterState], step: tuple[int, int] | None) -> None:
    with Undo() as undo:
        for state in states:
            state.set_step(step, undo)
