"""Arrow rows of any number of bytes: put together and taken in any order, though an array holds 2 GiB at the most."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

#: Bytes of rows that are copied into one array, on average, and at the most.
PIECE_BYTES = 2**26
LARGEST_PIECE_BYTES = 2**30

_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def plain_type(kind: pa.DataType) -> pa.DataType | None:
    """The type in which rows are held and written, or None where Arrow lacks functions for it.

    Of a dictionary it is the type of its values: parts of a data set have dictionaries of their own, and all of them
    together may be too many for the type of the indices.
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if kind in _VIEWS:
        return _VIEWS[kind]
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    inner = [storage.field(number).type for number in range(storage.num_fields)]
    return kind if all(plain_type(each) == each for each in inner) else None


def together(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Consecutive rows as one batch, or as a few where one array does not hold them."""
    rows = sum(map(len, batches))
    if len(batches) <= 1:
        return batches
    if rows <= 1 or _size(batches) <= LARGEST_PIECE_BYTES:
        return [pa.concat_batches(batches)]
    table = pa.Table.from_batches(batches)
    return [
        batch for half in (table.slice(0, rows // 2), table.slice(rows // 2)) for batch in together(half.to_batches())
    ]


def take(table: pa.Table, order: NDArray[np.int64]) -> pa.Table:
    """The rows of a table at the positions `order`."""
    batches = table.to_batches()
    starts = np.cumsum([0, *map(len, batches)])[:-1]

    def taken(order: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        of = np.searchsorted(starts, order, side="right") - 1
        grouped = np.argsort(of, kind="stable")
        numbers, first = np.unique(of[grouped], return_index=True)
        within = (order - starts[of])[grouped]
        parts = [
            batches[number].take(pa.array(positions))
            for number, positions in zip(numbers, np.split(within, first[1:]), strict=True)
        ]
        if len(order) > 1 and _size(parts) > LARGEST_PIECE_BYTES:
            yield from taken(order[: len(order) // 2])
            yield from taken(order[len(order) // 2 :])
            return
        back = np.empty(len(order), dtype=np.int64)
        back[grouped] = np.arange(len(order))
        yield pa.concat_batches(parts).take(pa.array(back))

    at_once = rows_within(table)
    pieces = (order[first : first + at_once] for first in range(0, len(order), at_once))
    return pa.Table.from_batches([batch for piece in pieces for batch in taken(piece)], table.schema)


def rows_within(table: pa.Table) -> int:
    """How many rows of a table take `PIECE_BYTES`, on average; at least one."""
    return max(1, PIECE_BYTES * len(table) // max(1, table.nbytes))


def _size(batches: list[pa.RecordBatch]) -> int:
    return sum(batch.nbytes for batch in batches)
