"""Products by the matrix unit of a processor (Intel's AMX), inside compiled loops.

A library's product writes one number for each score to memory, where whoever comes next waits for it. Here the scores
of `ROWS` rows at a time stay in the cache of the thread that looks at them next.

A tile register holds 16 lines of 64 bytes. With A of 16 rows and B of 16 columns, both of 64 bytes of coordinates, one
instruction adds to 16 x 16 sums the products of 64 coordinates in 8 bits, in whole numbers. Intel, Intrinsics Guide.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from raydkm.ops.kernels import compiled

#: Rows whose products are computed at a time: two tiles of them.
ROWS = 32

#: Lines of a tile, and bytes of a line.
LINES, BYTES = 16, 64

_BYTE, _SIZE = ir.IntType(8), ir.IntType(64)
_POINTER = _BYTE.as_pointer()

#: All eight tiles of full size: palette 1, the bytes of a line from 16 on, lines from 48 on.
_PALETTE = [1] + [0] * 15 + [BYTES, 0] * 8 + [0] * 16 + [LINES] * 8 + [0] * 8


@functools.cache
def available() -> bool:
    """Whether this processor has the unit, and this process may use it."""
    features = llvmlite.binding.get_host_cpu_features()
    # asks the system, as its own products do
    return bool(features.get("amx-tile") and features.get("amx-int8") and torch._C._cpu._init_amx())


def packed(x: Tensor) -> Tensor:
    """Columns x (m, h) of int8, m a multiple of 16, as tiles (m / 16, chunks, 16, 64).

    Line l of a tile has the coordinates 4 l to 4 l + 3 of each of its 16 columns.
    """
    group = 4 // x.element_size()
    x = torch.nn.functional.pad(x, (0, -x.shape[1] % (LINES * group)))
    tiles = x.view(len(x) // LINES, LINES, -1, LINES, group).permute(0, 2, 3, 1, 4)
    return tiles.reshape(*tiles.shape[:3], LINES * group).contiguous()


def _instruction(name: str, builder: Any, tiles: tuple[Any, ...], rest: tuple[Any, ...] = ()) -> None:
    """Emit one of tile registers, which are literals, and of further values."""
    values = [ir.Constant(_BYTE, tile.literal_value) for tile in tiles] + list(rest)
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


@intrinsic
def begin(context):  # type: ignore[no-untyped-def]
    """Make the thread's tiles ready."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        lines = ir.Constant(ir.ArrayType(_BYTE, len(_PALETTE)), _PALETTE)
        at = builder.bitcast(cgutils.global_constant(builder, "raydkm_palette", lines), _POINTER)
        _instruction("ldtilecfg", builder, (), (at,))
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def end(context):  # type: ignore[no-untyped-def]
    """Let go of the thread's tiles, which a switch to another thread would have to save."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        _instruction("tilerelease", builder, ())
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic(prefer_literal=True)
def clear(context, tile):  # type: ignore[no-untyped-def]
    """Set a tile to zero."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        _instruction("tilezero", builder, (tile,))
        return context.get_dummy_value()

    return types.void(tile), emit


def _mover(name: str) -> Any:
    @intrinsic(prefer_literal=True)
    def move(context, tile, address, stride):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
            _instruction(name, builder, (tile,), (builder.inttoptr(values[1], _POINTER), values[2]))
            return context.get_dummy_value()

        return types.void(tile, types.intp, types.intp), emit

    return move


def _adder(name: str) -> Any:
    @intrinsic(prefer_literal=True)
    def add(context, into, rows, columns):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
            _instruction(name, builder, (into, rows, columns))
            return context.get_dummy_value()

        return types.void(into, rows, columns), emit

    return add


#: Lines of a tile from, and to, an address, so many bytes apart.
load, store = _mover("tileloadd64"), _mover("tilestored64")

#: Products of 8-bit numbers, added to whole numbers of 32 bits.
add_int8 = _adder("tdpbssd")


@compiled
def multiply_int8(rows, columns, into):  # type: ignore[no-untyped-def]
    """Write the products (32, m) int32 of rows (32, 64 chunks) int8 by `packed` columns; between `begin` and `end`."""
    chunks, wide, line = columns.shape[1], into.shape[1] * 4, rows.shape[1]
    tile = LINES * BYTES
    a, to = rows.ctypes.data, into.ctypes.data
    for pair in range(columns.shape[0] // 2):
        b = columns.ctypes.data + 2 * pair * chunks * tile
        clear(0)
        clear(1)
        clear(2)
        clear(3)
        for chunk in range(chunks):
            load(4, a + chunk * BYTES, line)
            load(5, a + chunk * BYTES + LINES * line, line)
            load(6, b + chunk * tile, BYTES)
            load(7, b + (chunks + chunk) * tile, BYTES)
            add_int8(0, 4, 6)
            add_int8(1, 4, 7)
            add_int8(2, 5, 6)
            add_int8(3, 5, 7)
        at = to + 2 * pair * BYTES
        store(0, at, wide)
        store(1, at + BYTES, wide)
        store(2, at + LINES * wide, wide)
        store(3, at + LINES * wide + BYTES, wide)


@compiled
def block_of(factor, first, block):  # type: ignore[no-untyped-def]
    """Copy up to `ROWS` rows of `factor` (n, h), from `first` on, to the block (32, at least h); return how many."""
    count = min(ROWS, factor.shape[0] - first)
    for i in range(count):
        for j in range(factor.shape[1]):
            block[i, j] = factor[first + i, j]
    return count


@compiled
def product_int8(factor, columns, into):  # type: ignore[no-untyped-def]
    """Write the products (n, m) int32 of rows (n, h) int8 by `packed` columns."""
    block = np.zeros((ROWS, columns.shape[1] * BYTES), np.int8)
    some = np.empty((ROWS, into.shape[1]), np.int32)
    begin()
    for first in range(0, factor.shape[0], ROWS):
        count = block_of(factor, first, block)
        multiply_int8(block, columns, some)
        into[first : first + count] = some[:count]
    end()
