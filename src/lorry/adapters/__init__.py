"""One adapter as a frozen value."""

from lorry.adapters.adapter import Adapter, Embedding, Entry, Ignored
from lorry.adapters.forms import Form, block_of, form_of, with_form_of
from lorry.adapters.svd import (
    Svd,
    dense_svd,
    energies,
    factor_spectrum,
    factor_svd,
    joined,
    rank_for,
    sketch_svd,
)

__all__ = [
    "Adapter",
    "Embedding",
    "Entry",
    "Form",
    "Ignored",
    "Svd",
    "block_of",
    "dense_svd",
    "energies",
    "factor_spectrum",
    "factor_svd",
    "form_of",
    "joined",
    "rank_for",
    "sketch_svd",
    "with_form_of",
]
