"""The names of LyCORIS's own wrapper, which SimpleTuner and ai-toolkit use: the denoiser's modules, flattened.

    lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lokr_w1
    lycoris_transformer_blocks_0_attn_to_k.hada_w1_a

Pattern: `lycoris_`, the path of a module of the diffusers model with every `.` written as `_`, and a suffix of LyCORIS.
There is one component, which is not named: text encoders cannot be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from lorry.adapters import Adapter, Entry
from lorry.dialects._containers import is_flat
from lorry.dialects._exporting import LYCORIS_SUFFIXES, check_writable, find_obstacles, spelled
from lorry.dialects._headers import kohya_header
from lorry.dialects.base import Dialect
from lorry.files import TensorFile
from lorry.names import DENOISER

PREFIX = "lycoris_"
NAMED = (DENOISER, "unet", "transformer", "prior")


@final
class Lycoris(Dialect):
    """The names of LyCORIS's own wrapper."""

    name: ClassVar[str] = "lycoris"
    before: ClassVar[tuple[str, ...]] = (
        "onetrainer",
        "kohya",
        "peft",
        "attention-processors",
        "lora-layers",
        "omi",
        "dotted-kohya",
        "diffusers",
    )

    def claims(self, file: TensorFile) -> bool:
        return any(key.startswith(PREFIX) and is_flat(key) for key in file.tensors)

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        nameless = {
            str(entry.target): f"{entry.target.component}: only the denoiser has names"
            for entry in adapter.entries
            if entry.target.component not in NAMED
        }
        return {**find_obstacles(adapter, LYCORIS_SUFFIXES), **nameless}

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of this dialect.

        Raises:
            UnsupportedAdapterError: the adapter holds what the dialect has no names for.
        """
        check_writable(adapter, self.obstacles(adapter), self.name)
        tensors = spelled(adapter.entries, LYCORIS_SUFFIXES, _name)
        return TensorFile(tensors, kohya_header(adapter, "lycoris.kohya"), adapter.source)


def _name(entry: Entry) -> str:
    return PREFIX + entry.target.path.replace(".", "_")
