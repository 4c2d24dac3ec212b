"""Feature and weight columns: Arrow arrays → NumPy matrices, with everything unusable refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydkm.data.images import decode, image_shape
from raydkm.errors import InputError

#: Beyond this a float32 square overflows.
LARGEST = 1e15


@dataclass(frozen=True)
class Columns:
    """Which columns hold the features and the weights.

    Parameters
    ----------
    features : tuple of str
        One column of lists, nested lists, tensors or encoded images, or several scalar ones that make one vector.
    weight : str or None
    shape : tuple of int or None
        Of a row, channels first, which has as many numbers; where there is none, rows are plain vectors.
    """

    features: tuple[str, ...]
    weight: str | None = None
    shape: tuple[int, ...] | None = None

    @classmethod
    def named(
        cls, column: str | None, weight: str | None, available: list[str], *, shape: tuple[int, ...] | None = None
    ) -> Columns:
        """Split ``a,b,c``; a name that exists as a whole column wins over splitting it."""
        if column is None:
            raise InputError(f"name the feature column (--column); there are: {', '.join(available)}")
        features = (column,) if column in available else tuple(name.strip() for name in column.split(","))
        return cls(features, weight, shape)

    @property
    def needed(self) -> list[str]:
        return [*self.features, *([self.weight] if self.weight else [])]

    @property
    def label(self) -> str:
        return ",".join(self.features)

    def check(self, schema: pa.Schema, where: str) -> int | None:
        """Check names and types; return the dimension if the schema fixes it."""
        for name in self.needed:
            check_column(schema, name, where)
        if self.weight is not None and not _is_number(schema.field(self.weight).type):
            raise InputError(f"{where}: weight column '{self.weight}' is {schema.field(self.weight).type}, not numeric")
        sizes = self._sizes([schema.field(name).type for name in self.features], where)
        if self.shape is None:
            return None if sizes is None else prod(sizes)
        if sizes is not None and not _fits(sizes, self.shape):
            raise InputError(f"{where}: column '{self.label}': {_misfit(sizes, self.shape)}")
        return prod(self.shape)

    def _sizes(self, kinds: list[pa.DataType], where: str) -> Sequence[int] | None:
        """Lengths of a row's axes, as its columns hold it, if their types fix them."""
        place = f"{where}: column '{self.label}'"
        if len(kinds) == 1 and _is_encoded(kinds[0]):
            return image_shape(self.shape, f"{place} is {kinds[0]}")
        if len(kinds) == 1 and _list_of(kinds[0]) is not None:
            inner, sizes = _nested(kinds[0])
            if not _is_feature(inner):
                raise InputError(f"{place} holds {inner}; features are floats or 8-bit integers")
            if self.shape is None and inner != _list_of(kinds[0]):
                raise InputError(f"{place} is {kinds[0]}; lists in lists need a shape (--shape 3x64x64)")
            return sizes
        for name, kind in zip(self.features, kinds, strict=True):
            if not _is_number(kind):
                raise InputError(
                    f"{where}: column '{name}' is {kind}; expected a list of numbers, or numeric columns as a,b,c"
                )
        return (len(kinds),)

    def encoded(self, schema: pa.Schema) -> bool:
        """Whether the features of a `schema` that was checked are encoded images."""
        return len(self.features) == 1 and _is_encoded(schema.field(self.label).type)

    def dtype(self, schema: pa.Schema) -> np.dtype:
        """The dtype in which `extract` returns the features of a `schema` that was checked."""
        kinds = [schema.field(name).type for name in self.features]
        return np.result_type(*(_numpy_dtype(kind) for kind in kinds))

    def extract(
        self, table: pa.Table | pa.RecordBatch, where: str, first: int, *, unit: bool, pixels: int | None = None
    ) -> Block:
        """Rows (n, d) and weights of `table`, whose first row is row number `first` of `where`.

        Encoded images are decoded, if they have no more than so many `pixels` together.

        Raises
        ------
        InputError
            On nulls, ragged vectors, NaN, infinities, overflowing values, damaged images, bad weights and, with `unit`,
            zero vectors; the message names the place, the row and the column.
        """
        place = _Place(where, first, self.label)
        if self.encoded(table.schema):
            shape = image_shape(self.shape, f"{where}: column '{self.label}'")
            rows = decode(_encoded(table[self.label], place), shape, place.row, pixels)
        elif len(self.features) == 1 and _list_of(table.schema.field(self.label).type) is not None:
            rows = _matrix(_one(table[self.label]), place, self.shape)
        else:
            names = [_scalars(_one(table[name]), _Place(where, first, name)) for name in self.features]
            rows = np.stack(names, axis=1)
        check_rows(rows, place.row, unit=unit)
        weight = None
        if self.weight is not None:
            weight = _scalars(_one(table[self.weight]), _Place(where, first, self.weight)).astype(np.float64)
            check_weight(weight, _Place(where, first, self.weight).row)
        return Block(rows, weight)


