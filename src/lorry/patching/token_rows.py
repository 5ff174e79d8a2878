"""Rows of a text encoder's embedding for tokens that come and go with adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lorry.binding import modules_at
from lorry.errors import StateError
from lorry.patching.side_path import SidePath, shares
from lorry.patching.state import find_state
from lorry.patching.undo import Undo


@final
@dataclass(frozen=True, eq=False, slots=True)
class TokenRows:
    """Which rows of an embedding are tokens', and what is needed to take them off bit for bit."""

    model: Any
    """The text encoder, of transformers; its config's `vocab_size` says how many rows there are."""
    layer: nn.Embedding
    vocab_size: int
    """What the config says without tokens."""
    first: int
    """The row of the first token."""
    own: int
    """How many rows the model has without tokens. A T5 has more than its tokenizer has tokens: the first go there."""
    covered: Tensor
    """The model's own rows that tokens now have, (at most count, width)."""
    count: int

    @property
    def total(self) -> int:
        """How many rows there are with the tokens."""
        return max(self.own, self.first + self.count)


def add_rows(model: Any, first: int, vectors: Tensor, undo: Undo) -> TokenRows:
    """Give a text encoder rows for tokens. The embedding stays the same parameter, with more rows.

    Args:
        model: a text encoder of transformers.
        first: the number of the first token.
        vectors: (count, width), in any dtype.
        undo: writes down every change.

    Raises:
        StateError: the embedding is not at hand to be changed.
    """
    layer = model.get_input_embeddings()
    weight = _plain_weight(layer)
    _check_free(model, layer)
    rows = TokenRows(
        model,
        layer,
        model.config.get_text_config().vocab_size,
        first,
        weight.shape[0],
        weight[first : first + len(vectors)].clone(),
        len(vectors),
    )
    filling = weight.new_zeros(max(0, first - rows.own), weight.shape[1])
    behind = weight[first + len(vectors) :]
    _set_rows(rows, torch.cat([weight[:first], filling, vectors.to(weight), behind]), rows.total, undo)
    return rows


def remove_rows(rows: TokenRows, undo: Undo) -> None:
    """Take tokens' rows off: the embedding is bit for bit what it was, moved and cast as it has been since.

    Raises:
        StateError: the embedding has been changed since the tokens were added.
    """
    layer = rows.model.get_input_embeddings()
    weight = _plain_weight(layer)
    if layer is not rows.layer or weight.shape[0] != rows.total:
        raise StateError(
            f"The text encoder's embedding has {weight.shape[0]} rows, and had {rows.total} with adapters' tokens: it "
            "was changed since. Take that back first (`unload_textual_inversion`)."
        )
    behind = weight[rows.first + rows.count : rows.own]
    covered = rows.covered.to(weight)
    own = torch.cat([weight[: min(rows.first, rows.own)], covered, behind])
    _set_rows(rows, own, rows.vocab_size, undo)


def _check_free(model: nn.Module, layer: nn.Embedding) -> None:
    """Raise where an adapter has a delta for the rows that are there.

    Raises:
        StateError: names the adapter.
    """
    weight, state = layer._parameters["weight"], find_state(model)
    for name, resident in ({} if state is None else state.adapters).items():
        layers = modules_at(model, resident.deltas)
        if any(one._parameters.get("weight") is weight for one in layers.values()):
            raise StateError(
                f"The adapter {name!r} has a layer on the text encoder's embedding, of {layer.num_embeddings} rows, "
                "which cannot get more for tokens meanwhile. Delete that adapter, or load the file without the layer."
            )


def _set_rows(rows: TokenRows, weight: Tensor, vocab_size: int, undo: Undo) -> None:
    parameter = rows.layer._parameters["weight"]
    layers = [one for one in rows.model.modules() if one._parameters.get("weight") is parameter]
    prepared = [one for one in layers if isinstance(one, SidePath) and shares(one, "weight")]
    undo.set_attribute(parameter, "data", weight)
    for one in prepared:
        undo.set_item(one._buffers, "lorry_weight", weight)
    undo.set_attribute(rows.layer, "num_embeddings", weight.shape[0])
    undo.set_attribute(rows.model.config.get_text_config(), "vocab_size", vocab_size)


def _plain_weight(layer: object) -> Tensor:
    weight = layer._parameters["weight"] if isinstance(layer, nn.Embedding) else None
    if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.is_meta:
        raise StateError(
            f"The text encoder's embedding ({type(layer).__name__}) is quantized, or offloaded and not at hand: it "
            "cannot get rows for tokens, or lose them. Load the adapter before offloading and take it off when that is "
            "off (`pipe.remove_all_hooks()`), or remove the tokens' keys from the file."
        )
    return weight.data
