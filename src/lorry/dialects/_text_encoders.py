"""How kohya's prefixes number the first text encoder, which depends on whether the base has others."""

from __future__ import annotations

from lorry.adapters import Adapter
from lorry.names import DENOISER

SDXL_CONTEXT = 2048
"""What SDXL's cross attention takes in: the width of its two text encoders together."""


def has_two_text_encoders(adapter: Adapter) -> bool:
    """Whether the base has more than one, so that the first is `te1`: SDXL and every transformer."""
    version = adapter.metadata.get("ss_base_model_version", "")
    if version:
        return not version.startswith(("sd_v1", "sd_v2"))
    for entry in adapter.entries:
        component, path = entry.target.component, entry.target.path.replace(".", "_")
        if (
            component not in (DENOISER, "unet", "text_encoder")
            or "transformer_blocks" in path.split("_attn")[:1]
        ):
            return True
        if path.endswith("attn2_to_k") and entry.delta.shape[1] == SDXL_CONTEXT:
            return True
    return False
