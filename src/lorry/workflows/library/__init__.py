"""A folder of adapters: what is in it, and which file a name means."""

from lorry.workflows.library.naming import AdapterNames, adapter_files

__all__ = ["AdapterNames", "adapter_files"]
