"""Fresh adapters to train, and what of them is saved."""

from lorry.training.adapter_config import AdapterConfig
from lorry.training.fresh import add_adapter
from lorry.training.saving import get_adapter, get_adapter_metadata, get_adapter_state_dict

__all__ = ["AdapterConfig", "add_adapter", "get_adapter", "get_adapter_metadata", "get_adapter_state_dict"]
