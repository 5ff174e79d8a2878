"""One adapter as a frozen value."""

from lorry.adapters.adapter import Adapter, Entry, Ignored

__all__ = ["Adapter", "Entry", "Ignored"]
