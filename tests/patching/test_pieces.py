"""Pieces of strengths tell when offloading has given one of them other memory."""

import pytest
import torch

from lorry.patching.strengths import Pieces


@pytest.fixture
def pieces() -> Pieces:
    return Pieces.of([(torch.device("cpu"), ["one", "two", "three"], [2, 3, 2])])


def test_they_stay_what_they_are(pieces: Pieces) -> None:
    pieces.host[:] = range(7)
    pieces.send()
    assert pieces.are([*pieces.tensors])
    assert [piece.tolist() for piece in pieces.tensors] == [[0, 1], [2, 3, 4], [5, 6]]


def test_one_in_other_memory_is_told(pieces: Pieces) -> None:
    pieces.tensors[1].data = pieces.tensors[1].data.clone()
    assert not pieces.are_in_place
    assert not pieces.are([*pieces.tensors])


def test_one_in_other_memory_is_told_where_others_look_on(pieces: Pieces) -> None:
    seen = pieces.tensors[0].detach()
    assert pieces.are_in_place
    pieces.tensors[1].data = pieces.tensors[1].data.clone()  # as many views as there were
    assert not pieces.are_in_place
    assert seen.tolist() == [0, 0]


def test_others_are_not_they(pieces: Pieces) -> None:
    first, second, third = pieces.tensors
    assert not pieces.are([first, second])
    assert not pieces.are([first, second, third.clone()])
    assert not pieces.are([first, third, second])
    assert not pieces.are([])
    assert not Pieces.of([]).are([first])


def test_memory_that_moves_with_all_its_views_is_told(pieces: Pieces) -> None:
    pieces.tensors[1].share_memory_()
    assert not pieces.are_in_place


def test_all_in_other_memory_are_told_where_as_many_views_were_left_behind(pieces: Pieces) -> None:
    left = [piece.detach() for piece in pieces.tensors]
    for piece in pieces.tensors:
        piece.data = piece.data.clone()
    assert not pieces.are_in_place
    assert len(left) == 3


def test_pieces_of_no_numbers_are_where_they_were() -> None:
    assert Pieces.of([(torch.device("cpu"), ["one", "two"], [0, 0])]).are_in_place
    assert Pieces.of([]).are_in_place
