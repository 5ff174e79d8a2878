"""`Adapter`: a frozen value."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lorry.adapters import Adapter, Entry, Ignored
from lorry.names import Target
from models import as_adapter, random_delta


def two_components() -> Adapter:
    unet = as_adapter({"a": random_delta((4, 3)), "b": random_delta((4, 3), alpha=1.0)})
    text = as_adapter({"a": random_delta((5, 3), rank=2)}, "text_encoder")
    return Adapter(
        (*unet.entries, *text.entries),
        "test",
        (Ignored("position", "a buffer"),),
        ("who.knows",),
        {"title": "toy"},
    )


def test_every_key_of_the_file_is_counted_once() -> None:
    assert two_components().key_count == 3 * 2 + 1 + 1


def test_components_stand_in_the_order_of_the_file() -> None:
    assert two_components().components == ("unet", "text_encoder")
    swapped = dataclasses.replace(two_components(), entries=tuple(reversed(two_components().entries)))
    assert swapped.components == ("text_encoder", "unet")


def test_the_bytes_are_those_of_its_tensors() -> None:
    assert two_components().nbytes == 4 * (2 * (3 * 3 + 4 * 3) + (2 * 3 + 5 * 2))


def test_a_change_of_all_tensors_leaves_the_first_adapter_alone() -> None:
    first = two_components()
    half = first.map_tensors(lambda tensor: tensor.half())
    assert {t.dtype for entry in half.entries for t in entry.delta.tensors().values()} == {torch.float16}
    assert {t.dtype for entry in first.entries for t in entry.delta.tensors().values()} == {torch.float32}
    assert [entry.delta.rank_scale for entry in half.entries] == [
        entry.delta.rank_scale for entry in first.entries
    ]
    assert half.metadata == {"title": "toy"}


def test_a_part_for_some_components_has_the_entries_of_these_only() -> None:
    assert two_components().only("text_encoder").components == ("text_encoder",)
    assert two_components().only("unet", "text_encoder").components == ("unet", "text_encoder")
    assert two_components().only("transformer").entries == ()


def test_an_adapter_cannot_be_changed() -> None:
    adapter = two_components()
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'dialect'"):
        adapter.dialect = "other"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'delta'"):
        adapter.entries[0].delta = random_delta((1, 1))  # pyright: ignore[reportAttributeAccessIssue]


def test_entries_say_where_their_scale_comes_from() -> None:
    assert Entry(Target("unet", "a"), random_delta((4, 3)), ("k",)).scale_source == "rank"
