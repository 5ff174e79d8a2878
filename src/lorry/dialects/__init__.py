"""Read and write adapter files: one naming convention a file, and a registry that finds the one a file is of."""

from lorry.dialects._control_lora import CONTROLNET, read_control_lora
from lorry.dialects._metadata import METADATA_KEY
from lorry.dialects._unflatten import unflatten
from lorry.dialects.base import Dialect
from lorry.dialects.registry import DIALECTS, find_dialect, get_dialect, read_adapter
from lorry.dialects.replacing import check_replaceable

__all__ = [
    "CONTROLNET",
    "DIALECTS",
    "METADATA_KEY",
    "Dialect",
    "check_replaceable",
    "find_dialect",
    "get_dialect",
    "read_adapter",
    "read_control_lora",
    "unflatten",
]
