"""Products by the matrix unit of a processor (Intel's AMX), inside compiled loops.

A library's product writes one number for each score to memory, where whoever comes next waits for it. Here the scores
of some rows at a time stay in the cache of the thread that looks at them next.

A tile register holds 16 lines of 64 bytes. With A of 16 rows and B of 16 columns, both of 64 bytes of coordinates, one
instruction adds to 16 x 16 sums the products of 64 coordinates in 8 bits, in whole numbers. Intel, Intrinsics Guide.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from torch import Tensor

from raydkm.ops.kernels import compiled, compiled_in_order, intrinsic, rounded

#: Rows whose products are computed at a time: two tiles of them.
ROWS = 32

#: Lines of a tile, and bytes of a line.
LINES, BYTES = 16, 64

#: Bits of a float32 that a bf16 has not.
BF16 = 16

_BYTE = ir.IntType(8)
_POINTER = _BYTE.as_pointer()

#: All eight tiles of full size: palette 1, the bytes of a line from 16 on, lines from 48 on.
_PALETTE = [1] + [0] * 15 + [BYTES, 0] * 8 + [0] * 16 + [LINES] * 8 + [0] * 8


@functools.cache
def available() -> bool:
    """Whether this processor has the unit, and this process may use it."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()  # what Numba compiles for
    ask = getattr(torch._C._cpu, "_init_amx", bool)  # the system, as torch's own products do; False where it cannot
    return {"+amx-tile", "+amx-int8", "+amx-bf16"} <= set(features.split(",")) and bool(ask())


