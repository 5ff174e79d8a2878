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