def check_column(schema: pa.Schema, name: str, where: str, role: str = "column") -> None:
    """Refuse a schema that has no column of a name, or several."""
    number = schema.names.count(name)
    if number != 1:
        told = f"no {role} '{name}'" if number == 0 else f"{number} columns are called '{name}'"
        raise InputError(f"{where}: {told}; there are: {', '.join(schema.names)}")


@dataclass(frozen=True)
class Block:
    """Consecutive rows (n, d) in their stored dtype, and weights (n,) of float64 or None."""

    rows: NDArray
    weight: NDArray[np.float64] | None


def decode_blocks(table: pa.Table, columns: Columns) -> pa.Table:
    """A block of a data set with its encoded images decoded, if it has any; for ``Dataset.map_batches``.

    Their column is then of ``fixed_size_list<uint8>[C·H·W]``. All other columns are kept.
    """
    where = "a block of the data set"
    columns.check(table.schema, where)
    if not columns.encoded(table.schema):
        return table
    rows = columns.extract(table, where, 0, unit=False).rows
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    return table.set_column(table.schema.get_field_index(columns.label), columns.label, pixels)


@dataclass(frozen=True)
class _Place:
    where: str
    first: int
    column: str

    def row(self, index: int) -> str:
        return f"{self.where}: row {self.first + index}, column '{self.column}'"


def check_rows(rows: NDArray, place: Callable[[int], str], *, unit: bool) -> None:
    """Refuse NaN, infinities, values whose squares overflow float32 and, with `unit`, vectors without a direction.

    `place(i)` names row i in the message.
    """
    if rows.dtype.kind == "f" and rows.size and not _is_bounded(rows):
        finite = np.isfinite(rows)
        if not finite.all():
            bad = int((~finite).any(axis=1).argmax())
            kind = "NaN" if np.isnan(rows[bad]).any() else "an infinite value"
            raise InputError(f"{place(bad)}: {kind}; remove or impute such rows first")
        bad = int(np.flatnonzero((np.abs(rows) > LARGEST).any(axis=1))[0])
        raise InputError(f"{place(bad)}: a value beyond ±{LARGEST:g}, whose square overflows; rescale the column")
    if unit and len(rows):
        zero = ~rows.any(axis=1)
        if zero.any():
            raise InputError(f"{place(int(zero.argmax()))}: a zero vector has no direction (metric cosine)")
        if rows.dtype.kind == "f" and rows.dtype.itemsize > 2:
            short = np.maximum(rows.max(axis=1), -rows.min(axis=1)) < 1e4 * np.sqrt(np.finfo(rows.dtype).tiny)
            if short.any():
                raise InputError(f"{place(int(short.argmax()))}: a vector so short that its square underflows; rescale")


def _is_bounded(rows: NDArray) -> bool:
    """Whether no value is NaN, infinite or too large, in two reductions at most, without a copy in another dtype."""
    if rows.dtype == np.float16:  # by the exponent bits: NumPy converts every value
        return int((rows.view(np.uint16) & 0x7FFF).max()) < 0x7C00
    return bool(max(-rows.min(), rows.max()) <= LARGEST)  # a NaN among them makes this false


