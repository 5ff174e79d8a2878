"""Which text encoder the tokens of an adapter go into."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import final

from torch import nn

from lorry.adapters import Embedding, Ignored
from lorry.binding.report import Mismatch
from lorry.names import TEXT_ENCODERS, Target


@final
@dataclass(frozen=True, eq=False, slots=True)
class PlacedEmbeddings:
    """Every embedding of an adapter, in one of four heaps."""

    placed: list[Embedding] = field(default_factory=list)
    """Each with the pipeline's own name for its text encoder."""
    ignored: list[Ignored] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)


def place_embeddings(
    embeddings: Iterable[Embedding], models: Mapping[str, nn.Module | None], tokenizers: Collection[str]
) -> PlacedEmbeddings:
    """Find the text encoder that each embedding is for: the one it names, or another of its width.

    Files count a T5 otherwise than pipelines do, and the width tells it from a CLIP.

    Args:
        embeddings: of an adapter.
        models: the pipeline's components by name; None for one that is not loaded.
        tokenizers: the text encoders that have a tokenizer which can learn a token.
    """
    heaps = PlacedEmbeddings()
    for one in embeddings:
        width = one.vectors.shape[1]
        names = [one.component, *(name for name in TEXT_ENCODERS if name != one.component)]
        there = [name for name in names if name in models]
        fitting = next((name for name in there if embedding_width(models[name]) == width), None)
        empty = next((name for name in there if models[name] is None), None)
        if fitting is not None and fitting in tokenizers:
            heaps.placed.append(replace(one, component=fitting))
        elif fitting is not None:
            reason = (
                f"{fitting} was given without a tokenizer, which would have to know the token {one.token!r}"
            )
            heaps.ignored.append(Ignored(one.key, reason))
        elif empty is not None:
            heaps.ignored.append(Ignored(one.key, f"the pipeline has no {empty} loaded"))
        elif one.component in models:
            heaps.mismatched.append(_mismatch(one, embedding_width(models[one.component])))
        else:
            heaps.unknown.append(one.key)
    return heaps


def embedding_width(model: nn.Module | None) -> int | None:
    """Return how many numbers a token's vector has in a text encoder of transformers; None for other models."""
    getter = getattr(model, "get_input_embeddings", None)
    layer = getter() if callable(getter) else None
    return layer.embedding_dim if isinstance(layer, nn.Embedding) else None


def _mismatch(one: Embedding, width: int | None) -> Mismatch:
    target, got = Target(one.component, one.token), tuple(one.vectors.shape)
    reason = f"the token {one.token!r} has vectors of {got[1]} numbers, where the text encoder's have {width}"
    return Mismatch(target, one.component, (one.key,), got, None, reason)
