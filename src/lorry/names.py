"""The small frozen words that every room shares."""

from __future__ import annotations

from dataclasses import dataclass

from lorry.errors import StateError

DENOISER = "denoiser"
"""The component of a file that says 'the model' without naming it: the pipeline's `unet` or `transformer`."""

DENOISERS = ("unet", "transformer", "transformer_2", "transformer_ref", "prior")
CONDITIONER = "text_conditioner"
"""Anima's model between its text encoder and its transformer, which original files call `llm_adapter`."""
CONNECTORS = "connectors"
"""LTX-2's, from its text encoder to its two streams."""
DURATION_EMBEDDER = "duration_embedder"
"""Stable Audio 3's."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
OTHERS = (CONDITIONER, CONNECTORS, DURATION_EMBEDDER)
"""Components beside text encoder and denoiser that adapters are trained for."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A module that an adapter changes, as its file names it.

    `component` is a pipeline's attribute (`"unet"`, `"text_encoder_2"`, …) or `DENOISER`. `path` is the module's
    path in that component, dotted, or with every `.` written as `_` where `flat` is true: only the live model can
    tell what a flattened path means.
    """

    component: str
    path: str
    flat: bool = False
    original: bool = False
    """Whether `path` is the original checkpoint's, in a model that calls another module so. Binding finds it out."""

    def __str__(self) -> str:
        return f"{self.component}.{self.path}"


def check_adapter_name(name: object) -> str:
    """Return `name` when it can be an adapter's name.

    Raises:
        StateError: `name` is not a string, is empty, or holds a dot (dots would make state dict keys ambiguous).
    """
    if not isinstance(name, str) or not name or "." in name:
        raise StateError(f"{name!r} cannot be an adapter name: expected a non-empty string without '.'.")
    return name
