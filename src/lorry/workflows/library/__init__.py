"""A folder of adapters: what is in it, which file a name means, which files hold the same."""

from lorry.workflows.library.duplicates import find_duplicates, hash_adapter
from lorry.workflows.library.facts import Facts
from lorry.workflows.library.index import Library, LibraryEntry, scan_library
from lorry.workflows.library.naming import AdapterNames, adapter_files
from lorry.workflows.library.sidecars import Sidecars

__all__ = [
    "AdapterNames",
    "Facts",
    "Library",
    "LibraryEntry",
    "Sidecars",
    "adapter_files",
    "find_duplicates",
    "hash_adapter",
    "scan_library",
]
