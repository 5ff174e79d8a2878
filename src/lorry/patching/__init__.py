"""Make plans active, fused, and off again, exactly: the only room that changes a model."""

from lorry.patching.call_scale import take_scale
from lorry.patching.finite import common_block, find_not_finite, is_finite
from lorry.patching.fuse_kinds import LayersOfAKind, layers_by_kind
from lorry.patching.fuse_loss import FuseLoss, FuseLosses
from lorry.patching.locks import exclusive
from lorry.patching.memory import can_be_kept, copied
from lorry.patching.originals import Originals
from lorry.patching.resident import apart
from lorry.patching.state import AdapterState, find_state, get_state, unknown_adapter
from lorry.patching.strength import Strength, check_strength, is_strength
from lorry.patching.token_rows import TokenRows, add_rows, remove_rows
from lorry.patching.trained import check_passes_gradients
from lorry.patching.undo import Undo

__all__ = [
    "AdapterState",
    "FuseLoss",
    "FuseLosses",
    "LayersOfAKind",
    "Originals",
    "Strength",
    "TokenRows",
    "Undo",
    "add_rows",
    "apart",
    "can_be_kept",
    "common_block",
    "check_passes_gradients",
    "check_strength",
    "copied",
    "exclusive",
    "find_not_finite",
    "is_finite",
    "is_strength",
    "find_state",
    "get_state",
    "layers_by_kind",
    "remove_rows",
    "take_scale",
    "unknown_adapter",
]
