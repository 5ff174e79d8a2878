"""Make plans active, fused, and off again, exactly: the only room that changes a model."""

from lorry.patching.call_scale import take_scale
from lorry.patching.locks import exclusive
from lorry.patching.originals import Originals
from lorry.patching.state import AdapterState, find_state, get_state, unknown_adapter
from lorry.patching.strength import Strength
from lorry.patching.undo import Undo

__all__ = [
    "AdapterState",
    "Originals",
    "Strength",
    "Undo",
    "exclusive",
    "find_state",
    "get_state",
    "take_scale",
    "unknown_adapter",
]
