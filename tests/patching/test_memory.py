"""Which tensors of a file may stay in the memory that it was read into."""

from __future__ import annotations

import torch

from lorry.patching.memory import can_be_kept, copied, one_storage


def pieces(block: torch.Tensor, number: int) -> list[torch.Tensor]:
    return list(block.chunk(number))


def test_tensors_of_one_file_share_a_storage() -> None:
    block = torch.randn(64)
    assert one_storage(pieces(block, 4)) is not None
    assert one_storage([*pieces(block, 4), torch.randn(16)]) is None
    assert one_storage([torch.randn(16), *pieces(block, 4)]) is None
    assert one_storage([]) is None


def test_they_stay_where_nearly_all_of_it_is_in_use() -> None:
    block, other = torch.randn(64), torch.randn(64)
    assert can_be_kept(pieces(block, 4))
    assert not can_be_kept(pieces(block, 4)[:3])
    assert can_be_kept([*pieces(block, 4), *pieces(other, 2)])
    assert not can_be_kept([*pieces(block, 4), *pieces(other, 2)[:1]])
    assert not can_be_kept([block.view(8, 8).T])


def test_a_tensor_that_two_layers_have_counts_once() -> None:
    first, second = pieces(torch.randn(64), 2)
    assert not can_be_kept([first, first])
    assert can_be_kept([first, second, second])


def test_what_is_no_main_memory_is_copied_without_being_pinned() -> None:
    elsewhere = torch.device("meta")
    [copy] = copied([torch.ones(3, device=elsewhere)], elsewhere, pinned=True)
    assert copy.shape == (3,)
    assert copy.device == elsewhere