def check_weight(weight: NDArray[np.float64], place: Callable[[int], str]) -> None:
    bad = ~((weight >= 0) & (weight <= LARGEST))
    if bad.any():
        index = int(bad.argmax())
        raise InputError(f"{place(index)}: weight {weight[index]:g}; weights are between 0 and {LARGEST:g}")


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # combine_chunks of an empty or extension column
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _matrix(column: pa.Array, place: _Place, shape: tuple[int, ...] | None) -> NDArray:
    _refuse_null(column, place)
    values, sizes = column, list[int]()
    while _list_of(values.type) is not None:
        each = prod(sizes)  # lists of `values` in a row
        width = _width(values.type)
        if width is None:
            lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
            width = int(lengths[0]) if len(lengths) else 0
            if (lengths != width).any():
                bad = int((lengths != width).argmax())
                raise InputError(f"{place.row(bad // each)}: {lengths[bad]} numbers where the rows before have {width}")
        if width == 0 and len(values):
            raise InputError(f"{place.row(0)}: an empty vector")
        sizes.append(width)
        values = values.flatten()
        if values.null_count:
            bad = int(values.is_null().to_numpy(zero_copy_only=False).argmax()) // prod(sizes)
            raise InputError(f"{place.row(bad)}: a null inside the vector")
    if shape is not None and len(column) and not _fits(sizes, shape):
        raise InputError(f"{place.row(0)}: {_misfit(sizes, shape)}")
    dim = prod(sizes if shape is None else shape)
    return values.to_numpy(zero_copy_only=False).reshape(len(column), dim)


def _encoded(column: pa.Array | pa.ChunkedArray, place: _Place) -> list[bytes]:
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    _refuse_null(column, place)
    return column.to_pylist()


def _scalars(column: pa.Array, place: _Place) -> NDArray:
    _refuse_null(column, place)
    kind = pa.from_numpy_dtype(_numpy_dtype(column.type))
    return column.cast(kind, safe=False).to_numpy(zero_copy_only=False)  # integers beyond 2^53 are rounded


def _refuse_null(column: pa.Array | pa.ChunkedArray, place: _Place) -> None:
    if column.null_count:
        bad = int(np.argmax(column.is_null()))
        raise InputError(f"{place.row(bad)}: null; remove or impute such rows first")


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _list_of(kind: pa.DataType) -> pa.DataType | None:
    kind = _storage(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return kind.value_type if is_list else None


def _width(kind: pa.DataType) -> int | None:
    kind = _storage(kind)
    return kind.list_size if pa.types.is_fixed_size_list(kind) else None


def _nested(kind: pa.DataType) -> tuple[pa.DataType, Sequence[int] | None]:
    """What a list-like type holds in the end, and the length of each of its axes, or None where it leaves one open."""
    sizes: list[int | None] = []
    inner = kind
    while (held := _list_of(inner)) is not None:
        sizes.append(_width(inner))
        inner = held
    known = [size for size in sizes if size is not None]
    return inner, getattr(kind, "shape", known if len(known) == len(sizes) else None)  # tensors tell their shape


def _fits(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether axes of these lengths hold rows of `shape`, all in one axis or each in its own, but for those of 1."""
    axes = [size for size in sizes if size != 1]
    return axes == [size for size in shape if size != 1] or (len(axes) <= 1 and prod(axes) == prod(shape))


def _misfit(sizes: Sequence[int], shape: Sequence[int]) -> str:
    return (
        f"{'x'.join(map(str, sizes))} numbers in a row where the shape {'x'.join(map(str, shape))}, channels first, "
        f"has {prod(shape)}"
    )


def _is_encoded(kind: pa.DataType) -> bool:
    """Whether bytes, or a struct with a field of that name that holds bytes, as Hugging Face's data sets have it."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _numpy_dtype(kind: pa.DataType) -> np.dtype:
    if _is_encoded(kind):
        return np.dtype(np.uint8)
    if _list_of(kind) is not None:
        return np.dtype(_nested(kind)[0].to_pandas_dtype())
    return np.dtype(np.float32 if kind in (pa.float16(), pa.float32()) else np.float64)


def _is_feature(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or kind in (pa.int8(), pa.uint8())


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
