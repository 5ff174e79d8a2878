"""Tokens that adapters bring along: in a pipeline's tokenizers and text encoders, and off again.

They are what `load_textual_inversion` would make of the same vectors, under the same names. Unlike there, the tokenizer
is not changed: a copy of it that knows the tokens stands in its place, so that taking them off is putting it back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from lorry.adapters import Embedding
from lorry.errors import StateError
from lorry.names import TEXT_ENCODERS
from lorry.patching import TokenRows, Undo, add_rows, remove_rows
from lorry.pipelines.components import unwrapped

ATTRIBUTE = "_lorry_tokens"
TOKENIZERS = {name: name.replace("text_encoder", "tokenizer") for name in TEXT_ENCODERS}


@final
@dataclass(frozen=True, eq=False, slots=True)
class Learned:
    """What one text encoder has learned from adapters."""

    before: Any
    """The pipeline's own tokenizer."""
    after: Any
    """The copy of it that knows the tokens."""
    rows: TokenRows


@final
@dataclass(frozen=True, eq=False, slots=True)
class Tokens:
    """All tokens that adapters have brought to a pipeline. It is replaced, never changed."""

    by_adapter: Mapping[str, tuple[Embedding, ...]]
    learned: Mapping[str, Learned]
    """By text encoder."""


def tokenizers_of(pipeline: object) -> list[str]:
    """Return the text encoders of a pipeline whose tokenizers can learn a token."""
    return [
        name for name, place in TOKENIZERS.items() if hasattr(getattr(pipeline, place, None), "add_tokens")
    ]


def put_tokens(pipeline: object, adapter: str, embeddings: Iterable[Embedding], undo: Undo) -> None:
    """Make these the tokens of an adapter, in place of those that it has.

    Args:
        pipeline: with tokenizers and text encoders.
        adapter: its name.
        embeddings: each with the text encoder it is for; none takes the adapter's tokens off.
        undo: writes down every change.

    Raises:
        StateError: a token is known already, or a tokenizer or text encoder was changed by something else.
    """
    now: Tokens = vars(pipeline).get(ATTRIBUTE, Tokens({}, {}))
    others = {name: brought for name, brought in now.by_adapter.items() if name != adapter}
    embeddings = tuple(embeddings)
    wanted = {**others, adapter: embeddings} if embeddings else others
    if adapter not in (*wanted, *now.by_adapter):
        return
    for component, learned in now.learned.items():
        _forget(pipeline, component, learned, undo)
    learned = {name: _learn(pipeline, name, wanted, undo) for name in _components(wanted)}
    if learned:
        undo.set_item(vars(pipeline), ATTRIBUTE, Tokens(wanted, learned))
    elif ATTRIBUTE in vars(pipeline):
        undo.delete_item(vars(pipeline), ATTRIBUTE)


def drop_tokens(pipeline: object, adapters: Iterable[str], undo: Undo) -> None:
    """Take the tokens of adapters off; those of others stay."""
    for adapter in adapters:
        put_tokens(pipeline, adapter, (), undo)


def adapters_with_tokens(pipeline: object) -> list[str]:
    """Return the adapters that have brought tokens to a pipeline."""
    found = vars(pipeline).get(ATTRIBUTE)
    return [] if found is None else list(found.by_adapter)


def _components(wanted: Mapping[str, tuple[Embedding, ...]]) -> list[str]:
    return list(dict.fromkeys(one.component for brought in wanted.values() for one in brought))


def _learn(
    pipeline: object, component: str, wanted: Mapping[str, tuple[Embedding, ...]], undo: Undo
) -> Learned:
    before, model = getattr(pipeline, TOKENIZERS[component]), unwrapped(getattr(pipeline, component))
    here = [one for brought in wanted.values() for one in brought if one.component == component]
    names = [token for one in here for token in one.tokens]
    known = before.get_vocab()
    twice = next((name for i, name in enumerate(names) if name in known or name in names[:i]), None)
    if twice is not None:
        raise StateError(
            f"The token {twice!r}, which an adapter brings along for {component}, is one that its tokenizer knows "
            "already. Delete the adapter that brought it, or give it another name in the file."
        )
    after, first = copy.deepcopy(before), len(before)
    for number, name in enumerate(names, first):
        after.add_tokens(name)
        if after.convert_tokens_to_ids(name) != number:
            raise StateError(f"The tokenizer of {component} will not learn the token {name!r}.")
    rows = add_rows(model, first, torch.cat([one.vectors for one in here]), undo)
    undo.set_attribute(pipeline, TOKENIZERS[component], after)
    return Learned(before, after, rows)


def _forget(pipeline: object, component: str, learned: Learned, undo: Undo) -> None:
    if getattr(pipeline, TOKENIZERS[component], None) is not learned.after or len(learned.after) != (
        learned.rows.first + learned.rows.count
    ):
        raise StateError(
            f"The pipeline's {TOKENIZERS[component]} was replaced, or has learned other tokens since an adapter "
            "brought its own. Take those back first (`unload_textual_inversion` with their names)."
        )
    remove_rows(learned.rows, undo)
    undo.set_attribute(pipeline, TOKENIZERS[component], learned.before)