def packed(x: Tensor) -> Tensor:
    """Columns x (parts, m, h) of int8 or bf16, m a multiple of 16, as tiles (parts, m / 16, chunks, 16, 64 bytes).

    Line l of a tile has, one after the other, the l-th four bytes of coordinates of each of its 16 columns.
    """
    group = 4 // x.element_size()
    x = torch.nn.functional.pad(x, (0, -x.shape[2] % (LINES * group)))
    tiles = x.view(len(x), -1, LINES, x.shape[2] // (LINES * group), LINES, group).permute(0, 1, 3, 4, 2, 5)
    return tiles.reshape(*tiles.shape[:4], LINES * group)


def split(x: Tensor, parts: int) -> Tensor:
    """bf16 parts (parts, m, h) of x (m, h) float32: each but the first of what rounding left by those before."""
    found, rest = [], x
    for _ in range(parts):
        found.append(rest.to(torch.bfloat16))
        rest = rest - found[-1].to(torch.float32)
    return torch.stack(found)


def _instruction(name: str, builder: Any, tiles: tuple[Any, ...], rest: tuple[Any, ...] = ()) -> None:
    """Emit one of tile registers, which are literals, and of further values."""
    values = [ir.Constant(_BYTE, tile.literal_value) for tile in tiles] + list(rest)
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


@intrinsic
def begin_tiles(context):  # type: ignore[no-untyped-def]
    """Make the thread's tiles ready."""

    def emit(context, builder, signature, values):  # type: ignore[no-untyped-def]
        lines = ir.Constant(ir.ArrayType(_BYTE, len(_PALETTE)), _PALETTE)
        at = builder.bitcast(cgutils.global_constant(builder, "raydkm_palette", lines), _POINTER)
        _instruction("ldtilecfg", builder, (), (at,))
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def end_tiles(context):  # type: ignore[no-untyped-def]
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

#: Products of 8-bit numbers, added to whole numbers of 32 bits; of bf16 ones, to float32.
add_int8, add_bf16 = _adder("tdpbssd"), _adder("tdpbf16ps")


@compiled
def aligned(size):  # type: ignore[no-untyped-def]
    """Memory of `size` bytes, as int8, from the start of a line on: a line of a tile that lay on two takes twice."""
    room = np.empty(size + BYTES, np.int8)
    start = -room.ctypes.data % BYTES
    return room[start : start + size]


def _multiplier(add: Any, *, in_tiles: bool) -> Callable:
    @compiled
    def multiply(rows, columns, first, into, more):  # type: ignore[no-untyped-def]
        """Write, or with `more` add, the products of rows by columns from `first` on, between `begin_tiles` and
        `end_tiles`.

        Numbers may be in parts, of which the second is what rounding left of the first, and so on. What part i of a
        row and part j of a column add to the product is left out where i + j is not below the number of parts.

        Parameters
        ----------
        rows : (parts, n / 16, chunks, 16, 64 bytes), or (parts, n, chunks of 64 bytes)
            n a multiple of 32.
        columns : (parts, m / 16, chunks, 16, 64 bytes)
            `packed` ones.
        first : int
        into : (n, some) of int32 or float32
            Some of m, a multiple of 32, as is `first`.
        more : bool
        """
        parts, chunks, wide = columns.shape[0], columns.shape[2], into.shape[1] * 4
        tile, line = LINES * BYTES, columns.shape[2] * LINES * BYTES
        row, step, tiles = (BYTES, tile, rows.shape[1]) if in_tiles else (chunks * BYTES, BYTES, rows.shape[1] // LINES)
        for pair in range(into.shape[1] // (2 * LINES)):
            for block in range(tiles // 2):
                at = into.ctypes.data + block * ROWS * wide + 2 * pair * BYTES
                if more:
                    load(0, at, wide)
                    load(1, at + BYTES, wide)
                    load(2, at + LINES * wide, wide)
                    load(3, at + LINES * wide + BYTES, wide)
                else:
                    clear(0)
                    clear(1)
                    clear(2)
                    clear(3)
                for chunk in range(chunks):
                    for i in range(parts):
                        a = rows.ctypes.data + (i * tiles + 2 * block) * line + chunk * step
                        load(4, a, row)
                        load(5, a + line, row)
                        for j in range(parts - i):
                            of = j * columns.shape[1] + first // LINES + 2 * pair
                            b = columns.ctypes.data + of * line + chunk * tile
                            load(6, b, BYTES)
                            load(7, b + line, BYTES)
                            add(0, 4, 6)
                            add(1, 4, 7)
                            add(2, 5, 6)
                            add(3, 5, 7)
                store(0, at, wide)
                store(1, at + BYTES, wide)
                store(2, at + LINES * wide, wide)
                store(3, at + LINES * wide + BYTES, wide)

    return multiply


#: Of rows one after the other, and of tiles of them.
multiply_int8, multiply_bf16 = _multiplier(add_int8, in_tiles=False), _multiplier(add_bf16, in_tiles=True)


@compiled
def product_int8(factor, columns, into):  # type: ignore[no-untyped-def]
    """Write the products (n, m) int32 of rows (n, h) int8 by `packed` columns."""
    block = np.zeros((1, ROWS, columns.shape[2] * BYTES), np.int8)
    some = np.empty((ROWS, into.shape[1]), np.int32)
    begin_tiles()
    for first in range(0, factor.shape[0], ROWS):
        count = min(ROWS, factor.shape[0] - first)
        for i in range(count):
            for j in range(factor.shape[1]):
                block[0, i, j] = factor[first + i, j]
        multiply_int8(block, columns, 0, some, False)
        into[first : first + count] = some[:count]
    end_tiles()


@compiled_in_order
def high_half(first, second):  # type: ignore[no-untyped-def]
    """The bits of two bf16, in float32, as one int32."""
    low = (np.float32(first).view(np.int32) >> np.int32(16)) & np.int32(0xFFFF)
    return np.int32(low | (np.float32(second).view(np.int32) & np.int32(-65536)))


@compiled_in_order
def split_rows(x, shift, first, parts):  # type: ignore[no-untyped-def]
    """Write bf16 parts (p, rows / 16, chunks, 16, 32), as int16, of rows x (n, d) - shift (d,) from `first` on.

    Beyond them there are zeros. Return how many rows there were.
    """
    numbers = parts.shape[4]
    count, rest = min(LINES * parts.shape[1], x.shape[0] - first), np.zeros(parts.shape[2] * numbers, np.float32)
    for i in range(count):
        for j in range(x.shape[1]):
            rest[j] = x[first + i, j] - shift[j]
        for part in range(parts.shape[0]):
            for chunk in range(parts.shape[2]):
                for j in range(numbers):
                    value = rounded(rest[chunk * numbers + j], BF16)
                    parts[part, i // LINES, chunk, i % LINES, j] = np.float32(value).view(np.int32) >> np.int32(BF16)
                    rest[chunk * numbers + j] -= value
    for i in range(count, LINES * parts.shape[1]):
        parts[:, i // LINES, :, i % LINES] = 0
    return count
