"""The kernel that fuses many layers in one launch, in Triton. CUDA builds of torch bring Triton along."""
# pyright: reportMissingImports=false
# Triton is for Linux alone.

from __future__ import annotations

from typing import Any, no_type_check

import triton
import triton.language as tl

ROWS, COLUMNS, RANKS = 64, 128, 16
"""The tile of a weight that a program computes, and how much of the rank it takes at a time."""


@no_type_check
def _fuse(
    layers: tl.tensor,
    pairs: tl.tensor,
    scales: tl.tensor,
    tiles: tl.tensor,
    dtype: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    """`result = start + sum(scale * up @ down)` for one tile of one layer, summed in float32 and rounded once.

    All pointers are to contiguous matrices of `dtype`.

    Args:
        layers: (layers, 7) of int64: pointers to start and result, rows, columns, the layer's first pair, the one after
            its last, its first tile.
        pairs: (pairs, 3) of int64: pointers to up (rows, rank) and down (rank, columns), rank.
        scales: (pairs,) of float32.
        tiles: (tiles,) of int32: the layer of each tile.
        dtype: of the matrices.
        height: rows of a tile.
        width: columns of a tile.
        depth: how much of a rank is taken at a time.
    """
    layer = layers + tl.load(tiles + tl.program_id(0)) * 7
    start = tl.load(layer).to(tl.pointer_type(dtype))
    result = tl.load(layer + 1).to(tl.pointer_type(dtype))
    rows, columns = tl.load(layer + 2), tl.load(layer + 3)
    tile, across = tl.program_id(0) - tl.load(layer + 6), tl.cdiv(columns, width)
    row = (tile // across * height + tl.arange(0, height))[:, None]
    column = (tile % across * width + tl.arange(0, width))[None, :]
    total = tl.zeros((height, width), tl.float32)
    for pair in range(tl.load(layer + 4), tl.load(layer + 5)):
        up = tl.load(pairs + pair * 3).to(tl.pointer_type(dtype))
        down = tl.load(pairs + pair * 3 + 1).to(tl.pointer_type(dtype))
        rank = tl.load(pairs + pair * 3 + 2)
        product = tl.zeros((height, width), tl.float32)
        for first in range(0, rank, depth):
            k = first + tl.arange(0, depth)
            left = (row < rows) & (k[None, :] < rank)
            right = (k[:, None] < rank) & (column < columns)
            product = tl.dot(
                tl.load(up + row * rank + k[None, :], mask=left, other=0.0),
                tl.load(down + k[:, None] * columns + column, mask=right, other=0.0),
                product,
            )
        total += product * tl.load(scales + pair)
    at, inside = row * columns + column, (row < rows) & (column < columns)
    exact = tl.load(start + at, mask=inside, other=0.0).to(tl.float32) + total
    tl.store(result + at, exact.to(dtype), mask=inside)


_kernel: Any = triton.jit(_fuse)


def launch(layers: Any, pairs: Any, scales: Any, tiles: Any, dtype: str) -> None:
    """Run the kernel for all tiles; `dtype` is Triton's name of the matrices' dtype."""
    _kernel[(len(tiles),)](
        layers, pairs, scales, tiles, getattr(tl, dtype), height=ROWS, width=COLUMNS, depth=RANKS
    )
